"""The work of package_llama.sh, whose header explains the arguments: weights -> quantized GGUF -> archives.

Whatever is unfinished lies in a folder `.package-unfinished` beside its final place, and is moved there when done: a
failure leaves nothing half-made behind, and what an earlier run made stays as it was.
"""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from package_llama.archives import pack, require_files
from package_llama.arguments import Job, parse_arguments
from package_llama.console import say
from package_llama.errors import PackagingError
from package_llama.gguf_source import make_gguf

NEEDED = ("yaml", "model_archiver", "llama_cpp")


def package(job: Job) -> Path:
    """Makes the GGUF of `job`, unless it is there already, and both archives; returns the GGUF's absolute path."""
    require_files()
    gguf = make_gguf(job, check_tools())
    pack(gguf, job.version)
    return gguf


def check_tools() -> str:
    """The version of llama_cpp, once everything needed is there."""
    modules = {}
    for name in NEEDED:
        try:
            modules[name] = importlib.import_module(name)
        except Exception as error:
            raise PackagingError(
                f"{name} cannot be imported by {sys.executable} ({error}): activate the right environment, or run "
                f"'{sys.executable} -m pip install -r requirements.txt'."
            ) from error
    return str(modules["llama_cpp"].__version__)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    """A signal ends the script as an exception does: what is unfinished is removed on the way out."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        gguf = package(parse_arguments(sys.argv[1:]))
    except PackagingError as error:
        sys.exit(f"package_llama.sh: {error}")
    except OSError as error:
        sys.exit(f"package_llama.sh: {error.filename or 'Writing'}: {error.strerror}: correct that, then run it again.")
    say(f"LLAMA2_Q4_MODEL={gguf}")
    say("Next: streamlit run torchserve_server_app.py, then 'Start Server' and 'Register Llama2'.")
    if "PACKAGE_LLAMA_SOURCED" in os.environ:
        os.write(3, os.fsencode(f"export LLAMA2_Q4_MODEL={shlex.quote(str(gguf))}\n"))


if __name__ == "__main__":
    main()
