"""The catalogue of clients and the report about them. No client runs here: `make clients` does that."""

import re

import pytest

from tests.clients import report
from tests.clients.catalogue import CLIENTS, FOLDER, Client
from tests.clients.runner import Outcome, outcomes_of
from torchserve_client.config import PROJECT

DOCUMENT = (PROJECT / "docs" / "clients.md").read_text()


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.title)
def test_a_client_has_a_script_with_a_pinned_version_that_the_document_names(client: Client) -> None:
    assert client.path.is_file()
    assert re.fullmatch(r"\d+(\.\d+)+", client.version)
    assert f"| {client.title} | {client.version} |" in DOCUMENT


def test_every_script_belongs_to_a_client() -> None:
    scripts = {path.name for path in [*FOLDER.glob("scripts/*_client.py"), *FOLDER.glob("node/*_client.mjs")]}
    assert scripts == {client.script for client in CLIENTS}


def test_other_lines_of_a_script_are_no_checks() -> None:
    output = 'a warning\n{"tool": 1}\n{"check": "chat", "error": null}\n{"check": "stream", "error": "cut"}\n'
    assert outcomes_of(output) == [Outcome("chat", ""), Outcome("stream", "cut")]


def test_a_check_that_fails_at_one_address_does_not_work() -> None:
    results = {"a": [Outcome("chat", ""), Outcome("tools", "")], "b": [Outcome("chat", ""), Outcome("tools", "no")]}
    row = report.table([(CLIENTS[0], results)]).splitlines()[-1]
    assert "| chat. **Not:** tools |" in row
    assert not report.is_passed(results)
    lines = report.lines(CLIENTS[0], results)
    assert [line.split()[0] for line in lines] == ["PASS", "FAIL", "tools:"]
