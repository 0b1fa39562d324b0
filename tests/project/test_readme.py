"""The README's examples, run as they are pasted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from torchserve_client.config import PROJECT, ServerConfig

README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
CURLS = [block for block in BLOCKS if "curl" in block]


def test_every_curl_example_answers(server: ServerConfig) -> None:
    script = "set -eu\n" + "\n".join(f"{block}\necho; echo ----" for block in CURLS)
    for port, url in ((8080, server.inference_url), (8082, server.metrics_url)):
        script = script.replace(f"http://localhost:{port}", url)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(
        ["bash", "-c", script], cwd=server.home, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    raw, form, chat, metrics, _ = run.stdout.split("----")
    question = "Question: What is the closest star to Earth ? Answer:"
    for answer in (raw, form):
        assert answer.strip().startswith(question)
        assert answer.strip().removeprefix(question).strip()
    assert chat.strip().endswith("data: [DONE]")
    assert "delta" in chat
    assert "llamacpp_slots_busy" in metrics


def test_every_file_and_picture_in_the_readme_exists() -> None:
    named = re.findall(r"`([\w./-]+(?:\.(?:py|sh|yaml|properties|xml)|[a-z]/))`|\]\(([\w./-]+\.png)\)", README)
    assert len(named) > 10
    assert [name for pair in named for name in pair if name and not (PROJECT / name).exists()] == []


def test_every_make_target_in_the_readme_exists() -> None:
    targets = {name for pair in re.findall(r"^make (\w+)|`make (\w+)", README, re.MULTILINE) for name in pair if name}
    makefile = (PROJECT / "Makefile").read_text()
    assert targets >= {"chat", "test"}
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_every_metric_in_the_readme_is_one_of_the_engines() -> None:
    source = (PROJECT / "llama_cpp_worker/metrics.py").read_text()
    metrics = set(re.findall(r"`(llamacpp_\w+)`", README))
    assert metrics == set(re.findall(r'"(llamacpp_\w+)": "', source))
