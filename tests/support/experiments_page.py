"""A page with nothing but the experiments, for their tests: they do not wait for what else the server app shows."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import streamlit as st  # noqa: E402

from apps.dashboard.experiments_panel import show_experiments  # noqa: E402
from torchserve_client.config import ServerConfig  # noqa: E402

st.set_page_config(page_title="Experiments", layout="wide")
show_experiments(ServerConfig.load())
