"""Load while a setting of the server varies; `python -m experiments --help`."""
