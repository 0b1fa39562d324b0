"""The worker's settings: the `handler:` part of model-config.yaml. Knows nothing of TorchServe and llama.cpp."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self


class SettingsError(RuntimeError):
    """model-config.yaml cannot be used; the message names the setting."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings and their defaults. model-config.yaml says what each one means."""

    model_name: str = "llamacpp"
    model_path: str = ""
    n_ctx: int = 4096
    n_batch: int = 512
    n_gpu_layers: int = -1
    n_threads: int = 0
    kv_cache_type: str = "f16"
    embeddings: bool = False

    @classmethod
    def from_yaml(cls, config: Mapping[str, object] | None) -> Self:
        """The settings in `config`, the content of model-config.yaml.

        An empty model_path is replaced by the variable LLAMA2_Q4_MODEL. Raises SettingsError.
        """
        given = (config or {}).get("handler") or {}
        if not isinstance(given, Mapping):
            raise SettingsError("model-config.yaml: handler must be a list of settings such as 'n_ctx: 4096'.")
        defaults = {field.name: field.default for field in fields(cls)}
        for name, value in given.items():
            if name not in defaults:
                known = ", ".join(defaults)
                raise SettingsError(f"model-config.yaml: handler.{name} is unknown; the settings are {known}.")
            expected = type(defaults[name])
            if type(value) is not expected:  # true is an int for isinstance
                raise SettingsError(f"model-config.yaml: handler.{name} must be of type {expected.__name__}.")
            if isinstance(value, int) and value < (-1 if name == "n_gpu_layers" else 0):
                raise SettingsError(f"model-config.yaml: handler.{name} must not be {value}.")
        settings = cls(**given)
        if settings.kv_cache_type not in ("f16", "q8_0"):
            raise SettingsError(
                f"model-config.yaml: handler.kv_cache_type must be f16 or q8_0, not {settings.kv_cache_type!r}."
            )
        path = settings.model_path or os.environ.get("LLAMA2_Q4_MODEL", "")
        if not path:
            raise SettingsError("No model: set handler.model_path in model-config.yaml, or run package_llama.sh.")
        return replace(settings, model_path=str(Path(path).expanduser()))
