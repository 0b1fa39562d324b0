"""Names the GGUF files in models/, and remembers in models/sources.json what each one was made from.

A file has its model's name. If that name belongs to a file that was made from something else, the new one also gets
eight digits of its source's fingerprint: no file takes the place of another model's, to which an archive may point.
A file that has changed since it was made, or that a person put there, counts as made from something else.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from package_llama.console import report
from package_llama.errors import PackagingError
from package_llama.given_gguf import check_given
from package_llama.paths import MODELS

RECORDS = "sources.json"
# Of each file of a source: 13.5 GB are not read only to name them. Each matrix of Llama 2 7B (33 MB and more, in files
# of 10 GB at most) has three samples, so a model with one changed matrix has another name.
N_SAMPLES, SAMPLE_BYTES = 1024, 4096
MAX_NAME_BYTES = 150  # file systems allow 255, with the fingerprint, the type and `.gguf`


@dataclass(frozen=True, slots=True)
class Source:
    """What a GGUF file was made from. path: as given, absolute. llama_cpp: the version that made the file.

    made: the fingerprint of the file itself; "" if an earlier version of this program made it.
    """

    path: str
    fingerprint: str
    llama_cpp: str
    made: str = ""


def fingerprint(paths: Iterable[Path]) -> str:
    """Depends on the names and sizes of the files and on samples of their contents, not on the folder they are in."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda each: each.name):
        n_bytes = path.stat().st_size
        digest.update(json.dumps([path.name, n_bytes]).encode())
        with path.open("rb") as file:
            for number in range(N_SAMPLES):
                file.seek(max(0, n_bytes - SAMPLE_BYTES) * number // (N_SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def target_for(name: str, quantization: str, source: Source, *, replaces: bool) -> Path:
    """The path of the file to make. replaces: take the plain name, whatever is there.

    Raises PackagingError if another version of llama.cpp has made this file already, unless `replaces`.
    """
    records, stem = _records(), _stem(name)
    plain = MODELS / f"{stem}-{quantization}.gguf"
    if replaces or not (plain.exists() or plain.is_symlink()):
        return plain
    target, earlier = plain, records.get(plain.name)
    if earlier and not _is_as_made(plain, earlier):
        earlier = None
    if earlier is None or earlier.fingerprint != source.fingerprint:
        target = MODELS / f"{stem}-{source.fingerprint[:8]}-{quantization}.gguf"
        report(
            f"{plain} stays as it is: it was made from {earlier.path if earlier else 'an unknown source'}. "
            f"This model becomes {target.name} (--replace makes it take that place)."
        )
        earlier = records.get(target.name)
    if earlier and target.exists() and earlier.llama_cpp != source.llama_cpp:
        raise PackagingError(
            f"{target} was made by llama.cpp {earlier.llama_cpp}, and {source.llama_cpp} is installed: give --replace "
            "to make it again, or 'false' to pack it as it is."
        )
    return target


def find(name: str, quantization: str, path: str, content: str | None) -> Path | None:
    """The file of an earlier run: with this content of the source, else from this path, else of this name.

    content: the source's fingerprint; None if the source is gone. Says so if the content may be another one.
    """
    records = _records()
    made = {
        MODELS / file_name: source
        for file_name, source in records.items()
        if file_name.endswith(f"-{quantization}.gguf") and _is_as_made(MODELS / file_name, source)
    }
    if same := [gguf for gguf, source in made.items() if source.fingerprint == content]:
        return same[-1]
    if same := [gguf for gguf, source in made.items() if source.path == path]:
        if content:
            report(f"{same[-1]} was made before {path} was changed: run this without 'false' to convert it again.")
        return same[-1]
    plain = MODELS / f"{_stem(name)}-{quantization}.gguf"
    if plain.is_file() and plain.name not in records:  # by an earlier version of this program
        check_given(plain)
        report(f"What {plain} was made from is not recorded; it has the right name.")
        return plain
    return None


def remember(gguf: Path, source: Source) -> None:
    """Call it with the lock of models/."""
    records = _records()
    records.pop(gguf.name, None)  # the newest comes last
    records[gguf.name] = replace(source, made=fingerprint([gguf]))
    unfinished = MODELS / f"{RECORDS}.unfinished"
    text = json.dumps({name: asdict(each) for name, each in records.items()}, indent=2)
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(MODELS / RECORDS)


def _is_as_made(gguf: Path, source: Source) -> bool:
    return gguf.is_file() and source.made in ("", fingerprint([gguf]))


def _records() -> dict[str, Source]:
    path = MODELS / RECORDS
    if not path.is_file():
        return {}
    try:
        return {name: Source(**fields) for name, fields in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PackagingError(f"{path} is damaged ({error}): delete it; the GGUF files stay.") from error


def _stem(name: str) -> str:
    """A name for files: without control characters, in UTF-8, not too long."""
    text = re.sub(r"[\x00-\x1f\x7f]", "_", name).encode("utf-8", "replace")
    return text[:MAX_NAME_BYTES].decode(errors="ignore")
