"""The archives in a model store: which are listed, twins, contents, and packaging the demo model."""

from pathlib import Path

import pytest

from tests.support.serving import make_home, write_echo_archives
from torchserve_client.archives import (
    archive_for,
    dynamic_archive_name,
    list_archives,
    package_demo,
    read_archive,
)
from torchserve_client.config import PROJECT, TorchServeError


def test_twins_are_not_offered_but_lone_dynamic_archives_are(tmp_path: Path) -> None:
    for name in ("llamacpp", "llamacpp-dynamic", "other-dynamic", "third"):
        (tmp_path / f"{name}.tar.gz").touch()

    assert list_archives(tmp_path) == ["llamacpp.tar.gz", "other-dynamic.tar.gz", "third.tar.gz"]


def test_number_of_workers_chooses_the_twin(tmp_path: Path) -> None:
    (tmp_path / "mine-dynamic.tar.gz").touch()

    assert [archive_for(1), archive_for(2)] == ["llamacpp.tar.gz", "llamacpp-dynamic.tar.gz"]
    assert [archive_for(n, "mine.tar.gz", tmp_path) for n in (1, 2)] == ["mine.tar.gz", "mine-dynamic.tar.gz"]
    assert archive_for(2, "lonely.tar.gz", tmp_path) == "lonely.tar.gz"


def test_archive_says_how_it_batches_and_where_its_model_is(demo_store: Path) -> None:
    archives = [read_archive(demo_store / name) for name in ("llamacpp.tar.gz", "llamacpp-dynamic.tar.gz")]

    assert [archive.is_continuous for archive in archives] == [True, False]
    assert all(archive.model_path and archive.model_path.suffix == ".gguf" for archive in archives)
    assert archives[0].model_bytes and archives[0].model_bytes > 10_000_000


def test_archive_without_a_model_path_has_no_size(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    write_echo_archives(config)

    archive = read_archive(config.model_store / "llamacpp.tar.gz")

    assert (archive.is_continuous, archive.model_path, archive.model_bytes) == (True, None, None)
    assert archive.version == "1.0"


def test_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "llamacpp.tar.gz").write_text("not an archive")

    with pytest.raises(TorchServeError, match=r"llamacpp\.tar\.gz is not a usable archive: make it again"):
        read_archive(tmp_path / "llamacpp.tar.gz")


def test_demo_model_is_packaged_into_the_servers_own_store(demo_store: Path, tmp_path: Path) -> None:
    config = make_home(tmp_path)
    lines: list[str] = []

    sentence = package_demo(config, lines.append)

    assert "Press Register Llama2" in sentence
    assert list_archives(config.model_store) == ["llamacpp.tar.gz"]
    assert (config.model_store / dynamic_archive_name("llamacpp.tar.gz")).is_file()
    assert any(line.startswith("Packed ") for line in lines)


def test_failed_packaging_gives_the_scripts_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "bin" / "python"  # an environment without the packages
    python.parent.mkdir()
    python.write_text(
        "#!/bin/sh\n[ \"$1\" = -c ] && exit 0\necho 'package_llama.sh: yaml cannot be imported.' >&2; exit 1\n"
    )
    python.chmod(0o755)
    (tmp_path / "pyvenv.cfg").touch()
    monkeypatch.setenv("PATH", f"{python.parent}:/usr/bin:/bin")
    assert (PROJECT / "package_llama.sh").is_file()

    with pytest.raises(TorchServeError, match=r"could not be packaged: package_llama\.sh: yaml cannot be imported"):
        package_demo(make_home(tmp_path / "home"), lambda line: None)
