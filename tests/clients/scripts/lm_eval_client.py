# /// script
# dependencies = ["lm-eval[api]==0.4.13", "transformers==5.23.0", "tokenizers==0.23.3", "jinja2"]
# ///
# mypy: ignore-errors
"""lm-eval with local-completions: the log likelihood of the answers of 20 documents. Needs no torch and no download.

The environment variable TOKENIZER is a folder with the model's tokenizer.json: lm-eval counts tokens itself.
"""

import json
import os
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from checks import BASE_URL, KEY, MODEL, check, run

os.environ["OPENAI_API_KEY"] = KEY

import lm_eval
from lm_eval.tasks import TaskManager

FOLDER = Path(tempfile.mkdtemp(prefix="lm-eval-"))
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Russia": "Moscow",
    "England": "London",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Egypt": "Cairo",
    "Ireland": "Dublin",
    "Portugal": "Lisbon",
    "Poland": "Warsaw",
    "Hungary": "Budapest",
    "Norway": "Oslo",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Thailand": "Bangkok",
    "Belgium": "Brussels",
}
TASK = f"""
task: capitals
dataset_path: json
dataset_kwargs:
  data_files: {{test: {FOLDER}/capitals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list:
  - metric: acc
"""


@check("loglikelihood of 20 documents")
def loglikelihood():
    documents = [
        {"country": country, "choices": [capital, "the colour green"]} for country, capital in CAPITALS.items()
    ]
    assert len(documents) == 20
    (FOLDER / "capitals.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (FOLDER / "capitals.yaml").write_text(TASK)
    result = evaluate("capitals")
    assert result["results"]["capitals"]["acc,none"] == 1, result["results"]


@check("loglikelihood, prompts as text, two at a time")
def texts():
    (FOLDER / "capitals.yaml").write_text(TASK)
    result = evaluate("capitals", batch_size=2, tokenized_requests="False")
    assert result["results"]["capitals"]["acc,none"] == 1, result["results"]


def evaluate(task, batch_size=1, **options):
    arguments = {
        "model": MODEL,
        "base_url": f"{BASE_URL}/completions",
        "tokenizer": os.environ["TOKENIZER"],
        "tokenizer_backend": "huggingface",
        "num_concurrent": 4,
        "max_retries": 1,
        "max_length": 512,
        **options,
    }
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=[task],
        batch_size=batch_size,
        task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False),
        bootstrap_iters=0,
    )


run()
