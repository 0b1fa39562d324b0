"""The server app's metrics and experiments without the rest of the page, so that their tests wait for nothing else."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import streamlit as st

from apps.dashboard import metrics_history
from apps.dashboard.experiments_panel import show_experiments
from apps.dashboard.metrics_panel import show_metrics
from torchserve_client.config import ServerConfig

metrics_history.WINDOW_POINTS = 300  # on a slow machine, too, the time to first token stays on the page long enough

st.set_page_config(page_title="Panels", layout="wide")
config = ServerConfig.load()
metrics, experiments = st.tabs(["Metrics", "Experiments"], key="panel", bind="query-params", on_change="rerun")
if metrics.open:
    with metrics:
        show_metrics(config)
if experiments.open:
    with experiments:
        show_experiments(config)
