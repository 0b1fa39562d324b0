"""The page's line of state, as a table of facts and sentences."""

from dataclasses import replace

import pytest

from apps.dashboard.actions import LABELS, Name
from apps.dashboard.state import ACTION_STATES, Changes, Facts, PageState, page_state
from apps.dashboard.token_progress import TokenProgress, WorkerProgress
from torchserve_client.drain import RequestCounts
from torchserve_client.status import ModelStatus, ServerState, ServingSettings, WorkerStatus

NOW = 1000.0
READY = WorkerStatus("9000", 11, "READY", is_alive=True, is_paused=False, memory_bytes=1, started=None)
LOADING = replace(READY, status="UNLOADING")
DEAD = replace(READY, status="UNLOADING", is_alive=False, pid=0)
PAUSED = replace(READY, is_paused=True)
IDLE = TokenProgress(at=NOW, has_metrics=True)
STALLED = replace(
    IDLE,
    workers=(
        WorkerProgress("9000", 3, 2, 1, 5120, tokens=9, quiet_since=NOW - 14, prefill_at=NOW - 1, prefill_speed=512),
    ),
)
STALL = (
    "No token for 14 s from worker 9000: 1 of 3 open requests is being prefilled, 2 of them without a slot; "
    "5,120 prompt tokens are left, about 10 s."
)


def model(*workers: WorkerStatus) -> ModelStatus:
    settings = ServingSettings(8, 0, len(workers))
    return ModelStatus("llamacpp", "1.0", "llamacpp.tar.gz", settings, "continuous", workers, 0, {})


def facts(server: ServerState, running: int = 0, progress: TokenProgress | None = IDLE, **others: object) -> Facts:
    known = {"counts": RequestCounts(0, running), "progress": progress, **others}
    return Facts(NOW, server, **known)  # type: ignore[arg-type]


DOWN, STARTING, EMPTY = ServerState("down"), ServerState("starting"), ServerState("up")
SICK = ServerState("unhealthy", problem="key_file.json has no management key: stop TorchServe.")
SERVING = ServerState("up", model(READY))
FAILED = ServerState("up", model(DEAD))
MEASURING = Changes(has_experiment=True, experiment="Batch size 4, 8 clients")
SCALING = Changes(is_changing=True, has_autoscaler=True, autoscaler="2 requests wait. 1 → 2 workers …")
SCALED = Changes(has_autoscaler=True, autoscaler="Calm.")


@pytest.mark.parametrize(
    ("given", "title", "tone", "sentence", "next_step"),
    [
        pytest.param(facts(DOWN), "TorchServe: down", "idle", "Press Start Server", "start", id="down"),
        pytest.param(facts(STARTING), "TorchServe: starting", "busy", "TorchServe is starting.", None, id="starting"),
        pytest.param(facts(SICK), "TorchServe: unhealthy", "error", "no management key", "stop", id="unhealthy"),
        pytest.param(facts(EMPTY), "Model: not registered", "idle", "Press Register", "register", id="no model"),
        pytest.param(
            facts(EMPTY, has_archive=False), "Model: not registered", "idle", "no archive yet", "package", id="archive"
        ),
        pytest.param(facts(FAILED, error="ValueError: too big"), "Model: failed", "error", "too big", None, id="dead"),
        pytest.param(
            facts(ServerState("up", model(READY, LOADING))), "Model: loading", "warning", "1 of 2", None, id="loading"
        ),
        pytest.param(facts(SERVING), "Model: ready", "ok", "It waits for requests.", "chat", id="ready"),
        pytest.param(facts(SERVING, change="The sliders …"), "Model: ready", "ok", "", "apply", id="change"),
        pytest.param(
            facts(SERVING, 2, replace(IDLE, last_token_at=NOW - 1), tokens_per_second=34.4),
            "Model: ready",
            "ok",
            "It has 2 requests, 34 tokens/s.",
            "chat",
            id="answering",
        ),
        pytest.param(facts(SERVING, 3, STALLED), "Model: stalled", "warning", STALL, None, id="stall"),
        pytest.param(
            facts(SERVING, 0, None), "Model: ready", "idle", "metrics cannot be read", "chat", id="no metrics"
        ),
        pytest.param(
            facts(ServerState("up", model(PAUSED))), "Model: paused", "error", "`kill -CONT 11`", None, id="paused"
        ),
        pytest.param(
            facts(SERVING, changes=MEASURING),
            "Model: in an experiment",
            "busy",
            "An experiment is running: Batch size 4, 8 clients. It puts the settings back at its end.",
            None,
            id="experiment",
        ),
        pytest.param(
            facts(SERVING, 3, STALLED, changes=MEASURING),
            "Model: stalled",
            "warning",
            f"{STALL} An experiment is running",
            None,
            id="stall in an experiment",
        ),
        pytest.param(
            facts(SERVING, changes=SCALING),
            "Model: changing",
            "busy",
            "The workers are being changed. The autoscaler says: 2 requests wait. 1 → 2 workers …",
            None,
            id="autoscaler works",
        ),
        pytest.param(
            facts(SERVING, changes=SCALED), "Model: ready", "ok", "autoscaler sets", "chat", id="autoscaler is on"
        ),
        pytest.param(
            facts(DOWN, changes=Changes(is_switching=True)),
            "TorchServe: changing",
            "busy",
            "Another program is starting or stopping TorchServe.",
            None,
            id="another program starts",
        ),
        *(
            pytest.param(
                facts(server, changes=Changes(is_changing=True)),
                "Model: changing",
                "busy",
                "Another program is changing the model.",
                None,
                id=f"another program changes a model that is {id}",
            )
            for id, server in (("failed", FAILED), ("gone", EMPTY), ("down", DOWN), ("unhealthy", SICK))
        ),
    ],
)
def test_facts_give_one_line_and_the_next_step(
    given: Facts, title: str, tone: str, sentence: str, next_step: str | None
) -> None:
    state = page_state(given)

    assert (state.title, state.tone, state.next_step) == (title, tone, next_step)
    assert sentence in state.sentence


@pytest.mark.parametrize("action", ACTION_STATES)
@pytest.mark.parametrize("server", [DOWN, STARTING, EMPTY, SICK, SERVING, FAILED], ids=lambda each: each.availability)
def test_running_action_is_drawn_without_an_alarm_and_locks_the_buttons(action: Name, server: ServerState) -> None:
    state = page_state(facts(server, changes=Changes(action=action)))

    assert (state.tone, state.sentence, state.next_step) == ("busy", f"{LABELS[action]}.", None)
    assert all(obstacle.startswith("Wait. ") for obstacle in state.obstacles.values())


def enabled(state: PageState) -> set[str]:
    return {button for button, obstacle in state.obstacles.items() if not obstacle}


@pytest.mark.parametrize(
    ("given", "buttons"),
    [
        pytest.param(facts(DOWN), {"start", "package"}, id="down"),
        pytest.param(facts(EMPTY), {"stop", "register", "package"}, id="no model"),
        pytest.param(facts(EMPTY, has_archive=False), {"stop", "package"}, id="no archive"),
        pytest.param(facts(SICK), {"stop", "package"}, id="unhealthy"),
        pytest.param(facts(SERVING), {"stop", "unregister", "package"}, id="ready"),
        pytest.param(facts(SERVING, change="x"), {"stop", "unregister", "apply", "package"}, id="change"),
        pytest.param(facts(FAILED), {"stop", "unregister", "apply", "package"}, id="failed"),
        pytest.param(facts(SERVING, change="x", changes=MEASURING), {"stop"}, id="experiment"),
        pytest.param(facts(SERVING, change="x", changes=SCALING), {"stop"}, id="autoscaler works"),
    ],
)
def test_only_what_can_be_done_is_enabled(given: Facts, buttons: set[str]) -> None:
    state = page_state(given)

    assert enabled(state) == buttons
    assert state.next_step in (None, "chat") or state.next_step in buttons
