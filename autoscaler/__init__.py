"""Adds and removes workers of the model as the load changes: `python -m autoscaler --help`."""
