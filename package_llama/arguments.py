"""Parses the arguments of package_llama.sh. Does not open the files that they name."""

import argparse
import re
from dataclasses import dataclass
from typing import NoReturn

from package_llama.errors import PackagingError
from package_llama.weight_types import QUANTIZATIONS

DEFAULT_VERSION = "1.0"
DESCRIPTION = "Packages a Llama 2 model for TorchServe. The header of package_llama.sh explains the arguments."


@dataclass(frozen=True, slots=True)
class Options:
    """What to package.

    model: `--demo`, a Hugging Face id, or the path of a GGUF file or of a snapshot folder. quantization: None if not
    given. is_repacking: use the GGUF file of an earlier run. replaces: overwrite a GGUF file of the same name.
    """

    model: str
    quantization: str | None
    version: str
    is_repacking: bool
    replaces: bool = False


def parse_arguments(arguments: list[str]) -> Options:
    """Raises PackagingError for wrong arguments."""
    parser = _Parser(prog="package_llama.sh", allow_abbrev=False, description=DESCRIPTION)
    parser.add_argument("words", nargs="*", metavar="MODEL [false]", help="a snapshot folder, a GGUF file or an id")
    parser.add_argument("--demo", action="store_true", help="the demo model instead of MODEL")
    parser.add_argument("--quantization", type=str.upper, metavar="TYPE", help=", ".join(QUANTIZATIONS))
    parser.add_argument("--version", default=DEFAULT_VERSION, metavar="NUMBER", help="%(default)s by default")
    parser.add_argument("--replace", action="store_true", help="overwrite a GGUF file of this name")
    given = parser.parse_intermixed_args(arguments)
    model, *rest = (["--demo"] if given.demo else []) + given.words or [""]
    if not model:
        raise PackagingError("No model is named: give a snapshot folder, a GGUF file or --demo (see --help).")
    if rest not in ([], ["true"], ["false"]):
        raise PackagingError(f"After the model comes 'false' or nothing, not '{' '.join(rest)}' (see --help).")
    if given.quantization not in (None, *QUANTIZATIONS):
        known = ", ".join(QUANTIZATIONS)
        raise PackagingError(f"--quantization {given.quantization} is unknown: choose one of {known}.")
    if not re.fullmatch(r"\d+(\.\d+)*", given.version, re.ASCII):
        raise PackagingError(f"--version {given.version} is no version: give numbers and dots, such as 1.1.")
    return Options(model, given.quantization, given.version, rest == ["false"], given.replace)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise PackagingError(f"The arguments are wrong, {message} (see --help).")
