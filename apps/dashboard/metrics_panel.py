"""The server's metrics as live charts on the server app's page, and a table of where prompts found a cached prefix.

apps/dashboard/metrics_history.py collects the metrics.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import altair as alt
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from apps.dashboard.metrics_history import (
    GAP_SECONDS,
    HISTORY_SECONDS,
    POLL_SECONDS,
    MetricsHistory,
    MetricsPoint,
    ProcessUse,
)
from apps.dashboard.wording import counted, megabytes
from torchserve_client.config import ServerConfig

CHART_HEIGHT = 200  # pixels
AXIS_WIDTH = 44  # pixels; fixed, so that longer numbers do not move the chart

# These colors differ on white and on black, also for people who cannot distinguish red and green.
GREEN, ORANGE, GRAY, BLUE = "#2a9d82", "#e08a1e", "#8c9a97", "#4a7fd4"
PROCESS_COLORS = (GRAY, GREEN, ORANGE, BLUE, "#b55fc0")  # TorchServe first, then its workers

WAITS = {"slot": "for a slot", "prefix": "for a shared prefix", "prefill": "for its prefill"}
PREFIXES = {
    "own": "In the same slot",
    "copied": "Copied from another slot",
    "saved": "From a saved sequence",
    "none": "None: all of the prompt was prefilled",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What one chart shows of one point: a value for each line, and a summary for the chart's title row."""

    lines: dict[str, float | None]
    summary: str


@st.cache_resource
def shared_history(path: str, _config: ServerConfig) -> MetricsHistory:
    """All pages of a server share it. It begins with the first page and ends with the app."""
    history = MetricsHistory(_config)
    history.start()
    return history


@st.fragment(run_every=POLL_SECONDS, key="metrics")
def show_metrics(config: ServerConfig) -> None:
    """Draws the charts and refreshes them every POLL_SECONDS."""
    history = shared_history(str(config.path), config)
    points = history.points()
    is_current = not history.problem
    if is_current:
        st.caption(f"The last {HISTORY_SECONDS // 60} minutes, every {POLL_SECONDS:.0f} s.")
    else:
        st.caption(f":orange[:material/warning:] {history.problem}")
    places = [column for _ in range(4) for column in st.columns(2, gap="medium")]  # row by row on a narrow page, too
    _chart(places[0], "Tokens per second", _speed, points, is_current, (GREEN, GRAY))
    _chart(places[1], "Time to first token, ms", _first_token, points, is_current, (GREEN, ORANGE))
    _chart(places[2], "Requests", _requests, points, is_current, (GREEN, ORANGE, GRAY))
    _chart(places[3], "Why requests wait in a worker, ms", _waits, points, is_current, (ORANGE, BLUE, GREEN))
    _chart(places[4], "KV cache, % of its tokens", _cache, points, is_current, (GREEN,), highest=100)
    _prefixes(places[5], points)
    _chart(places[6], "CPU by process, % of one core", _cpu, points, is_current, PROCESS_COLORS)
    _chart(places[7], "Memory by process, MB", _memory, points, is_current, PROCESS_COLORS)


def _speed(point: MetricsPoint) -> Reading:
    lines: dict[str, float | None] = {"generated": point.tokens_per_second, "prompt": point.prompt_tokens_per_second}
    return Reading(lines, f"{point.tokens_per_second:.0f} tokens/s")


def _first_token(point: MetricsPoint) -> Reading:
    summary = "" if point.first_token_ms is None else f"{point.first_token_ms:,.0f} ms"
    return Reading({"mean": point.first_token_ms, "95th percentile": point.first_token_p95_ms}, summary)


def _requests(point: MetricsPoint) -> Reading:
    lines: dict[str, float | None] = {
        "in a slot": point.slots_busy,
        "in the queue": point.queued,
        "slots": point.slots,
    }
    return Reading(lines, f"{point.slots_busy} of {point.slots} slots busy, {point.queued} queued")


def _waits(point: MetricsPoint) -> Reading:
    """After TorchServe's queue and before the prefill, so the lines together are a part of the time to first token."""
    lines: dict[str, float | None] = {line: point.wait_ms.get(reason) for reason, line in WAITS.items()}
    return Reading(lines, f"{counted(point.prefill_tokens_waiting, 'prompt token')} to prefill")


def _cache(point: MetricsPoint) -> Reading:
    used, capacity = point.cache_tokens, point.cache_capacity_tokens
    return Reading({"used": 100 * used / capacity if capacity else None}, f"{used:,} of {capacity:,} tokens")


def _cpu(point: MetricsPoint) -> Reading:
    lines = {_process_name(process): process.cpu_percent for process in point.processes}
    return Reading(lines, f"{sum(percent or 0 for percent in lines.values()):.0f} %")


def _process_name(process: ProcessUse) -> str:
    return f"worker {process.worker}" if process.worker else "TorchServe"


def _memory(point: MetricsPoint) -> Reading:
    lines: dict[str, float | None] = {
        _process_name(process): process.memory_bytes / 2**20 for process in point.processes
    }
    return Reading(lines, megabytes(sum(process.memory_bytes for process in point.processes)))


def _prefixes(place: DeltaGenerator, points: list[MetricsPoint]) -> None:
    """A table of all prompts in `points`. It always has the same rows, so that the page below does not move."""
    prompts = {source: sum(point.prefix_lookups[source] for point in points) for source in PREFIXES}
    tokens = sum(point.prompt_tokens for point in points)
    cached = sum(point.cached_tokens for point in points)
    swaps = sum(point.slot_swaps for point in points)
    with place.container(gap="xsmall"):
        _title_row(
            "Cached prefixes of prompts", f"{100 * cached / tokens:.0f} % of {tokens:,} tokens" if tokens else ""
        )
        total = sum(prompts.values())
        rows = [
            {
                "Cached prefix": PREFIXES[source],
                "Prompts": f"{n:,}",
                "Share": f"{100 * n / total:.0f} %" if total else "",
            }
            for source, n in prompts.items()
        ]
        st.table(rows, hide_index=True)
        st.caption(f"Swaps of two slots that made the decoding ones consecutive: {swaps:,}.")


def _title_row(title: str, summary: str) -> None:
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", gap="xsmall"):
        st.markdown(f"**{title}**", width="content")
        st.caption(summary or "&nbsp;", width="content")


def _chart(
    place: DeltaGenerator,
    title: str,
    read: Callable[[MetricsPoint], Reading],
    points: list[MetricsPoint],
    is_current: bool,
    colors: tuple[str, ...],
    highest: float | None = None,
) -> None:
    """The title row shows the summary of the last point if the metrics are current."""
    readings = [(point.at, read(point)) for point in points]
    summary = readings[-1][1].summary if readings and is_current else ""
    with place.container(gap=None):
        _title_row(title, summary)
        columns = _columns([(at, reading.lines) for at, reading in readings])
        lines = tuple(dict.fromkeys(line for _, reading in readings for line in reading.lines))
        top = highest or (None if any(columns["value"]) else 1.0)
        st.vega_lite_chart(columns, _spec(lines, colors, top), height=CHART_HEIGHT, key=f"chart of {title}")


def _columns(moments: list[tuple[float, dict[str, float | None]]]) -> dict[str, list[Any]]:
    """One row for each line and moment. After a gap a line continues as a new piece."""
    columns: dict[str, list[Any]] = {"seconds": [], "line": [], "value": [], "piece": []}
    now = time.time()
    last_at: dict[str, float] = {}
    pieces: dict[str, int] = {}
    for at, lines in moments:
        for line, value in lines.items():
            if value is None:
                continue
            if at - last_at.get(line, at) > GAP_SECONDS:
                pieces[line] = pieces.get(line, 0) + 1
            last_at[line] = at
            row = (round(at - now, 1), line, round(value, 1), pieces.get(line, 0))
            for column, item in zip(columns.values(), row, strict=True):
                column.append(item)
    return columns


@st.cache_data
def _spec(lines: tuple[str, ...], colors: tuple[str, ...], highest: float | None) -> dict[str, Any]:
    """A chart without data. The browser keeps the chart of the last poll only if its specification is equal.

    lines: for the legend, which stays when they have no values. highest: of the value axis, None to derive it from the
    values, which must not all be 0 then.
    """
    minutes = HISTORY_SECONDS // 60
    time_axis = alt.Axis(
        title=None,
        values=[-60 * minute for minute in range(minutes, -1, -1)],
        labelExpr="datum.value == 0 ? 'now' : -datum.value / 60 + ' min'",
        labelFlush=True,
        grid=False,
    )
    value_axis = alt.Axis(title=None, tickCount=4, minExtent=AXIS_WIDTH, maxExtent=AXIS_WIDTH)
    value_scale = alt.Scale(domain=[0, highest]) if highest else alt.Scale(zero=True, nice=4)
    legend = alt.Legend(orient="top", title=None, offset=4, padding=0, symbolType="stroke")
    chart = (
        alt.Chart()
        .mark_line(strokeWidth=2, interpolate="linear", clip=True)
        .encode(
            x=alt.X("seconds:Q", scale=alt.Scale(domain=[-HISTORY_SECONDS, 0], nice=False), axis=time_axis),
            y=alt.Y("value:Q", scale=value_scale, axis=value_axis),
            color=alt.Color(
                "line:N", sort=None, scale=alt.Scale(domain=list(lines), range=list(colors)), legend=legend
            ),
            detail="piece:N",
            tooltip=[alt.Tooltip("line:N", title="line"), alt.Tooltip("value:Q", title="value", format=",.1f")],
        )
    )
    spec: dict[str, Any] = chart.to_dict()
    del spec["config"]  # Altair's default sizes
    return spec
