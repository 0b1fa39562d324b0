"""TorchServe on one side, the engine on the other: one call of `handle` is one time slice of the engine.

Continuous batching (`continuousBatching: true`, one worker): every call brings all open requests, newcomers with
their fields and old ones by id only, and takes a piece for each. Dynamic batching (several workers): a call brings
a batch and lasts until all of it is answered; pieces are sent meanwhile. One thread does everything.

TorchServe 0.12 demands that this module defines exactly one class.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import psutil
from ts.context import Context
from ts.metrics.metric_type_enum import MetricTypes
from ts.protocol.otf_message_handler import create_predict_response

from llama_cpp_api import JSON_TYPE, ApiError, ApiRequest, Reply, Route, Usage, find_route, models_body, parse_request
from llama_cpp_engine import Engine, Request
from llama_cpp_model import Model, ModelLoadError, PromptTooLong, TemplateError, physical_cores

logger = logging.getLogger(__name__)

# Answering per token would cost more than a third of the speed with one client: while Java and Python hold a core for
# a moment, all of llama.cpp's spinning threads wait. 25 updates a second are still smoother than anybody reads.
SLICE_SECONDS = 0.04

# In continuous batching TorchServe calls `handle` again within milliseconds as long as a client is connected.
# When the last one hangs up it just stops calling, until a new request comes.
SILENCE_SECONDS = 0.3

DEFAULT_SETTINGS: dict[str, str | int] = {
    "model_name": "llama-cpp",
    "model_path": "",
    "n_ctx": 0,
    "n_batch": 512,
    "n_gpu_layers": -1,
    "n_threads": 0,
}

GAUGES = ("llamacpp_slots", "llamacpp_slots_busy", "llamacpp_requests_waiting")
COUNTERS = {  # metric: field of the engine's counters
    "llamacpp_requests_total": "requests",
    "llamacpp_requests_cancelled_total": "cancelled",
    "llamacpp_requests_failed_total": "failed",
    "llamacpp_prompt_tokens_total": "prompt_tokens",
    "llamacpp_completion_tokens_total": "completion_tokens",
}


class LlamaCppHandler:
    """The handler TorchServe creates, once per worker; `initialize` is called first, `handle` ever after."""

    def initialize(self, context: Context) -> None:
        """Loads the model. Raises ModelLoadError (a RuntimeError, which TorchServe reports as a failed load)."""
        settings = read_settings(context.model_yaml_config)
        self._model_name = str(settings["model_name"])
        self._is_continuous = bool(context.model_yaml_config.get("continuousBatching"))
        self._shares_cores = not self._is_continuous and settings["n_threads"] == 0
        self._model = Model(
            path=model_path(settings),
            n_slots=context.system_properties["batch_size"],
            n_ctx=int(settings["n_ctx"]),
            n_batch=int(settings["n_batch"]),
            n_gpu_layers=int(settings["n_gpu_layers"]),
            n_threads=int(settings["n_threads"]),
        )
        self._engine = Engine(self._model)
        self._open: dict[str, Request] = {}

        self._metrics = context.metrics
        for name in (*GAUGES, *COUNTERS):
            kind = MetricTypes.COUNTER if name in COUNTERS else MetricTypes.GAUGE
            self._metrics.add_metric_to_cache(name, "count", ["ModelName", "WorkerName"], kind)
        self._reported: dict[str, int] = {}  # nothing yet: the first report has all of them, zeros too
        self._metric_labels = [context.model_name, worker_name()]
        self._report_metrics()
        signal.signal(signal.SIGALRM, self._on_silence)
        logger.info("Serving %s", json.dumps(self._model.describe()))

    def handle(self, data: list[dict[str, object]], context: Context) -> list[str]:
        """One time slice (continuous) or one batch (dynamic); see the top of this file."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._shares_cores:
            self._model.set_threads(max(1, physical_cores() // count_workers()))
        present = set(context.request_ids.values())
        for request_id in [known for known in self._open if known not in present]:
            self._engine.cancel(self._open[request_id])
            self._close(request_id)
        answered_at_once = self._receive(data, context)

        while True:
            self._engine.run(SLICE_SECONDS)
            results = self._answer(context, answered_at_once, size=len(data))
            self._report_metrics()
            if self._is_continuous or self._engine.is_idle:
                break
            # The pieces of a batch that is not done yet. At least one of them says that more will come; if none
            # did, TorchServe would take the whole batch for answered.
            context.cl_socket.sendall(
                create_predict_response(results, context.request_ids, "Prediction success", 200, context)
            )
            for index, request_id in list(context.request_ids.items()):
                if request_id not in self._open:
                    del context.request_ids[index]  # a second answer would tear the worker down
        if not self._engine.is_idle:
            signal.setitimer(signal.ITIMER_REAL, SILENCE_SECONDS)
        return results

    # --- in

    def _receive(self, data: list[dict[str, object]], context: Context) -> dict[int, str]:
        """Submits the newcomers; returns the answers, by index, of those that need no engine."""
        answers = {}
        for index, request_id in context.request_ids.items():
            if request_id in self._open:
                continue
            try:
                route = find_route(context.get_request_header(index, "url_path") or "")
                if route is Route.MODELS:
                    answers[index] = json.dumps(models_body(self._model_name, self._describe()))
                    context.set_response_content_type(index, JSON_TYPE)
                else:
                    self._submit(request_id, parse_request(route, data[index]))
            except ApiError as error:
                logger.info("request %s refused with %d: %s", request_id, error.status, error.param or "path")
                answers[index] = json.dumps(error.body())
                context.set_response_status(error.status, "", index)
                context.set_response_content_type(index, JSON_TYPE)
        return answers

    def _submit(self, request_id: str, wanted: ApiRequest) -> None:
        param = "prompt" if wanted.messages is None else "messages"
        try:
            if wanted.messages is None:
                assert wanted.prompt is not None
                tokens = self._model.tokenize_prompt(wanted.prompt)
            else:
                tokens = self._model.tokenize_chat(wanted.messages)
        except PromptTooLong as error:
            raise ApiError(f"{param}: {error}.", param=param, code="context_length_exceeded") from error
        except TemplateError as error:
            raise ApiError(f"{param}: {error}.", param=param) from error
        if not tokens:
            raise ApiError(f"{param}: has no tokens.", param=param)
        if len(tokens) >= self._model.window:
            raise ApiError(
                f"{param}: {len(tokens):,} tokens do not fit, since the context window has {self._model.window:,} "
                "and the completion needs at least one.",
                param=param,
                code="context_length_exceeded",
            )
        request = Request(
            tokens,
            wanted.params,
            reply=Reply(wanted, request_id, self._model_name),
            # Without its template, many an instruct model ends at once; who sends a raw prompt wants to see something.
            allows_empty=wanted.messages is not None,
        )
        self._engine.submit(request)
        self._open[request_id] = request

    def _describe(self) -> dict[str, object]:
        return self._model.describe() | {"batching": "continuous" if self._is_continuous else "dynamic"}

    # --- out

    def _answer(self, context: Context, answered_at_once: Mapping[int, str], size: int) -> list[str]:
        """A result for each index, and in `context.stopping_criteria` whether more will follow.

        True and False are the last and any other piece of a stream; None is a whole answer in one message, which
        must not look like a stream to TorchServe. Even an answer that is not streamed is kept open with empty
        pieces: TorchServe notices that a client has hung up only when it passes something on.
        """
        results = [""] * size
        is_last: dict[int, bool | None] = {}
        for index, request_id in context.request_ids.items():
            request = self._open.get(request_id)
            if request is None:
                results[index], is_last[index] = answered_at_once[index], None
                continue
            reply = request.reply
            context.set_response_content_type(index, reply.content_type)
            results[index] = reply.push(request.take_text())
            is_last[index] = False
            if request.is_finished:
                if request.error:
                    results[index] += reply.fail(request.error)
                else:
                    results[index] += reply.finish(request.finish_reason, usage_of(request))
                is_last[index] = True if reply.is_sent else None
                self._close(request_id)
            reply.is_sent = True
        context.stopping_criteria = {index: (lambda _, last=last: last) for index, last in is_last.items()}
        return results

    def _close(self, request_id: str) -> None:
        request = self._open.pop(request_id)
        logger.info(
            "request %s: %d prompt tokens, %d completion tokens, %.2f s, %s",
            request_id,
            len(request.prompt),
            len(request.completion),
            (request.finished_at or 0.0) - request.submitted_at,
            request.finish_reason,
        )

    def _on_silence(self, _signal: int, _frame: FrameType | None) -> None:
        """All clients have hung up, it seems: nothing is computed any more, so nothing is busy.

        The requests are cancelled by the next call, which will not name them. Should TorchServe only have been
        slow, they go on as if nothing had happened.
        """
        self._report_metrics(is_silent=True)

    def _report_metrics(self, is_silent: bool = False) -> None:
        """Tells TorchServe what has changed; each value is a line on stdout, which its frontend reads."""
        now = {name: getattr(self._engine.counters, field) for name, field in COUNTERS.items()}
        now["llamacpp_slots"] = self._model.n_slots
        now["llamacpp_slots_busy"] = 0 if is_silent else len(self._engine.running)
        now["llamacpp_requests_waiting"] = 0 if is_silent else len(self._engine.waiting)
        is_calm = now["llamacpp_slots_busy"] == self._reported.get("llamacpp_slots_busy")
        for name, value in now.items():
            before = self._reported.get(name)
            if value == before or (is_calm and name.endswith("_tokens_total")):
                continue  # token counters follow when a slot changes hands, not 25 times a second
            kind = MetricTypes.COUNTER if name in COUNTERS else MetricTypes.GAUGE
            change = value - (before or 0) if name in COUNTERS else value
            self._metrics.get_metric(name, kind).add_or_update(change, self._metric_labels)
            self._reported[name] = value


def read_settings(yaml_config: Mapping[str, object] | None) -> dict[str, str | int]:
    """The `handler:` part of model-config.yaml over the defaults; raises ModelLoadError for what it does not know."""
    given = (yaml_config or {}).get("handler") or {}
    if not isinstance(given, Mapping):
        raise ModelLoadError("model-config.yaml: handler must be a list of settings such as 'n_ctx: 4096'.")
    for name, value in given.items():
        if name not in DEFAULT_SETTINGS:
            raise ModelLoadError(
                f"model-config.yaml: handler.{name} is unknown; the settings are {', '.join(DEFAULT_SETTINGS)}."
            )
        expected = type(DEFAULT_SETTINGS[name])
        if not isinstance(value, expected) or isinstance(value, bool):
            raise ModelLoadError(f"model-config.yaml: handler.{name} must be of type {expected.__name__}.")
        if isinstance(value, int) and value < (-1 if name == "n_gpu_layers" else 0):
            raise ModelLoadError(f"model-config.yaml: handler.{name} must not be {value}.")
    return DEFAULT_SETTINGS | dict(given)


def model_path(settings: Mapping[str, str | int]) -> str:
    """Where the GGUF is: the archive's own word first, then LLAMA2_Q4_MODEL; raises ModelLoadError."""
    path = str(settings["model_path"]) or os.environ.get("LLAMA2_Q4_MODEL", "")
    if not path:
        raise ModelLoadError("No model: set handler.model_path in model-config.yaml, or run package_llama.sh.")
    return str(Path(path).expanduser())


def worker_name() -> str:
    """The worker's id in TorchServe's describe: the last part of the socket's name that TorchServe started us with."""
    argv = sys.argv
    return argv[argv.index("--sock-name") + 1].rsplit(".", 1)[-1] if "--sock-name" in argv else str(os.getpid())


def count_workers() -> int:
    """TorchServe workers on this machine that share its cores with us, ourselves included."""
    workers = 0
    for sibling in psutil.Process(os.getppid()).children():
        try:
            workers += any(part.endswith("model_service_worker.py") for part in sibling.cmdline())
        except psutil.Error:
            continue  # it ended while we looked
    return max(1, workers)


def usage_of(request: Request) -> Usage:
    """Counts and times of a finished request. One that was never admitted spent all its time in the queue."""
    finished = request.finished_at or 0.0
    admitted = finished if request.admitted_at is None else request.admitted_at
    first_token = finished if request.first_token_at is None else request.first_token_at
    return Usage(
        prompt_tokens=len(request.prompt),
        completion_tokens=len(request.completion),
        queue_ms=1000 * (admitted - request.submitted_at),
        prompt_ms=1000 * (first_token - admitted),
        predicted_ms=1000 * (finished - first_token),
    )
