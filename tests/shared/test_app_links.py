"""The address that one app publishes for the other one. The listener is a plain socket."""

import socket
import stat
from pathlib import Path

import pytest

from apps.shared.app_links import published_address, running_address


def test_address_is_known_while_its_app_runs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with published_address(tmp_path, "chat", address):
            assert running_address(tmp_path, "chat") == address
            assert running_address(tmp_path, "server") is None
            (file,) = (tmp_path / "access_tokens").iterdir()
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert running_address(tmp_path, "chat") is None


def test_address_of_a_killed_app_is_not_offered(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with published_address(tmp_path, "chat", address):
        assert running_address(tmp_path, "chat") is None


@pytest.mark.parametrize("text", ["", "javascript:alert(1)", "http://[", "http://127.0.0.1:99999", "ftp://127.0.0.1:1"])
def test_what_is_no_address_is_not_offered(tmp_path: Path, text: str) -> None:
    with published_address(tmp_path, "chat", text):
        assert running_address(tmp_path, "chat") is None


def test_later_app_of_the_same_kind_stays_known_when_the_earlier_one_ends(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with published_address(tmp_path, "chat", "http://127.0.0.1:1"):
            later = published_address(tmp_path, "chat", address)
            later.__enter__()
        assert running_address(tmp_path, "chat") == address
        later.__exit__(None, None, None)


def test_folder_that_cannot_be_written_only_means_no_link(tmp_path: Path) -> None:
    (tmp_path / "access_tokens").write_text("a file")
    with published_address(tmp_path, "chat", "http://127.0.0.1:1"):
        assert running_address(tmp_path, "chat") is None
