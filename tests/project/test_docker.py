"""Dockerfile and compose.yaml: what they allow. `make lint` checks their style; tests/docker/ builds and runs them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.project.test_imports import ALLOWED

PROJECT = Path(__file__).resolve().parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((PROJECT / "compose.yaml").read_text())["services"]
DOCKERFILE = (PROJECT / "Dockerfile").read_text().splitlines()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "devices", "ipc", "user", "userns_mode"}
    assert service.get("pid", "service:server") == "service:server"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_reaches_only_named_volumes_of_this_machine(name: str) -> None:
    volumes = [volume.split(":")[0] for volume in SERVICES[name]["volumes"]]
    assert set(volumes) <= {"models", "model_store", "cache", "state"}


def test_every_published_port_is_open_to_this_machine_only() -> None:
    ports = {port.rpartition(":")[2]: port for service in SERVICES.values() for port in service.get("ports", [])}
    assert ports == {port: f"127.0.0.1:{port}:{port}" for port in ("8501", "8502", "8000")}
    assert all(service.get("network_mode", "service:server") == "service:server" for service in SERVICES.values())


def test_the_image_runs_as_an_account_without_a_name_on_the_host() -> None:
    users = [line.split()[1] for line in DOCKERFILE if line.startswith("USER ")]
    assert int(users[-1]) > 10_000


def test_every_service_that_serves_has_a_health_check() -> None:
    assert any(line.startswith("HEALTHCHECK ") for line in DOCKERFILE), "the server's"
    ports = {"chat": "8502", "front": "8000"}
    for name, port in ports.items():
        assert f":{port}/" in SERVICES[name]["healthcheck"]["test"][-1]


def test_only_what_runs_goes_into_the_image() -> None:
    rules = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    programs = {name.split(".")[0] for name in ALLOWED}
    assert {name for name in programs if (PROJECT / name).is_dir()} <= sent
    others = {".streamlit", "*.py", "config.properties", "model-config.yaml", "package_llama.sh", "requirements.txt"}
    assert sent - programs == others
