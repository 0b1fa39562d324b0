"""Gathers the facts that the page's state is derived from (apps/dashboard/state.py): one query, some files and locks.

A query that overlaps the begin or the end of a change could show a failure that is none. So what changes the server is
read before and after the query, and the query is repeated once if that differs.
"""

import time

from apps.dashboard.actions import Actions
from apps.dashboard.metrics_history import MetricsHistory
from apps.dashboard.state import Changes, Facts
from autoscaler.control import is_on
from autoscaler.state_files import read_report
from experiments.background import BackgroundExperiments
from experiments.restore import is_running
from torchserve_client.archives import list_archives
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import RequestCounts
from torchserve_client.logs import worker_exceptions
from torchserve_client.management import ManagementClient, is_changing
from torchserve_client.process import is_switching


def gather(
    config: ServerConfig, actions: Actions, experiments: BackgroundExperiments, history: MetricsHistory
) -> Facts:
    """Takes four seconds at most. `change` is left to the page. Raises TorchServeError if a lock cannot be read."""
    management = ManagementClient(config)
    before = _changes(config, actions, experiments)
    server = management.state()
    after = _changes(config, actions, experiments)
    if after != before:
        server = management.state()
    model, latest = server.model, history.latest
    errors = worker_exceptions(config) if model and model.phase == "failed" else []
    return Facts(
        at=time.time(),
        server=server,
        changes=after,
        error=errors[-1] if errors else "",
        counts=RequestCounts.of(model, latest.snapshot) if model and latest else None,
        progress=latest.progress if latest else None,
        tokens_per_second=latest.tokens_per_second if latest else 0.0,
        has_archive=bool(list_archives(config.model_store)),
    )


def _changes(config: ServerConfig, actions: Actions, experiments: BackgroundExperiments) -> Changes:
    action, has_autoscaler = actions.current, is_on(config)
    return Changes(
        action=action.name if action else None,
        is_switching=is_switching(config),
        is_changing=is_changing(config),
        has_experiment=experiments.is_running or is_running(config),
        has_autoscaler=has_autoscaler,
        experiment=_progress(experiments),
        autoscaler=_activity(config) if has_autoscaler else "",
    )


def _activity(config: ServerConfig) -> str:
    """What the autoscaler says that it does, or why its report cannot be read."""
    try:
        report = read_report(config)
    except TorchServeError as error:
        return str(error)
    return report.activity if report else "It is starting."


def _progress(experiments: BackgroundExperiments) -> str:
    progress = experiments.progress
    if not experiments.is_running or progress is None:
        return "Preparing" if experiments.is_running else ""
    answered = f", {progress.answered:,} of {progress.requests:,} requests answered" if progress.requests else ""
    return f"{progress.activity}{answered}"
