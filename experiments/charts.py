"""Draws experiments as Altair charts. Knows nothing of the page that shows them.

The colours are the theme's (chartCategoricalColors in .streamlit/config.toml). The symbols of the lines differ, too.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from experiments.plan import SWEEPS, Plan
from experiments.records import ExperimentRecord, MeasuredPoint

PHASE_COLOURS = {"queued": "#95a19d", "prefill": "#e08a1e", "decode": "#2a9d82", "failed": "#b3123f"}
TIME_TITLES = {"first_token_ms": "Time to first token, ms", "latency_ms": "Whole answer, ms"}
MUTED = "#7d8784"
POINTS = alt.OverlayMarkDef(size=70, filled=True)
HEIGHT = 320
LEGEND_ROW_HEIGHTS = {"by_setting": 18, "by_clients": 30}  # a line's symbols are larger than a bar's
MAX_FIGURES = 8  # above the bars; more figures would overlap on a narrow page
SPACE_FOR_FIGURES = 1.1  # times the highest bar
ROW_HEIGHT, MAX_ROWS_HEIGHT, AXES_HEIGHT = 14, 500, 110

Row = dict[str, Any]


def axis_title(plan: Plan) -> str:
    """Names what varies: the setting, or else the number of clients."""
    if plan.sweep is None:
        return "Clients"
    return f"{SWEEPS[plan.sweep]}, ms" if plan.sweep == "max_batch_delay_ms" else SWEEPS[plan.sweep]


def throughput_rows(records: Sequence[ExperimentRecord]) -> list[Row]:
    """A row for each run with answers. With several experiments, the name of a series begins with its experiment."""
    rows = []
    for record in records:
        when = f"{record.started.astimezone():%d %b %H:%M:%S}, " if len(records) > 1 else ""
        for point in record.answered:
            row = {"clients": point.clients, "tokens_per_second": point.summary["tokens_per_second"]}
            by_setting = when + record.plan.run_name(None, point.clients)
            by_clients = when + (record.plan.step_name(point.value) or "As it is")
            rows.append(row | {"value": point.value, "by_setting": by_setting, "by_clients": by_clients})
    return rows


def throughput_by_setting(records: Sequence[ExperimentRecord]) -> alt.LayerChart | alt.FacetChart:
    """Tokens per second as bars: one group for each value of the setting, one bar for each number of clients."""
    rows = throughput_rows(records)
    title = axis_title(records[0].plan)
    highest = max(row["tokens_per_second"] for row in rows)
    base = _chart(rows, _height(records, rows, "by_setting")).encode(
        x=_category("value", title, (row["value"] for row in rows)),
        y=_amount("tokens_per_second", "Tokens per second", SPACE_FOR_FIGURES * highest),
        xOffset=alt.XOffset("by_setting:N", sort=None, scale=alt.Scale(paddingInner=0.15)),
        tooltip=_tooltips(value=title, by_setting="Run", tokens_per_second="Tokens per second"),
    )
    bars = base.mark_bar(width=alt.RelativeBandSize(1)).encode(color=_colour("by_setting", is_long=len(records) > 1))
    figures = base.mark_text(dy=-8, color=MUTED).encode(text=alt.Text("tokens_per_second:Q", format=".0f"))
    return alt.layer(bars, figures) if len(rows) <= MAX_FIGURES else alt.layer(bars)


def throughput_by_clients(records: Sequence[ExperimentRecord]) -> alt.Chart:
    """Tokens per second over the number of clients: one line for each value of the setting."""
    rows = throughput_rows(records)
    return _lines(
        rows,
        x=_category("clients", "Clients", (row["clients"] for row in rows)),
        y=_amount("tokens_per_second", "Tokens per second"),
        series="by_clients",
        is_long=len(records) > 1,
        height=_height(records, rows, "by_clients"),
        tooltip=_tooltips(by_clients="Run", clients="Clients", tokens_per_second="Tokens per second"),
    )


def time_rows(plan: Plan, points: Iterable[MeasuredPoint], time: str) -> list[Row]:
    """A row for each run and percentile; `time` is one of TIME_TITLES."""
    rows = []
    for point in points:
        x = point.clients if plan.sweep is None else point.value
        rows += [{"x": x, "percentile": name, "ms": ms} for name, ms in point.times(time).items()]
    return rows


def times(plan: Plan, points: Sequence[MeasuredPoint], time: str) -> alt.Chart:
    """The percentiles of one of TIME_TITLES as lines. The points must differ only in what the x axis shows."""
    rows = time_rows(plan, points, time)
    return _lines(
        rows,
        x=_category("x", axis_title(plan), (row["x"] for row in rows)),
        y=_amount("ms", TIME_TITLES[time]),
        series="percentile",
        tooltip=_tooltips(x=axis_title(plan), percentile="Percentile", ms=TIME_TITLES[time]),
    )


def timeline_rows(point: MeasuredPoint) -> list[Row]:
    """The phases of each request, in seconds since the start of the run. The requests are in the order of sending."""
    rows: list[Row] = []
    for number, sample in enumerate(sorted(point.samples, key=lambda sample: sample.sent), 1):
        phases = {"failed": (sample.sent, sample.ended)} if sample.error else sample.phases()
        for phase, (start, end) in phases.items():
            times = {"start": round(start, 3), "end": round(end, 3), "seconds": round(end - start, 3)}
            rows.append({"request": number, "phase": phase, **times})
    return rows


def timeline(point: MeasuredPoint) -> alt.Chart:
    """A bar for each request, divided into its phases."""
    rows = timeline_rows(point)
    shown = [phase for phase in PHASE_COLOURS if any(row["phase"] == phase for row in rows)]
    colours = alt.Scale(domain=shown, range=[PHASE_COLOURS[phase] for phase in shown])
    height = AXES_HEIGHT + min(MAX_ROWS_HEIGHT, ROW_HEIGHT * max(4, len(point.samples)))
    chart: alt.Chart = _chart(rows, height).mark_bar()
    return chart.encode(
        x=alt.X("start:Q", title="Seconds since the start of the run", axis=alt.Axis(grid=True)),
        x2="end:Q",
        y=alt.Y("request:O", title="Requests as sent", axis=alt.Axis(labels=False, ticks=False)),
        color=alt.Color("phase:N", title=None, scale=colours, legend=_legend()),
        tooltip=_tooltips(request="Request", phase="Phase", start="From, s", end="To, s", seconds="Seconds"),
    )


def _chart(rows: list[Row], height: int) -> alt.Chart:
    return alt.Chart(alt.Data(values=rows), height=height)  # type: ignore[no-untyped-call]


def _lines(
    rows: list[Row],
    x: alt.X,
    y: alt.Y,
    series: str,
    tooltip: list[alt.Tooltip],
    height: int = HEIGHT,
    is_long: bool = False,
) -> alt.Chart:
    chart: alt.Chart = _chart(rows, height).mark_line(point=POINTS)
    shape = alt.Shape(f"{series}:N", sort=None, legend=None)
    return chart.encode(x=x, y=y, color=_colour(series, is_long), shape=shape, tooltip=tooltip)


def _category(name: str, title: str, values: Iterable[Any]) -> alt.X:
    """An x axis that sorts numbers by size and words by the alphabet."""
    padding = alt.Scale(paddingInner=0.4, paddingOuter=0.3)
    return alt.X(f"{name}:N", title=title, sort=sorted(set(values)), axis=alt.Axis(labelAngle=0), scale=padding)


def _amount(name: str, title: str, end: float | None = None) -> alt.Y:
    scale = alt.Scale(domain=[0, end]) if end else alt.Scale(zero=True)
    return alt.Y(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))


def _height(records: Sequence[ExperimentRecord], rows: Sequence[Row], series: str) -> int:
    """In pixels. A legend with several experiments has one line for each series."""
    return HEIGHT + (LEGEND_ROW_HEIGHTS[series] * len({row[series] for row in rows}) if len(records) > 1 else 0)


def _colour(name: str, is_long: bool = False) -> alt.Color:
    return alt.Color(f"{name}:N", title=None, sort=None, legend=_legend(is_long))


def _legend(is_long: bool = False) -> alt.Legend:
    """Long names are below each other, because a legend does not wrap on a narrow page."""
    return alt.Legend(
        orient="top", direction="vertical" if is_long else "horizontal", labelLimit=400, offset=4, padding=0
    )


def _tooltips(**titles: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:N", title=title) for name, title in titles.items()]
