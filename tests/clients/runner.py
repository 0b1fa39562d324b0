"""Runs the script of a client in an environment of its own, and reads what it prints. Knows no server and no client.

uv makes the environments of the Python scripts, from the packages in their heads; npm makes the one of node/. All are
in .cache/clients, which git ignores.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.clients.catalogue import FOLDER, Client
from torchserve_client.config import PROJECT

CACHE = PROJECT / ".cache" / "clients"
UV = Path(sys.executable).with_name("uv")
SCRIPT_SECONDS = 300
INSTALL_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Address:
    """Where a client finds the API. wrong_key_status: the HTTP status of the answer to a wrong key."""

    name: str
    base_url: str
    key: str
    wrong_key_status: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check of a client at one address. error: "" if it passed."""

    check: str
    error: str


def install_node_packages() -> None:
    """Raises OSError or CalledProcessError if npm is missing or fails."""
    shutil.copytree(FOLDER / "node", CACHE / "node", dirs_exist_ok=True)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(command, cwd=CACHE / "node", check=True, timeout=INSTALL_SECONDS)


def install_python_packages(client: Client) -> None:
    subprocess.run(_uv("sync", client.path), env=_environment(), check=True, timeout=INSTALL_SECONDS)


def run(client: Client, address: Address, tokenizer: Path) -> list[Outcome]:
    """All checks of `client`. A script that ends without one, or is too slow, is a failed check itself."""
    node: list[str | Path] = ["node", CACHE / "node" / client.script]
    variables = {
        "BASE_URL": address.base_url,
        "KEY": address.key,
        "MODEL": "llamacpp",
        "WRONG_KEY_STATUS": str(address.wrong_key_status),
        "TOKENIZER": str(tokenizer),
    }
    try:
        process = subprocess.run(
            node if client.is_node else _uv("run", client.path),
            env=_environment() | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SCRIPT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return [Outcome("the script ends", f"not within {SCRIPT_SECONDS} s")]
    outcomes = outcomes_of(process.stdout)
    if process.returncode != 0 or not outcomes:
        last = " ".join(process.stderr.split())[-600:]
        outcomes.append(Outcome("the script ends", f"exit status {process.returncode}: {last}"))
    return outcomes


def outcomes_of(output: str) -> list[Outcome]:
    """From the lines of the checks; a client may print others."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"check":')]
    return [Outcome(line["check"], line["error"] or "") for line in lines]


def _uv(command: str, script: Path) -> list[str | Path]:
    return [UV, command, "--quiet", "--cache-dir", CACHE / "uv", "--python", sys.executable, "--script", script]


def _environment() -> dict[str, str]:
    """Ours without what a client could read by chance: keys, addresses and proxies of other servers."""
    prefixes = ("OPENAI_", "ANTHROPIC_", "LITELLM_", "LLM_", "VIRTUAL_ENV", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
