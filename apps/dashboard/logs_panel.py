"""The log files of TorchServe and the autoscaler: filter by level and text, follow, download. Keys are removed."""

import streamlit as st

from autoscaler.control import output_file
from torchserve_client.config import ServerConfig
from torchserve_client.logs import LEVELS, LOG_FILES, LogExcerpt, current_keys, read_excerpt, redact, select

FOLLOW_SECONDS = 2
MAX_RECORDS = 200
HEIGHT = 480  # pixels


def show_logs(config: ServerConfig) -> None:
    """Draws the choice of file and filter, and the matching records with the newest at the end."""
    files = LOG_FILES | {output_file(config).name: "what the autoscaler did since it was switched on"}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.segmented_control(
            "File",
            list(files),
            default="ts_log.log",
            required=True,
            format_func=lambda name: name.removesuffix(".log"),  # all names fit on a narrow page
            key="log_file",
        )
        st.toggle("Follow", value=True, key="follows")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.selectbox("Least level", LEVELS, index=1, key="log_level", width=160)
        st.text_input("Text to look for", key="log_text", placeholder="any")
    st.caption(f"{name}: {files[name]}.")
    every = FOLLOW_SECONDS if st.session_state.follows else None
    st.fragment(_show_records, run_every=every, key="log_records")(config, name)
    st.download_button(
        f"Download {name}",
        lambda: _whole_file(config, name),  # called when the button is pressed
        file_name=name,
        mime="text/plain",
        key="log_download",
        on_click="ignore",
        icon=":material/download:",
    )


def _show_records(config: ServerConfig, name: str) -> None:
    excerpt = read_excerpt(config.logs / name, current_keys(config))
    found = select(excerpt.records, st.session_state.log_level, st.session_state.log_text)
    shown = found[-MAX_RECORDS:]
    nothing = "No record matches." if excerpt.records else "Nothing has been logged here yet."
    with st.container(height=HEIGHT, autoscroll=True, key="log_box"):
        st.code("\n".join(record.text for record in shown) or nothing, language=None, wrap_lines=True)
    st.caption(_counts(excerpt, len(found), len(shown)))


def _counts(excerpt: LogExcerpt, found: int, shown: int) -> str:
    """How many records match, and how many are not shown or not searched."""
    counts = f"{found:,} of {len(excerpt.records):,} records match"
    last = f"; the last {shown:,} are shown" if shown < found else ""
    skipped = f". {excerpt.skipped_bytes / 1e6:.1f} MB before that were not searched" if excerpt.skipped_bytes else ""
    return f"{counts}{last}{skipped}."


def _whole_file(config: ServerConfig, name: str) -> str:
    try:
        text = (config.logs / name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return redact(text, current_keys(config))
