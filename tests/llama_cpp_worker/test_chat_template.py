"""Chat templates without a model: Hugging Face's conventions, the raw format, and continued answers."""

import pytest

from llama_cpp_worker.chat_template import ChatTemplate, TemplateError

USER = {"role": "user", "content": "Who?"}
UNFINISHED = {"role": "assistant", "content": "Me"}


def render(source: str | None, *messages: dict[str, str]) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(messages)


def rendered_by_hugging_face(source: str, *messages: dict[str, str]) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    prompts_and_indices = render_jinja_template(
        [list(messages)], chat_template=source, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    return str(prompts_and_indices[0][0])


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(
            "{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n{% endif %}\n{% endfor %}",
            id="blocks are trimmed",
        ),
        pytest.param("{{ messages | tojson }}{{ messages | tojson(indent=2) }}", id="JSON is not escaped for HTML"),
        pytest.param("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", id="loops have break"),
        pytest.param("{% if tools is not none %}tools{% endif %}{{ documents }}", id="tools and documents are none"),
        pytest.param("{% if custom_tools is defined %}custom{% endif %}{{ eos_token }}", id="the rest is undefined"),
        pytest.param("{% if add_generation_prompt %}assistant:{% endif %}", id="prompt of the answer"),
    ],
)
def test_templates_are_rendered_as_by_hugging_face(source: str) -> None:
    messages = [{"role": "system", "content": "<b>'é'</b>\n"}, USER]
    assert render(source, *messages) == rendered_by_hugging_face(source, *messages)


def test_the_raw_format_has_questions_and_answers() -> None:
    assert ChatTemplate(None, "", "").is_raw and not ChatTemplate("", "", "").is_raw
    system = {"role": "system", "content": "Be brief."}
    assert render(None, USER) == "Question: Who?\nAnswer:"
    assert (
        render(None, system, USER, UNFINISHED, USER) == "Be brief.\nQuestion: Who?\nAnswer: Me\nQuestion: Who?\nAnswer:"
    )
    assert render(None, USER, UNFINISHED) == "Question: Who?\nAnswer: Me"


def test_an_unfinished_answer_of_blanks_is_ignored() -> None:
    for blanks in ("", " \n"):
        assert render(None, USER, {"role": "assistant", "content": blanks}) == render(None, USER)


def test_an_unfinished_answer_keeps_the_blanks_at_its_end() -> None:
    source = "{% for m in messages %}[{{ m.content.strip() }}]{% endfor %}"
    assert render(source, USER, {"role": "assistant", "content": " one, "}) == "[Who?][one, "


def test_a_template_that_leaves_out_an_unfinished_answer_is_an_error() -> None:
    with pytest.raises(TemplateError, match="leaves out the answer that should be continued"):
        render("{{ messages[0].content }}", USER, UNFINISHED)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('no system prompt') }}", "refuses these messages: no system prompt"),
        ("{{ messages[0].content + 1 }}", "refuses these messages"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
        ("{{ 1 // 0 }}", "refuses these messages"),
        ("{% if %}", "cannot be read"),
    ],
)
def test_every_failure_of_a_template_is_a_template_error(source: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        render(source, USER)
