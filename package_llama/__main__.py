"""Makes the GGUF file and the archives. package_llama.sh runs this; its header explains the arguments.

Every step works in a folder `.package-unfinished` beside the final path and moves its result at the end. So a step
that fails leaves no partial file, and files of earlier runs stay as they are.
"""

import importlib
import io
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from package_llama.arguments import DEFAULT_VERSION, Options, parse_arguments
from package_llama.errors import PackagingError
from package_llama.paths import CACHE

REQUIRED_MODULES = ("yaml", "model_archiver", "gguf", "filelock", "tqdm", "llama_cpp")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def package(options: Options) -> Path:
    """Makes the GGUF file, if it does not exist yet, and both archives. Returns the GGUF file's absolute path."""
    version = _llama_cpp_version()
    from package_llama.archives import pack  # these imports need the required modules
    from package_llama.gguf_source import make_gguf
    from package_llama.hub import with_path

    gguf = make_gguf(with_path(options), version)
    if "MAKELEVEL" not in os.environ and options.version == DEFAULT_VERSION:
        # For `make chat` without MODEL; make itself writes it before it starts this program.
        CACHE.mkdir(exist_ok=True)
        packed = "--demo" if options.model == "--demo" else str(gguf)
        (CACHE / "model").write_text(f"{packed}\n", encoding="utf-8", errors="surrogateescape")
    pack(gguf, options.version)
    return gguf


def _llama_cpp_version() -> str:
    """Raises PackagingError if a required module cannot be imported."""
    for name in REQUIRED_MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # llama_cpp has other errors than ImportError for a library that cannot be loaded
            raise PackagingError(
                f"{name} cannot be imported by {sys.executable} ({error}): activate the right environment, or run "
                f"'{sys.executable} -m pip install -r requirements.txt'."
            ) from error
    return str(sys.modules["llama_cpp"].__version__)


def _exit_on_signal(number: int, _: FrameType | None) -> NoReturn:
    """Raises SystemExit, so that the staging folder is removed on the way out. Ignores further signals."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    for number in SIGNALS:
        signal.signal(number, _exit_on_signal)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(errors="surrogateescape")  # a file's name may have bytes that are no text
    try:
        gguf = package(parse_arguments(sys.argv[1:]))
    except PackagingError as error:
        sys.exit(f"package_llama.sh: {error}")
    except OSError as error:
        sys.exit(f"package_llama.sh: {_reason(error)}: correct that, then run it again.")
    print(f"LLAMA2_Q4_MODEL={gguf}")
    print("Next: streamlit run torchserve_server_app.py, then 'Start Server' and 'Register Llama2'.", flush=True)
    if "PACKAGE_LLAMA_SOURCED" in os.environ:
        os.write(3, os.fsencode(f"export LLAMA2_Q4_MODEL={shlex.quote(str(gguf))}\n"))


def _reason(error: OSError) -> str:
    """shutil's errors have a list in place of a file and a reason."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


if __name__ == "__main__":
    main()
