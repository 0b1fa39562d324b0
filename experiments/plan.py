"""What an experiment has to do: which setting varies, which requests are sent, and how many clients send them.

Plain values. Knows no server and no file.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Self

from experiments.prompts import PROMPT_SETS
from llama_cpp_worker.sampling_params import Bounds, InvalidParameter
from torchserve_client.archives import ENDING, dynamic_archive_name
from torchserve_client.status import SERVING_BOUNDS, ModelStatus, ServingSettings

Batching = Literal["continuous", "dynamic"]
Value = int | str

SWEEPS = {
    "batch_size": "Batch size",
    "max_batch_delay_ms": "Max batch delay",
    "workers": "Workers",
    "batching": "Batching",
}
BATCHINGS: tuple[Batching, ...] = ("continuous", "dynamic")
DYNAMIC_ENDING = dynamic_archive_name(ENDING)
MAX_VALUES = 8
PLAN_BOUNDS = {
    "clients": Bounds(int, 1, 64),
    "requests": Bounds(int, 1, 500),
    "max_tokens": Bounds(int, 1, 1000),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """How the model is served: the settings, the archive, and how this archive batches requests."""

    settings: ServingSettings
    archive: str
    batching: Batching

    @classmethod
    def of(cls, status: ModelStatus) -> Self:
        return cls(status.settings, status.archive, status.batching)

    def varied(self, sweep: str, value: Value) -> "Setup":
        """Returns this setup with one of SWEEPS set to `value`.

        Several workers need dynamic batching. The two batchings are compared with one worker.
        """
        if sweep == "batching":
            settings = replace(self.settings, workers=1)
            is_dynamic = value == "dynamic"
        else:
            settings = replace(self.settings, **{sweep: int(value)})
            is_dynamic = self.batching == "dynamic" or settings.workers > 1
        if is_dynamic == (self.batching == "dynamic"):
            return replace(self, settings=settings)
        if is_dynamic:
            return Setup(settings, dynamic_archive_name(self.archive), "dynamic")
        return Setup(settings, self.archive.replace(DYNAMIC_ENDING, ENDING), "continuous")

    def __str__(self) -> str:
        return f"{self.settings}, {self.batching} batching"


@dataclass(frozen=True, slots=True)
class Plan:
    """What an experiment has to do.

    clients: numbers of clients to try, one run for each.
    requests: requests of each run, shared among its clients.
    prompts: one of PROMPT_SETS.
    max_tokens: exact length of each answer.
    sweep, values: one of SWEEPS and its values, in this order. None and () leave the server as it is.
    """

    clients: tuple[int, ...]
    requests: int
    prompts: str
    max_tokens: int
    sweep: str | None = None
    values: tuple[Value, ...] = ()

    @classmethod
    def from_texts(
        cls, clients: str, requests: int | None, prompts: str, max_tokens: int, sweep: str, values: str
    ) -> Self:
        """Parses what a person has typed. `sweep` is "" for none; `requests` is by default 4 for each client.

        Raises InvalidParameter (a ValueError) for a plan that cannot be carried out.
        """
        numbers = tuple(int(number) for number in values_from("clients", clients))
        if requests is None:
            requests = 4 * max(numbers, default=1)
        plan = cls(numbers, requests, prompts, max_tokens, sweep or None, values_from(sweep, values) if sweep else ())
        plan.check()
        return plan

    def check(self) -> None:
        """Raises InvalidParameter (a ValueError) for a plan that cannot be carried out."""
        _check_list("clients", self.clients, PLAN_BOUNDS["clients"])
        for name in ("requests", "max_tokens"):
            PLAN_BOUNDS[name].check(name, getattr(self, name))
        if self.requests < max(self.clients):
            raise InvalidParameter("requests", f"{self.requests} leave some of {max(self.clients)} clients idle")
        if self.prompts not in PROMPT_SETS:
            raise InvalidParameter("prompts", f"must be one of {', '.join(PROMPT_SETS)}")
        if self.sweep == "batching":
            if not self.values or len(set(self.values) & set(BATCHINGS)) != len(self.values):
                raise InvalidParameter("batching", f"must be of {', '.join(BATCHINGS)}, each at most once")
        elif self.sweep:
            if self.sweep not in SWEEPS:
                raise InvalidParameter("sweep", f"must be one of {', '.join(SWEEPS)}")
            _check_list(self.sweep, self.values, SERVING_BOUNDS[self.sweep])

    @property
    def steps(self) -> tuple[Value | None, ...]:
        """The values in their order. None leaves the server as it is."""
        return self.values if self.sweep else (None,)

    @property
    def runs(self) -> int:
        return len(self.steps) * len(self.clients)

    def step_name(self, value: Value | None) -> str:
        """ "Batch size 4"; "" if nothing varies."""
        if self.sweep is None or value is None:
            return ""
        if self.sweep == "batching":
            return f"{value} batching".capitalize()
        if self.sweep == "workers":
            return "1 worker" if value == 1 else f"{value} workers"
        return f"{SWEEPS[self.sweep]} {value}{' ms' if self.sweep == 'max_batch_delay_ms' else ''}"

    def run_name(self, value: Value | None, clients: int) -> str:
        """ "Batch size 4, 8 clients"."""
        return ", ".join(filter(None, (self.step_name(value), _clients([clients]))))

    def __str__(self) -> str:
        swept = f"{SWEEPS[self.sweep]} {_listed(self.values)} · " if self.sweep else ""
        return f"{swept}{_clients(self.clients)} · {PROMPT_SETS[self.prompts].lower()}"


def values_from(sweep: str, text: str) -> tuple[Value, ...]:
    """Parses typed values: "1, 4, 8", or words for batching. Raises InvalidParameter (a ValueError)."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if sweep == "batching":
        return tuple(parts)
    if not all(part.isdecimal() for part in parts):
        raise InvalidParameter(sweep, f"must be whole numbers with commas between them, like 1, 4, 8, not {text!r}")
    return tuple(int(part) for part in parts)


def _check_list(name: str, values: tuple[Value, ...], bounds: Bounds) -> None:
    for value in values:
        bounds.check(name, value)
    if not 1 <= len(set(values)) == len(values) <= MAX_VALUES:
        raise InvalidParameter(name, f"must be 1 to {MAX_VALUES} different numbers")


def _clients(numbers: Iterable[int]) -> str:
    """ "1, 8 clients"."""
    text = _listed(numbers)
    return f"{text} client{'' if text == '1' else 's'}"


def _listed(values: Iterable[Value]) -> str:
    return ", ".join(str(value) for value in values)
