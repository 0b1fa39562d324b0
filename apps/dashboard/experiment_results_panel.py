"""The measurements of experiments on the server app's page: charts, figures, comparisons, downloads.

Reads saved records only and sends no request to the server.
"""

from collections.abc import Sequence

import streamlit as st

from apps.dashboard.wording import counted
from experiments import charts, records
from experiments.load_test import PERCENTILES
from experiments.records import ExperimentRecord, MeasuredPoint
from experiments.verdict import verdict
from torchserve_client.config import ServerConfig, TorchServeError

SEPARATOR = "\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}"  # on a narrow page the table scrolls instead of breaking a cell


def show_results(config: ServerConfig) -> None:
    """Draws the newest experiment, unless another one is chosen."""
    saved: dict[str, ExperimentRecord] = {}
    for record_id in records.record_ids(config):
        try:
            saved[record_id] = _record(str(config.path), record_id, config)
        except TorchServeError as error:
            st.error(str(error), icon=":material/error:")
    st.header("Measured", anchor=False)
    if not saved:
        st.caption("Nothing yet: what an experiment measures is saved here.")
        return
    newest = next(iter(saved))
    if st.session_state.get("experiment_newest") != newest or st.session_state.get("experiment_shown") not in saved:
        st.session_state.experiment_newest = st.session_state.experiment_shown = newest
    shown = st.selectbox("Experiment", saved, key="experiment_shown", format_func=lambda each: saved[each].title)
    record = saved[shown]
    if sentence := verdict(record):
        st.markdown(f"**{sentence}**")
    _show_ending(record)
    comparable = [
        each for each in saved if each != shown and saved[each].plan.sweep == record.plan.sweep and saved[each].answered
    ]
    compared: list[str] = []
    if record.answered and comparable:
        key = f"experiment_compared_{shown}"
        compared = st.multiselect("Compare with", comparable, key=key, format_func=lambda each: saved[each].title)
    others = [saved[each] for each in compared]
    _show_record(record, others)
    _show_exports(config, [record, *others])


@st.cache_data(max_entries=records.MAX_RECORDS)
def _record(path: str, record_id: str, _config: ServerConfig) -> ExperimentRecord:
    """A saved record never changes. Raises TorchServeError for a file that cannot be read."""
    return records.load(_config, record_id)


def _show_ending(record: ExperimentRecord) -> None:
    done = f"{len(record.points)} of {record.plan.runs} runs were measured"
    if record.state == "failed":
        st.error(f"{record.reason} ({done}.)", icon=":material/error:")
    elif record.state == "cancelled":
        st.warning(f"Cancelled: {done}. The model serves again with {record.base}.", icon=":material/cancel:")
    for point in record.points:
        if point.first_error:
            counts = f"{point.summary['errors']} of {point.summary['requests']} requests failed"
            name = record.plan.run_name(point.value, point.clients)
            st.warning(f"{name}: {counts}. The first reason: {point.first_error}", icon=":material/warning:")
    plan = record.plan
    otherwise = " otherwise" if plan.sweep else ""
    size = f"{counted(plan.requests, 'request')} a run, {counted(plan.max_tokens, 'token')} an answer"
    st.caption(f"{record.model}, {record.base}{otherwise}. {size}.")


def _show_record(record: ExperimentRecord, compared: Sequence[ExperimentRecord]) -> None:
    points = record.answered
    if not points:
        why = "No request was answered" if record.points else "No run was measured to its end"
        st.info(f"{why}, so there is nothing to draw.", icon=":material/info:")
        return
    if len(points) == 1 and not compared:
        _show_figures(points[0])
    else:
        _show_throughput([record, *compared])
        _show_times(record)
    _show_table([record, *compared])
    _show_timeline(record)


def _show_figures(point: MeasuredPoint) -> None:
    def median(time: str) -> str:
        return f"{point.summary[time]['p50']:,.0f} ms" if point.summary[time] else "–"

    figures = {
        "Tokens per second": f"{point.summary['tokens_per_second']:,.1f}",
        "Time to first token, median": median("first_token_ms"),
        "Whole answer, median": median("latency_ms"),
    }
    for column, (label, figure) in zip(st.columns(3), figures.items(), strict=True):
        column.metric(label, figure, border=True)


def _show_throughput(shown: Sequence[ExperimentRecord]) -> None:
    by_setting = shown[0].plan.sweep is not None
    by_clients = len({point.clients for record in shown for point in record.answered}) > 1
    fastest = max(row["tokens_per_second"] for row in charts.throughput_rows(shown))
    columns = iter(st.columns(2) if by_setting and by_clients else [st.container()])
    if by_setting:
        with next(columns):
            st.markdown(f"**Tokens per second by {charts.axis_title(shown[0].plan).lower()}**")
            alt = f"Bars: up to {fastest:.0f} tokens per second."
            st.altair_chart(charts.throughput_by_setting(shown), width="stretch", alt=alt)
    if by_clients or not by_setting:
        with next(columns):
            st.markdown("**Tokens per second by clients**")
            alt = f"Lines: up to {fastest:.0f} tokens per second."
            st.altair_chart(charts.throughput_by_clients(shown), width="stretch", alt=alt)


def _show_times(record: ExperimentRecord) -> None:
    points = record.answered
    clients = sorted({point.clients for point in points})
    if record.plan.sweep and len(clients) > 1:
        chosen = st.segmented_control(
            "Times with how many clients",
            clients,
            default=clients[-1],
            required=True,
            key=f"experiment_times_{record.id}",
        )
        points = tuple(point for point in points if point.clients == chosen)
    for column, (time, title) in zip(st.columns(2), charts.TIME_TITLES.items(), strict=True):
        with column:
            st.markdown(f"**{title}**")
            rows = charts.time_rows(record.plan, points, time)
            if not rows:
                st.caption("No answer had any text.")
                continue
            alt = f"Lines of percentiles: up to {max(row['ms'] for row in rows):.0f} ms."
            st.altair_chart(charts.times(record.plan, points, time), width="stretch", alt=alt)


def _show_table(shown: Sequence[ExperimentRecord]) -> None:
    rows = []
    has_p99 = any("p99" in point.times("latency_ms") for record in shown for point in record.points)
    for record in shown:
        when = {"Experiment": f"{record.started.astimezone():%d %b %H:%M:%S}"} if len(shown) > 1 else {}
        rows += [when | _table_row(record, point, has_p99) for point in record.points]
    st.table(rows, hide_index=True)


def _table_row(record: ExperimentRecord, point: MeasuredPoint, has_p99: bool) -> dict[str, str]:
    def times(name: str) -> str:
        return SEPARATOR.join(f"{ms:,.0f}" for ms in point.times(name).values()) or "–"

    step = {} if point.value is None else {charts.axis_title(record.plan): str(point.value)}
    percentiles = " / ".join(f"p{percent}" for percent in PERCENTILES if f"p{percent}" != "p99" or has_p99)
    return step | {
        "Clients": str(point.clients),
        "Tokens/s": f"{point.summary['tokens_per_second']:.1f}",
        f"First token, ms ({percentiles})": times("first_token_ms"),
        f"Whole answer, ms ({percentiles})": times("latency_ms"),
        "Failed": f"{point.summary['errors']} of {point.summary['requests']}",
    }


def _show_timeline(record: ExperimentRecord) -> None:
    st.markdown("**The requests of a run, one below the other**")
    names = {record.plan.run_name(point.value, point.clients): point for point in reversed(record.answered)}
    name = next(iter(names))
    if len(names) > 1:
        name = st.selectbox("Run", names, key=f"experiment_run_{record.id}")
    point = names[name]
    if not charts.timeline_rows(point):
        st.caption("The server does not report how long prefill and decode took.")
        return
    alt = f"Bars of {len(point.samples)} requests over time."
    st.altair_chart(charts.timeline(point), width="stretch", alt=alt)
    st.caption("Queued: in TorchServe and in its worker. Prefill: the prompt, up to the first token. Decode: the rest.")


def _show_exports(config: ServerConfig, shown: Sequence[ExperimentRecord]) -> None:
    record = shown[0]
    with st.container(horizontal=True):
        st.download_button(
            "Download CSV",
            records.to_csv(shown),
            f"experiment-{record.id}.csv",
            "text/csv",
            key="experiment_csv",
            on_click="ignore",
            help="The figures of every run shown.",
        )
        st.download_button(
            "Download JSON",
            record.to_json(),
            f"experiment-{record.id}.json",
            "application/json",
            key="experiment_json",
            on_click="ignore",
            help="Everything that was measured, request by request.",
        )
        if st.button("Delete", key="experiment_delete"):
            _confirm_deletion(config, record)


@st.dialog("Delete this experiment?")
def _confirm_deletion(config: ServerConfig, record: ExperimentRecord) -> None:
    st.write(record.title)
    st.write("Its measurements are removed for good.")
    if st.button("Delete for good", key="experiment_delete_sure", type="primary"):
        records.delete(config, record.id)
        st.rerun()
