"""The folders that packaging uses."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
MODELS, MODEL_STORE, CACHE = PROJECT / "models", PROJECT / "model_store", PROJECT / ".cache"
