"""Reading config.properties: what is refused and where the file is. Needs no TorchServe."""

from pathlib import Path

import pytest

from tests.support.serving import make_home
from torchserve_client.config import ServerConfig, TorchServeError


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        pytest.param(
            "inference_address", "localhost", "inference_address in .* is 'localhost'", id="address-without-port"
        ),
        pytest.param("management_address", "https://127.0.0.1:8443", "write it like http://", id="https"),
        pytest.param("grpc_inference_port", "many", "grpc_inference_port in .* is 'many'", id="port-not-a-number"),
    ],
)
def test_bad_config_is_named(tmp_path: Path, name: str, value: str, problem: str) -> None:
    with pytest.raises(TorchServeError, match=problem):
        make_home(tmp_path, **{name: value})


def test_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(TorchServeError, match=r"nowhere\.properties cannot be read"):
        ServerConfig.load(tmp_path / "nowhere.properties")


def test_environment_variable_moves_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_home(tmp_path)
    monkeypatch.setenv("TS_CONFIG_FILE", str(config.path))

    assert ServerConfig.load() == config


def test_server_for_all_interfaces_is_reached_on_this_machine(tmp_path: Path) -> None:
    config = make_home(tmp_path, inference_address="http://0.0.0.0:8080")

    assert config.inference_url == "http://127.0.0.1:8080"
