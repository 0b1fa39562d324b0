"""The server app's page (page.py, served by torchserve_server_app.py), its parts, and the actions of its buttons."""
