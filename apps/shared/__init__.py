"""What both Streamlit apps use."""
