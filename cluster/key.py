"""`.venv/bin/python -m cluster.key` prints the key of the cluster. Imports no ray."""

import argparse
import sys

from cluster.entry_file import entry_file, read_entry
from torchserve_client.config import TorchServeError, config_file


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.key",
        description="Prints the key of the cluster, which a client sends as Authorization: Bearer KEY.",
    )
    parser.parse_args(arguments)
    home = config_file().parent
    try:
        entry = read_entry(home)
        if entry is None:
            raise TorchServeError(f"No cluster runs: {entry_file(home)} is missing. Start one with `make cluster`.")
    except TorchServeError as error:
        print(error, file=sys.stderr)
        return 1
    print(entry.key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
