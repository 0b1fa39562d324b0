"""The server app: `streamlit run torchserve_server_app.py`.

The page is apps/dashboard/page.py. This file puts the walls around it: who may open it, and what it may load. When the
app ends, a running experiment restores the settings first.
"""

from pathlib import Path

import streamlit as st

from apps.shared.walls import Walls
from experiments.background import close_all
from torchserve_client.config import config_file

walls = Walls(config_file().parent, "server", at_end=close_all)
app = st.App(
    Path(__file__).parent / "apps" / "dashboard" / "page.py", middleware=walls.middleware(), lifespan=walls.lifespan
)
