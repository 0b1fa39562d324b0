"""TorchServe on one side, the engine on the other: one call of `handle` is one time slice of the engine.

Continuous batching (`continuousBatching: true`, one worker): every call brings all open requests, newcomers with
their fields and old ones by id only, and takes a piece for each. Dynamic batching (several workers): a call brings
a batch and lasts until all of it is answered; pieces are sent meanwhile. One thread does everything.

TorchServe 0.12 demands that this module defines exactly one class.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import psutil
from ts.context import Context
from ts.protocol.otf_message_handler import create_predict_response

from llama_cpp_worker.engine import Engine, Request
from llama_cpp_worker.metrics import EngineMetrics
from llama_cpp_worker.model import Model, ModelLoadError, PromptTooLong, TemplateError, physical_cores
from llama_cpp_worker.reply import JSON_TYPE, Progress, Reply, Usage, models_body
from llama_cpp_worker.request import ApiError, ApiRequest, Route, find_route, parse_request
from llama_cpp_worker.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

# Between two slices 2 to 3 ms pass in TorchServe (tried, 2 cores), during which nothing is computed: 3 % of this, 6 %
# of 40 ms, and more than a third if every token were told at once. 12 updates a second are still faster than anybody
# reads; a first token and an end are told at once, and a model slower than that tells every token.
SLICE_SECONDS = 0.08

# In continuous batching TorchServe calls `handle` again within milliseconds as long as a client is connected.
# When the last one hangs up it just stops calling, until a new request comes.
SILENCE_SECONDS = 0.3

SAVED_CACHE_SHARE = 1 / 10  # of the free memory, for sequences that had to leave their slot

API_PATH_HEADER = "X-Api-Path"

DEFAULT_SETTINGS: dict[str, str | int] = {
    "model_name": "llama-cpp",
    "model_path": "",
    "n_ctx": 0,
    "n_batch": 512,
    "n_gpu_layers": -1,
    "n_threads": 0,
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
        n_saved_bytes = int(psutil.virtual_memory().available * SAVED_CACHE_SHARE)
        self._engine = Engine(self._model, n_saved_bytes)
        self._open: dict[str, list[Request]] = {}  # by TorchServe's request id: one for each choice of an answer

        self._metrics = EngineMetrics(self._engine, context.metrics, context.model_name, worker_name())
        self._metrics.report()
        quiet_torchserve()
        signal.signal(signal.SIGALRM, self._on_silence)
        logger.info("Serving %s", json.dumps(self._model.describe()))

    def handle(self, data: list[dict[str, object]], context: Context) -> list[str]:
        """One time slice (continuous) or one batch (dynamic); see the top of this file."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        siblings = other_workers() if self._shares_cores else []
        present = set(context.request_ids.values())
        for request_id in [known for known in self._open if known not in present]:
            self._close(request_id)
        answered_at_once = self._receive(data, context)

        while True:
            if self._shares_cores:
                self._model.set_threads(max(1, physical_cores() // (1 + count_busy(siblings))))
            self._engine.run(SLICE_SECONDS)
            results = self._answer(context, answered_at_once, size=len(data))
            self._metrics.report()
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
                route = find_route(requested_path(context, index))
                if route is Route.MODELS:
                    body = models_body(self._model_name, int(self._model.changed_at), self._describe())
                    answers[index] = json.dumps(body)
                    context.set_response_content_type(index, JSON_TYPE)
                else:
                    self._submit(request_id, parse_request(route, data[index]))
            except ApiError as error:
                logger.info("request %s refused with %d: %a", request_id, error.status, error.param or "path")
                answers[index] = json.dumps(error.body())
                context.set_response_status(error.status, "", index)
                context.set_response_content_type(index, JSON_TYPE)
        return answers

    def _submit(self, request_id: str, wanted: ApiRequest) -> None:
        self._check_vocabulary(wanted)
        tokens = self._tokenize(wanted)
        reply = Reply(wanted, request_id, self._model_name, self._model.fingerprint)
        choices = [
            Request(
                tokens,
                choice_params(wanted.params, index),
                reply=reply,
                logprobs=wanted.logprobs,
                # Without its template, many an instruct model ends at once; with a raw prompt, people want to see text.
                allows_empty=wanted.messages is not None,
            )
            for index in range(wanted.n)
        ]
        for choice in choices:
            self._engine.submit(choice)
        self._open[request_id] = choices
        self._metrics.report()  # now, not after the first step: who wants to stop the server must see it

    def _check_vocabulary(self, wanted: ApiRequest) -> None:
        """What only the model can tell; raises ApiError."""
        tokens = {"logit_bias": list(wanted.params.logit_bias)}
        tokens["prompt"] = wanted.prompt if isinstance(wanted.prompt, list) else []
        for param, ids in tokens.items():
            if max(ids, default=0) >= self._model.n_vocab:
                raise ApiError(f"{param}: the model's tokens are 0 to {self._model.n_vocab - 1:,}.", param=param)

    def _tokenize(self, wanted: ApiRequest) -> list[int]:
        """The prompt's tokens, at least one and fewer than the context window has; raises ApiError."""
        param = "prompt" if wanted.messages is None else "messages"
        try:
            if wanted.messages is not None:
                tokens = self._model.tokenize_chat(wanted.messages)
            elif isinstance(wanted.prompt, str):
                tokens = self._model.tokenize_prompt(wanted.prompt)
            else:
                assert wanted.prompt is not None
                tokens = wanted.prompt
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
        return tokens

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
            choices = self._open.get(request_id)
            if choices is None:
                results[index], is_last[index] = answered_at_once[index], None
                continue
            reply = choices[0].reply
            context.set_response_content_type(index, reply.content_type)
            results[index] = tell_news(reply, choices)
            is_last[index] = False
            if all(choice.is_finished for choice in choices) or any(choice.error for choice in choices):
                is_last[index] = True if reply.is_sent else None
                self._close(request_id)
            reply.is_sent = True
        context.stopping_criteria = {index: (lambda _, last=last: last) for index, last in is_last.items()}
        return results

    def _close(self, request_id: str) -> None:
        """Forgets an answer, and ends whatever of it has not ended."""
        choices = self._open.pop(request_id)
        for choice in choices:
            self._engine.cancel(choice)
            self._metrics.observe(choice)
        logger.info(
            "request %s: %d prompt tokens, %d cached, %d completion tokens, %.2f s, %s",
            request_id,
            len(choices[0].prompt),
            min(choice.n_cached for choice in choices),
            sum(len(choice.completion) for choice in choices),
            max((choice.finished_at or 0.0) - choice.submitted_at for choice in choices),
            ", ".join(str(choice.finish_reason) for choice in choices),
        )

    def _on_silence(self, _signal: int, _frame: FrameType | None) -> None:
        """All clients have hung up, it seems: nothing is computed any more, so nothing is busy.

        The requests are cancelled by the next call, which will not name them. Should TorchServe only have been
        slow, they go on as if nothing had happened.
        """
        self._metrics.report(is_silent=True)


def requested_path(context: Context, index: int) -> str:
    """The API's path, such as v1/models. TorchServe passes it on only behind a version, so to reach the default version
    a request has it in a header. (A header named url_path TorchServe would overwrite.)
    """
    return context.get_request_header(index, "url_path") or context.get_request_header(index, API_PATH_HEADER) or ""


def quiet_torchserve() -> None:
    """Drops the two lines that TorchServe's worker prints for every slice: its frontend would parse each of them."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(("Backend received inference", "[METRICS]PredictionTime"))

    for name in ("", "ts.metrics.caching_metric"):
        logging.getLogger(name).addFilter(is_wanted)


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


def other_workers() -> list[psutil.Process]:
    """TorchServe's other workers on this machine, which share its cores with us."""
    others = []
    for process in psutil.Process(os.getppid()).children():
        with contextlib.suppress(psutil.Error):  # it ended while we looked
            is_worker = any(part.endswith("model_service_worker.py") for part in process.cmdline())
            if is_worker and process.pid != os.getpid():
                others.append(process)
    return others


def count_busy(workers: Sequence[psutil.Process]) -> int:
    """Those that compute at this moment: one that waits for a batch sleeps, and its cores are free."""
    busy = 0
    for process in workers:
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            busy += process.status() == psutil.STATUS_RUNNING
    return busy


def choice_params(params: SamplingParams, index: int) -> SamplingParams:
    """A seed gives each choice another one, and the same ones next time."""
    if params.seed is None or index == 0:
        return params
    return replace(params, seed=(params.seed + index) % (2**32 - 1))


def tell_news(reply: Reply, choices: Sequence[Request]) -> str:
    """What can be sent of an answer's choices since the last time; the end of it if they have all ended."""
    news = ""
    for index, choice in enumerate(choices):
        was_told = reply.is_ended(index)
        if choice.is_begun and choice.is_reading:
            news += reply.tell_progress(index, progress_of(choice))
        usage_so_far = usage_of(choices) if reply.wants_timings else None
        news += reply.push(index, choice.take_text(), choice.take_tokens(), usage_so_far)
        if choice.error:
            return news + reply.fail(choice.error)
        if choice.finish_reason and not was_told:
            news += reply.end(index, choice.finish_reason)
    if all(choice.is_finished for choice in choices):
        news += reply.finish(usage_of(choices))
    return news


def progress_of(choice: Request) -> Progress:
    """How far the prompt of a request that has a slot is read."""
    assert choice.admitted_at is not None
    waited = time.monotonic() - choice.admitted_at
    return Progress(len(choice.prompt), choice.n_cached, choice.n_read, 1000 * waited)


def usage_of(choices: Sequence[Request]) -> Usage:
    """Counts and times of an answer up to its end or now. What was never admitted spent all its time in the queue."""
    now = time.monotonic()  # the engine's clock
    finished = max(now if choice.finished_at is None else choice.finished_at for choice in choices)
    submitted = choices[0].submitted_at
    admitted = min(finished if choice.admitted_at is None else choice.admitted_at for choice in choices)
    first_token = min(finished if choice.first_token_at is None else choice.first_token_at for choice in choices)
    return Usage(
        prompt_tokens=len(choices[0].prompt),
        cached_tokens=min(choice.n_cached for choice in choices),
        completion_tokens=sum(len(choice.completion) for choice in choices),
        queue_ms=1000 * (admitted - submitted),
        prompt_ms=1000 * (first_token - admitted),
        predicted_ms=1000 * (finished - first_token),
        n_choices=len(choices),
    )
