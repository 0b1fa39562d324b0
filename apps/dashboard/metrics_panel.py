"""The server's metrics as live charts, for the server app. Draws what apps/dashboard/metrics_history.py has gathered."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import streamlit as st

from apps.dashboard.metrics_history import GAP_SECONDS, HISTORY_SECONDS, POLL_SECONDS, MetricsHistory, Point, ProcessUse
from torchserve_client.config import ServerConfig

CHART_HEIGHT = 200
AXIS_WIDTH = 44  # pixels for the numbers of every chart, so that longer ones do not move it

# Told apart on white and on black, also by people who do not see red and green.
GREEN, ORANGE, GRAY = "#2a9d82", "#e08a1e", "#8c9a97"
PROCESS_COLORS = [GRAY, GREEN, ORANGE, "#4a7fd4", "#b55fc0"]  # TorchServe first, then its workers

Values = Callable[[Point], dict[str, float | None]]  # what a chart shows of a point: a value for each line


def show_metrics(config: ServerConfig) -> None:
    """The charts, brought up to date every POLL_SECONDS by whoever has them open."""
    _live_charts(config)


@st.cache_resource
def _history(_config: ServerConfig, path: str) -> MetricsHistory:
    """Shared by all pages and tabs, and not lost by a reload."""
    return MetricsHistory(_config)


@st.fragment(run_every=POLL_SECONDS, key="metrics")
def _live_charts(config: ServerConfig) -> None:
    history = _history(config, str(config.path))
    history.poll()
    points = history.points()
    last = points[-1] if points and not history.problem else None
    if history.problem:
        st.caption(f":orange[:material/warning:] {history.problem}")
    else:
        st.caption(f"The last {HISTORY_SECONDS // 60} minutes, every {POLL_SECONDS:.0f} s while a page shows them.")
    left, right = st.columns(2, gap="medium")
    with left:
        _chart("Tokens per second", _speed_now(last), points, _speed, [GREEN, GRAY])
        _chart("Requests", _requests_now(last), points, _requests, [GREEN, ORANGE, GRAY])
        _chart("CPU by process, % of one core", _cpu_now(last), points, _cpu, PROCESS_COLORS)
    with right:
        _chart("Time to first token, ms", _first_token_now(last), points, _first_token, [GREEN, ORANGE])
        _chart("KV cache, % of its tokens", _cache_now(last), points, _cache, [GREEN], high=100)
        _chart("Memory by process, MB", _memory_now(last), points, _memory, PROCESS_COLORS)


def _speed(point: Point) -> dict[str, float | None]:
    return {"generated": point.tokens_per_second, "prompt": point.prompt_tokens_per_second}


def _speed_now(point: Point | None) -> str:
    return f"{point.tokens_per_second:.0f} tokens/s" if point else ""


def _first_token(point: Point) -> dict[str, float | None]:
    return {"mean": point.first_token_ms, "95th percentile": point.first_token_p95_ms}


def _first_token_now(point: Point | None) -> str:
    return f"{point.first_token_ms:,.0f} ms" if point and point.first_token_ms is not None else ""


def _requests(point: Point) -> dict[str, float | None]:
    return {"in a slot": point.slots_busy, "in the queue": point.queued, "slots": point.slots}


def _requests_now(point: Point | None) -> str:
    return f"{point.slots_busy} of {point.slots} slots busy, {point.queued} queued" if point else ""


def _cache(point: Point) -> dict[str, float | None]:
    return {"used": 100 * point.cache_tokens / point.cache_capacity_tokens if point.cache_capacity_tokens else None}


def _cache_now(point: Point | None) -> str:
    return f"{point.cache_tokens:,} of {point.cache_capacity_tokens:,} tokens" if point else ""


def _cpu(point: Point) -> dict[str, float | None]:
    return {_name(process): process.cpu_percent for process in point.processes}


def _cpu_now(point: Point | None) -> str:
    return f"{sum(process.cpu_percent or 0 for process in point.processes):.0f} %" if point else ""


def _memory(point: Point) -> dict[str, float | None]:
    return {_name(process): process.memory_bytes / 2**20 for process in point.processes}


def _memory_now(point: Point | None) -> str:
    return f"{sum(process.memory_bytes for process in point.processes) / 2**20:,.0f} MB" if point else ""


def _name(process: ProcessUse) -> str:
    return process.worker or "TorchServe"


def _chart(
    title: str, now: str, points: list[Point], values: Values, colors: list[str], high: float | None = None
) -> None:
    with st.container(gap=None):
        with st.container(
            horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", gap="xsmall"
        ):
            st.markdown(f"**{title}**", width="content")
            st.caption(now or "&nbsp;", width="content")
        st.vega_lite_chart(_columns(points, values), _spec(colors, high), height=CHART_HEIGHT, key=f"chart of {title}")


def _columns(points: list[Point], values: Values) -> dict[str, list[Any]]:
    """One row for each line and point; `piece` grows where a line is interrupted."""
    columns: dict[str, list[Any]] = {"seconds": [], "line": [], "value": [], "piece": []}
    now = time.time()
    seen_at: dict[str, float] = {}
    pieces: dict[str, int] = {}
    for point in points:
        for line, value in values(point).items():
            if value is None:
                continue
            if point.at - seen_at.get(line, point.at) > GAP_SECONDS:
                pieces[line] = pieces.get(line, 0) + 1
            seen_at[line] = point.at
            row = (round(point.at - now, 1), line, round(value, 1), pieces.get(line, 0))
            for column, item in zip(columns.values(), row, strict=True):
                column.append(item)
    return columns


def _spec(colors: list[str], high: float | None) -> dict[str, Any]:
    """Only the data changes from poll to poll: with an equal specification the browser keeps the chart it has."""
    minutes = HISTORY_SECONDS // 60
    ticks = [-60 * minute for minute in range(minutes, -1, -1)]
    return {
        "mark": {"type": "line", "strokeWidth": 2, "interpolate": "linear", "clip": True},
        "encoding": {
            "x": {
                "field": "seconds",
                "type": "quantitative",
                "scale": {"domain": [-HISTORY_SECONDS, 0], "nice": False},
                "axis": {
                    "title": None,
                    "values": ticks,
                    "labelExpr": "datum.value == 0 ? 'now' : -datum.value / 60 + ' min'",
                    "labelFlush": True,
                    "grid": False,
                },
            },
            "y": {
                "field": "value",
                "type": "quantitative",
                "scale": {"domain": [0, high]} if high else {"zero": True, "nice": 4},
                "axis": {"title": None, "tickCount": 4, "minExtent": AXIS_WIDTH, "maxExtent": AXIS_WIDTH},
            },
            "color": {
                "field": "line",
                "type": "nominal",
                "sort": None,
                "scale": {"range": colors},
                "legend": {"orient": "top", "title": None, "offset": 4, "padding": 0, "symbolType": "stroke"},
            },
            "detail": {"field": "piece", "type": "nominal"},
            "tooltip": [
                {"field": "line", "type": "nominal", "title": "line"},
                {"field": "value", "type": "quantitative", "title": "value", "format": ",.1f"},
            ],
        },
    }
