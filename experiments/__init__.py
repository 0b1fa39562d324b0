"""Measures the server under load while one of its settings varies: `python -m experiments --help`."""
