"""A client library for TorchServe: its process, its three APIs, its logs and its archives. No Streamlit."""
