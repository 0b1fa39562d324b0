"""TorchServe's entry point: connects TorchServe's requests with the engine.

One call of `handle` is one time slice of the engine. With continuous batching (`continuousBatching: true`, one
worker), every call has all open requests: new ones with their fields, known ones by id only. `handle` returns a piece
of each answer. With dynamic batching (several workers), a call has one batch and lasts until the whole batch is
answered; pieces are sent meanwhile.

A thread of its own, the decoder, calls llama.cpp; `handle` waits for it, except for the step ahead: see
MIN_STEP_AHEAD_SEQUENCES. Another thread only reports that the engine is idle, when all clients have disconnected.

TorchServe 0.12 demands that this module defines exactly one class.
"""

import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor

import psutil
from ts.context import Context

from llama_cpp_worker import torchserve_worker
from llama_cpp_worker.api.embeddings import EmbeddingsReply
from llama_cpp_worker.api.errors import ApiError, too_long
from llama_cpp_worker.api.reply import JSON_TYPE, Reply
from llama_cpp_worker.api.routes import Api, error_body
from llama_cpp_worker.devices import physical_cores
from llama_cpp_worker.engine import UNEXPECTED_ERROR, Engine
from llama_cpp_worker.metrics import EngineMetrics
from llama_cpp_worker.model import Model
from llama_cpp_worker.request import Request
from llama_cpp_worker.settings import Settings
from llama_cpp_worker.timeout import Timeout
from llama_cpp_worker.worker_number import claim_number

logger = logging.getLogger(__name__)

# TorchServe needs 2.5 ms between two slices (2 cores, one client), and nothing is computed meanwhile: 3 % of a slice.
# To return after every token would cost a third. 12 updates a second are faster than people read. The engine returns
# earlier at a first token and at an end; on a slow model, a slice is a single step.
SLICE_SECONDS = 0.08

# With continuous batching, TorchServe calls `handle` again within milliseconds while any client is connected. If no
# call comes for this long, all clients have disconnected.
DISCONNECTED_SECONDS = 0.3

# From this many sequences on, the engine decodes one more step while TorchServe passes the pieces on. With fewer, a
# step is so short that it only takes the cores away from TorchServe.
MIN_STEP_AHEAD_SEQUENCES = 4

SAVED_SEQUENCES_SHARE = 1 / 10  # of the free memory, for sequences that had to leave their slot


class LlamaCppHandler:
    """TorchServe creates one handler per worker, calls `initialize` once and then `handle` for every batch."""

    def initialize(self, context: Context) -> None:
        """Loads the model. Raises SettingsError or ModelLoadError, which TorchServe reports as a failed load."""
        settings = Settings.from_yaml(context.model_yaml_config)
        self._is_continuous = bool(context.model_yaml_config.get("continuousBatching"))
        self._shares_cores = not self._is_continuous and settings.n_threads == 0
        n_saved_bytes = int(psutil.virtual_memory().available * SAVED_SEQUENCES_SHARE)
        self._model = Model(
            path=settings.model_path,
            n_slots=context.system_properties["batch_size"],
            n_ctx=settings.n_ctx,
            n_batch=settings.n_batch,
            n_gpu_layers=settings.n_gpu_layers,
            n_threads=settings.n_threads,
            n_saved_bytes=n_saved_bytes,
            kv_cache_type=settings.kv_cache_type,
            embeddings=settings.embeddings,
        )
        self._engine = Engine(self._model, n_saved_bytes)
        self._api = Api(self._model, settings.model_name, "continuous" if self._is_continuous else "dynamic")
        # Every step runs in one thread: libgomp has a team of threads for each thread that calls llama.cpp.
        self._decoder = ThreadPoolExecutor(1, "decoder")
        self._step_ahead: Future[bool] | None = None
        self._replies: dict[str, Reply | EmbeddingsReply] = {}  # the open ones, by TorchServe's request id
        worker_id = torchserve_worker.worker_id()
        number = claim_number(worker_id)
        self._metrics = EngineMetrics(self._engine, context.metrics, context.model_name, worker_id, number)
        self._metrics.report()
        torchserve_worker.drop_frequent_log_lines()
        # If TorchServe was only slow, the requests go on at the next call. Otherwise that call cancels them, because it
        # does not contain their ids.
        self._disconnected = Timeout(DISCONNECTED_SECONDS, self._metrics.report_idle)
        logger.info("Serving %s", json.dumps(self._model.describe()))

    def handle(self, data: list[dict[str, object]], context: Context) -> list[str]:
        """Runs one time slice (continuous batching) or one batch (dynamic batching). Returns a piece per request."""
        self._disconnected.cancel()
        is_urgent = self._finish_step_ahead()
        siblings = torchserve_worker.other_workers() if self._shares_cores else []
        for request_id in self._replies.keys() - set(context.request_ids.values()):
            self._close(request_id)  # its client has disconnected
        immediate = self._receive(data, context)

        while True:
            if self._shares_cores:
                self._model.set_threads(max(1, physical_cores() // (1 + torchserve_worker.count_busy(siblings))))
            if not is_urgent:
                self._decoder.submit(self._engine.run, SLICE_SECONDS).result()
            pieces = self._collect_pieces(context, immediate, size=len(data))
            self._metrics.report()
            if self._is_continuous or self._engine.is_idle:
                break
            torchserve_worker.send_pieces(context, pieces)
            for index, request_id in list(context.request_ids.items()):
                if request_id not in self._replies:
                    del context.request_ids[index]  # TorchServe would end the worker at a second answer
        if not self._engine.is_idle:
            self._disconnected.start()
        if self._is_continuous and self._engine.n_decoding >= MIN_STEP_AHEAD_SEQUENCES:
            self._step_ahead = self._decoder.submit(self._engine.run, 0.0)
        return pieces

    def _finish_step_ahead(self) -> bool:
        """Waits for the step that was begun during the last call. Returns True if its result should go out at once."""
        step, self._step_ahead = self._step_ahead, None
        return step is not None and step.result()

    def _receive(self, data: list[dict[str, object]], context: Context) -> dict[int, str]:
        """Starts the new requests. Returns the answers, by index, that need no engine."""
        answers = {}
        for index, request_id in context.request_ids.items():
            if request_id in self._replies:
                continue
            path, status = torchserve_worker.requested_path(context, index), 200
            try:
                answer = self._start(request_id, path, data[index])
            except ApiError as error:
                answer, status = json.dumps(error_body(path, error)), error.status
                logger.info("request %s refused with %d: %a", request_id, status, error.logged_as)
            except Exception:  # a bug ends its own request, not the whole batch
                answer, status = json.dumps(error_body(path, ApiError(UNEXPECTED_ERROR, status=500))), 500
                logger.exception("request %s failed", request_id)
                if request_id in self._replies:
                    self._close(request_id)
            if answer is not None:
                answers[index] = answer
                context.set_response_status(status, "", index)
                context.set_response_content_type(index, JSON_TYPE)
        return answers

    def _start(self, request_id: str, path: str, fields: dict[str, object]) -> str | None:
        """Submits a request to the engine, or returns an answer that needs no engine. Raises ApiError."""
        answer = self._api.answer(path, fields, request_id)
        if isinstance(answer, dict):
            text = json.dumps(answer)
            if error := too_long(text):
                raise error
            return text
        self._replies[request_id] = answer  # before its requests run: so a failure ends them all
        for request in answer.requests:
            self._engine.submit(request)
        self._metrics.report()  # before the first step: a drain counts the request from now on
        return None

    def _collect_pieces(self, context: Context, immediate: dict[int, str], size: int) -> list[str]:
        """A piece for each index of the batch, possibly empty.

        An answer that is not streamed sends empty pieces until its end, too: TorchServe notices that a client has
        disconnected only when it sends something.
        """
        pieces = [""] * size
        is_last: dict[int, bool | None] = {}
        for index, request_id in context.request_ids.items():
            reply = self._replies.get(request_id)
            if reply is None:
                pieces[index], is_last[index] = immediate[index], None
                continue
            context.set_response_content_type(index, reply.content_type)
            try:
                pieces[index] = reply.next_piece()
                if error := too_long(pieces[index]):
                    pieces[index] = reply.fail(error)
            except Exception:  # a bug ends its own answer, not the whole batch
                logger.exception("request %s failed", request_id)
                pieces[index] = self._fail(request_id, reply)
            is_last[index] = reply.is_finished
            if reply.is_finished:
                self._close(request_id)
                is_last[index] = True if reply.n_pieces > 1 else None  # None: a whole answer in one message
        torchserve_worker.set_stream_ends(context, is_last)
        return pieces

    def _fail(self, request_id: str, reply: Reply | EmbeddingsReply) -> str:
        """Ends an answer after a bug, even if the bug is in the code that reports it."""
        error = ApiError(UNEXPECTED_ERROR, status=500)
        try:
            return reply.fail(error)
        except Exception:
            logger.exception("request %s failed to fail", request_id)
            return json.dumps(error.body())

    def _close(self, request_id: str) -> None:
        """Forgets a reply and cancels its unfinished requests."""
        reply = self._replies.pop(request_id)
        for request in reply.requests:
            self._engine.cancel(request)
            if isinstance(request, Request):
                self._metrics.observe(request)
        logger.info("request %s: %s", request_id, reply.summary())
