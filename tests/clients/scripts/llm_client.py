# /// script
# dependencies = ["llm==0.36", "openai==3.57.0"]
# ///
# mypy: ignore-errors
"""The command line tool `llm`: a chat, a tool (-T), a schema, over extra-openai-models.yaml."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import ANSWER, BASE_URL, KEY, MODEL, QUESTION, check, run
from examples import PERSON_QUESTION, Person

HOME = Path(tempfile.mkdtemp(prefix="llm-"))
(HOME / "extra-openai-models.yaml").write_text(
    f"- model_id: {MODEL}\n  model_name: {MODEL}\n  api_base: {BASE_URL}\n  api_key_name: server\n"
    "  supports_tools: true\n  supports_schema: true\n"
)
OPTIONS = ["-o", "temperature", "0", "-o", "max_tokens", "100"]


def llm(*arguments, key=KEY, options=OPTIONS):
    return subprocess.run(
        [Path(sys.executable).with_name("llm"), "-m", MODEL, "--key", key, *options, *arguments],
        env={**os.environ, "LLM_USER_PATH": str(HOME)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def answer(*arguments):
    result = llm(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@check("chat, streamed")
def chat():
    assert ANSWER in answer(QUESTION)


@check("chat, whole")
def whole():
    assert ANSWER in answer("--no-stream", QUESTION)


@check("chat, continued")
def continued():
    answer(QUESTION)
    assert answer("-c", "Why?")


@check("tool (-T), automatic")
def tool():
    assert answer("-T", "llm_version", "What is the version of llm?")
    assert answer("-T", "llm_version", "--no-stream", "What is the version of llm?")


@check("object (--schema)")
def schema():
    Person.model_validate_json(answer("--schema", json.dumps(Person.model_json_schema()), PERSON_QUESTION))


@check("wrong key")
def wrong_key():
    result = llm(QUESTION, key="wrong")
    assert result.returncode == 1
    assert "key" in result.stderr.lower() or "token" in result.stderr.lower(), result.stderr


@check("wrong parameter")
def wrong_parameter():
    result = llm(QUESTION, options=["-o", "max_tokens", "9999999"])
    assert result.returncode == 1
    assert "max_tokens" in result.stderr, result.stderr


run()
