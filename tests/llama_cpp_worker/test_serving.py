"""The whole server over HTTP: TorchServe, its worker, llama.cpp and the demo model."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import pytest
import requests

from tests.llama_cpp_worker.test_constraint import HOSTILE, hostile_params
from tests.support.serving import wait_until
from tests.support.wire import CHAT_PATH, MODEL_PATH, Stream, chat_body, engine_metrics, headers, post, stream_at_once
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.running_server import key_file

QUESTION = "Question: What is the closest star to Earth ? Answer:"
GREEDY: dict[str, Any] = {"temperature": 0}
ENDLESS = chat_body(
    "Repeat the word la forever: la la la la la la la la la la la", max_tokens=2000, ignore_eos=True, **GREEDY
)


def test_the_plain_call_answers_with_the_prompt_and_its_completion(server: ServerConfig) -> None:
    response = post(server, {"prompt": QUESTION, "max_tokens": 40, "top_p": 0.95, **GREEDY})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text.startswith(QUESTION)
    assert response.text.removeprefix(QUESTION).strip()


def test_the_demo_model_knows_the_closest_star(server: ServerConfig) -> None:
    response = post(server, chat_body("What is the closest star to Earth?", max_tokens=60, **GREEDY), CHAT_PATH)
    answer = response.json()
    assert "Proxima Centauri" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    assert answer["timings"]["predicted_per_second"] > 0


def test_form_fields_work_as_json_does(server: ServerConfig) -> None:
    key = headers(server)["Authorization"]
    response = requests.post(
        server.inference_url + MODEL_PATH,
        data={"prompt": QUESTION, "max_tokens": "8", "temperature": "0"},
        headers={"Authorization": key},
        timeout=300,
    )
    assert response.text == post(server, {"prompt": QUESTION, "max_tokens": 8, **GREEDY}).text


@pytest.mark.parametrize("prompt", ["Question: Why? Answer:", "a & b = c", "[1]"])
def test_json_that_was_sent_as_a_form_is_refused_with_the_header_to_send(server: ServerConfig, prompt: str) -> None:
    form = headers(server) | {"Content-Type": "application/x-www-form-urlencoded"}
    body = json.dumps({"prompt": prompt, "max_tokens": 8})
    response = requests.post(server.inference_url + MODEL_PATH, data=body, headers=form, timeout=60)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_content_type")
    assert "send the header 'Content-Type: application/json'" in error["message"]


def test_a_get_where_a_body_is_needed_is_refused_with_the_method_to_use(server: ServerConfig) -> None:
    response = requests.get(f"{server.inference_url}{CHAT_PATH}", headers=headers(server), timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("The body is empty: use POST, and send a JSON object")


def test_the_served_model_is_described(server: ServerConfig) -> None:
    response = requests.get(f"{server.inference_url}{MODEL_PATH}/1.0/v1/models", headers=headers(server), timeout=60)
    (model,) = response.json()["data"]
    assert model["meta"]["slots"] == 8
    assert model["meta"]["batching"] == "continuous"
    assert model["meta"]["context_window"] > 0
    answer = post(server, chat_body("Hi", max_tokens=1), CHAT_PATH).json()
    assert answer["system_fingerprint"] == model["meta"]["fingerprint"]


def test_a_stream_reports_the_progress_of_the_prompt_and_counts_tokens(server: ServerConfig) -> None:
    question = f"{time.time()} " + "Read this. " * 400  # nothing of it is in the prefix cache
    body = chat_body(question, max_tokens=8, stream=True, ignore_eos=True, **GREEDY)
    response = post(server, {**body, "return_progress": True, "timings_per_token": True}, CHAT_PATH)
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n")[:-2]]
    progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    prefilled = [each["processed"] for each in progress]
    assert len(prefilled) > 1 and prefilled == sorted(set(prefilled))
    assert all(0 <= each["processed"] <= each["total"] for each in progress)
    assert prefilled[-1] == progress[-1]["total"]
    counts = [event["timings"]["predicted_n"] for event in events if "timings" in event]
    assert counts == sorted(counts) and counts[-1] == 8


def test_a_last_message_of_the_assistant_is_continued(server: ServerConfig) -> None:
    question = {"role": "user", "content": "What is the closest star to Earth?"}
    whole = post(server, {"messages": [question], "max_tokens": 30, **GREEDY}, CHAT_PATH).json()
    text = whole["choices"][0]["message"]["content"]
    beginning = text[: text.rindex(" ", 0, len(text) // 2)]
    messages = [question, {"role": "assistant", "content": beginning}]
    rest = post(server, {"messages": messages, "max_tokens": 30, **GREEDY}, CHAT_PATH).json()
    assert (beginning + rest["choices"][0]["message"]["content"]).startswith(text[: len(beginning) + 10])


def test_earlier_messages_reach_the_model(server: ServerConfig) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "My name is Wilhelmina."},
        {"role": "assistant", "content": "Nice to meet you, Wilhelmina!"},
        {"role": "user", "content": "What is my name? Answer with my name only."},
    ]
    answer = post(server, {"messages": messages, "max_tokens": 20, **GREEDY}, CHAT_PATH).json()
    assert "Wilhelmina" in answer["choices"][0]["message"]["content"]


def test_greedy_text_does_not_depend_on_other_requests(server: ServerConfig) -> None:
    body = chat_body("What is the capital of France?", max_tokens=24, **GREEDY)
    alone = Stream(server, body).start().finish()
    together = stream_at_once(server, [body, *(chat_body(f"Tell me about {n}.", max_tokens=60) for n in range(7))])
    assert together[0].text == alone.text


def test_a_seed_repeats_its_text(server: ServerConfig) -> None:
    body = chat_body("Invent a name for a cat.", max_tokens=24, temperature=1.5, seed=7)
    first, second = (Stream(server, body).start().finish().text for _ in range(2))
    assert first == second != Stream(server, {**body, "seed": 8}).start().finish().text


def test_a_stop_string_ends_the_answer_and_is_not_in_it(server: ServerConfig) -> None:
    body = chat_body("What is the closest star to Earth?", max_tokens=60, stop=["Centauri"], **GREEDY)
    stream = Stream(server, body).start().finish()
    assert stream.finish_reason == "stop"
    assert "Proxima" in stream.text
    assert "Cent" not in stream.text


def test_eight_streams_at_once_take_at_most_07_of_eight_in_turn(server: ServerConfig) -> None:
    bodies = [chat_body(f"Tell me a long story about the number {n}.", max_tokens=64) for n in range(8)]
    ratios = []
    for _ in range(3):
        started = time.monotonic()
        for body in bodies:
            assert Stream(server, body).start().finish().is_done
        in_turn = time.monotonic() - started

        started = time.monotonic()
        streams = stream_at_once(server, bodies)
        ratios.append((time.monotonic() - started) / in_turn)
        assert all(stream.is_done for stream in streams)
        assert max(stream.first_at or 0 for stream in streams) < min(stream.ended_at or 0 for stream in streams)
        if ratios[-1] <= 0.7:
            break  # the machine may be busy with something else: the best of three counts
    print(f"8 at once / 8 in turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    assert min(ratios) <= 0.7


def test_a_shared_prefix_is_computed_once_and_usage_reports_it(server: ServerConfig) -> None:
    system = {"role": "system", "content": f"You are a librarian in the year {time.time_ns()}. " * 12}

    def ask(*messages: dict[str, str]) -> dict[str, Any]:
        answer = post(server, {"messages": [system, *messages], "max_tokens": 8, **GREEDY}, CHAT_PATH).json()
        return {"text": answer["choices"][0]["message"]["content"], **answer["usage"]}

    question = {"role": "user", "content": "Name a book."}
    first = ask(question)
    next_turn = ask(question, {"role": "assistant", "content": first["text"]}, {"role": "user", "content": "Another."})
    other = ask({"role": "user", "content": "Recommend an author."})
    assert first["prompt_tokens_details"]["cached_tokens"] < 40
    assert other["prompt_tokens_details"]["cached_tokens"] > 0.8 * other["prompt_tokens"]
    assert next_turn["prompt_tokens_details"]["cached_tokens"] >= first["prompt_tokens"] - 1


BAD_REQUESTS: dict[str, tuple[Any, str | None]] = {
    "no prompt": ({}, "prompt"),
    "prompt and messages": ({"prompt": "a", **chat_body("b")}, "messages"),
    "temperature hot": ({"prompt": "a", "temperature": "hot"}, "temperature"),
    "max_tokens -2": ({"prompt": "a", "max_tokens": -2}, "max_tokens"),
    "unknown role": ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    "invalid JSON": (b'{"prompt": "a"', None),
    "2 MB prompt": ({"prompt": "lorem ipsum " * 175_000}, "prompt"),
    "empty messages": ({"messages": []}, "messages"),
}


def check_bad_requests_among_good_ones(config: ServerConfig) -> None:
    good = [Stream(config, chat_body(f"Tell me about {n}.", max_tokens=60)).start() for n in range(3)]
    with ThreadPoolExecutor(len(BAD_REQUESTS)) as pool:
        answers = list(pool.map(lambda bad: post(config, bad[0]), BAD_REQUESTS.values()))
    for (name, (_, param)), answer in zip(BAD_REQUESTS.items(), answers, strict=True):
        assert answer.status_code == 400, name
        error = answer.json()["error"]
        assert error["param"] == param, name
        assert error["type"] == "invalid_request_error", name
    assert [(stream.finish().is_done, stream.failure) for stream in good] == [(True, None)] * 3


def test_bad_requests_are_refused_while_good_ones_finish(server: ServerConfig) -> None:
    check_bad_requests_among_good_ones(server)


def test_hostile_constraints_fail_alone_while_seven_others_stream_on(server: ServerConfig) -> None:
    good = [Stream(server, chat_body(f"Count from {n}.", max_tokens=500, ignore_eos=True)) for n in range(7)]
    for stream in good:
        stream.start().wait_for_text()
    for name in HOSTILE:
        fields = hostile_params(name).to_request()
        constraint: dict[str, Any] = {
            field: fields[field] for field in ("grammar", "response_format") if field in fields
        }
        started = time.monotonic()
        response = post(server, {**chat_body("Hello", max_tokens=3, temperature=0), **constraint}, CHAT_PATH)
        n_streaming = sum(stream.ended_at is None for stream in good)
        print(f"{name}: {response.status_code} after {time.monotonic() - started:.2f} s, {n_streaming} streaming")
        assert n_streaming > 0, name
        assert ("error" in response.json()) or response.json()["choices"][0]["finish_reason"] in ("stop", "length"), (
            name
        )
    assert [(stream.finish().is_done, stream.failure) for stream in good] == [(True, None)] * 7
    assert post(server, chat_body("Hello", max_tokens=3), CHAT_PATH).status_code == 200


def test_an_unknown_path_is_404(server: ServerConfig) -> None:
    answer = post(server, {}, f"{MODEL_PATH}/1.0/v1/moderations")
    assert answer.status_code == 404
    assert "/v1/chat/completions" in answer.json()["error"]["message"]


def test_a_model_that_is_not_served_is_refused_with_the_id_of_the_one_that_is(server: ServerConfig) -> None:
    url = f"{server.inference_url}{MODEL_PATH}/1.0/v1/models/gpt-4o"
    answer = requests.get(url, headers=headers(server), timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert error["message"] == "There is no model 'gpt-4o' here; the model's id is llamacpp."


def test_an_answer_that_would_end_the_worker_is_refused_and_the_worker_goes_on(server: ServerConfig) -> None:
    stream = Stream(server, chat_body("Count.", max_tokens=200, ignore_eos=True)).start().wait_for_text()
    answer = post(server, {"content": "a b " * 250_000, "with_pieces": True}, f"{MODEL_PATH}/1.0/tokenize")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_long")
    assert stream.finish().is_done, stream.failure


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(server: ServerConfig) -> None:
    models = requests.get(f"{server.inference_url}{MODEL_PATH}/1.0/v1/models", headers=headers(server), timeout=60)
    window = models.json()["data"][0]["meta"]["context_window"]
    answer = post(server, {"prompt": "word " * (window + 100)})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert f"{window:,}" in error["message"]
    assert f"{window + 101:,}" in error["message"]


def test_a_client_that_disconnects_frees_its_slot_while_others_stream(server: ServerConfig) -> None:
    before = engine_metrics(server)
    other = Stream(server, chat_body("Tell me a very long story.", max_tokens=300, seed=1)).start().wait_for_text()
    leaver = Stream(server, ENDLESS).start().wait_for_text()
    leaver.hang_up()
    left_at = time.monotonic()
    wait_until(
        lambda: (
            engine_metrics(server)["llamacpp_requests_cancelled_total"]
            == before["llamacpp_requests_cancelled_total"] + 1
        ),
        what="the engine's cancelled counter",
    )
    print(f"slot freed after {time.monotonic() - left_at:.2f} s")
    assert engine_metrics(server)["llamacpp_slots_busy"] <= 1
    assert other.finish().is_done


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_the_last_client_that_disconnects_leaves_no_slot_busy(server: ServerConfig, streamed: bool) -> None:
    wait_until(lambda: engine_metrics(server)["llamacpp_slots_busy"] == 0, what="an idle engine")
    if streamed:
        Stream(server, ENDLESS).start().wait_for_text().hang_up()
    else:
        connection = HTTPConnection(server.inference_url.removeprefix("http://"))
        connection.request("POST", CHAT_PATH, json.dumps(ENDLESS), headers(server))
        wait_until(lambda: engine_metrics(server)["llamacpp_slots_busy"] == 1, what="a busy slot")
        connection.close()
    left_at = time.monotonic()
    wait_until(lambda: engine_metrics(server)["llamacpp_slots_busy"] == 0, what="a free slot")
    print(f"slot freed after {time.monotonic() - left_at:.2f} s")
    assert Stream(server, chat_body("Hello", max_tokens=4)).start().finish().is_done


def test_a_killed_worker_cuts_its_answer_visibly_and_is_restarted(server: ServerConfig) -> None:
    status = ManagementClient(server).describe()
    assert status is not None
    stream = Stream(server, ENDLESS).start().wait_for_text()
    os.kill(status.workers[0].pid, signal.SIGKILL)
    killed_at = time.monotonic()
    stream.finish()
    assert not stream.is_done
    assert stream.finish_reason is None

    def answers() -> bool:
        response = post(server, chat_body("Hello", max_tokens=4), CHAT_PATH)
        return response.status_code == 200 and "choices" in response.json()

    wait_until(answers, timeout=120, what="an answer from the new worker")
    print(f"next answer {time.monotonic() - killed_at:.1f} s after kill -9")


def test_two_workers_answer_eight_requests_at_once(dynamic_server: ServerConfig) -> None:
    streams = stream_at_once(
        dynamic_server, [chat_body(f"Tell me about the number {n}.", max_tokens=10 + 8 * n) for n in range(8)]
    )
    assert [(stream.is_done, stream.failure) for stream in streams] == [(True, None)] * 8


def test_with_two_workers_a_lone_request_streams_to_its_end(dynamic_server: ServerConfig) -> None:
    stream = Stream(dynamic_server, chat_body("Tell me a story.", max_tokens=80)).start().finish()
    assert stream.is_done
    assert stream.first_at and stream.ended_at and stream.first_at < stream.ended_at


def test_with_two_workers_short_answers_do_not_wait_for_long_ones(dynamic_server: ServerConfig) -> None:
    bodies = [{**ENDLESS, "max_tokens": count} for count in (4, 4, 4, 4, 400, 400, 400, 400)]
    streams = stream_at_once(dynamic_server, bodies)
    assert all(stream.is_done for stream in streams)
    # Measured from each answer's first token: the wait for a worker does not count here.
    seconds = [(stream.ended_at or 0) - (stream.first_at or 0) for stream in streams]
    assert max(seconds[:4]) < min(seconds[4:]) / 2


def test_with_two_workers_bad_requests_are_refused_while_good_ones_finish(dynamic_server: ServerConfig) -> None:
    check_bad_requests_among_good_ones(dynamic_server)


def test_no_log_contains_a_conversation_or_a_key(server: ServerConfig) -> None:
    secret = "xylophonequartz"
    assert post(server, {"prompt": secret, "max_tokens": 4}).status_code == 200
    assert post(server, b'{"prompt": "' + secret.encode() + b'", bad').status_code == 400
    keys = [entry["key"] for entry in json.loads(key_file(server).read_text()).values()]
    for log in server.logs.iterdir():
        text = log.read_text(errors="replace")
        assert not [word for word in (secret, *keys) if word in text], log.name
