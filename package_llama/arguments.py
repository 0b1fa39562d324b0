"""What package_llama.sh is asked for. Its header explains the arguments and the default types."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import NoReturn

from package_llama.errors import PackagingError
from package_llama.weight_types import QUANTIZATIONS

DEFAULT_VERSION = "1.0"


@dataclass(frozen=True, slots=True)
class Job:
    """What to package: `--demo`, or the path of a GGUF file or snapshot folder. `quantization` is None if not given."""

    model: str
    quantization: str | None
    version: str
    is_repacking: bool
    keeps_f16: bool


def parse_arguments(arguments: list[str]) -> Job:
    """Raises PackagingError for arguments that package_llama.sh does not take."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--quantization", type=str.upper)
    parser.add_argument("--version", default=DEFAULT_VERSION)
    parser.add_argument("--keep-f16", action="store_true")
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
    return Job(model, given.quantization, given.version, rest == ["false"], given.keep_f16)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise PackagingError(f"The arguments are not understood, {message} (see --help).")
