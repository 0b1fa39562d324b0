"""The names of GGUF files in models/, and the record of what each was made from."""

import json
import shutil
from pathlib import Path

import pytest

from package_llama import made_files
from package_llama.errors import PackagingError
from package_llama.made_files import Source, find, fingerprint, remember, target_for
from tests.support.tiny_llama import write_tiny_llama

ONE = Source("/run-a/final", "1111111122222222", "0.3.36")
TWO = Source("/run-b/final", "3333333344444444", "0.3.36")


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(made_files, "MODELS", tmp_path / "models")
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def make(source: Source, *, replaces: bool = False) -> str:
    gguf = target_for("final", "Q8_0", source, replaces=replaces)
    gguf.write_text(source.path)
    remember(gguf, source)
    return gguf.name


def test_a_second_model_of_the_same_name_gets_digits_of_its_source_and_keeps_them(models: Path) -> None:
    names = [make(source) for source in (ONE, TWO, ONE, TWO)]
    assert names == ["final-Q8_0.gguf", "final-33333333-Q8_0.gguf"] * 2
    assert (models / "final-Q8_0.gguf").read_text() == "/run-a/final"


def test_a_file_of_unknown_source_stays(models: Path) -> None:
    (models / "final-Q8_0.gguf").write_text("mine")
    assert make(ONE) == "final-11111111-Q8_0.gguf"
    assert find("final", "Q8_0", ONE.path, ONE.fingerprint) == models / "final-11111111-Q8_0.gguf"


def test_replace_takes_the_plain_name() -> None:
    assert [make(ONE), make(TWO, replaces=True), make(ONE)] == [*["final-Q8_0.gguf"] * 2, "final-11111111-Q8_0.gguf"]


def test_another_llama_cpp_replaces_a_file_only_with_replace() -> None:
    make(ONE)
    newer = Source(ONE.path, ONE.fingerprint, "0.4.0")
    with pytest.raises(PackagingError, match=r"was made by llama.cpp 0.3.36, and 0.4.0 is installed: give --replace"):
        make(newer)
    assert make(newer, replaces=True) == "final-Q8_0.gguf"


@pytest.mark.parametrize(
    ("path", "content", "found"),
    [
        ("/moved/final", TWO.fingerprint, "final-33333333-Q8_0.gguf"),
        ("/run-a/final", None, "final-Q8_0.gguf"),
        ("/run-a/final", "of another training", "final-Q8_0.gguf"),
        ("/elsewhere/final", None, None),
    ],
    ids=["moved", "deleted", "changed", "unknown"],
)
def test_an_earlier_file_is_found_by_content_then_by_path(
    models: Path, path: str, content: str | None, found: str | None
) -> None:
    make(ONE)
    make(TWO)
    assert find("final", "Q8_0", path, content) == (models / found if found else None)
    assert find("final", "Q4_0", path, content) is None


def test_a_file_of_an_earlier_version_is_found_by_its_name(models: Path) -> None:
    made = write_tiny_llama(models / "final-Q8_0.gguf")
    assert find("final", "Q8_0", "/run-a/final", None) == made
    made.write_text("<html>")
    with pytest.raises(PackagingError, match="is a web page"):
        find("final", "Q8_0", "/run-a/final", None)


def test_a_made_file_that_was_changed_is_neither_packed_nor_overwritten(models: Path) -> None:
    source = Source("/run-a/final", "0123456789abcdef", "0.3.36")
    made = target_for("final", "Q8_0", source, replaces=False)
    made.write_text("made")
    remember(made, source)
    assert find("final", "Q8_0", source.path, source.fingerprint) == made
    assert target_for("final", "Q8_0", source, replaces=False) == made

    made.write_text("a person's own")

    assert find("final", "Q8_0", source.path, source.fingerprint) is None
    assert target_for("final", "Q8_0", source, replaces=False) == models / "final-01234567-Q8_0.gguf"


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"path": 1}}', '{"a": 1}'])
def test_a_damaged_record_is_named(models: Path, text: str) -> None:
    (models / "sources.json").write_text(text)
    with pytest.raises(PackagingError, match=r"sources\.json is damaged .*: delete it"):
        make(ONE)


def test_a_fingerprint_depends_on_names_and_contents_and_not_on_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({}))
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    moved = shutil.copytree(folder, tmp_path / "b")
    prints = [fingerprint(each.iterdir()) for each in (folder, moved)]
    with (moved / "model.safetensors").open("rb+") as file:
        file.seek(1_500_000)
        file.write(b"x" * 100_000)
    prints.append(fingerprint(moved.iterdir()))
    (folder / "config.json").rename(folder / "generation_config.json")
    prints.append(fingerprint(folder.iterdir()))
    assert prints[0] == prints[1] and len(set(prints)) == 3


@pytest.mark.parametrize("name", ["n" * 300, "ü" * 200, "two\nlines", "\udcff bytes"])
def test_any_name_of_a_folder_becomes_a_name_of_a_file(models: Path, name: str) -> None:
    gguf = target_for(name, "Q4_K_M", ONE, replaces=False)
    gguf.touch()
    assert gguf.name.isprintable() and gguf.name.endswith("-Q4_K_M.gguf")
