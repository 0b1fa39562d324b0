"""What the handler needs of the TorchServe worker process around it: request paths, streaming, logs, other workers.

Knows TorchServe 0.12 (see docs/torchserve-facts.md). Knows nothing of models and requests.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import psutil
from ts.context import Context
from ts.protocol.otf_message_handler import create_predict_response

API_PATH_HEADER = "X-Api-Path"


def requested_path(context: Context, index: int) -> str:
    """The path of a request's API, such as v1/models; "" for the plain call.

    TorchServe passes a path on only behind a version, as the header url_path. A request to the default version sends
    the path in a header of ours instead. (TorchServe would overwrite a header named url_path.)
    """
    return context.get_request_header(index, "url_path") or context.get_request_header(index, API_PATH_HEADER) or ""


def set_stream_ends(context: Context, is_last: Mapping[int, bool | None]) -> None:
    """Sets for each index of the batch whether its next piece is the last one.

    True and False are the last piece and any other piece of a stream. None is a whole answer in one message, which
    must not look like a stream to TorchServe.
    """
    context.stopping_criteria = {index: _constant(value) for index, value in is_last.items()}


def _constant(value: bool | None) -> Callable[[str], bool | None]:
    def stopping_criterion(_piece: str) -> bool | None:
        return value

    return stopping_criterion


def send_pieces(context: Context, pieces: Sequence[str]) -> None:
    """Sends pieces of a batch's answers before `handle` returns.

    At least one of them must not be the last of its stream: otherwise TorchServe considers the batch answered.
    """
    context.cl_socket.sendall(create_predict_response(pieces, context.request_ids, "Prediction success", 200, context))


def worker_id() -> int:
    """The worker's id in TorchServe's description of the model: the end of the name of its socket, else its pid."""
    argv = sys.argv
    return int(argv[argv.index("--sock-name") + 1].rsplit(".", 1)[-1]) if "--sock-name" in argv else os.getpid()


def drop_frequent_log_lines() -> None:
    """Drops the two lines that TorchServe's worker prints for every call. The frontend would parse each of them."""

    def is_rare(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(("Backend received inference", "[METRICS]PredictionTime"))

    for name in ("", "ts.metrics.caching_metric"):
        logging.getLogger(name).addFilter(is_rare)


def other_workers() -> list[psutil.Process]:
    """TorchServe's other workers on this machine. They share its cores with this worker."""
    others = []
    for process in psutil.Process(os.getppid()).children():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            is_worker = any(part.endswith("model_service_worker.py") for part in process.cmdline())
            if is_worker and process.pid != os.getpid():
                others.append(process)
    return others


def count_busy(workers: Sequence[psutil.Process]) -> int:
    """How many of these workers compute now. A worker that waits for a batch sleeps and leaves its cores free."""
    busy = 0
    for process in workers:
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            busy += process.status() == psutil.STATUS_RUNNING
    return busy
