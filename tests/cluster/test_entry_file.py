"""The file with a cluster's address and key, and the command that prints the key."""

import json
import stat
from pathlib import Path

import pytest

from cluster import key
from cluster.entry_file import ClusterEntry, entry_file, read_entry, remove_entry, write_entry
from torchserve_client.config import TorchServeError

ENTRY = ClusterEntry("http://127.0.0.1:8000", "the-key")


def write_by_hand(home: Path, text: str, mode: int = 0o600) -> None:
    file = entry_file(home)
    file.parent.mkdir()
    file.write_text(text)
    file.chmod(mode)


def test_a_written_entry_is_read_again_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    assert read_entry(tmp_path) is None
    write_entry(tmp_path, ClusterEntry("https://elsewhere", "before"))
    write_entry(tmp_path, ENTRY)

    assert read_entry(tmp_path) == ENTRY
    folder = tmp_path / ".cluster"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "entry.json")] == [0o700, 0o600]
    assert list(folder.iterdir()) == [folder / "entry.json"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "truncated"),
        ("[]", "Expected `object`"),
        ('{"url": "http://127.0.0.1:8000"}', "`key`"),
        ('{"url": 8000, "key": "a"}', "Expected `str`"),
        ('{"url": "127.0.0.1:8000", "key": "a"}', "looks like http://127.0.0.1:8000"),
        ('{"url": "http://127.0.0.1:8000/v1", "key": "a"}', "looks like http://127.0.0.1:8000"),
        ('{"url": "http://me:pw@host", "key": "a"}', "looks like http://127.0.0.1:8000"),
        ('{"url": "file:///etc/passwd", "key": "a"}', "looks like http://127.0.0.1:8000"),
        ('{"url": "http://host", "key": ""}', "key is empty"),
        ('{"url": "http://host", "key": "a\\nX: b"}', "a character that no key has"),
    ],
)
def test_a_damaged_file_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    write_by_hand(tmp_path, text)
    with pytest.raises(TorchServeError, match=r"entry\.json cannot be read") as raised:
        read_entry(tmp_path)
    assert problem in str(raised.value)
    assert str(raised.value).endswith("correct it, or start the cluster again.")


def test_a_key_that_other_accounts_may_read_is_refused(tmp_path: Path) -> None:
    write_by_hand(tmp_path, json.dumps({"url": ENTRY.url, "key": ENTRY.key}), mode=0o644)
    with pytest.raises(TorchServeError, match=r"run `chmod 600 .*/\.cluster/entry\.json`"):
        read_entry(tmp_path)
    entry_file(tmp_path).chmod(0o600)
    assert read_entry(tmp_path) == ENTRY


def test_a_cluster_removes_only_its_own_entry(tmp_path: Path) -> None:
    remove_entry(tmp_path, ENTRY)
    write_entry(tmp_path, ClusterEntry("http://127.0.0.1:8001", "another"))
    remove_entry(tmp_path, ENTRY)
    assert entry_file(tmp_path).exists()
    write_entry(tmp_path, ENTRY)
    remove_entry(tmp_path, ENTRY)
    assert not entry_file(tmp_path).exists()


def test_the_key_is_in_no_printed_entry() -> None:
    assert ENTRY.key not in f"{ENTRY} {ENTRY!r}"


def test_the_command_prints_the_key_or_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TS_CONFIG_FILE", str(tmp_path / "config.properties"))
    assert key.main([]) == 1
    out, err = capsys.readouterr()
    assert (out, err.startswith("No cluster runs: ")) == ("", True)

    write_entry(tmp_path, ENTRY)
    assert key.main([]) == 0
    assert capsys.readouterr().out == "the-key\n"
