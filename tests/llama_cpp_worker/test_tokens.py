"""Prompts and token ids compared with Hugging Face and Meta: the vocabularies of Llama 2 and Llama 3, chat templates.

"Hugging Face" is the file tokenizer.json of a snapshot, which transformers 4 used unchanged. transformers 5 builds
another tokenizer instead; a test shows where it differs.
"""

import ctypes
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_cpp_worker.chat_template import TemplateError
from llama_cpp_worker.engine import Engine
from llama_cpp_worker.model import Model
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.gguf_snapshot import write_snapshot_of
from tests.support.llama_snapshots import (
    convert,
    llama_2_tokenizer_json,
    llama_cpp_sources,
    write_llama_2_tokenizer,
    write_llama_3_tokenizer,
    write_weights,
)
from torchserve_client.config import PROJECT

DEMO = PROJECT / "models" / "SmolLM2-135M-Instruct-Q8_0.gguf"
Messages = list[dict[str, str]]

MIXED_TEXTS: dict[str, list[str]] = json.loads(Path(__file__).with_name("mixed_texts.json").read_text())
TEXTS = [text for group in MIXED_TEXTS.values() for text in group]
CONTROLS = ["<s>", "</s>", "<unk>", "a</s>b", "</s><s>[INST] Hi", " </s> ", "<s><s>", "x <unk> y"]

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
QUESTION: Messages = [{"role": "user", "content": "What is the closest star to Earth?"}]
ANSWER = {"role": "assistant", "content": "The Sun."}
SYSTEM = {"role": "system", "content": "You are brief.\nYou are kind."}
AGAIN = {"role": "user", "content": " And the next one? \n"}
CONVERSATIONS = {
    "one question": QUESTION,
    "system prompt": [SYSTEM, *QUESTION],
    "empty system prompt": [{"role": "system", "content": ""}, *QUESTION],
    "several turns": [SYSTEM, *QUESTION, ANSWER, AGAIN, {"role": "assistant", "content": "  Proxima 🙂\n"}, AGAIN],
    "system prompt in the middle": [*QUESTION, SYSTEM, AGAIN],
    "empty question": [{"role": "user", "content": ""}],
    "a question of blanks": [{"role": "user", "content": " \n\t "}],
}


class Llama:
    """A snapshot with a real vocabulary, as Hugging Face reads it and as the worker does after the conversion."""

    def __init__(self, folder: Path, n_vocab: int) -> None:
        from transformers import AutoTokenizer

        self.folder = folder
        write_weights(folder, n_vocab)
        self.model = Model(str(convert(folder, folder / "model.gguf")), n_slots=1, n_threads=1)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def rendered(self, messages: Messages, continues: bool = False) -> str:
        """Hugging Face's prompt."""
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=not continues, continue_final_message=continues
            )
        )


@pytest.fixture(scope="module")
def llama_2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    folder = tmp_path_factory.mktemp("llama-2")
    write_llama_2_tokenizer(folder)
    llama = Llama(folder, n_vocab=32_000)
    yield llama
    llama.model.close()


@pytest.fixture(scope="module")
def llama_3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    folder = tmp_path_factory.mktemp("llama-3")
    write_llama_3_tokenizer(folder)
    llama = Llama(folder, n_vocab=128_256)
    yield llama
    llama.model.close()


@pytest.fixture(scope="module")
def sentencepiece(llama_2: Llama) -> Any:
    """What Meta's own code tokenizes with."""
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(llama_2.folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def tokenizer_json(llama_2: Llama) -> Any:
    """Llama 2's tokenizer.json as transformers 4 made it: a space before every text, also after a control token."""
    return llama_2_tokenizer_json(llama_2.folder)


def tokens_as_meta_makes_them(sentencepiece: Any, messages: Messages) -> list[int]:
    """As facebookresearch/llama does it (generation.py, chat_completion): control tokens never come out of a text."""
    if messages[0]["role"] == "system":
        (system, question), messages = messages[:2], messages[2:]
        content = f"<<SYS>>\n{system['content']}\n<</SYS>>\n\n{question['content']}"
        messages = [{"role": "user", "content": content}, *messages]
    tokens: list[int] = []
    for question, answer in zip(messages[::2], messages[1::2], strict=False):
        text = f"[INST] {question['content'].strip()} [/INST] {answer['content'].strip()} "
        tokens += [sentencepiece.bos_id(), *sentencepiece.encode(text), sentencepiece.eos_id()]
    return [*tokens, sentencepiece.bos_id(), *sentencepiece.encode(f"[INST] {messages[-1]['content'].strip()} [/INST]")]


def known_vectors(name: str) -> list[tuple[str, list[int]]]:
    """Texts and their tokens without BOS, which llama.cpp's authors had from the real tokenizer at Hugging Face."""
    file = llama_cpp_sources() / "models" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{file}.inp").read_text().split("\n__ggml_vocab_test__\n")
    tokens = Path(f"{file}.out").read_text().split("\n")
    return [(text, [int(each) for each in line.split()]) for text, line in zip(texts, tokens, strict=False)]


# --- Llama 2: the prompt


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_llama_2s_prompt_is_hugging_faces_byte_for_byte(llama_2: Llama, messages: Messages) -> None:
    assert llama_2.model.tokenizer.template.render(messages) == llama_2.rendered(messages)


def test_llama_2s_prompt_is_the_published_format(llama_2: Llama) -> None:
    assert llama_2.model.tokenizer.template.render(CONVERSATIONS["several turns"][:-2]) == (
        "<s>[INST] <<SYS>>\nYou are brief.\nYou are kind.\n<</SYS>>\n\nWhat is the closest star to Earth? [/INST]"
        " The Sun. </s><s>[INST] And the next one? [/INST]"
    )


@pytest.mark.parametrize("unfinished", ["Proxima", " Proxima", "Proxima\n\nCen"])
def test_llama_2s_unfinished_answer_is_continued_as_by_hugging_face(llama_2: Llama, unfinished: str) -> None:
    messages = [SYSTEM, *QUESTION, {"role": "assistant", "content": unfinished}]
    text = llama_2.rendered(messages, continues=True)
    assert llama_2.model.tokenizer.template.render(messages) == text


@pytest.mark.parametrize("wrong", [[ANSWER], [*QUESTION, AGAIN], [SYSTEM, ANSWER, *QUESTION]])
def test_llama_2_refuses_what_hugging_face_refuses(llama_2: Llama, wrong: Messages) -> None:
    from jinja2 import TemplateError as HuggingFacesError

    with pytest.raises(HuggingFacesError, match="roles must alternate"):
        llama_2.rendered(wrong)
    with pytest.raises(TemplateError, match="roles must alternate"):
        llama_2.model.tokenizer.template.render(wrong)


# --- Llama 2: the tokens


def test_there_are_a_hundred_different_texts() -> None:
    assert len(set(TEXTS)) == len(TEXTS) >= 100


def test_the_rebuilt_vocabulary_is_the_real_one(tokenizer_json: Any) -> None:
    for text, tokens in known_vectors("llama-spm"):
        assert tokenizer_json.encode(text, add_special_tokens=False).ids == tokens, text


@pytest.mark.parametrize("text", [*TEXTS, *CONTROLS], ids=ascii)
def test_llama_2s_tokens_of_a_text_are_hugging_faces(llama_2: Llama, tokenizer_json: Any, text: str) -> None:
    assert llama_2.model.tokenizer.tokenize(text) == tokenizer_json.encode(text).ids


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY_TEXT)
def test_llama_2s_tokens_of_any_text_are_hugging_faces(llama_2: Llama, tokenizer_json: Any, text: str) -> None:
    assert llama_2.model.tokenizer.tokenize(text) == tokenizer_json.encode(text).ids


def test_llama_2s_texts_are_spelled_by_their_tokens(llama_2: Llama) -> None:
    tokenizer = llama_2.model.tokenizer
    for text in TEXTS:
        tokens = tokenizer.tokenize(text)
        assert tokens[0] == 1
        assert b"".join(map(tokenizer.piece, tokens)).decode() == (" " + text if text else "").replace("▁", " ")


@pytest.mark.parametrize(
    "name", ["one question", "system prompt", "empty system prompt", "several turns", "empty question"]
)
def test_llama_2s_tokens_of_a_conversation_are_metas_and_hugging_faces(
    llama_2: Llama, tokenizer_json: Any, sentencepiece: Any, name: str
) -> None:
    tokens = llama_2.model.tokenizer.tokenize_chat(CONVERSATIONS[name])
    assert tokens == tokens_as_meta_makes_them(sentencepiece, CONVERSATIONS[name])
    assert tokens == tokenizer_json.encode(llama_2.rendered(CONVERSATIONS[name]), add_special_tokens=False).ids


@pytest.mark.parametrize("text", [*TEXTS, *CONTROLS], ids=ascii)
def test_llama_2s_tokens_are_metas_whatever_is_typed(llama_2: Llama, sentencepiece: Any, text: str) -> None:
    messages = [
        {"role": "system", "content": text},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text or "."},
        {"role": "user", "content": text},
    ]
    tokens = llama_2.model.tokenizer.tokenize_chat(messages)
    assert tokens == tokens_as_meta_makes_them(sentencepiece, messages)
    assert [token for token in tokens if token < 3] == [1, 2, 1]


def test_transformers_5_differs_at_blanks_and_after_control_tokens(llama_2: Llama, tokenizer_json: Any) -> None:
    """It builds another tokenizer: "[INST]" follows <s> without the space that Llama 2 was trained with."""

    def differs(text: str) -> bool:
        return bool(llama_2.tokenizer(text)["input_ids"] != tokenizer_json.encode(text).ids)

    assert {text for text in TEXTS if differs(text)} <= {text for text in TEXTS if re.search("^[ ▁]|[ ▁]{2}", text)}
    messages = CONVERSATIONS["several turns"]
    with_space, without = 518, 29961
    expected = llama_2.model.tokenizer.tokenize_chat(messages)
    found = llama_2.tokenizer(llama_2.rendered(messages), add_special_tokens=False)["input_ids"]
    assert found.count(without) == 3
    assert [with_space if token == without else token for token in found] == expected


# --- A base model


def test_a_base_model_without_a_template_gets_the_raw_format_and_says_so(llama_2: Llama, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama_2.folder, tmp_path / "base"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    base = Model(str(convert(folder, tmp_path / "base.gguf")), n_slots=1, n_threads=1)

    assert (base.describe()["chat_template"], llama_2.model.describe()["chat_template"]) == ("raw", "model")
    tokens = base.tokenizer.tokenize_chat([*QUESTION, ANSWER, {"role": "user", "content": "And </s>?"}])
    raw = "Question: What is the closest star to Earth?\nAnswer: The Sun.\nQuestion: And </s>?\nAnswer:"
    assert b"".join(map(base.tokenizer.piece, tokens)).decode() == f" {raw}"
    assert [token for token in tokens if token < 3] == [1]
    assert base.tokenizer.tokenize_chat(QUESTION) == llama_2.model.tokenizer.tokenize(raw.partition(" The Sun")[0])
    base.close()


# --- Llama 3


def test_llama_3s_rebuilt_tokenizer_is_the_real_one(llama_3: Llama) -> None:
    for text, tokens in known_vectors("llama-bpe"):
        assert llama_3.tokenizer(text, add_special_tokens=False)["input_ids"] == tokens, text


def test_llama_3s_tokens_of_a_text_are_hugging_faces(llama_3: Llama) -> None:
    tokenize = llama_3.model.tokenizer.tokenize
    differing = [text for text in TEXTS if tokenize(text) != llama_3.tokenizer(text)["input_ids"]]
    assert differing == []


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_llama_3s_prompt_and_its_tokens_are_hugging_faces(llama_3: Llama, messages: Messages) -> None:
    text = llama_3.rendered(messages)
    assert llama_3.model.tokenizer.template.render(messages) == text
    tokens = llama_3.model.tokenizer.tokenize_chat(messages)
    assert tokens == llama_3.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens.count(llama_3.tokenizer.bos_token_id) == 1


# --- A real model: the demo's GGUF, and what comes out of it by way of a snapshot


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """With weights of 16 bits, because llama.cpp computes more coarsely with the file's 8."""
    if not DEMO.is_file():
        pytest.skip(f"{DEMO} is missing: run `make package` first")
    gguf = tmp_path_factory.mktemp("demo") / "f16.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_F16, True
    assert llama_cpp.llama_model_quantize(str(DEMO).encode(), str(gguf).encode(), ctypes.byref(params)) == 0
    model = Model(str(gguf), n_slots=1, n_ctx=1024)
    yield model
    model.close()


@pytest.fixture(scope="module")
def converted(demo: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("converted")
    gguf = convert(write_snapshot_of(DEMO, folder / "snapshot"), folder / "f16.gguf")
    model = Model(str(gguf), n_slots=1, n_ctx=1024)
    yield model
    model.close()


def answer(model: Model, question: str) -> Request:
    tokens = model.tokenizer.tokenize_chat([{"role": "user", "content": question}])
    request = Request(tokens, SamplingParams(temperature=0, max_tokens=24), logprobs=5)
    engine = Engine(model)
    engine.submit(request)
    while not engine.is_idle:
        engine.step()
    return request


@pytest.mark.parametrize("question", ["What is the closest star to Earth?", "Name three colours.", "Write a haiku: 雨"])
def test_answers_of_the_demo_model_survive_a_snapshot(demo: Model, converted: Model, question: str) -> None:
    before, after = answer(demo, question), answer(converted, question)
    assert after.completion == before.completion
    assert after.take_tokens() == before.take_tokens()  # with the log probabilities of the likeliest


def test_tokens_and_template_of_the_demo_model_survive_a_snapshot(demo: Model, converted: Model) -> None:
    for text in TEXTS:
        messages = [SYSTEM, {"role": "user", "content": text}]
        assert converted.tokenizer.tokenize(text) == demo.tokenizer.tokenize(text)
        assert converted.tokenizer.tokenize_chat(messages) == demo.tokenizer.tokenize_chat(messages)
        assert converted.tokenizer.template.render(messages) == demo.tokenizer.template.render(messages)
