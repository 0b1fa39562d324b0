"""The worker's settings from model-config.yaml: defaults, what is refused, and where the model is."""

from pathlib import Path

import pytest
import yaml

from llama_cpp_worker.settings import Settings, SettingsError
from torchserve_client.config import PROJECT


def test_the_projects_own_config_has_the_default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2_Q4_MODEL", "/models/llama.gguf")
    config = yaml.safe_load((PROJECT / "model-config.yaml").read_text())
    assert Settings.from_yaml(config) == Settings(model_path="/models/llama.gguf")


def test_the_model_path_of_the_config_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2_Q4_MODEL", "/models/other.gguf")
    settings = Settings.from_yaml({"handler": {"model_path": "~/llama.gguf", "n_ctx": 2048, "embeddings": True}})
    assert settings == Settings(model_path=str(Path.home() / "llama.gguf"), n_ctx=2048, embeddings=True)


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        pytest.param({"n_ctxx": 1}, "handler.n_ctxx is unknown; the settings are model_name", id="unknown name"),
        pytest.param({"n_ctx": "1"}, "handler.n_ctx must be of type int", id="text for a number"),
        pytest.param({"n_ctx": True}, "handler.n_ctx must be of type int", id="true for a number"),
        pytest.param({"embeddings": 1}, "handler.embeddings must be of type bool", id="number for true"),
        pytest.param({"n_ctx": -1}, "handler.n_ctx must not be -1", id="negative"),
        pytest.param({"n_gpu_layers": -2}, "handler.n_gpu_layers must not be -2", id="too negative"),
        pytest.param({"kv_cache_type": "q4"}, "handler.kv_cache_type must be f16 or q8_0, not 'q4'", id="unknown type"),
        pytest.param(["n_ctx"], "handler must be a list of settings", id="no mapping"),
        pytest.param({}, "No model: set handler.model_path", id="no model"),
    ],
)
def test_an_unusable_setting_is_refused_by_name(handler: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA2_Q4_MODEL", raising=False)
    with pytest.raises(SettingsError, match=message):
        Settings.from_yaml({"handler": handler})
