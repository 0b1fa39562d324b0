"""The file with the token: for its owner only, whatever was there before."""

import os
import stat
from pathlib import Path

import pytest

from apps.shared.token_file import remove_token_file, token_file, write_token_file

ADDRESS = "http://127.0.0.1:8501/?token=abc"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_file_is_for_its_owner_with_any_umask(tmp_path: Path, umask: int) -> None:
    file = token_file(tmp_path, 8501)
    (tmp_path / "access_tokens").mkdir()
    before = os.umask(umask)
    try:
        assert write_token_file(file, ADDRESS) == ""
    finally:
        os.umask(before)
    assert (mode_of(file), mode_of(file.parent)) == (0o600, 0o700)
    assert file.read_text() == f"{ADDRESS}\n"
    assert os.listdir(file.parent) == [file.name]


def test_older_file_or_link_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    file, other = token_file(tmp_path, 8501), tmp_path / "other"
    file.parent.mkdir()
    other.write_text("untouched")
    file.symlink_to(other)
    write_token_file(file, ADDRESS)
    assert not file.is_symlink()
    assert other.read_text() == "untouched"
    assert mode_of(file) == 0o600


def test_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    file = token_file(tmp_path / "nowhere", 8501)
    assert "was not written into a file" in write_token_file(file, ADDRESS)
    remove_token_file(file, ADDRESS)


def test_an_app_removes_only_its_own_file(tmp_path: Path) -> None:
    file = token_file(tmp_path, 8501)
    write_token_file(file, ADDRESS)
    remove_token_file(file, "http://127.0.0.1:8501/?token=another")
    assert file.exists()
    remove_token_file(file, ADDRESS)
    assert not file.exists()
