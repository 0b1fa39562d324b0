"""The parts of torchserve_server_app.py's page, and the actions behind its buttons."""
