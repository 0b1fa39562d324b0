"""When requests get no token, what is said about it. The snapshots are written by hand, a second apart."""

from apps.dashboard.token_progress import TokenProgress
from torchserve_client.metrics import MetricsSnapshot, ProcessSample, Series


def snapshot(at: float, **workers: tuple[int, int, int, int]) -> MetricsSnapshot:
    """workers: by number, such as w0: requests in slots, waiting ones, prompt tokens to prefill, tokens so far."""
    series: dict[Series, float] = {}
    processes = []
    for number, (busy, waiting, prefill, tokens) in enumerate(workers.values()):
        processes.append(ProcessSample(f"900{number}", number, 0.0, 0.0, 0))
        values = {
            "worker_id": 9000 + number,
            "slots_busy": busy,
            "requests_waiting": waiting,
            "requests_prefilling": min(busy, 1) if prefill else 0,
            "prefill_tokens_waiting": prefill,
            "completion_tokens_total": tokens,
        }
        series |= {Series(f"llamacpp_{name}", str(number)): value for name, value in values.items()}
    return MetricsSnapshot(at, series, tuple(processes))


def after(*snapshots: MetricsSnapshot, queued: int = 0) -> TokenProgress:
    progress = TokenProgress()
    for each in snapshots:
        progress = progress.after(each, queued)
    return progress


def seconds(count: int, busy: int = 1, waiting: int = 0, prefill: int = 0, step: int = 0) -> list[MetricsSnapshot]:
    """A snapshot every second, without a new token; each second prefills `step` prompt tokens."""
    return [snapshot(at, w0=(busy, waiting, prefill - step * at, 5)) for at in range(1, count + 1)]


def test_idle_worker_is_no_stall() -> None:
    assert after(*seconds(30, busy=0)).stall(30) == ""


def test_new_tokens_are_no_stall() -> None:
    progress = after(*(snapshot(at, w0=(1, 0, 0, at)) for at in range(1, 31)))

    assert progress.stall(30) == ""
    assert progress.last_token_at == 30


def test_stall_begins_ten_seconds_after_the_last_token() -> None:
    assert after(*seconds(10)).stall(10) == ""
    stall = "No token for 10 s from worker 9000: 1 request is open, no prompt is left to prefill, and the worker"
    assert after(*seconds(11)).stall(11) == f"{stall} generates nothing."


def test_request_that_comes_after_a_calm_time_gets_its_ten_seconds() -> None:
    calm = [snapshot(at, w0=(0, 0, 0, 5)) for at in range(1, 60)]
    busy = [snapshot(at, w0=(1, 0, 0, 5)) for at in range(60, 66)]

    assert after(*calm, *busy).stall(65) == ""


def test_long_prefill_says_how_much_is_left_and_for_how_long() -> None:
    assert after(*seconds(12, busy=2, waiting=1, prefill=8000, step=200)).stall(12) == (
        "No token for 11 s from worker 9000: 1 of 3 open requests is being prefilled, 1 of them without a slot; "
        "5,600 prompt tokens are left, about 28 s."
    )


def test_prefill_that_stands_still_says_so() -> None:
    stall = after(*seconds(31, prefill=8000)).stall(31)

    assert stall.endswith("8,000 prompt tokens are left, and none was prefilled for 30 s.")


def test_stalled_worker_is_named_while_another_one_answers() -> None:
    progress = after(*(snapshot(at, w0=(1, 0, 0, at), w1=(1, 0, 0, 5)) for at in range(1, 15)))

    assert progress.stall(14).startswith("No token for 13 s from worker 9001")


def test_queue_that_no_worker_empties_is_a_stall() -> None:
    idle = seconds(12, busy=0)

    assert after(*idle, queued=2).stall(12) == (
        "No token for 11 s: 2 requests wait in TorchServe's queue, and no worker takes any."
    )
    assert after(*idle, queued=0).stall(12) == ""


def test_nothing_is_said_without_metrics_or_with_old_ones() -> None:
    foreign = [MetricsSnapshot(at, {}, ()) for at in range(1, 30)]

    assert after(*foreign, queued=1).stall(30) == ""
    assert after(*seconds(30)).stall(41) == ""


def test_restarted_worker_begins_anew() -> None:
    other = MetricsSnapshot(31, seconds(1)[0].series, (ProcessSample("9001", 7, 0.0, 0.0, 0),))

    assert after(*seconds(30), other).stall(31) == ""
