"""Which messages are sent, and how much of the context window they take."""

from dataclasses import replace

import pytest

from apps.chat.context import gauge, messages_for, oldest_to_leave_out, prompt_tokens_in
from apps.chat.messages import Message


def conversation(turns: int, length: int = 400) -> list[Message]:
    """Questions and answers of `length` characters each, and a last question whose answer is to come."""
    path = [
        Message(number, number - 1 or None, "assistant" if number % 2 == 0 else "user", "x" * length, "stop")
        for number in range(1, 2 * turns + 1)
    ]
    last = len(path) + 1
    return [*path, Message(last, last - 1, "user", "last", "sent"), Message(last + 1, last, "assistant", "", "")]


def test_request_is_system_prompt_answered_turns_and_the_question() -> None:
    path = conversation(2, length=1)
    path[1] = replace(path[1], text="")  # an answer that failed
    messages = messages_for(path, "Be brief.")
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "Be brief."),
        ("user", "x"),
        ("assistant", "x"),
        ("user", "last"),
    ]


def test_request_skips_left_out_turns_and_ends_with_a_started_answer() -> None:
    path = [replace(message, is_left_out=message.id <= 2) for message in conversation(2, length=1)]
    path[-1] = replace(path[-1], text="begun")
    assert [message["content"] for message in messages_for(path, " ")] == ["x", "x", "last", "begun"]


def test_gauge_uses_the_servers_count_and_estimates_newer_messages() -> None:
    path = conversation(1)[:2]
    path[1] = replace(path[1], figures={"usage": {"total_tokens": 123, "completion_tokens": 100}})
    assert (gauge(path, "", 500).used, gauge(path, "", 500).is_estimate) == (123, False)

    longer = gauge([*path, Message(3, 2, "user", "x" * 400, "sent")], "", 500)
    assert longer.is_estimate
    assert longer.used == 123 + 100 + 5, "400 characters at the 4 to a token that were measured, and the template's"
    assert longer.available == 500 - longer.used


def test_gauge_ignores_a_count_from_before_turns_were_left_out() -> None:
    path = [replace(message, is_left_out=message.id <= 2) for message in conversation(2)[:4]]
    path[3] = replace(path[3], figures={"usage": {"total_tokens": 9000, "completion_tokens": 100}, "left_out": 0})
    assert gauge(path, "", 8192).used < 300
    path[3] = replace(path[3], figures={"usage": {"total_tokens": 215, "completion_tokens": 100}, "left_out": 2})
    assert gauge(path, "", 8192).used == 215


def test_gauge_without_a_known_window_has_no_share() -> None:
    unknown = gauge(conversation(1), "", None)
    assert (unknown.available, unknown.share) == (None, 0.0)


@pytest.mark.parametrize(
    ("window", "refusal", "n_left_out"),
    [
        pytest.param(1000, "", 2, id="one turn is enough"),
        pytest.param(
            900,
            "messages: 1,700 tokens do not fit, since the context window has 900.",
            6,
            id="the refusal has a higher count",
        ),
        pytest.param(10, "", 8, id="never the last question"),
    ],
)
def test_the_oldest_turns_are_left_out_until_the_rest_fits(window: int, refusal: str, n_left_out: int) -> None:
    path = conversation(4)  # about 105 tokens a message
    path[-1] = replace(path[-1], problem=refusal)
    assert oldest_to_leave_out(path, "", window, room=100) == list(range(1, n_left_out + 1))


def test_no_turn_can_be_left_out_before_the_first_question() -> None:
    assert oldest_to_leave_out(conversation(0), "", 10, room=1) == []


@pytest.mark.parametrize(
    ("refusal", "tokens"),
    [
        ("messages: 1,234 tokens do not fit, since the context window has 512", 1234),
        ("request (9013 tokens) exceeds the available context size (512 tokens), try increasing it", 9013),
        ("The key was refused.", 0),
        ("9" * 5_000, 9_999_999_999_999_999),  # more digits than Python reads
    ],
)
def test_the_prompts_size_is_taken_from_a_refusal(refusal: str, tokens: int) -> None:
    assert prompt_tokens_in(refusal) == tokens


def test_gauge_of_a_raw_prompt_counts_nothing_above_it() -> None:
    path = [replace(message, is_raw=True) for message in conversation(3)[:6]]
    path[5] = replace(path[5], figures={"usage": {"total_tokens": 42}})
    assert gauge(path, "Be brief.", 500, is_raw=True).used == 42
    assert gauge(conversation(3)[:6], "Be brief.", 500, is_raw=True).used == 0, "a chat is no part of a raw prompt"


def test_gauge_follows_an_answer_by_its_timings() -> None:
    path = conversation(1)
    path[-1] = replace(path[-1], text="x" * 40, figures={"timings": {"cache_n": 100, "prompt_n": 20, "predicted_n": 9}})
    assert (gauge(path, "", 500).used, gauge(path, "", 500).is_estimate) == (129, False)


def test_thoughts_are_neither_sent_nor_counted() -> None:
    path = conversation(1, length=4)
    path[1] = replace(path[1], text=f"<think>{'x' * 393}</think>yes", figures={"usage": {"total_tokens": 130}})
    assert messages_for(path, "")[1]["content"] == "yes"
    assert gauge(path[:2], "", 500).used < 40
