"""Pictures of experiments, as Altair charts. Knows nothing of the page they are on.

The colours can be told apart by colour-blind people and on light and dark pages; shapes say the same again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from experiments.load_test import PERCENTILES
from experiments.records import SWEEPS, Plan, Point, Record

COLOURS = ["#1a80c4", "#d55e00", "#009e73", "#be5f95", "#8c7a00", "#7a6fd0", "#607d8b", "#a0522d"]
PHASES = {"queued": "#95a19d", "reading": "#d55e00", "writing": "#1a80c4", "failed": "#b3123f"}
TIMES = {"first_token_ms": "Time to first token, ms", "latency_ms": "Whole answer, ms"}
MUTED = "#7d8784"
POINTS = alt.OverlayMarkDef(size=70, filled=True)
HEIGHT = 320
LEGEND_ROW_HEIGHTS = {"by_setting": 18, "by_clients": 30}  # a line's symbols are larger than a bar's
MOST_FIGURES = 8  # above bars: more would run into one another on a narrow page
ROOM_FOR_FIGURES = 1.1  # of the highest bar
ROW_HEIGHT, MAX_ROWS_HEIGHT, AXES_HEIGHT = 14, 500, 110

Row = dict[str, Any]


def axis_title(plan: Plan) -> str:
    """What varies along the charts: the setting, else the number of clients."""
    if plan.sweep is None:
        return "Clients"
    return f"{SWEEPS[plan.sweep]}, ms" if plan.sweep == "max_batch_delay_ms" else SWEEPS[plan.sweep]


def throughput_rows(records: Sequence[Record]) -> list[Row]:
    """A row for each run with answers; the experiment is part of a series' name only where there are several."""
    rows = []
    for record in records:
        when = f"{record.started.astimezone():%d %b %H:%M:%S}, " if len(records) > 1 else ""
        for point in record.answered:
            row = {"clients": point.clients, "tokens_per_second": point.summary["tokens_per_second"]}
            by_setting = when + record.plan.run_name(None, point.clients)
            by_clients = when + (record.plan.step_name(point.value) or "As it is")
            rows.append(row | {"value": point.value, "by_setting": by_setting, "by_clients": by_clients})
    return rows


def throughput_by_setting(records: Sequence[Record]) -> alt.LayerChart:
    """Tokens per second as bars, for each value of what was varied, side by side for numbers of clients."""
    rows = throughput_rows(records)
    title = axis_title(records[0].plan)
    highest = max(row["tokens_per_second"] for row in rows)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=_category("value", title, (row["value"] for row in rows)),
        y=_amount("tokens_per_second", "Tokens per second", ROOM_FOR_FIGURES * highest),
        xOffset=alt.XOffset("by_setting:N", sort=None, scale=alt.Scale(paddingInner=0.15)),
        tooltip=_tooltips(value=title, by_setting="Run", tokens_per_second="Tokens per second"),
    )
    bars = base.mark_bar(width=alt.RelativeBandSize(1)).encode(color=_colour("by_setting", is_long=len(records) > 1))
    figures = base.mark_text(dy=-8, color=MUTED).encode(text=alt.Text("tokens_per_second:Q", format=".0f"))
    chart = alt.layer(bars, figures) if len(rows) <= MOST_FIGURES else alt.layer(bars)
    return chart.properties(height=_height(records, rows, "by_setting"))


def throughput_by_clients(records: Sequence[Record]) -> alt.Chart:
    """Tokens per second as lines over the number of clients, one for each value of what was varied."""
    rows = throughput_rows(records)
    height = _height(records, rows, "by_clients")
    chart = alt.Chart(alt.Data(values=rows), height=height).mark_line(point=POINTS)
    return chart.encode(
        x=_category("clients", "Clients", (row["clients"] for row in rows)),
        y=_amount("tokens_per_second", "Tokens per second"),
        color=_colour("by_clients", is_long=len(records) > 1),
        shape=alt.Shape("by_clients:N", sort=None, legend=None),
        tooltip=_tooltips(by_clients="Run", clients="Clients", tokens_per_second="Tokens per second"),
    )


def time_rows(plan: Plan, points: Iterable[Point], time: str) -> list[Row]:
    """A row for each run and percentile; `time` is one of TIMES."""
    return [
        {
            "x": point.clients if plan.sweep is None else point.value,
            "percentile": f"p{percent}",
            "ms": point.summary[time][f"p{percent}"],
        }
        for point in points
        for percent in PERCENTILES
        if point.summary[time]
    ]


def times(plan: Plan, points: Sequence[Point], time: str) -> alt.Chart:
    """The percentiles of one of TIMES as lines; the points should differ in what the axis shows only."""
    rows = time_rows(plan, points, time)
    chart = alt.Chart(alt.Data(values=rows), height=HEIGHT).mark_line(point=POINTS)
    return chart.encode(
        x=_category("x", axis_title(plan), (row["x"] for row in rows)),
        y=_amount("ms", TIMES[time]),
        color=_colour("percentile"),
        shape=alt.Shape("percentile:N", sort=None, legend=None),
        tooltip=_tooltips(x=axis_title(plan), percentile="Percentile", ms=TIMES[time]),
    )


def timeline_rows(point: Point) -> list[Row]:
    """The phases of every request: seconds since the start of the run, requests in the order of sending."""
    rows: list[Row] = []
    for number, sample in enumerate(sorted(point.samples, key=lambda sample: sample.sent), 1):
        phases = {"failed": (sample.sent, sample.ended)} if sample.error else sample.phases()
        for phase, (start, end) in phases.items():
            rows.append({"request": number, "phase": phase, "start": round(start, 3), "end": round(end, 3)})
            rows[-1]["seconds"] = round(end - start, 3)
    return rows


def timeline(point: Point) -> alt.Chart:
    """A bar for each request: how long it was queued, read and written."""
    rows = timeline_rows(point)
    shown = [phase for phase in PHASES if any(row["phase"] == phase for row in rows)]
    colours = alt.Scale(domain=shown, range=[PHASES[phase] for phase in shown])
    height = AXES_HEIGHT + min(MAX_ROWS_HEIGHT, ROW_HEIGHT * max(4, len(point.samples)))
    chart = alt.Chart(alt.Data(values=rows), height=height).mark_bar()
    return chart.encode(
        x=alt.X("start:Q", title="Seconds since the start of the run", axis=alt.Axis(grid=True)),
        x2="end:Q",
        y=alt.Y("request:O", title="Requests as sent", axis=alt.Axis(labels=False, ticks=False)),
        color=alt.Color("phase:N", title=None, scale=colours, legend=_legend()),
        tooltip=_tooltips(request="Request", phase="Phase", start="From, s", end="To, s", seconds="Seconds"),
    )


def _category(name: str, title: str, values: Iterable[Any]) -> alt.X:
    """Numbers by size; words, which are never mixed with them, by the alphabet."""
    padding = alt.Scale(paddingInner=0.4, paddingOuter=0.3)
    return alt.X(f"{name}:N", title=title, sort=sorted(set(values)), axis=alt.Axis(labelAngle=0), scale=padding)


def _amount(name: str, title: str, end: float | None = None) -> alt.Y:
    scale = alt.Scale(domain=[0, end]) if end else alt.Scale(zero=True)
    return alt.Y(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))


def _height(records: Sequence[Record], rows: Sequence[Row], series: str) -> int:
    """In pixels, legend included: as much more as a long one needs."""
    return HEIGHT + (LEGEND_ROW_HEIGHTS[series] * len({row[series] for row in rows}) if len(records) > 1 else 0)


def _colour(name: str, is_long: bool = False) -> alt.Color:
    return alt.Color(f"{name}:N", title=None, sort=None, scale=alt.Scale(range=COLOURS), legend=_legend(is_long))


def _legend(is_long: bool = False) -> alt.Legend:
    """Long names stand below one another: a legend does not wrap at a narrow page's edge."""
    return alt.Legend(
        orient="top", direction="vertical" if is_long else "horizontal", labelLimit=400, offset=4, padding=0
    )


def _tooltips(**titles: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:N", title=title) for name, title in titles.items()]
