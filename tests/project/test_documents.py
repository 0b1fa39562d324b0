"""README.md and docs/: their commands run as they are pasted, and what they name exists."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llama_cpp_worker.api import anthropic, chat, completions, plain, responses
from llama_cpp_worker.api.fields import HINTS
from llama_cpp_worker.api.routes import CALLS, FAMILIES
from llama_cpp_worker.sampling_params import PARAMETER_NAMES
from torchserve_client.config import PROJECT, ServerConfig

README = (PROJECT / "README.md").read_text()
API = (PROJECT / "docs" / "api.md").read_text()
DOCUMENTS = [*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")]
PACKAGES = "apps|autoscaler|benchmarks|cluster|docs|experiments|front|llama_cpp_worker|package_llama|screenshots|tests"
PACKAGES += "|torchserve_client"


def bash_blocks(text: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(script: str, server: ServerConfig) -> str:
    """What `script` prints, run in bash beside the server's key file, with this environment's programs."""
    script = script.replace(".venv/bin/", "")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(PROJECT), "TS_CONFIG_FILE": str(server.path)}
    process = subprocess.run(
        ["bash", "-c", f"set -eu\n{script}"],
        cwd=server.home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_curl_example_answers(server: ServerConfig) -> None:
    blocks = [block for block in bash_blocks(API) if "curl" in block]
    script = "\n".join(f"{block}\necho; echo ----" for block in blocks)
    for port, url in ((8080, server.inference_url), (8082, server.metrics_url)):
        script = script.replace(f"http://localhost:{port}", url)
    raw, form, chat, schema, call, metrics, _ = run(script, server).split("----")
    question = "Question: What is the closest star to Earth ? Answer:"
    for answer in (raw, form):
        assert answer.strip().startswith(question)
        assert answer.strip().removeprefix(question).strip()
    assert chat.strip().endswith("data: [DONE]")
    assert "delta" in chat
    assert "light_years" in schema
    assert "get_weather" in call
    assert "city" in call
    assert "llamacpp_slots_busy" in metrics


def test_the_readmes_load_test_runs(server: ServerConfig) -> None:
    (command,) = re.findall(r"^\.venv/bin/python -m experiments\.load_test.*", README, re.MULTILINE)
    assert "tokens/s" in run(f"{command} --requests 8 --max-tokens 4", server)


PROGRAMS = ["experiments", "experiments.load_test", "autoscaler", "apps", "package_llama", "front"]


@pytest.mark.parametrize("module", [*PROGRAMS, "torchserve_client.keys", "cluster.key"])
def test_every_program_explains_itself(module: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 0, process.stderr
    assert "sage:" in process.stdout


def test_every_option_in_the_readme_is_known_to_its_program() -> None:
    commands = [shlex.split(line)[2:] for line in re.findall(r"^\.venv/bin/python -m .*", README, re.MULTILINE)]
    assert len(commands) >= 3
    for module, *arguments in commands:
        text = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=PROJECT, capture_output=True, text=True, timeout=60
        ).stdout
        assert [option for option in arguments if option.startswith("--") and option not in text] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    named = re.findall(rf"`((?:{PACKAGES})/[\w./-]+|[\w-]+\.(?:sh|yaml|properties|toml))[`:]", text)
    linked = [link for link in re.findall(r"\]\(([\w./-]+)\)", text) if not link.startswith("http")]
    missing = [name for name in named if not (PROJECT / name).exists()]
    missing += [link for link in linked if not (document.parent / link).exists()]
    if document.name != "CHANGELOG.md":  # which names files of the past, too
        assert missing == []


def test_every_make_target_in_the_documents_exists() -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    targets = {name for pair in re.findall(r"^make (\w+)|`make (\w+)", text, re.MULTILINE) for name in pair if name}
    makefile = (PROJECT / "Makefile").read_text()
    assert targets >= {"chat", "check", "test"}
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_every_module_that_a_document_runs_exists() -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    modules = {name.replace(".", "/") for name in re.findall(r"python -m ((?!pip|pytest)[\w.]+[\w])", text)}
    assert len(modules) > 5
    missing = [
        name for name in modules if not any((PROJECT / f"{name}{end}").exists() for end in (".py", "/__main__.py"))
    ]
    assert missing == []


def test_every_command_of_a_document_runs_in_a_new_shell() -> None:
    for document in (README, API, *((PROJECT / "docs" / name).read_text() for name in ("front.md", "clients.md"))):
        assert re.findall(r"(?<!\.venv/bin/)python -m [\w.]+", document) == []


def test_every_metric_is_documented() -> None:
    source = (PROJECT / "llama_cpp_worker" / "metrics.py").read_text()
    assert set(re.findall(r"`(llamacpp_\w+)`", API)) == set(re.findall(r'"(llamacpp_\w+)"', source))


def test_every_sampling_parameter_is_documented() -> None:
    assert [name for name in (*PARAMETER_NAMES, *HINTS) if f"`{name}`" not in API] == []
    names = anthropic.NAMES | responses.NAMES | chat.NAMES | completions.NAMES | plain.NAMES
    assert [name for name in names if not re.search(rf"`{name}[`.]", API)] == []
    assert [path for path in (*FAMILIES, *CALLS) if path.rpartition("/")[2] not in API] == []


def test_readme_is_a_page() -> None:
    assert len(README.splitlines()) <= 130
