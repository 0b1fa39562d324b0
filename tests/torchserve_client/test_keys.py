"""How long keys are valid, how a program gets the one that is valid now, and the command that prints it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.support.serving import make_home, running_server, wait_until
from torchserve_client import keys
from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.http import RequestRefused, fetch
from torchserve_client.keys import Keys, Kind, parse_instant
from torchserve_client.running_server import key_file


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    with running_server(make_home(tmp_path_factory.mktemp("keys"))) as config:
        yield config


@pytest.fixture(params=["management", "inference"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return cast(Kind, request.param)


def send(server: ServerConfig, kind: Kind, key: str | None) -> object:
    """A request that needs that key. Raises RequestRefused if the key is refused."""
    url = f"{server.inference_url}/ping" if kind == "inference" else f"{server.management_url}/models"
    return fetch("GET", url, key, 10)


def entries(server: ServerConfig) -> dict[str, dict[str, str]]:
    return cast(dict[str, dict[str, str]], json.loads(key_file(server).read_text()))


def renew_elsewhere(server: ServerConfig, kind: Kind) -> None:
    """As another program would: the old key is invalid from now on."""
    fetch("GET", f"{server.management_url}/token?type={kind}", entries(server)["API"]["key"], 10)


def print_key(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torchserve_client.keys", *options]
    return subprocess.run(
        command, cwd=PROJECT, env=os.environ | {"TS_CONFIG_FILE": str(file)}, capture_output=True, text=True, timeout=60
    )


def test_keys_last_longer_than_any_server_runs(server: ServerConfig, kind: Kind) -> None:
    expires = Keys(server, kind).expires()
    assert expires and expires > datetime.now(UTC) + timedelta(days=99 * 365)


def test_valid_key_is_never_replaced(server: ServerConfig, kind: Kind) -> None:
    before = entries(server)
    for _ in range(3):
        Keys(server, kind).use(lambda key: send(server, kind, key))
    assert entries(server) == before


def test_refused_key_that_has_not_expired_is_not_replaced(server: ServerConfig, kind: Kind) -> None:
    """It would end the valid key of all other programs."""
    before = entries(server)
    key_file(server).write_text(json.dumps({**before, kind: {**before[kind], "key": "wrong"}}))
    try:
        with pytest.raises(RequestRefused, match="TorchServe refused the key"):
            Keys(server, kind).use(lambda key: send(server, kind, key))
    finally:
        key_file(server).write_text(json.dumps(before))
    send(server, kind, before[kind]["key"])


def test_key_renewed_by_another_program_is_picked_up(server: ServerConfig, kind: Kind) -> None:
    used: list[str | None] = []

    def send_late(key: str | None) -> object:
        if not used:
            renew_elsewhere(server, kind)
        used.append(key)
        return send(server, kind, key)

    Keys(server, kind).use(send_late)
    assert len(used) == 2 and used[1] == entries(server)[kind]["key"] != used[0]


def test_shorter_expiry_is_served_by_replacing_expired_keys(tmp_path: Path) -> None:
    with running_server(make_home(tmp_path / "home", token_expiration_min=0.02)) as config:  # 1.2 seconds
        source = Keys(config, "inference")
        first = source.current()

        def is_expired() -> bool:
            expires = source.expires()
            return expires is not None and expires < datetime.now(UTC)

        wait_until(is_expired, what="the end of the key")
        assert source.use(lambda key: (key, send(config, "inference", key)))[0] != first
        with pytest.raises(RequestRefused):
            send(config, "inference", first)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2126-11-02T04:01:02.123456789Z", datetime(2126, 11, 2, 4, 1, 2, 123456, UTC)),
        ("2126-11-02T04:01:02Z", datetime(2126, 11, 2, 4, 1, 2, 0, UTC)),
        ("+12026-11-02T04:01:02Z", None),  # Java's year 12026
        ("", None),
    ],
)
def test_time_is_read_as_java_prints_it(text: str, instant: datetime | None) -> None:
    assert parse_instant(text) == instant


def test_incomplete_key_file_is_read_again(server: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    text = key_file(server).read_text()
    key_file(server).write_text(text[:20])
    pauses: list[float] = []

    def write_the_rest(seconds: float) -> None:
        pauses.append(seconds)
        key_file(server).write_text(text)

    monkeypatch.setattr(keys, "time", SimpleNamespace(sleep=write_the_rest))
    assert Keys(server, "inference").current() == json.loads(text)["inference"]["key"]
    assert len(pauses) == 1


@pytest.mark.parametrize(("options", "kind"), [((), "inference"), (("--management",), "management")])
def test_command_prints_the_key_and_nothing_else(server: ServerConfig, options: tuple[str, ...], kind: Kind) -> None:
    printed = print_key(server.path, *options)
    assert (printed.returncode, printed.stdout, printed.stderr) == (0, f"{entries(server)[kind]['key']}\n", "")
    send(server, kind, printed.stdout.strip())


def test_command_says_that_no_server_runs_even_if_a_killed_one_left_its_keys(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    key_file(config).write_text(json.dumps({"inference": {"key": "old"}}))

    printed = print_key(config.path)

    assert (printed.returncode, printed.stdout) == (1, "")
    assert printed.stderr.startswith(f"TorchServe is not running with {config.path}: press Start Server")


def test_command_explains_itself() -> None:
    printed = print_key(PROJECT / "config.properties", "--help")
    assert printed.returncode == 0 and "Authorization: Bearer KEY" in " ".join(printed.stdout.split())
