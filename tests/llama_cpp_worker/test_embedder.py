"""Embeddings of real files: equal to llama.cpp's own, whatever the chunks, and with what memory."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from llama_cpp_worker.embedder import Embedder
from llama_cpp_worker.embedding_queue import EmbeddingRequest
from llama_cpp_worker.engine import Engine
from llama_cpp_worker.model import Model
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SamplingParams
from llama_cpp_worker.weights import ModelLoadError
from tests.support.scripted_model import run_to_end
from tests.support.tiny_llama import write_tiny_llama
from torchserve_client.config import PROJECT

DEMO = PROJECT / "models" / "SmolLM2-135M-Instruct-Q8_0.gguf"
POOLINGS = {"mean": llama_cpp.LLAMA_POOLING_TYPE_MEAN, "first": 2, "last": 3}


@pytest.fixture(scope="module")
def demo() -> Iterator[Model]:
    if not DEMO.is_file():
        pytest.skip(f"{DEMO} is missing: run `make package` first")
    model = Model(str(DEMO), n_slots=1, n_ctx=512, n_threads=1, embeddings=True)
    yield model
    model.close()


def embed(embedder: Embedder | None, tokens: list[int], chunk: int) -> list[float]:
    assert embedder is not None
    embedder.begin()
    for start in range(0, len(tokens), chunk):
        embedder.add(tokens[start : start + chunk])
    return embedder.embedding()


def embedding_of_llama_cpp(path: Path, tokens: list[int], pooling_type: int) -> list[float]:
    """Of one batch, pooled by llama.cpp."""
    reference: Any = llama_cpp.Llama(
        str(path), embedding=True, pooling_type=pooling_type, n_ctx=512, n_batch=512, n_ubatch=512, verbose=False
    )
    reference._batch.reset()
    reference._batch.add_sequence(tokens, 0, True)
    reference._ctx.decode(reference._batch)
    address = llama_cpp.llama_get_embeddings_seq(reference._ctx.ctx, 0)
    vector = np.ctypeslib.as_array(address, (reference.n_embd(),)).astype(float)
    reference.close()
    return list(vector / np.linalg.norm(vector))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_embedding_is_that_of_llama_cpp_whatever_the_chunks(tmp_path: Path, pooling: str) -> None:
    number = POOLINGS[pooling]
    path = write_tiny_llama(tmp_path / "tiny.gguf", pooling_type=number)
    model = Model(str(path), n_slots=1, n_threads=1, embeddings=True)
    tokens = model.tokenizer.tokenize("Hello the user [INST] " * 15)
    vectors = [embed(model.embedder, tokens, chunk) for chunk in (128, 50, 1)]
    model.close()
    expected = embedding_of_llama_cpp(path, tokens, number)
    for vector in vectors:
        assert vector == pytest.approx(expected, abs=0.01)
        assert math.hypot(*vector) == pytest.approx(1.0)


def test_a_chat_model_gets_the_mean(demo: Model) -> None:
    tokens = demo.tokenizer.tokenize("What is the closest star to Earth? " * 20)
    assert demo.embedder is not None
    assert demo.embedder.size == demo.describe()["embedding_size"] == 576
    vector = embed(demo.embedder, tokens, 64)
    expected = embedding_of_llama_cpp(DEMO, tokens, llama_cpp.LLAMA_POOLING_TYPE_MEAN)
    assert sum(a * b for a, b in zip(vector, expected, strict=True)) > 0.999


def test_embeddings_and_answers_do_not_disturb_each_other(demo: Model) -> None:
    tokens = demo.tokenizer.tokenize("Some text that is long enough. " * 30)
    alone = embed(demo.embedder, tokens, 128)
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    engine = Engine(demo)
    answers = [Request(demo.tokenizer.tokenize("The sun is"), params) for _ in range(2)]
    texts = [EmbeddingRequest(tokens), EmbeddingRequest(tokens[:9])]
    engine.submit(answers[0])
    run_to_end(engine)
    engine.submit(answers[1])
    for text in texts:
        engine.submit(text)
    run_to_end(engine)
    assert answers[0].completion == answers[1].completion
    assert texts[0].embedding == pytest.approx(alone, abs=0.05)
    assert texts[1].embedding == pytest.approx(embed(demo.embedder, tokens[:9], 9), abs=1e-6)


def test_the_description_has_the_memory_of_embeddings(tmp_path: Path) -> None:
    path = str(write_tiny_llama(tmp_path / "tiny.gguf"))
    memory: list[Any] = []
    for embeddings in (False, True):
        model = Model(path, n_slots=1, n_threads=1, embeddings=embeddings)
        memory.append(model.describe()["memory_bytes"])
        assert (model.embedder is not None) == embeddings
        model.close()
    assert memory[0]["embeddings"] == 0
    assert memory[1]["embeddings"] > memory[1]["kv_cache"] > 0


def test_a_model_without_embeddings_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = str(write_tiny_llama(tmp_path / "tiny.gguf", pooling_type=llama_cpp.LLAMA_POOLING_TYPE_RANK))
    with pytest.raises(ModelLoadError, match=r"this model is a reranker.*set embeddings to false"):
        Model(path, n_slots=1, n_threads=1, embeddings=True)
