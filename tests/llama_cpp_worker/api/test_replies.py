"""The wire outwards, without a server: what answers look like."""

import json
from typing import Any

import pytest

from llama_cpp_worker.api.fields import read_body
from llama_cpp_worker.api.openai_format import END_OF_STREAM
from llama_cpp_worker.api.reply import Head, Reply
from llama_cpp_worker.api.routes import FAMILIES
from llama_cpp_worker.api.usage import MIN_LOGPROB, timings_of
from llama_cpp_worker.output import PlainParser, ToolCallArguments, ToolCallBegin
from llama_cpp_worker.prompt import Prepared
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SampledToken, SamplingParams, TokenLogprob

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
PROMPT = [1, 2, 3, 4, 5, 6, 7]
PLAIN, COMPLETIONS, CHAT = "", "v1/completions", "v1/chat/completions"


def make_reply(path: str, body: dict[str, Any]) -> Reply:
    family = FAMILIES[path]
    api_request = family.parse(read_body({"body": body}))
    texts = [str(prompt) for prompt in api_request.prompts] or [""]
    prompts = [list(PROMPT) for _ in texts]
    reply = Reply(
        api_request,
        Prepared(prompts, texts, [b"" for _ in texts], None, PlainParser),
        family.make_format,
        Head("id-1", "tiny", "fp_1"),
    )
    for request in reply.requests:
        request.slot, request.submitted_at, request.admitted_at = 0, 10.0, 10.001
        request.n_cached, request.is_started, request.n_prefilled = 2, True, len(PROMPT)
        request.prefix_assigned_at = 10.001
        request.first_token_at = 10.021
    return reply


def generate(reply: Reply, text: str, tokens: list[SampledToken] | None = None, index: int = 0) -> str:
    """Generates text as the engine does, and takes the next piece of the answer."""
    add_text(reply.requests[index], text, tokens or [])
    return reply.next_piece()


def add_text(request: Request, text: str, tokens: list[SampledToken] | None = None) -> None:
    request.completion.append(0)
    for token in tokens or []:
        request.assembler.push(token.chosen.piece, token)
    request._text += text


def end(request: Request, reason: str = "stop") -> None:
    request.completion += [0] * (3 - len(request.completion))
    request.assembler.finish()
    request.finish_reason, request.finished_at = reason, 10.061


def finish(reply: Reply, reason: str = "stop") -> str:
    end(reply.requests[0], reason)
    return reply.next_piece()


def events(text: str) -> list[dict[str, Any]]:
    assert text.endswith(END_OF_STREAM)
    lines = text.removesuffix(END_OF_STREAM).split("\n\n")[:-1]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_the_plain_call_is_answered_with_prompt_and_completion_as_text() -> None:
    reply = make_reply(PLAIN, {"prompt": "Question: 1+1? Answer:"})
    assert generate(reply, " tw") == ""
    assert generate(reply, "o") == ""
    assert not reply.is_finished
    assert finish(reply) == "Question: 1+1? Answer: two"
    assert reply.is_finished
    assert reply.content_type.startswith("text/plain")


def test_a_whole_chat_answer_is_an_openai_object_with_usage_and_timings() -> None:
    reply = make_reply(CHAT, HELLO)
    generate(reply, "Hi")
    answer = json.loads(finish(reply, "length"))
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hi"}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["system_fingerprint"] == "fp_1"
    assert answer["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert answer["timings"] == {
        "queue_ms": 1.0,
        "cache_n": 2,
        "prompt_n": 5,
        "prompt_ms": 20.0,
        "prompt_per_token_ms": 4.0,
        "prompt_per_second": 250.0,
        "predicted_n": 3,
        "predicted_ms": 40.0,
        "predicted_per_token_ms": 20.0,
        "predicted_per_second": 50.0,
    }


def test_a_streamed_chat_answer_has_role_text_usage_and_done() -> None:
    reply = make_reply(CHAT, {**HELLO, "stream": True, "stream_options": {"include_usage": True}})
    text = reply.next_piece() + generate(reply, "Hi") + generate(reply, "") + finish(reply)
    first, piece, ending, usage = events(text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert piece["choices"][0]["delta"] == {"content": "Hi"}
    assert (ending["choices"][0]["delta"], ending["choices"][0]["finish_reason"]) == ({}, "stop")
    assert ending["timings"]["prompt_n"] == 5
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 10)
    assert {event["object"] for event in (first, piece, ending, usage)} == {"chat.completion.chunk"}


def test_a_streamed_completion_echoes_its_prompt_first_if_requested() -> None:
    reply = make_reply(COMPLETIONS, {"prompt": "1 2", "echo": True, "stream": True})
    texts = [event["choices"][0]["text"] for event in events(generate(reply, " 3") + finish(reply))]
    assert "".join(texts) == "1 2 3"


def test_progress_of_the_prompt_is_reported_on_request_when_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_cpp_worker.api.reply.time.monotonic", lambda: 10.02104)  # 20.04 ms after the admission
    reply = make_reply(CHAT, {**HELLO, "stream": True, "return_progress": True})
    request, text = reply.requests[0], ""
    for n_prefilled in (4, 4, 6):
        request.n_prefilled = n_prefilled
        text += reply.next_piece()
    request.n_prefilled = len(PROMPT)
    role, *progress = events(text + finish(reply))
    assert role["choices"][0]["delta"]["role"] == "assistant"
    reported = [event["prompt_progress"] for event in progress[:-1]]
    assert [(each["total"], each["cache"], each["processed"]) for each in reported] == [
        (7, 2, 2),
        (7, 2, 4),
        (7, 2, 6),
        (7, 2, 7),
    ]
    assert [each["time_ms"] for each in reported] == [0.0, 20.0, 20.0, 20.0]


def test_progress_is_not_reported_without_request() -> None:
    reply = make_reply(CHAT, {**HELLO, "stream": True})
    reply.requests[0].n_prefilled = 4
    assert "prompt_progress" not in reply.next_piece()


def test_timings_come_with_every_text_on_request() -> None:
    reply = make_reply(COMPLETIONS, {"prompt": "1 2", "stream": True, "timings_per_token": True})
    first, second, _ = events(generate(reply, " 3") + generate(reply, " 4") + finish(reply))
    assert [first["timings"]["predicted_n"], second["timings"]["predicted_n"]] == [1, 2]


def test_a_failure_in_mid_answer_is_an_error_object_without_done() -> None:
    streamed, whole = make_reply(CHAT, {**HELLO, "stream": True}), make_reply(CHAT, HELLO)
    for reply in (streamed, whole):
        generate(reply, "Hi")
        reply.requests[0].error = "The model failed."
    end(streamed.requests[0], "error")
    failure = streamed.next_piece()
    assert json.loads(failure.removeprefix("data: "))["error"]["message"] == "The model failed."
    assert "[DONE]" not in failure
    assert streamed.is_finished
    assert json.loads(whole.next_piece())["error"]["type"] == "server_error"


def test_a_choice_that_fails_ends_the_whole_answer() -> None:
    reply = make_reply(CHAT, {**HELLO, "n": 2})
    end(reply.requests[0])
    reply.requests[1].error = "The model failed."
    assert reply.is_finished
    assert "error" in json.loads(reply.next_piece())


def token(piece: bytes, logprob: float = -0.5) -> SampledToken:
    likeliest = (TokenLogprob(b" the", -0.25), TokenLogprob(b"<|end|>", float("-inf")))
    return SampledToken(TokenLogprob(piece, logprob), likeliest)


def test_log_probabilities_of_a_chat_have_text_bytes_and_the_likeliest() -> None:
    reply = make_reply(CHAT, {**HELLO, "logprobs": True, "top_logprobs": 2})
    generate(reply, "é", [token(b"\xc3"), token(b"\xa9")])
    (choice,) = json.loads(finish(reply))["choices"]
    first, second = choice["logprobs"]["content"]
    assert (first["token"], first["bytes"], first["logprob"]) == ("\ufffd", [0xC3], -0.5)
    assert second["bytes"] == [0xA9]
    assert first["top_logprobs"] == [
        {"token": " the", "logprob": -0.25, "bytes": list(b" the")},
        {"token": "<|end|>", "logprob": MIN_LOGPROB, "bytes": list(b"<|end|>")},
    ]


def test_log_probabilities_of_a_completion_are_four_lists() -> None:
    reply = make_reply(COMPLETIONS, {"prompt": "x", "logprobs": 2})
    generate(reply, "aé", [token(b"a"), token(b"\xc3"), token(b"\xa9")])
    generate(reply, "b", [token(b"b")])
    (choice,) = json.loads(finish(reply))["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["a", "\ufffd", "\ufffd", "b"]
    assert logprobs["token_logprobs"] == [-0.5] * 4
    assert logprobs["text_offset"] == [0, 1, 1, 2]
    assert logprobs["top_logprobs"][0] == {" the": -0.25, "<|end|>": MIN_LOGPROB, "a": -0.5}


def test_streamed_log_probabilities_come_with_their_text() -> None:
    reply = make_reply(COMPLETIONS, {"prompt": "x", "logprobs": 0, "stream": True})
    text = generate(reply, "a", [token(b"a")]) + generate(reply, "b", [token(b"b")]) + finish(reply)
    first, second, ending = (event["choices"][0] for event in events(text))
    assert [first["logprobs"]["text_offset"], second["logprobs"]["text_offset"]] == [[0], [1]]
    assert ending["logprobs"] is None


def test_log_probabilities_are_null_without_request() -> None:
    reply = make_reply(CHAT, HELLO)
    generate(reply, "a")
    assert json.loads(finish(reply))["choices"][0]["logprobs"] is None


def test_streamed_choices_have_an_index_and_one_event_has_timings() -> None:
    reply = make_reply(CHAT, {**HELLO, "n": 2, "stream": True})
    text = generate(reply, "A") + generate(reply, "B", index=1)
    end(reply.requests[1], "length")
    text += generate(reply, "a") + reply.next_piece()
    every = events(text + finish(reply))
    choices = [event["choices"][0] for event in every]
    for index, expected in enumerate(["Aa", "B"]):
        mine = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == expected
        assert [choice["finish_reason"] for choice in mine][-1] == ["stop", "length"][index]
    assert ["timings" in event for event in every] == [False] * (len(every) - 1) + [True]


def test_whole_choices_are_a_list() -> None:
    reply = make_reply(COMPLETIONS, {"prompt": "x", "n": 2, "echo": True})
    generate(reply, "B", index=1)
    generate(reply, "A")
    end(reply.requests[1], "length")
    answer = json.loads(finish(reply))
    assert [(choice["text"], choice["finish_reason"]) for choice in answer["choices"]] == [
        ("xA", "stop"),
        ("xB", "length"),
    ]


def test_every_choice_has_another_seed() -> None:
    seeded = make_reply(CHAT, {**HELLO, "n": 3, "seed": 2**63 - 1})
    assert [request.params.seed for request in seeded.requests] == [2**63 - 1, 0, 1]
    unseeded = make_reply(CHAT, {**HELLO, "n": 2})
    assert [request.params.seed for request in unseeded.requests] == [None, None]


def test_speeds_leave_out_cached_tokens_and_the_first_token_of_each_choice() -> None:
    prompt = [0] * 100
    both = [Request(prompt, SamplingParams(), n_cached=60, completion=[0] * 6) for _ in range(2)]
    for request in both:
        request.admitted_at, request.first_token_at, request.finished_at = 0.0, 0.02, 0.12
    timings = timings_of(both)
    assert (timings["cache_n"], timings["prompt_n"], timings["prompt_per_second"]) == (60, 40, 2000.0)
    assert timings["predicted_per_second"] == 100.0


def test_several_prompts_have_their_choices_in_order() -> None:
    reply = make_reply(COMPLETIONS, {"prompt": ["x", "y"], "n": 2, "echo": True})
    for index, text in enumerate("ABCD"):
        generate(reply, text, index=index)
        if index:
            end(reply.requests[index])
    answer = json.loads(finish(reply))
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "xA"),
        (1, "xB"),
        (2, "yC"),
        (3, "yD"),
    ]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (14, 12)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 4


def test_too_many_generated_log_probabilities_end_an_answer_that_is_not_streamed() -> None:
    reply = make_reply(COMPLETIONS, {"prompt": ["x"] * 100, "n": 8, "logprobs": 20})
    for request in reply.requests:
        request.completion = [0] * 11
    assert reply.next_piece() == ""
    reply.requests[0].completion += [0] * 1000
    assert json.loads(reply.next_piece())["error"]["code"] == "too_long"
    assert reply.is_finished


def test_a_stop_string_within_a_call_does_not_end_it_whole() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    forced = make_reply(CHAT, {**HELLO, "tools": tools, "tool_choice": "required", "stop": ["a"]})
    assert [request.params.stop for request in forced.requests] == [()]
    for arguments, reason in (('{"a": ', "length"), ('{"a": 1}', "tool_calls")):
        reply = make_reply(CHAT, {**HELLO, "tools": tools, "stop": ["x"]})
        (choice,) = reply._choices
        choice.output.add(ToolCallBegin(0, "c", "f"))
        choice.output.add(ToolCallArguments(0, arguments))
        choice.request.assembler.push(b"x")
        choice.request.finish_reason = "stop"
        assert (choice.request.stop_string, choice.finish_reason) == ("x", reason)
