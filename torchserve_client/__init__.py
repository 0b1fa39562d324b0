"""TorchServe from outside: its process, its three APIs, its logs and archives. No Streamlit."""
