"""Reads the body of a request, and checks its fields one by one. Knows JSON and forms, but no API family.

A field that cannot change the answer is a hint: it is accepted, and nothing happens. A field that would change the
answer, but is not supported, is refused by name.
"""

import json
from collections.abc import Collection, Mapping

from llama_cpp_worker.api.errors import ApiError, refusal, unknown
from llama_cpp_worker.json_values import json_problem
from llama_cpp_worker.sampling_params import Bounds, InvalidParameter

# Accepted with any value: labels, and hints about caches, speed and storage. They never change a text.
HINTS = {"cache_prompt", "id_slot", "keep_alive", "metadata", "prediction", "priority", "prompt_cache_key"}
HINTS |= {"prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "request_id", "safety_identifier"}
HINTS |= {"service_tier", "store", "user", "verbosity"}

# Parameters that would change the answer, with the values that do not. Such a value passes, and so does null.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "dry_multiplier": (0, 0.0),
    "guided_json": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1, 1.0),
    "lora": ([],),
    "min_tokens": (0,),
    "mirostat": (0,),
    "modalities": (["text"],),
    "n_indent": (0,),
    "n_keep": (0, -1),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "typical_p": (1, 1.0),
    "use_beam_search": (False,),
    "web_search_options": (),
    "xtc_probability": (0, 0.0),
}

EXAMPLE = 'a JSON object such as {"prompt": "…"}'
TEXT_FIELDS = ("prompt", "model", "user", "stop", "grammar", "suffix", "content")  # of a form: never parsed as JSON


class Fields:
    """The fields of one object of a request. `place` comes before the names of its fields in errors."""

    def __init__(self, values: Mapping[str, object], place: str = "") -> None:
        self.values = values
        self._place = f"{place}." if place else ""

    def get(self, name: str) -> object:
        """The value as it is; None if it is missing."""
        return self.values.get(name)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool | None):
            raise self.refusal(name, "must be true or false")
        return default if value is None else value

    def number(self, name: str, bounds: Bounds) -> int | None:
        value = self.values.get(name)
        try:
            return None if value is None else int(bounds.check(name, value))
        except InvalidParameter as error:
            raise self.refusal(name, error.problem) from error

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if not isinstance(value, str | None):
            raise self.refusal(name, "must be a string")
        return None if value is None else encodable(value, self._place + name)

    def object(self, name: str, known: Collection[str]) -> "Fields":
        """The fields of an object in this one; none if it is missing. Refuses names that are not `known`."""
        value = self.values.get(name)
        if not isinstance(value, dict | None):
            raise self.refusal(name, "must be an object")
        fields = Fields(value or {}, self._place + name)
        for other in fields.values:
            if other not in known:
                raise unknown(f"{self._place}{name}.{other}")
        return fields

    def refusal(self, name: str, problem: str) -> ApiError:
        return refusal(self._place + name, problem)

    def check_names(self, known: Collection[str], elsewhere: Mapping[str, Collection[str]] | None = None) -> None:
        """Refuses a parameter that is neither `known` nor without effect.

        elsewhere: by path, the names that other paths know, for the error.
        """
        for name, value in self.values.items():
            if name in known or name in HINTS:
                continue
            problem = "this server does not support it; leave it out"
            if paths := [path for path, names in (elsewhere or {}).items() if name in names]:
                problem = f"is only possible at {' and '.join(paths)}"
            elif name not in NEUTRAL:
                raise unknown(name)
            is_neutral = any(value == neutral and type(value) is type(neutral) for neutral in NEUTRAL.get(name, ()))
            if value is not None and not is_neutral:
                raise self.refusal(name, problem)


def read_body(fields: Mapping[str, object]) -> Fields:
    """The fields of a request as TorchServe passes them: {"body": JSON}, or the fields of a form.

    TorchServe passes no field of a form without = and &, such as most JSON that was sent as a form. A GET has an empty
    body. Raises ApiError. It never quotes the body: that may be a part of a prompt.
    """
    if "body" not in fields:
        problem = ""
        if not fields:
            problem = "The body is a form without fields. If it is JSON, its Content-Type is wrong"
        elif any(name.lstrip().startswith(("{", "[")) for name in fields):
            problem = "The body looks like JSON, but its Content-Type says that it is a form"
        if problem:
            advice = "send the header 'Content-Type: application/json'"
            raise ApiError(f"{problem} (curl -d does this): {advice}.", code="invalid_content_type")
        return Fields({name: _form_value(name, value) for name, value in fields.items()})
    body = fields["body"]
    if body in (b"", ""):
        raise ApiError(f"The body is empty: use POST, and send {EXAMPLE}.", code="invalid_json")
    if isinstance(body, bytes | bytearray) and body.startswith(b"\x1f\x8b"):
        problem = "The body is compressed, which this server does not support: send it without Content-Encoding."
        raise ApiError(problem, status=415, code="unsupported_encoding")
    if isinstance(body, bytes | bytearray | str):  # TorchServe parses only valid JSON with the content type of JSON
        try:
            body = json.loads(body)
        except UnicodeDecodeError as error:
            raise ApiError("The body is not UTF-8, which JSON must be.", code="invalid_json") from error
        except (ValueError, RecursionError) as error:
            at = f" (at character {error.pos})" if isinstance(error, json.JSONDecodeError) else ""
            raise ApiError(f"The body is not valid JSON{at}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(f"The body must be {EXAMPLE}.", code="invalid_json")
    if problem := json_problem(body):
        raise ApiError(f"The body {problem}.", code="invalid_json")
    return Fields(body)


def encodable(text: str, param: str) -> str:
    """`text`, if UTF-8 can encode it. Raises ApiError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise refusal(param, "has half of a surrogate pair, which is no character") from error
    return text


def _form_value(name: str, value: object) -> object:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else value
    if not isinstance(text, str) or name in TEXT_FIELDS:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # the check of this parameter refuses it by name
