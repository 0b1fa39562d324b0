"""The chat: `streamlit run client_app.py`, also several times at once.

The page is apps/chat/page.py. This file puts the walls around it: who may open it, and what it may load.
"""

from pathlib import Path

import streamlit as st

from apps.shared.walls import Walls
from torchserve_client.config import config_file

walls = Walls(config_file().parent, "chat")
app = st.App(
    Path(__file__).parent / "apps" / "chat" / "page.py", middleware=walls.middleware(), lifespan=walls.lifespan
)
