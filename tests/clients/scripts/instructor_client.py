# /// script
# dependencies = ["instructor==1.17.0", "openai==3.3.0", "pydantic==2.14.4"]
# ///
# mypy: ignore-errors
"""Instructor, in each mode that it has for OpenAI's API."""

from collections.abc import Iterable

import instructor
import openai
from checks import BASE_URL, KEY, MODEL, WRONG_KEY_STATUS, causes, check, fails, run
from examples import PERSON_QUESTION, Person
from instructor import Mode

ASK = {"model": MODEL, "messages": [{"role": "user", "content": PERSON_QUESTION}], "temperature": 0}


def client(mode, key=KEY):
    return instructor.from_openai(openai.OpenAI(base_url=BASE_URL, api_key=key, max_retries=0, timeout=60), mode=mode)


def add(mode, forced, response_model=Person):
    """Where the mode does not force the object, the tiny model may answer something else; no request may fail."""

    @check(f"mode {mode.name}")
    def create():
        limit = {"max_output_tokens": 100} if mode.name.startswith("RESPONSES") else {"max_tokens": 100}
        ask = {"response_model": response_model, "max_retries": 1, **limit, **ASK}
        try:
            assert isinstance(client(mode).chat.completions.create(**ask), Person) or not forced
        except Exception as error:
            if forced or any(isinstance(cause, openai.APIError) for cause in causes(error)):
                raise


for mode in (Mode.TOOLS, Mode.TOOLS_STRICT, Mode.JSON_SCHEMA, Mode.RESPONSES_TOOLS, Mode.FUNCTIONS):
    add(mode, forced=True)
for mode in (Mode.JSON, Mode.MD_JSON, Mode.JSON_O1):
    add(mode, forced=False)
add(Mode.PARALLEL_TOOLS, forced=False, response_model=Iterable[Person])  # sends tool_choice "auto"


@check("create_partial")
def partial():
    people = list(client(Mode.TOOLS).chat.completions.create_partial(response_model=Person, max_tokens=100, **ASK))
    assert people[-1].kind in ("child", "adult")


@check("create_iterable")
def iterable():
    """The list has no limit, so max_tokens may cut it; the people before that are whole."""
    people = client(Mode.TOOLS).chat.completions.create_iterable(response_model=Person, max_tokens=150, **ASK)
    assert all(isinstance(person, Person) for person in people)


@check("wrong key")
def wrong_key():
    wrong = client(Mode.TOOLS, "wrong")
    fails(lambda: wrong.chat.completions.create(response_model=Person, max_retries=1, **ASK), WRONG_KEY_STATUS)


@check("wrong parameter")
def wrong_parameter():
    ask = {**ASK, "temperature": 9}
    fails(lambda: client(Mode.TOOLS).chat.completions.create(response_model=Person, max_retries=1, **ask), 400)


run()
