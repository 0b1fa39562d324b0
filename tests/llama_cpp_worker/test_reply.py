"""The wire outwards, without a server: what answers look like."""

from __future__ import annotations

import json

from llama_cpp_worker.reply import END_OF_STREAM, LEAST_LOGPROB, Progress, Reply, Usage, models_body
from llama_cpp_worker.request import Route, parse_request
from llama_cpp_worker.sampling_params import SampledToken, TokenLogprob

USAGE = Usage(prompt_tokens=7, cached_tokens=2, completion_tokens=3, queue_ms=1.0, prompt_ms=20.0, predicted_ms=40.0)
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def make_reply(route: Route, body: dict[str, object]) -> Reply:
    return Reply(parse_request(route, {"body": body}), "id-1", "tiny", "fp_1")


def finish(reply: Reply, reason: str = "stop") -> str:
    return reply.end(0, reason) + reply.finish(USAGE)


def events(text: str) -> list[dict]:
    assert text.endswith(END_OF_STREAM)
    lines = text.removesuffix(END_OF_STREAM).split("\n\n")[:-1]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_the_users_original_call_is_answered_with_prompt_and_completion_as_text() -> None:
    reply = make_reply(Route.PREDICT, {"prompt": "Question: 1+1? Answer:"})
    assert reply.push(0, " tw") == ""
    assert reply.push(0, "o") == ""
    assert finish(reply) == "Question: 1+1? Answer: two"
    assert reply.content_type.startswith("text/plain")


def test_a_whole_chat_answer_is_an_openai_object_with_usage_and_timings() -> None:
    reply = make_reply(Route.CHAT, HELLO)
    reply.push(0, "Hi")
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
    assert answer["timings"]["predicted_per_second"] == 50.0
    assert answer["timings"]["prompt_per_second"] == 250.0


def test_a_streamed_chat_answer_begins_with_the_role_and_ends_with_usage_and_done() -> None:
    reply = make_reply(Route.CHAT, {**HELLO, "stream": True, "stream_options": {"include_usage": True}})
    text = reply.push(0, "") + reply.push(0, "Hi") + reply.push(0, "") + finish(reply)
    first, piece, ending, usage = events(text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert piece["choices"][0]["delta"] == {"content": "Hi"}
    assert (ending["choices"][0]["delta"], ending["choices"][0]["finish_reason"]) == ({}, "stop")
    assert ending["timings"]["prompt_n"] == 5
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 10)
    assert {event["object"] for event in (first, piece, ending, usage)} == {"chat.completion.chunk"}


def test_a_streamed_completion_echoes_its_prompt_first_when_asked() -> None:
    reply = make_reply(Route.COMPLETIONS, {"prompt": "1 2", "echo": True, "stream": True})
    texts = [event["choices"][0]["text"] for event in events(reply.push(0, " 3") + finish(reply))]
    assert "".join(texts) == "1 2 3"


def test_progress_of_the_prompt_is_told_when_asked_for_and_when_it_has_changed() -> None:
    reply = make_reply(Route.CHAT, {**HELLO, "stream": True, "return_progress": True})
    half, most = Progress(100, 10, 50, 20.04), Progress(100, 10, 90, 41.0)
    text = "".join(reply.tell_progress(0, progress) for progress in (half, half, most))
    role, *told = events(text + finish(reply))
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert [event["prompt_progress"] for event in told[:-1]] == [
        {"total": 100, "cache": 10, "processed": 50, "time_ms": 20.0},
        {"total": 100, "cache": 10, "processed": 90, "time_ms": 41.0},
    ]
    assert make_reply(Route.CHAT, {**HELLO, "stream": True}).tell_progress(0, half) == ""


def test_timings_come_with_every_text_when_asked_for() -> None:
    reply = make_reply(Route.COMPLETIONS, {"prompt": "1 2", "stream": True, "timings_per_token": True})
    assert reply.wants_timings
    first, _ = events(reply.push(0, " 3", (), USAGE) + finish(reply))
    assert first["timings"]["predicted_n"] == 3


def test_a_failure_in_mid_answer_is_an_error_object_without_done() -> None:
    streamed = make_reply(Route.CHAT, {**HELLO, "stream": True})
    streamed.push(0, "Hi")
    failure = streamed.fail("The model failed.")
    assert json.loads(failure.removeprefix("data: "))["error"]["message"] == "The model failed."
    assert "[DONE]" not in failure
    assert json.loads(make_reply(Route.CHAT, HELLO).fail("x"))["error"]["type"] == "server_error"


def token(piece: bytes, logprob: float = -0.5) -> SampledToken:
    likeliest = (TokenLogprob(b" the", -0.25), TokenLogprob(b"<|end|>", float("-inf")))
    return SampledToken(TokenLogprob(piece, logprob), likeliest)


def test_log_probabilities_of_a_chat_have_text_bytes_and_the_likeliest() -> None:
    reply = make_reply(Route.CHAT, {**HELLO, "logprobs": True, "top_logprobs": 2})
    reply.push(0, "é", [token(b"\xc3"), token(b"\xa9")])
    (choice,) = json.loads(finish(reply))["choices"]
    first, second = choice["logprobs"]["content"]
    assert (first["token"], first["bytes"], first["logprob"]) == ("\ufffd", [0xC3], -0.5)
    assert second["bytes"] == [0xA9]
    assert first["top_logprobs"] == [
        {"token": " the", "logprob": -0.25, "bytes": list(b" the")},
        {"token": "<|end|>", "logprob": LEAST_LOGPROB, "bytes": list(b"<|end|>")},
    ]


def test_log_probabilities_of_a_completion_are_four_lists() -> None:
    reply = make_reply(Route.COMPLETIONS, {"prompt": "x", "logprobs": 2})
    reply.push(0, "aé", [token(b"a"), token(b"\xc3"), token(b"\xa9")])
    reply.push(0, "b", [token(b"b")])
    (choice,) = json.loads(finish(reply))["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["a", "\ufffd", "\ufffd", "b"]
    assert logprobs["token_logprobs"] == [-0.5] * 4
    assert logprobs["text_offset"] == [0, 1, 1, 2]
    assert logprobs["top_logprobs"][0] == {" the": -0.25, "<|end|>": LEAST_LOGPROB, "a": -0.5}


def test_streamed_log_probabilities_come_with_their_text() -> None:
    reply = make_reply(Route.COMPLETIONS, {"prompt": "x", "logprobs": 0, "stream": True})
    text = reply.push(0, "a", [token(b"a")]) + reply.push(0, "b", [token(b"b")]) + finish(reply)
    first, second, ending = (event["choices"][0] for event in events(text))
    assert [first["logprobs"]["text_offset"], second["logprobs"]["text_offset"]] == [[0], [1]]
    assert ending["logprobs"] is None


def test_who_asks_for_no_log_probabilities_gets_null() -> None:
    reply = make_reply(Route.CHAT, HELLO)
    reply.push(0, "a")
    assert json.loads(finish(reply))["choices"][0]["logprobs"] is None


def test_choices_are_told_apart_by_index_and_the_last_to_end_brings_the_timings() -> None:
    reply = make_reply(Route.CHAT, {**HELLO, "n": 2, "stream": True})
    text = reply.push(0, "A") + reply.push(1, "B") + reply.end(1, "length") + reply.push(0, "a") + reply.push(1, "")
    every = events(text + finish(reply))
    choices = [event["choices"][0] for event in every]
    for index, said in enumerate(["Aa", "B"]):
        mine = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == said
        assert [choice["finish_reason"] for choice in mine][-1] == ["stop", "length"][index]
    assert ["timings" in event for event in every] == [False] * (len(every) - 1) + [True]


def test_whole_choices_are_a_list() -> None:
    reply = make_reply(Route.COMPLETIONS, {"prompt": "x", "n": 2, "echo": True})
    reply.push(1, "B")
    reply.push(0, "A")
    reply.end(1, "length")
    answer = json.loads(finish(reply))
    assert [(choice["text"], choice["finish_reason"]) for choice in answer["choices"]] == [
        ("xA", "stop"),
        ("xB", "length"),
    ]


def test_speeds_leave_out_what_was_cached_and_each_choices_first_token() -> None:
    usage = Usage(100, 60, 12, queue_ms=0.0, prompt_ms=20.0, predicted_ms=100.0, n_choices=2)
    timings = usage.timings()
    assert (timings["cache_n"], timings["prompt_n"], timings["prompt_per_second"]) == (60, 40, 2000.0)
    assert timings["predicted_per_second"] == 100.0


def test_the_list_of_models_has_the_one_that_is_served() -> None:
    (model,) = models_body("tiny", 123, {"slots": 8})["data"]  # type: ignore[misc, attr-defined]
    assert model == {"id": "tiny", "object": "model", "created": 123, "owned_by": "llama.cpp", "meta": {"slots": 8}}
