"""Measurements for docs/measurements.md: each module is a command, such as `python -m benchmarks.serving --help`."""

import argparse


def argument_parser(name: str, docstring: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.<name>`. Its help begins and ends with the module's docstring."""
    first, _, rest = (docstring or "").partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
