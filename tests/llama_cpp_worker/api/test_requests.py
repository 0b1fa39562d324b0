"""Which requests are accepted, and how the others are refused, without a server."""

import gzip
from typing import Any

import pytest

from llama_cpp_worker.api.errors import ApiError
from llama_cpp_worker.api.fields import HINTS, NEUTRAL, read_body
from llama_cpp_worker.api.request import GenerationRequest
from llama_cpp_worker.api.routes import FAMILIES
from llama_cpp_worker.constraint import compile_constraint

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
PLAIN, COMPLETIONS, CHAT = "", "v1/completions", "v1/chat/completions"


def parse(path: str, body: object) -> GenerationRequest:
    return FAMILIES[path].parse(read_body({"body": body}))


def refusal_of(path: str, body: object) -> ApiError:
    with pytest.raises(ApiError) as refusal:
        parse(path, body)
    return refusal.value


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (PLAIN, {}, "prompt"),
        (PLAIN, {"prompt": ""}, "prompt"),
        (PLAIN, {"prompt": 5}, "prompt"),
        (PLAIN, {"prompt": "a", **HELLO}, "messages"),
        (PLAIN, {"prompt": "a", "temperature": "hot"}, "temperature"),
        (PLAIN, {"prompt": "a", "max_tokens": -2}, "max_tokens"),
        (PLAIN, {"prompt": "a", "stream": "yes"}, "stream"),
        (PLAIN, {"prompt": "a", "surprise": 1}, "surprise"),
        (PLAIN, {"prompt": "\ud800"}, "prompt"),
        (COMPLETIONS, HELLO, "messages"),
        (CHAT, {"prompt": "a"}, "prompt"),
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "Hello"}, "messages"),
        (CHAT, {"messages": ["Hello"]}, "messages[0]"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (CHAT, {**HELLO, "stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {**HELLO, "return_progress": True}, "return_progress"),
        (CHAT, {**HELLO, "timings_per_token": True, "stream": False}, "timings_per_token"),
        (CHAT, {**HELLO, "timings_per_token": 1, "stream": True}, "timings_per_token"),
        (CHAT, {**HELLO, "max_tokens": 1, "max_completion_tokens": 1}, "max_completion_tokens"),
        (CHAT, {**HELLO, "model": 5}, "model"),
        (CHAT, {"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        (CHAT, {"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]}, "messages[0].audio"),
        (CHAT, {"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        (CHAT, {**HELLO, "tools": [{"type": "function"}]}, "tools[0].function"),
        (CHAT, {**HELLO, "mirostat": 2}, "mirostat"),
        (CHAT, {**HELLO, "reasoning_format": "x"}, "reasoning_format"),
        (CHAT, {**HELLO, "best_of": 2}, "best_of"),
        (CHAT, {**HELLO, "best_of": True}, "best_of"),
        (CHAT, {**HELLO, "n": 0}, "n"),
        (CHAT, {**HELLO, "n": 9}, "n"),
        (CHAT, {**HELLO, "n": "2"}, "n"),
        (CHAT, {**HELLO, "logprobs": 1}, "logprobs"),
        (CHAT, {**HELLO, "top_logprobs": 1}, "top_logprobs"),
        (CHAT, {**HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {**HELLO, "max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {**HELLO, "response_format": "json"}, "response_format"),
        (CHAT, {**HELLO, "response_format": {"type": ["text"]}}, "response_format"),
        (CHAT, {**HELLO, "response_format": {"type": "json_schema"}}, "response_format"),
        (CHAT, {**HELLO, "response_format": {"type": "json_object", "schema": 5}}, "response_format"),
        (
            CHAT,
            {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format",
        ),
        (CHAT, {**HELLO, "response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "grammar"),
        (CHAT, {**HELLO, "grammar": "root ::= nowhere"}, "grammar"),
        (CHAT, {**HELLO, "grammar": "root ::= \ud800"}, "grammar"),
        (COMPLETIONS, {"prompt": "a", "logprobs": True}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b", "echo": True}, "suffix"),
        (COMPLETIONS, {"prompt": [1], "suffix": "b"}, "suffix"),
        (COMPLETIONS, {"prompt": "a", "top_logprobs": 1}, "top_logprobs"),
        (COMPLETIONS, {"prompt": ["a", ""]}, "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 129}, "prompt"),
        (PLAIN, {"prompt": ["a", "b"]}, "prompt"),
        (COMPLETIONS, {"prompt": [1, True]}, "prompt"),
        (COMPLETIONS, {"prompt": [1, -1]}, "prompt"),
        (COMPLETIONS, {"prompt": [2**31]}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (PLAIN, {"prompt": "a", "n": 2}, "n"),
        (PLAIN, {"prompt": "a", "logprobs": 1}, "logprobs"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_bad_request_is_refused_by_parameter_name(path: str, body: dict[str, object], param: str) -> None:
    refusal = refusal_of(path, body)
    assert refusal.status == 400
    error = refusal.body()["error"]
    assert isinstance(error, dict)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        (PLAIN, {"prompt": "a", "max_tokens": -2}, "max_tokens: must be an integer from 1 to 1,000,000, or -1 for no"),
        (PLAIN, {"prompt": "a", "max_tokens": 0}, "max_tokens: must be an integer from 1 to 1,000,000, or -1 for no"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": -2}, "max_tokens: must be an integer from 0 to 1,000,000, or -1"),
        (CHAT, {**HELLO, "max_completion_tokens": 0}, "max_completion_tokens: must be an integer from 1 to"),
        (PLAIN, {"prompt": "a", "temperature": True}, "temperature: must be a number from 0.0 to 5.0, not true."),
        (PLAIN, {"prompt": "a", "temperature": "hot"}, 'temperature: must be a number from 0.0 to 5.0, not "hot".'),
        (PLAIN, {**HELLO, "tools": []}, "tools: is only possible at v1/chat/completions."),
        (PLAIN, {"prompt": "a", "n": 2}, "n: is only possible at v1/chat/completions and v1/completions."),
        (PLAIN, {"prompt": "a", "suffix": "b"}, "suffix: is only possible at v1/completions."),
        (PLAIN, {"prompt": "a", "surprise": 2}, "surprise: this server does not know this parameter here."),
        (
            CHAT,
            {"messages": [{"role": "wizard", "content": "x"}]},
            "messages[0].role: must be one of system, developer, user, assistant, tool, not wizard.",
        ),
        (
            CHAT,
            {**HELLO, "add_generation_prompt": True, "continue_final_message": True},
            "add_generation_prompt: must not be true if continue_final_message is; send one of them.",
        ),
        (
            "v1/responses",
            {"input": [{"role": "wizard", "content": "x"}]},
            "input[0].role: must be one of system, developer, user, assistant, not wizard.",
        ),
        (
            "v1/messages",
            {"max_tokens": 5, "messages": [{"role": "tool", "content": "x"}]},
            "messages[0].role: must be one of user, assistant, system, not tool.",
        ),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_an_error_says_what_is_possible(path: str, body: dict[str, object], sentence: str) -> None:
    assert str(refusal_of(path, body)).startswith(sentence)


def test_null_is_the_default_of_a_parameter_of_another_path() -> None:
    assert parse(PLAIN, {"prompt": "a", "n": None, "tools": None, "suffix": ""}).n == 1


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{bad", "The body is not valid JSON (at character 1)."),
        (b'{"prompt": "caf\xe9"}', "The body is not UTF-8, which JSON must be."),
        (b"[1]", "The body must be a JSON object"),
        (b"5", "The body must be a JSON object"),
        (b"[" * 100_000, "The body is not valid JSON."),
        (b"", "The body is empty: use POST, and send a JSON object"),
    ],
    ids=lambda value: repr(value[:9]),
)
def test_a_body_that_is_no_json_object_is_refused_with_the_reason(body: bytes, problem: str) -> None:
    refusal = refusal_of(PLAIN, bytearray(body))
    assert (refusal.code, str(refusal)[: len(problem)]) == ("invalid_json", problem)


def test_a_body_that_is_no_json_is_not_quoted() -> None:
    assert "secret" not in str(refusal_of(CHAT, b'{"messages": "secret" "secret"}'))


def test_json_that_was_sent_as_a_form_is_refused_with_a_word_about_the_header() -> None:
    forms: list[Any] = [{'{"prompt": "my secret': b'1"}'}, {' {"prompt":"secret', ""}, {'[{"secret': b""}, {}]
    for form in forms:  # the last one: TorchServe passes nothing of a form without = and &
        fields = dict.fromkeys(form, b"") if isinstance(form, set) else form
        with pytest.raises(ApiError, match="Content-Type: application/json") as refusal:
            read_body(fields)
        assert refusal.value.code == "invalid_content_type"
        assert "secret" not in str(refusal.value)
        assert "secret" not in refusal.value.logged_as


def test_a_compressed_body_is_refused_in_words() -> None:
    refusal = refusal_of(CHAT, gzip.compress(b'{"messages": []}'))
    assert (refusal.status, refusal.code) == (415, "unsupported_encoding")


def test_an_unknown_name_is_quoted_to_the_client_but_not_logged() -> None:
    for body in ({"prompt": "a", "my secret": 1}, {"prompt": "a", "stream": True, "stream_options": {"my secret": 1}}):
        refusal = refusal_of(COMPLETIONS, body)
        assert "my secret" in str(refusal)
        assert refusal.logged_as == "an unknown parameter"


def test_form_fields_work_as_json_does() -> None:
    form = {"prompt": bytearray(b"5"), "max_tokens": b"7", "temperature": b"0.5", "stream": b"true"}
    request = FAMILIES[PLAIN].parse(read_body(form))
    assert request.prompts == ["5"]
    assert (request.params.max_tokens, request.params.temperature, request.stream) == (7, 0.5, True)
    with pytest.raises(ApiError) as refusal:
        FAMILIES[PLAIN].parse(read_body({"prompt": b"a", "temperature": b"hot"}))
    assert refusal.value.param == "temperature"


def test_text_parts_are_joined_with_line_breaks() -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "world"}]
    request = parse(CHAT, {"messages": [{"role": "user", "content": parts}]})
    assert request.messages == [{"role": "user", "content": "Hello\nworld"}]


def test_what_cannot_change_the_answer_is_accepted() -> None:
    nothing = {"n": None, "seed": None, "logprobs": None, "user": None, "logit_bias": None, "response_format": None}
    neutral = {name: values[0] if values else None for name, values in NEUTRAL.items()}
    request = parse(CHAT, {**HELLO, **nothing, **neutral, **{hint: {"any": "value"} for hint in HINTS}})
    assert (request.n, request.logprobs, request.params.grammar) == (1, None, None)
    assert parse(COMPLETIONS, {"prompt": "a", **dict.fromkeys(NEUTRAL)}).suffix is None
    streamed = parse(CHAT, {**HELLO, "stream": True, "stream_options": {"include_obfuscation": False}})
    assert not streamed.include_usage


def test_minus_one_means_no_limit_or_a_random_seed() -> None:
    params = parse(CHAT, {**HELLO, "max_tokens": -1, "top_k": -1, "seed": -1}).params
    assert (params.max_tokens, params.top_k, params.seed) == (None, 0, None)
    assert parse(CHAT, {**HELLO, "max_completion_tokens": -1}).params.max_tokens is None


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32 + 5, 2**53, 2**63 - 1, -(2**63), -2])
def test_a_seed_has_64_bits(seed: int) -> None:
    assert parse(CHAT, {**HELLO, "seed": seed}).params.seed == seed
    assert refusal_of(CHAT, {**HELLO, "seed": 2**70}).param == "seed"


def test_repetition_penalty_is_another_name_of_repeat_penalty() -> None:
    assert parse(CHAT, {**HELLO, "repetition_penalty": 1.5}).params.repeat_penalty == 1.5
    refusal = refusal_of(CHAT, {**HELLO, "repetition_penalty": 11})
    assert (refusal.param, str(refusal)[:20]) == ("repetition_penalty", "repetition_penalty: ")


def test_a_last_message_of_the_assistant_is_continued_unless_the_client_refuses() -> None:
    answer = {"messages": [*HELLO["messages"], {"role": "assistant", "content": "Hi"}]}
    assert parse(CHAT, answer).continues_answer
    assert parse(CHAT, {**answer, "continue_final_message": True}).continues_answer
    assert not parse(CHAT, {**answer, "continue_final_message": False}).continues_answer
    assert refusal_of(CHAT, {**HELLO, "continue_final_message": True}).param == "continue_final_message"


def test_labels_of_a_message_are_accepted() -> None:
    labelled = {"role": "user", "content": "Hello", "name": "Ann", "id": 5, "opts": {"visible": False}}
    assert parse(CHAT, {"messages": [labelled]}).messages == HELLO["messages"]


def test_calls_of_tools_and_their_results_are_messages() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_secret", "arguments": '{"a": 1}'}}
    result = {"role": "tool", "tool_call_id": "c1", "content": "42"}
    for content in ({"content": None}, {}):
        request = parse(
            CHAT, {"messages": [*HELLO["messages"], {"role": "assistant", "tool_calls": [call]} | content, result]}
        )
        assert request.messages[1:] == [{"role": "assistant", "content": "", "tool_calls": [call]}, result]
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    (called,) = parse(CHAT, {"messages": [old]}).messages[0]["tool_calls"]
    assert called["function"] == {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("calls", "place"),
    [
        ("x", "tool_calls"),
        ([5], "tool_calls[0]"),
        ([{"type": "custom", "function": {}}], "tool_calls[0]"),
        ([{"function": {"arguments": "{}"}}], "tool_calls[0].function.name"),
        ([{"function": {"name": "f", "arguments": 5}}], "tool_calls[0].function.arguments"),
        ([{"id": 5, "function": {"name": "f"}}], "tool_calls[0].id"),
    ],
    ids=repr,
)
def test_a_wrong_call_of_a_tool_is_refused_with_its_place(calls: object, place: str) -> None:
    refusal = refusal_of(CHAT, {"messages": [{"role": "assistant", "content": None, "tool_calls": calls}]})
    assert refusal.param == f"messages[0].{place}"


def test_an_answer_of_this_server_can_be_sent_back_as_a_message() -> None:
    message: dict[str, object] = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
    }
    request = parse(CHAT, {"messages": [message, {"role": "developer", "content": "x"}]})
    assert request.messages == [{"role": "assistant", "content": "Hi"}, {"role": "system", "content": "x"}]


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [
        ("a", ["a"]),
        (["a"], ["a"]),
        ([5, 6], [[5, 6]]),
        ([[5, 6]], [[5, 6]]),
        (["a", "b"], ["a", "b"]),
        ([[5], [6, 7], "c"], [[5], [6, 7], "c"]),
    ],
    ids=repr,
)
def test_prompts_are_texts_or_tokens_alone_or_in_a_list(prompt: object, parsed: object) -> None:
    request = parse(COMPLETIONS, {"prompt": prompt, "logprobs": 2})
    assert (request.prompts, request.logprobs) == (parsed, 2)


def test_logprobs_of_a_chat_are_true_and_a_number() -> None:
    assert parse(CHAT, {**HELLO, "logprobs": True, "top_logprobs": 3}).logprobs == 3
    assert parse(CHAT, {**HELLO, "logprobs": True}).logprobs == 0
    assert parse(CHAT, {**HELLO, "logprobs": False}).logprobs is None


def test_a_response_format_becomes_a_grammar() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    for response_format in (form, {"type": "json_object"}):
        request = parse(CHAT, {**HELLO, "response_format": response_format})
        assert compile_constraint(request.params)
    free = parse(CHAT, {**HELLO, "response_format": {"type": "text"}})
    assert compile_constraint(free.params) is None


def test_an_unsupported_schema_is_refused_with_the_place_in_it() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "not": {"const": "a"}}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(ApiError, match=r"json_schema\.schema\.properties\.name\.not: is not supported") as refusal:
        parse(CHAT, {**HELLO, "response_format": form})
    assert refusal.value.param == "response_format"


def test_prompts_that_are_too_long_together_are_refused() -> None:
    refusal = refusal_of(COMPLETIONS, {"prompt": ["a" * 100_000] * 11})
    assert (refusal.param, refusal.code) == ("prompt", "context_length_exceeded")
    assert "1,100,000 bytes of text; at most 1,048,576" in str(refusal)


def test_vllms_pair_of_parameters_for_a_continued_answer() -> None:
    answer = {"messages": [*HELLO["messages"], {"role": "assistant", "content": "Hi"}]}
    pair = {"add_generation_prompt": False, "continue_final_message": True}
    assert parse(CHAT, {**answer, **pair}).continues_answer
    assert parse(CHAT, {**answer, "add_generation_prompt": True}).continues_answer
    both = {"add_generation_prompt": True, "continue_final_message": True}
    assert refusal_of(CHAT, {**answer, **both}).param == "add_generation_prompt"
    assert refusal_of(CHAT, {**HELLO, "add_generation_prompt": False}).param == "add_generation_prompt"


def test_json_schema_is_llama_servers_form_of_a_response_format() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    formed = parse(CHAT, {**HELLO, "response_format": {"type": "json_object", "schema": schema}})
    for path, body in ((CHAT, HELLO), (COMPLETIONS, {"prompt": "a"})):
        request = parse(path, {**body, "json_schema": schema})
        assert compile_constraint(request.params) == compile_constraint(formed.params)
    wrong = refusal_of(CHAT, {**HELLO, "json_schema": {"properties": {"a": {"not": {}, "type": "string"}}}})
    assert (wrong.param, str(wrong)[:28]) == ("json_schema", "json_schema.properties.a.not")
    assert refusal_of(CHAT, {**HELLO, "json_schema": {}, "response_format": {"type": "text"}}).param == "json_schema"


@pytest.mark.parametrize("path", FAMILIES)
def test_a_body_that_is_nested_too_deeply_is_refused(path: str) -> None:
    body = b'{"metadata":' + b'{"a":' * 500 + b"1" + b"}" * 501
    refusal = refusal_of(path, body)
    assert refusal.code == "invalid_json"
    assert "at most 300 levels" in str(refusal)
    assert refusal_of(path, b'{"metadata": {"a": NaN}}').code == "invalid_json"


def test_more_messages_than_a_template_renders_quickly_are_refused() -> None:
    result = {"role": "tool", "content": "", "tool_call_id": "a"}
    assert refusal_of(CHAT, {"messages": [*HELLO["messages"], *[result] * 10_000]}).param == "messages"
    output = {"type": "function_call_output", "call_id": "a", "output": ""}
    assert refusal_of("v1/responses", {"input": [output] * 10_001}).param == "input"
    block = {"type": "tool_result", "tool_use_id": "a", "content": ""}
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": [block] * 10_000}]}
    assert refusal_of("v1/messages", body).param == "messages"


@pytest.mark.parametrize("name", ["metadata", "user", "reasoning"])
def test_a_label_that_every_response_repeats_is_short(name: str) -> None:
    refusal = refusal_of("v1/responses", {"input": "Hi", name: {"a": "x" * 20_000}})
    assert (refusal.param, "16,384 characters" in str(refusal)) == (name, True)


def test_the_names_in_a_refused_schema_are_not_logged() -> None:
    schema = {"type": "object", "properties": {"my secret": {"not": {}, "type": "string"}}}
    flat = {"name": "f", "parameters": schema}
    refused = [
        refusal_of(CHAT, {**HELLO, "tools": [{"type": "function", "function": flat}]}),
        refusal_of("v1/responses", {"input": "Hi", "tools": [{"type": "function", **flat}]}),
        refusal_of(
            "v1/messages",
            {**HELLO, "max_tokens": 5, "tools": [{"name": "f", "input_schema": schema}]},
        ),
    ]
    for refusal in refused:
        assert "my secret" in str(refusal)
        assert "secret" not in refusal.logged_as
        assert refusal.logged_as.startswith("tools[0]")


def test_fields_that_would_change_the_answer_are_refused() -> None:
    options = {"stream": True, "stream_options": {"continuous_usage_stats": True}}
    assert refusal_of(CHAT, {**HELLO, **options}).param == "stream_options.continuous_usage_stats"
    assert refusal_of(PLAIN, {**HELLO, "echo": True}).param == "echo"
