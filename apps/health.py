"""The health check of a container: exits with 0 if every URL answers, and none with a server error.

    python -m apps.health URL …

An app that asks for its token answers with 403, so it is healthy.
"""

import sys
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

TIMEOUT_SECONDS = 5


def problem(url: str) -> str:
    """Why the program at `url` is not healthy; "" if it is."""
    try:
        build_opener(ProxyHandler({})).open(url, timeout=TIMEOUT_SECONDS).close()  # no proxy reaches this container
    except HTTPError as error:
        error.close()
        return f"{url} answers with {error.code}." if error.code >= 500 else ""
    except (OSError, ValueError) as error:
        return f"{url} does not answer ({error})."
    return ""


def main() -> int:
    problems = [sentence for url in sys.argv[1:] if (sentence := problem(url))]
    print("\n".join(problems), end="")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
