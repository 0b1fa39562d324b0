"""Says in a sentence what a folder is that holds no snapshot of a model, and what to do with it."""

import json
from pathlib import Path

MAX_NAMES = 3  # of files or folders in a sentence


def explain(folder: Path, missing: str) -> str:
    """missing: what the folder does not have, if that is not config.json."""
    if (folder / "adapter_config.json").is_file():
        return (
            f"{folder} is an adapter (LoRA){_base_model(folder)}, not a model: merge it into its base model (peft: "
            f"AutoPeftModelForCausalLM.from_pretrained('{folder}').merge_and_unload().save_pretrained('merged')), "
            "copy the base model's tokenizer files into that folder, and give that one."
        )
    if any(folder.glob("consolidated.*")) or (folder / "params.json").is_file():
        return (
            f"{folder} is in Meta's own format: download the model in Hugging Face's ('-hf'), or run 'python -m "
            f"transformers.models.llama.convert_llama_weights_to_hf --input_dir {folder} --model_size 7B "
            f"--llama_version 2 --output_dir {folder}-hf' in a separate environment with transformers==4.40.2, "
            "torch, sentencepiece, protobuf, accelerate and numpy<2, and give that folder."
        )
    if ggufs := [path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".gguf" and path.is_file()]:
        return f"{folder} holds GGUF files: give one of them ({_some(ggufs)})."
    inside = [path.parent for path in sorted(folder.glob("*/config.json"))]
    if inside and not (folder / "config.json").is_file():
        return f"{folder} holds models in folders of its own: give one of these ({_some(inside)})."
    if missing and (folder / "config.json").is_file():
        return f"{folder} has no {missing}: download the whole snapshot."
    return f"{folder} has no config.json: download the whole snapshot, or give another folder."


def _base_model(folder: Path) -> str:
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, LookupError, TypeError):  # the sentence is right without it
        return ""
    return f" for {base}" if base else ""


def _some(paths: list[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
