"""The chat app's client for any OpenAI server, with a front as that server: keys, stop, refusals."""

import threading

import pytest

from apps.chat.openai_client import ModelList, OpenAIClient
from llama_cpp_worker.sampling_params import SamplingParams
from tests.front.conftest import Front
from tests.front.upstream import KEY, SSE, Answer
from tests.support.serving import wait_until
from torchserve_client.http import RequestRefused
from torchserve_client.streaming import StreamEvent

QUESTION = [{"role": "user", "content": "q"}]
WORD = b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
MODELS = Answer((b'{"object":"list","data":[{"id":"llamacpp"}]}',))


def client_of(front: Front) -> OpenAIClient:
    front.upstream.answer = MODELS
    models = ModelList(f"{front.url}/v1", KEY)
    assert models.state() == "ready"
    return OpenAIClient(models)


def test_a_wrong_key_is_a_state(front: Front) -> None:
    front.upstream.answer = MODELS
    assert [ModelList(f"{front.url}/v1", key).state() for key in (KEY, "wrong", "")] == ["ready", "refused", "refused"]


def test_an_answer_streams(front: Front) -> None:
    client = client_of(front)
    front.upstream.answer = Answer((WORD, END), content_type=SSE, is_chunked=True)
    assert list(client.chat(QUESTION, SamplingParams())) == [StreamEvent("hi"), StreamEvent("", "stop")]


@pytest.mark.parametrize("pieces", [(None, WORD, END), (WORD, None, END)], ids=["before the first word", "after it"])
def test_stop_hangs_up_and_closes_the_request_behind_the_front(front: Front, pieces: tuple[bytes | None, ...]) -> None:
    client = client_of(front)
    front.upstream.answer = Answer(pieces, content_type=SSE, is_chunked=True)
    stream, events = client.chat(QUESTION, SamplingParams()), list[StreamEvent]()
    thread = threading.Thread(target=lambda: events.extend(stream))
    thread.start()
    wait_until(lambda: front.upstream.n_waiting == 1, what="the request behind the front")

    stream.close()

    wait_until(lambda: front.upstream.n_hung_up == 1, what="the hang-up behind the front")
    thread.join()
    assert all(event.text == "hi" for event in events)


def test_a_full_queue_and_a_cut_answer_are_sentences(front: Front) -> None:
    client = client_of(front)
    full = b'{"code": 503, "type": "ServiceUnavailableException", "message": "full"}'
    front.upstream.answer = Answer((full,), status=503)
    with pytest.raises(RequestRefused, match="its queue is full: try again in a moment") as refused:
        next(client.chat(QUESTION, SamplingParams()))
    assert refused.value.status == 503

    front.upstream.answer = Answer((WORD,), content_type=SSE, is_chunked=True, is_cut=True)
    with pytest.raises(RequestRefused, match=r"The answer was cut: .* Ask again"):
        list(client.chat(QUESTION, SamplingParams()))
