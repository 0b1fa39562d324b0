"""The autoscaler's files in the server's log folder: the policy that it follows, and the report that it writes.

The autoscaler, the server app and the command line use them. Knows nothing of processes.
"""

from dataclasses import dataclass
from typing import Literal

from autoscaler.policy import Observation, Policy
from experiments.json_file import read_json, unreadable, write_json
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
    file = config.logs / POLICY_FILE
    policy = read_json(file, Policy) or Policy()
    try:
        policy.check()
    except ValueError as error:
        raise unreadable(file, error) from error
    return policy


def write_policy(config: ServerConfig, policy: Policy) -> None:
    """A running autoscaler follows it from its next observation on. Raises ValueError for an invalid policy."""
    policy.check()
    write_json(config.logs / POLICY_FILE, policy)


def read_report(config: ServerConfig) -> AutoscalerReport | None:
    """Returns the report of the newest autoscaler, running or not. Raises TorchServeError for an invalid file."""
    return read_json(config.logs / REPORT_FILE, AutoscalerReport)


def write_report(config: ServerConfig, report: AutoscalerReport) -> None:
    write_json(config.logs / REPORT_FILE, report)
