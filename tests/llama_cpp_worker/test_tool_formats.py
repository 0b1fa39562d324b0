"""Calls in prompts: which notation a template has, and what a template without one gets instead. No model."""

import contextlib
import json
from typing import Any

import pytest

from llama_cpp_worker.chat_template import ChatTemplate, TemplateError
from llama_cpp_worker.tool_formats import HERMES, LLAMA, MISTRAL, PROMPTED, CallFormat

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Now", "parameters": {}}}
TOOLS = "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
QWEN = (
    TOOLS + "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for call in m.tool_calls %}{{ '\n<tool_call>\n' }}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{% endfor %}"
)
META = (
    TOOLS + "{% for m in messages %}<{{ m.role }}>{% if 'tool_calls' in m %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('single tool-calls') }}{% endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", '
    '"parameters": {{ m.tool_calls[0].function.arguments | tojson }}}{% else %}{{ m.content }}{% endif %}{% endfor %}'
)
NEMO = (
    TOOLS + "{% for m in messages %}{% if m.tool_calls is defined %}[TOOL_CALLS][{% for call in m.tool_calls %}"
    '{{ (call.function | tojson)[:-1] }}, "id": "{{ call.id }}"}{{ \', \' if not loop.last }}'
    "{% if call.id | length != 9 %}{{ raise_exception('length 9') }}{% endif %}{% endfor %}]"
    "{% else %}<{{ m.role }}>{{ m.content }}{{ m.tool_call_id }}{% endif %}{% endfor %}"
)
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
GEMMA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def call(name: str, arguments: str, identity: str = "call_1") -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "Weather?"}
HISTORY: list[dict[str, Any]] = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [call("a", '{"x":"é"}'), call("b", "{}", "call_2")]},
    {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
    {"role": "tool", "content": "sun", "tool_call_id": "call_2"},
]


def template(source: str | None) -> ChatTemplate:
    return ChatTemplate(source, bos="<s>", eos="</s>")


@pytest.mark.parametrize(
    ("source", "form", "has_own"),
    [
        pytest.param(QWEN, HERMES, True, id="Qwen"),
        pytest.param(META, LLAMA, True, id="Llama"),
        pytest.param(NEMO, MISTRAL, True, id="Mistral"),
        pytest.param(CHATML, PROMPTED, False, id="no tools"),
        pytest.param(TOOLS + CHATML, PROMPTED, False, id="unknown notation"),
        pytest.param(GEMMA, PROMPTED, False, id="no system message"),
        pytest.param(None, PROMPTED, False, id="raw"),
        pytest.param("{{ messages[0].content.x.y }}", PROMPTED, False, id="refuses everything"),
    ],
)
def test_the_notation_is_that_of_the_template(source: str | None, form: CallFormat, has_own: bool) -> None:
    found = template(source)
    assert found.call_format is form
    prompt = "" if "x.y" in (source or "") else found.render([USER], [WEATHER])
    assert ("You can call functions." in prompt) is (not has_own and prompt != "")
    assert prompt == "" or json.dumps(WEATHER) in prompt


def test_a_template_with_tools_gets_arguments_as_objects() -> None:
    prompt = template(QWEN).render(HISTORY, [WEATHER])
    assert prompt == (
        f"<tools>{json.dumps(WEATHER)}</tools><user>Weather?<assistant>"
        '\n<tool_call>\n{"name": "a", "arguments": {"x": "é"}}\n</tool_call>'
        '\n<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call><tool>rain<tool>sun'
    )


def test_arguments_that_are_no_json_stay_a_text() -> None:
    cut: list[dict[str, Any]] = [USER, {"role": "assistant", "content": "", "tool_calls": [call("a", '{"x":')]}]
    assert '"arguments": "{\\"x\\":"' in template(QWEN).render(cut)
    assert '"arguments": "{\\"x\\":"' in template(CHATML).render(cut)


@pytest.mark.parametrize("source", [QWEN, CHATML])
def test_arguments_of_many_levels_end_in_a_prompt_or_a_refusal(source: str) -> None:
    for levels in (100, 900, 100_000):
        arguments = '{"a":' + "[" * levels + "]" * levels + "}"
        messages: list[dict[str, Any]] = [USER, {"role": "assistant", "content": "", "tool_calls": []}]
        messages[1]["tool_calls"].append(call("a", arguments))
        with contextlib.suppress(TemplateError):
            assert "[" * levels in template(source).render(messages)


def test_llamas_template_gets_one_call_in_each_message() -> None:
    prompt = template(META).render(HISTORY)
    assert prompt == (
        '<user>Weather?<assistant>{"name": "a", "parameters": {"x": "é"}}'
        '<assistant>{"name": "b", "parameters": {}}<tool>rain<tool>sun'
    )


def test_mistrals_template_gets_ids_of_nine_characters_in_calls_and_results() -> None:
    prompt = template(NEMO).render(HISTORY)
    first, second = (part[:9] for part in prompt.split('"id": "')[1:])
    assert first != second and first.isalnum() and second.isalnum()
    assert prompt.endswith(f"<tool>rain{first}<tool>sun{second}")
    nine = [USER, HISTORY[1] | {"tool_calls": [call("a", "{}", "abc123XYZ")]}]
    assert '"id": "abc123XYZ"' in template(NEMO).render(nine)


def test_without_tools_in_the_template_all_of_it_is_text() -> None:
    prompt = template(CHATML).render([{"role": "system", "content": "Be brief."}, *HISTORY, USER], [WEATHER])
    system, _, rest = prompt.partition("<user>")
    assert system.startswith("<system>Be brief.\n\nYou can call functions.")
    assert f"<tools>\n{json.dumps(WEATHER)}\n</tools>" in system
    assert rest == (
        'Weather?<assistant><tool_call>\n{"name": "a", "arguments": {"x": "é"}}\n</tool_call>'
        '\n<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call>'
        "<user><tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>\nWeather?"
    )


def test_definitions_stand_in_a_new_system_message_or_in_the_users_first_message() -> None:
    assert template(CHATML).render([USER], [WEATHER]).startswith("<system>You can call functions.")
    prompt = template(GEMMA).render([*HISTORY, {"role": "assistant", "content": "Rain."}, USER], [WEATHER])
    assert prompt.startswith("<user>You can call functions.")
    assert prompt.partition("\n\n")[2].startswith("Weather?<assistant><tool_call>")
    assert prompt.endswith("</tool_response><assistant>Rain.<user>Weather?")


def test_an_answer_that_ended_with_calls_is_not_continued() -> None:
    for source in (QWEN, CHATML):
        with_prompt = source + "{% if add_generation_prompt %}<begin>{% endif %}"
        assert template(with_prompt).render(HISTORY[:2]).endswith("</tool_call><begin>")
        unfinished = [USER, {"role": "assistant", "content": "Well"}]
        assert template(with_prompt).render(unfinished).endswith("<assistant>Well")
        assert template(with_prompt).render(unfinished, continues_answer=False).endswith("<assistant>Well<begin>")


def test_the_example_in_the_definitions_is_in_the_notation_of_the_calls() -> None:
    prompt = template(CHATML).render([USER], [WEATHER])
    example = prompt.partition("in this form:\n")[2].partition("<user>")[0]
    filled = example.replace("<name of the function>", '"a"').replace("<object of the arguments>", '{"x": 1}')
    assert filled == HERMES.render([("a", {"x": 1})])


def test_a_template_that_opens_reasoning_is_known() -> None:
    begin = "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
    known = "{{ '</think>' if false }}"
    assert template(CHATML + known + begin).opens_reasoning
    assert not template(CHATML + known).opens_reasoning
    assert not template(CHATML + known + begin + "{{ '</think>' }}").opens_reasoning
    assert template(CHATML).reasoning_marks is None and not template(None).opens_reasoning


def test_the_tag_of_trainers_changes_nothing() -> None:
    marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert template(marked).render([USER]) == "Weather?"
