"""A page with the metrics and the autoscaler only, as the server app shows them in its tabs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import streamlit as st

from apps.dashboard import metrics_history
from apps.dashboard.autoscaler_panel import show_autoscaler
from apps.dashboard.metrics_panel import show_metrics
from torchserve_client.config import ServerConfig

metrics_history.WINDOW_POINTS = 300  # an answer's time to first token is there to be seen on a slow machine, too

st.set_page_config(page_title="Panels", layout="wide")
config = ServerConfig.load()
metrics, autoscaler = st.tabs(["Metrics", "Autoscaler"], key="tab", on_change="rerun")
if metrics.open:
    with metrics:
        show_metrics(config)
if autoscaler.open:
    with autoscaler:
        show_autoscaler(config)
