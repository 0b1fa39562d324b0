"""The autoscaler's loop: observe the server, decide, change the number of workers, report.

policy.py decides; control.py starts and ends the process. Nothing else owns it: it goes on when the page or Streamlit
ends. It ends when it is switched off, and when TorchServe ends.

Several workers need dynamic batching, so the loop begins with registering a continuously batched model again.
Not covered: TorchServe drops the requests of a worker that it removes. The loop waits until that worker is idle, but a
request that arrives in the same few milliseconds can be lost.
"""

import contextlib
import os
import queue
import time

import psutil

from autoscaler.policy import Arrivals, Decision, Observation, Trend, decide, oldest_wait_seconds, still_waiting
from autoscaler.state_files import AutoscalerReport, EntryKind, LogEntry, read_policy, read_report, write_report
from experiments.restore import is_running
from torchserve_client.archives import dynamic_archive_name
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import DrainPolicy, drain
from torchserve_client.management import ManagementClient
from torchserve_client.metrics import ARRIVED, MetricsSnapshot, scrape
from torchserve_client.model_description import ModelDescriptions
from torchserve_client.running_server import find_server
from torchserve_client.status import ModelStatus
from torchserve_client.worker_memory import worker_memory

OBSERVE_SECONDS = 2.0  # between two observations
WORKER_DRAIN_SECONDS = 5.0  # the worker to be removed may become idle in this time, else the loop observes again
SERVER_GONE_SECONDS = 10.0  # without TorchServe, until the autoscaler ends; a change in the app may restart TorchServe
RETRY_LOAD_SECONDS = 60.0  # after a worker that could not be loaded
MAX_LOG_ENTRIES = 200


class Autoscaler:
    """Scales the workers of one server. The caller of run() must hold the lock."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._management = ManagementClient(config)
        self._descriptions = ModelDescriptions(config)
        self._stops: queue.SimpleQueue[None] = queue.SimpleQueue()  # an Event is not safe in a signal handler
        self._trend = Trend()
        self._waiting: tuple[Arrivals, ...] = ()
        self._retry_at = 0.0
        self._server_seen_at = time.monotonic()
        self._blocker = ""
        self._activity = ""
        self._observation: Observation | None = None
        self._log: list[LogEntry] = []

    def stop(self) -> None:
        """Ends run() after the current change. Any thread and any signal handler may call this."""
        self._stops.put(None)

    def run(self) -> None:
        """Scales until stop() is called or TorchServe ends. Raises TorchServeError if it cannot begin."""
        before = read_report(self._config)
        self._log = list(before.log) if before else []
        self._report("Starting.")
        try:
            policy = read_policy(self._config)
            self._use_dynamic_batching()
        except TorchServeError as error:
            self._log_and_report("failed", str(error))
            raise
        self._log_and_report("on", f"Switched on for {policy.min_workers} to {policy.max_workers} workers.")
        while True:
            if find_server(self._config):
                self._server_seen_at = time.monotonic()
            elif time.monotonic() - self._server_seen_at > SERVER_GONE_SECONDS:
                self._log_and_report("off", "TorchServe is not running any more, so the autoscaler has ended.")
                return
            self._step()
            with contextlib.suppress(queue.Empty):
                self._stops.get(timeout=OBSERVE_SECONDS)
                break
        self._log_and_report("off", "Switched off; the workers stay as they are.")

    def _use_dynamic_batching(self) -> None:
        """TorchServe 0.12 freezes with continuous batching and two workers."""
        model = self._management.describe()
        if model is None:
            raise TorchServeError("The model is not registered: press Register Llama2 first.")
        if model.batching == "dynamic":
            return
        self._report("Registering the model again, with dynamic batching.")
        drain_policy = DrainPolicy(on_progress=self._report)
        self._management.apply(model.settings, dynamic_archive_name(model.archive), drain_policy)
        text = "Registered the model again, with dynamic batching: only that can have several workers."
        self._log_and_report("waiting", text)

    def _step(self) -> None:
        """Observe, decide, and change the number of workers if the decision says so."""
        try:
            policy = read_policy(self._config)
            model = self._management.describe()
            obstacle = self._obstacle(model)
            if obstacle or model is None:
                if obstacle != self._activity:
                    self._log_and_report("waiting", obstacle)
                self._start_over(obstacle)
                return
            observation = self._observe(model, scrape(self._config))
        except TorchServeError as error:
            self._start_over(str(error))
            return
        self._observation = observation
        self._trend = self._trend.after(observation, policy)
        decision = decide(policy, self._trend, observation)
        if decision.workers == observation.workers:
            if decision.blocker and decision.blocker != self._blocker:  # logged once until the next change
                self._blocker = decision.blocker
                self._add_entry("blocked", observation.workers, decision.reason)
            self._report(decision.reason)
        elif time.monotonic() >= self._retry_at:
            self._change(decision, observation, model)

    def _obstacle(self, model: ModelStatus | None) -> str:
        """Returns why the autoscaler must not change the workers now, or "" if it may."""
        if is_running(self._config):
            return "An experiment is running: the autoscaler goes on when that has put the settings back."
        if model is None:
            return "The model is not registered: the autoscaler goes on when it is."
        if model.batching == "continuous":
            return "The model now has continuous batching, for one worker: switch the autoscaler off and on to go on."
        return ""

    def _start_over(self, activity: str) -> None:
        """Forgets the earlier observations."""
        self._trend, self._waiting, self._observation = Trend(), (), None
        self._report(activity)

    def _observe(self, model: ModelStatus, snapshot: MetricsSnapshot) -> Observation:
        at = time.monotonic()
        arrivals = Arrivals(at, int(snapshot.total(ARRIVED)))
        self._waiting = still_waiting((*self._waiting, arrivals), model.pending_requests)
        busy = [snapshot.gauge("llamacpp_slots_busy", worker.id) > 0 for worker in model.workers]
        machine = psutil.virtual_memory()
        description = self._descriptions.of(model)
        memory = worker_memory(model, None, description.meta if description else None)
        return Observation(
            at=at,
            workers=model.settings.workers,
            ready_workers=model.ready_workers,
            busy_workers=sum(busy),
            is_newest_busy=bool(busy) and busy[-1],
            batch_size=model.settings.batch_size,
            queued=model.pending_requests,
            oldest_wait_seconds=oldest_wait_seconds(self._waiting),
            worker_bytes=memory.of_another(model.settings.batch_size),
            used_bytes=machine.total - machine.available + memory.mapped_bytes,  # mapped files count as available
            total_bytes=machine.total,
        )

    def _change(self, decision: Decision, observation: Observation, model: ModelStatus) -> None:
        is_up = decision.workers > observation.workers
        self._report(f"{decision.reason} {observation.workers} → {decision.workers} workers …")
        try:
            if not is_up and not self._drain_newest(model):
                self._report(f"{decision.reason} Waiting for a moment without requests, so that none is cut.")
                return
            self._management.scale(decision.workers)
        except TorchServeError as error:
            self._retry_at = time.monotonic() + RETRY_LOAD_SECONDS
            self._add_entry("failed", observation.workers, f"{error} Next try in {RETRY_LOAD_SECONDS:.0f} s.")
        else:
            self._add_entry("up" if is_up else "down", decision.workers, decision.reason)
        self._trend, self._blocker = Trend(changed_at=time.monotonic()), ""
        self._report(self._log[-1].text)

    def _drain_newest(self, model: ModelStatus) -> bool:
        """Returns whether the newest worker became idle. TorchServe removes that one."""
        drain_policy = DrainPolicy(WORKER_DRAIN_SECONDS + model.settings.max_batch_delay_ms / 1000)
        return drain(self._config, self._management.describe, drain_policy, last=1) is not None

    def _log_and_report(self, kind: EntryKind, text: str) -> None:
        self._add_entry(kind, self._observation.workers if self._observation else 0, text)
        self._report(text)

    def _add_entry(self, kind: EntryKind, workers: int, text: str) -> None:
        self._log = [*self._log, LogEntry(time.time(), kind, workers, text)][-MAX_LOG_ENTRIES:]
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {f'{workers} workers: ' if workers else ''}{text}", flush=True)

    def _report(self, activity: str) -> None:
        self._activity = activity
        report = AutoscalerReport(os.getpid(), time.time(), activity, self._observation, tuple(self._log))
        write_report(self._config, report)
