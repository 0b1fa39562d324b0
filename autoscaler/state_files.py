"""The autoscaler's files in the server's log folder: the policy that it follows, and the report that it writes.

The autoscaler, the server app and the command line use them. Knows nothing of processes.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from autoscaler.policy import Observation, Policy
from experiments.json_file import read_json, write_whole
from torchserve_client.config import ServerConfig

POLICY_FILE = "autoscaler_policy.json"
REPORT_FILE = "autoscaler_report.json"

EntryKind = Literal["on", "up", "down", "blocked", "failed", "waiting", "off"]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A decision or an event. at: seconds since the epoch. workers: their number after it, 0 if it is unknown."""

    at: float
    kind: EntryKind
    workers: int
    text: str


@dataclass(frozen=True, slots=True)
class AutoscalerReport:
    """The autoscaler's process, its activity in words, its newest observation, and its log with the oldest entry first.

    at: when the report was written, in seconds since the epoch.
    """

    pid: int
    at: float
    activity: str
    observation: Observation | None
    log: tuple[LogEntry, ...]


def read_policy(config: ServerConfig) -> Policy:
    """Returns the default policy if there is no file. Raises TorchServeError for an invalid one."""
    return read_json(config.logs / POLICY_FILE, _policy_from) or Policy()


def write_policy(config: ServerConfig, policy: Policy) -> None:
    """A running autoscaler follows it from its next observation on. Raises ValueError for an invalid policy."""
    policy.check()
    write_whole(config.logs / POLICY_FILE, json.dumps(asdict(policy), indent=1))


def read_report(config: ServerConfig) -> AutoscalerReport | None:
    """Returns the report of the newest autoscaler, running or not. Raises TorchServeError for an invalid file."""
    return read_json(config.logs / REPORT_FILE, _report_from)


def write_report(config: ServerConfig, report: AutoscalerReport) -> None:
    write_whole(config.logs / REPORT_FILE, json.dumps(asdict(report), indent=1))


def _policy_from(fields: dict[str, Any]) -> Policy:
    policy = Policy(**fields)
    policy.check()
    return policy


def _report_from(fields: dict[str, Any]) -> AutoscalerReport:
    observation = Observation(**fields["observation"]) if fields["observation"] else None
    log = tuple(LogEntry(**entry) for entry in fields["log"])
    if unknown := {entry.kind for entry in log} - set(get_args(EntryKind)):
        raise ValueError(f"unknown kind of entry: {', '.join(unknown)}")
    return AutoscalerReport(fields["pid"], fields["at"], fields["activity"], observation, log)
