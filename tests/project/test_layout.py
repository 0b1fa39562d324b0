"""What git tracks: a root that is easy to scan, and no large file."""

import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
MAX_BYTES = 500_000  # the largest picture has 170 kB; a model has far more


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if (PROJECT / name).is_file()]


def test_the_root_has_three_python_files_and_at_most_26_visible_entries() -> None:
    entries = {name.split("/")[0] for name in tracked_files() if not name.startswith(".")}
    python_files = {name for name in entries if name.endswith(".py")}
    assert python_files == {"llama_cpp_handler.py", "torchserve_server_app.py", "client_app.py"}
    assert len(entries) <= 26


def test_no_tracked_file_is_large() -> None:
    assert [name for name in tracked_files() if (PROJECT / name).stat().st_size > MAX_BYTES] == []


def test_no_tracked_file_is_a_secret_or_a_persons_own() -> None:
    folders = (".cache/", ".cluster/", "access_tokens/", "experiment_runs/", "logs/", "models/", "model_store/")
    names = ("key_file.json", "ray_token", "conversations.sqlite3")
    assert [name for name in tracked_files() if name.startswith(folders) or name.endswith(names)] == []
