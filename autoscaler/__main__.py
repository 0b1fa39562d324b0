"""Adds and takes away the model's workers as the load asks for it: a process of its own, at most one for each server.

It holds a lock in the server's log folder as long as it lives, so the server app and the command line cannot run two.
No page and no app owns it: closing the page or stopping Streamlit leaves it running. It ends when it is switched off
and when TorchServe ends. What it sees and decides is in autoscaler.json beside the lock, for everybody to read; what
it may do is read from autoscaler_policy.json at every look, so that a change counts at once.

Only dynamic batching can have several workers, so switching it on registers a continuously batched model again; the
number of workers then changes without that. TorchServe forgets what the worker that it ends is doing: it is ended
when it does nothing, and a request that arrives in the same few milliseconds can still be lost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import sys
import time
from dataclasses import fields, replace

import psutil

from autoscaler.control import (
    Entry,
    Kind,
    Report,
    only_one,
    read_policy,
    read_report,
    switch_off,
    write_policy,
    write_report,
)
from autoscaler.policy import (
    Arrivals,
    Decision,
    Observation,
    Policy,
    Trend,
    decide,
    oldest_wait_seconds,
    still_waiting,
)
from experiments.restore import is_running
from torchserve_client.archives import dynamic_archive_name
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import DrainPolicy, drain
from torchserve_client.management import ManagementClient
from torchserve_client.metrics import ARRIVED, Snapshot, scrape
from torchserve_client.process import find_server
from torchserve_client.status import ModelStatus

LOOK_SECONDS = 2.0
QUIET_SECONDS = 5.0  # the worker that is to be ended gets so long to become quiet before the next look
GONE_SECONDS = 10.0  # TorchServe is started again to cut requests; who stops it for good needs no autoscaler
RETRY_SECONDS = 60.0  # after a worker that could not be loaded
LOG_ENTRIES = 200


class Autoscaler:
    """One server's workers. `run` is the life of the process; the lock must be held."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._management = ManagementClient(config)
        self._wishes: queue.SimpleQueue[None] = queue.SimpleQueue()  # unlike an Event, safe in a signal handler
        self._is_ending = False
        self._trend = Trend()
        self._waiting: tuple[Arrivals, ...] = ()
        self._retry_at = 0.0
        self._server_seen_at = time.monotonic()
        self._blocker = ""
        self._now = "Starting."
        self._seen: Observation | None = None
        self._log: list[Entry] = []

    def stop(self) -> None:
        """Ends `run` after the change under way; from any thread or signal handler."""
        self._wishes.put(None)

    def run(self) -> None:
        """Looks and acts until stop() is called or TorchServe ends; raises TorchServeError if it cannot begin."""
        before = read_report(self._config)
        self._log = list(before.log) if before else []
        try:
            policy = read_policy(self._config)
            self._use_dynamic_batching()
        except TorchServeError as error:
            self._add("failed", str(error))
            raise
        self._add("on", f"Switched on for {policy.min_workers} to {policy.max_workers} workers.")
        while not self._is_ending:
            if find_server(self._config):
                self._server_seen_at = time.monotonic()
            elif time.monotonic() - self._server_seen_at > GONE_SECONDS:
                self._add("off", "TorchServe is not running any more, so the autoscaler has ended.")
                return
            self._look()
            self._pause(LOOK_SECONDS)
        self._add("off", "Switched off; the workers stay as they are.")

    def _pause(self, seconds: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._wishes.get(timeout=seconds)
            self._is_ending = True

    def _use_dynamic_batching(self) -> None:
        """With continuous batching TorchServe 0.12 freezes as soon as there are two workers."""
        model = self._management.describe()
        if model is None:
            raise TorchServeError("The model is not registered: press Register Llama2 first.")
        if model.batching == "dynamic":
            return
        self._tell("Registering the model again, with dynamic batching.")
        self._management.apply(model.settings, dynamic_archive_name(model.archive), DrainPolicy(tell=self._tell))
        self._add("waiting", "Registered the model again, with dynamic batching: only that can have several workers.")

    def _look(self) -> None:
        try:
            policy = read_policy(self._config)
            model = self._management.describe()
            if (obstacle := self._obstacle(model)) or model is None:
                self._rest(obstacle)
                return
            seen = self._observe(model, scrape(self._config))
        except TorchServeError as error:
            self._forget(str(error))
            return
        self._seen = seen
        self._trend = self._trend.after(seen, policy)
        decision = decide(policy, self._trend, seen)
        if decision.workers == seen.workers:
            self._hold(decision, seen)
        elif time.monotonic() >= self._retry_at:
            self._change(decision, seen, model)

    def _observe(self, model: ModelStatus, snapshot: Snapshot) -> Observation:
        at = time.monotonic()
        arrivals = Arrivals(at, int(snapshot.total(ARRIVED)))
        self._waiting = still_waiting((*self._waiting, arrivals), model.pending_requests)
        busy = [snapshot.gauge("llamacpp_slots_busy", worker.id) > 0 for worker in model.workers]
        memory = psutil.virtual_memory()
        return Observation(
            at=at,
            workers=model.settings.workers,
            ready_workers=model.ready_workers,
            busy_workers=sum(busy),
            is_newest_busy=bool(busy) and busy[-1],
            batch_size=model.settings.batch_size,
            queued=model.pending_requests,
            oldest_wait_seconds=oldest_wait_seconds(self._waiting),
            worker_bytes=max((worker.memory_bytes for worker in model.workers), default=0),
            used_bytes=memory.total - memory.available,
            total_bytes=memory.total,
        )

    def _obstacle(self, model: ModelStatus | None) -> str:
        if is_running(self._config):
            return "An experiment is running: the autoscaler goes on when that has put the settings back."
        if model is None:
            return "The model is not registered: the autoscaler goes on when it is."
        if model.batching == "continuous":
            return "The model now has continuous batching, for one worker: switch the autoscaler off and on to go on."
        return ""

    def _rest(self, obstacle: str) -> None:
        if obstacle != self._now:
            self._add("waiting", obstacle)
        self._forget(obstacle)

    def _forget(self, now: str) -> None:
        self._trend, self._waiting, self._seen = Trend(), (), None
        self._tell(now)

    def _hold(self, decision: Decision, seen: Observation) -> None:
        """Being held back is logged once for each number of workers and kind of reason, not at every look."""
        if decision.blocker and decision.blocker != self._blocker:
            self._blocker = decision.blocker
            self._log_entry("held back", seen.workers, decision.reason)
        self._tell(decision.reason)

    def _change(self, decision: Decision, seen: Observation, model: ModelStatus) -> None:
        is_up = decision.workers > seen.workers
        self._tell(f"{decision.reason} {seen.workers} → {decision.workers} workers …")
        try:
            if not is_up and not self._is_newest_quiet(model):
                self._tell(f"{decision.reason} Waiting for a moment without requests, so that none is cut.")
                return
            self._management.scale(decision.workers)
        except TorchServeError as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._log_entry("failed", seen.workers, f"{error} Next try in {RETRY_SECONDS:.0f} s.")
        else:
            self._log_entry("up" if is_up else "down", decision.workers, decision.reason)
        self._trend, self._blocker = Trend(changed_at=time.monotonic()), ""
        self._tell(self._log[-1].text)

    def _is_newest_quiet(self, model: ModelStatus) -> bool:
        drain_policy = DrainPolicy(QUIET_SECONDS + model.settings.max_batch_delay_ms / 1000)
        return drain(self._config, self._management.describe, drain_policy, last=1) is not None

    def _add(self, kind: Kind, text: str) -> None:
        self._log_entry(kind, self._seen.workers if self._seen else 0, text)
        self._tell(text)

    def _log_entry(self, kind: Kind, workers: int, text: str) -> None:
        self._log = [*self._log, Entry(time.time(), kind, workers, text)][-LOG_ENTRIES:]
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {f'{workers} workers: ' if workers else ''}{text}", flush=True)

    def _tell(self, now: str) -> None:
        self._now = now
        write_report(self._config, Report(os.getpid(), time.time(), now, self._seen, tuple(self._log)))


def main() -> int:
    """`python autoscaler.py`: looks after the TorchServe of config.properties until Ctrl-C, or until that ends."""
    arguments = _parse()
    try:
        config = ServerConfig.load()
        if arguments.off:
            switch_off(config)
            return 0
        chosen = {name: value for name, value in vars(arguments).items() if name != "off" and value is not None}
        autoscaler = Autoscaler(config)
        for number in (signal.SIGINT, signal.SIGTERM):  # before the lock tells whom to end
            signal.signal(number, lambda *_: autoscaler.stop())
        with only_one(config):
            write_policy(config, replace(read_policy(config), **chosen))
            autoscaler.run()
    except (TorchServeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


_HELP = {
    "min_workers": "never fewer",
    "max_workers": "never more",
    "max_memory_percent": "of the machine's memory that may be in use with another worker",
    "max_wait_seconds": "a request that waits longer asks for another worker",
    "calm_seconds": "nobody waited and a worker was free for so long: one fewer",
    "pause_seconds": "from one change to the next",
}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Adds and takes away workers of the model on the running TorchServe, until Ctrl-C. "
        "What is not given stays as it was last chosen, here or in the server app.",
        epilog="A model with continuous batching is registered again, with dynamic batching.",
    )
    for field in fields(Policy):
        number = type(field.default)
        text = f"{_HELP[field.name]} (at first {field.default})"
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=number, metavar="N", help=text)
    parser.add_argument("--off", action="store_true", help="end the one that is on, and leave the workers as they are")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
