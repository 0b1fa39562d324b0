"""Named figures of one workload on one target, and their medians over the rounds. Sends no request.

Names end in the unit: `_ms` is milliseconds. `_over_` is a ratio of two figures of the same target.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from experiments.load_test import Run, Sample

Figures = dict[str, float]


class WorkloadFailed(Exception):
    """A request of the workload failed, so the round has no figures for this target."""


def checked(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples. Raises WorkloadFailed if a request failed or an answer has no text."""
    errors = [sample.error or "an answer without text" for sample in samples if sample.error or not sample.events]
    if errors:
        raise WorkloadFailed(f"{len(errors)} of {len(samples)} requests failed: {errors[0]}")
    return samples


def first_token_ms(sample: Sample) -> float:
    """Of a sample that `checked` has accepted."""
    assert sample.time_to_first_token is not None
    return 1000 * sample.time_to_first_token


def first_token_figures(samples: Sequence[Sample]) -> Figures:
    """The median and the longest time to the first token."""
    times = [first_token_ms(sample) for sample in samples]
    return {"first_token_p50_ms": statistics.median(times), "first_token_worst_ms": max(times)}


def load_figures(run: Run) -> Figures:
    """Those of a run of the load test. Raises WorkloadFailed."""
    checked(run.samples)
    summary = run.summary()
    figures = {name: float(summary[name]) for name in ("tokens_per_second", "completion_tokens", "cached_tokens")}
    for name in ("first_token", "per_token"):
        times = summary[f"{name}_ms"]
        figures |= {f"{name}_{percentile}_ms": times[percentile] for percentile in ("p50", "p95") if times}
    return figures


def prefixed(prefix: str, figures: Figures) -> Figures:
    return {f"{prefix}_{name}": value for name, value in figures.items()}


def medians(rounds: Iterable[Figures]) -> Figures:
    """The median of each figure, over the rounds that have it."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for figures in rounds:
        for name, value in figures.items():
            values[name].append(value)
    return {name: statistics.median(each) for name, each in values.items()}


def compare(rounds: Iterable[dict[str, Figures]], baseline: str, other: str) -> Figures:
    """The median of each ratio baseline / other, over the rounds in which both targets have the figure."""
    return medians(
        {
            name: figures[baseline][name] / figures[other][name]
            for name in figures[baseline]
            if figures[other].get(name)  # neither missing nor 0
        }
        for figures in rounds
    )


def line(figures: Figures) -> str:
    return "  ".join(
        f"{name} {value:.4g}" if value < 1000 else f"{name} {value:.0f}" for name, value in figures.items()
    )
