"""The workloads in which a long prompt is prefilled beside other requests, and a helper that keeps all cores busy.

The short questions arrive at fixed times: these times are a part of the workload, not a synchronisation.
"""

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from benchmarks.figures import Figures, checked, first_token_figures, first_token_ms, prefixed
from benchmarks.workloads import body, question, text
from experiments.load_test import Sample, Target, run_load

STREAMS, STREAM_TOKENS, LATE_PROMPT_TOKENS = 4, 200, 3000
LONG_PROMPT_TOKENS, SHORT_PROMPT_TOKENS, ANSWER_TOKENS = 6000, 12, 16  # the chat template adds about 18 tokens
HEAD_START_SECONDS = 1.0  # of the long prompt, before the first short question
ARRIVING, INTERVAL_SECONDS = 6, 0.5
IN_SEQUENCE = 40
BEGIN_TIMEOUT_SECONDS = 120

# The program ends when its parent has ended, even if the parent could not stop it.
BUSY_PROGRAM = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"


def send(target: Target, request: dict[str, Any], has_begun: threading.Event | None = None) -> Sample:
    """Sends one request. `has_begun` is set at each text."""
    (sample,) = run_load(target, [request], 1, on_text=(has_begun or threading.Event()).set).samples
    return sample


def long_request(tag: str, tokens: int = LONG_PROMPT_TOKENS) -> dict[str, Any]:
    return body(question(text(tokens, tag, "long")), 0, ANSWER_TOKENS)


def short_requests(tag: str, requests: int) -> list[dict[str, Any]]:
    return [body(question(text(SHORT_PROMPT_TOKENS, tag, number)), number, ANSWER_TOKENS) for number in range(requests)]


def run_arriving_questions(target: Target, tag: str) -> Figures:
    """WQ: short questions arrive at fixed times while a long prompt is prefilled."""
    long_has_begun = threading.Event()
    sent_during_prefill: list[bool] = []

    def send_at(seconds: float, request: dict[str, Any]) -> Sample:
        time.sleep(max(0.0, started + seconds - time.monotonic()))
        sent_during_prefill.append(not long_has_begun.is_set())
        return send(target, request)

    with ThreadPoolExecutor(1 + ARRIVING) as pool:
        started = time.monotonic()
        long = pool.submit(send, target, long_request(tag), long_has_begun)
        short = [
            pool.submit(send_at, HEAD_START_SECONDS + number * INTERVAL_SECONDS, request)
            for number, request in enumerate(short_requests(tag, ARRIVING))
        ]
    long_sample, *short_samples = checked([long.result(), *(each.result() for each in short)])
    return {
        **prefixed("short", first_token_figures(short_samples)),
        "long_first_token_ms": first_token_ms(long_sample),
        "short_sent_during_prefill": sum(sent_during_prefill),
        "short_prompt_tokens": short_samples[0].prompt_tokens,
        "long_prompt_tokens": long_sample.prompt_tokens,
    }


def run_questions_in_sequence(target: Target, tag: str) -> Figures:
    """WN: one client sends short questions, each after the last answer, beside a long prompt."""
    alone_ms = first_token_ms(checked([send(target, long_request(f"{tag} alone"))])[0])
    long_has_begun = threading.Event()
    answered_during_prefill: list[bool] = []
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(send, target, long_request(tag), long_has_begun)
        time.sleep(HEAD_START_SECONDS)
        short = run_load(
            target,
            short_requests(tag, IN_SEQUENCE),
            clients=1,
            on_sample=lambda sample: answered_during_prefill.append(not long_has_begun.is_set()),
        )
    long_ms = first_token_ms(checked([long.result()])[0])
    return {
        **prefixed("short", first_token_figures(checked(short.samples))),
        "long_first_token_ms": long_ms,
        "long_alone_first_token_ms": alone_ms,
        "long_over_alone": long_ms / alone_ms,
        "short_answered_during_prefill": sum(answered_during_prefill),
    }


@contextmanager
def busy_cores() -> Iterator[None]:
    """One busy program for each core, with the priority of this process."""
    programs: list[subprocess.Popen[bytes]] = []
    try:
        for _ in os.sched_getaffinity(0):
            programs.append(subprocess.Popen([sys.executable, "-c", BUSY_PROGRAM]))
        yield
        assert all(program.poll() is None for program in programs), "a busy program ended too early"
    finally:
        for program in programs:
            program.kill()
            program.wait()


def run_beside_busy_programs(target: Target, tag: str) -> Figures:
    """WB: WQ without other programs, then WQ beside one busy program for each core."""
    idle = run_arriving_questions(target, f"{tag} idle")
    with busy_cores():
        busy = run_arriving_questions(target, f"{tag} busy")
    names = ("short_first_token_p50", "short_first_token_worst", "long_first_token")
    ratios = {f"{name}_busy_over_idle": busy[f"{name}_ms"] / idle[f"{name}_ms"] for name in names}
    return {**ratios, **prefixed("busy", busy), **prefixed("idle", idle)}


def send_beside_streams(target: Target, tag: str, request: dict[str, Any]) -> tuple[list[Sample], Sample]:
    """Sends `request` when each stream has its first text. Returns the streams' samples and the request's."""
    begun = [threading.Event() for _ in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [
            pool.submit(send, target, *each) for each in zip(stream_requests(f"{tag} beside"), begun, strict=True)
        ]
        for event in begun:
            event.wait(BEGIN_TIMEOUT_SECONDS)
        sample = send(target, request)
    return [stream.result() for stream in streams], sample


def stream_requests(tag: str) -> list[dict[str, Any]]:
    return [body(question(text(20, tag, number)), number, STREAM_TOKENS) for number in range(STREAMS)]


def pauses_ms(samples: Sequence[Sample]) -> list[float]:
    """Between two events of a stream. An event has one token or several."""
    return [1000 * (later - earlier) for sample in samples for earlier, later in pairwise(sample.events)]


def per_token_ms(samples: Sequence[Sample]) -> float:
    return 1000 * statistics.median(sample.time_per_token or 0 for sample in samples)


def run_long_prompt_beside_streams(target: Target, tag: str) -> Figures:
    """WL: streams alone, then streams beside the prefill of a long prompt."""
    alone = checked(run_load(target, stream_requests(f"{tag} alone"), STREAMS).samples)
    beside, long = send_beside_streams(target, tag, long_request(tag, LATE_PROMPT_TOKENS))
    checked([*beside, long])
    token_ms, pauses = per_token_ms(alone), pauses_ms(beside)
    return {
        "long_first_token_ms": first_token_ms(long),
        "longest_pause_ms": max(pauses),
        "longest_pause_over_token_time": max(pauses) / token_ms,
        "longest_pause_over_median_pause": max(pauses) / statistics.median(pauses),
        "alone_per_token_ms": token_ms,
        "alone_longest_pause_ms": max(pauses_ms(alone)),
        "beside_per_token_ms": per_token_ms(beside),
    }
