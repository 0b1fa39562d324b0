"""The chat: conversations, answers being written, and the parts of client_app.py's page. No management key."""
