"""Builds the sample: pydantic's schemas from models, zod's and OpenAI's from the JSON files beside this one."""

import json
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AnyUrl, BaseModel, ConfigDict, Field, create_model

HERE = Path(__file__).parent
Schema = dict[str, Any]


class Color(Enum):
    """A color."""

    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Address(BaseModel):
    street: str = Field(description="With the number", examples=["1 High Street"])
    city: str = "London"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Node(BaseModel):
    value: int
    children: list["Node"] = []


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int
    b: str | None = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


TYPES: list[Any] = [
    *[
        str,
        int,
        float,
        bool,
        None,
        Any,
        date,
        datetime,
        time,
        timedelta,
        UUID,
        Decimal,
        AnyUrl,
        IPv4Address,
        IPv6Address,
    ],
    *[Color, Level, Address, Node, Closed, Open, Cat | Dog, int | str, str | None, Address | None, Color | None],
    *[list[int], list[Address], list[list[str]], tuple[int, str], tuple[int, ...], set[str], dict[str, int]],
    *[dict[str, Address], dict[Color, int], dict[str, Any], dict[int, str], list[dict[str, str]], list[Any]],
    *[Literal["a", "b"], Literal[1, 2], Literal["a", 1, None], bytes, list[Color], list[Cat | Dog]],
    Annotated[Cat | Dog, Field(discriminator="kind")],
    Annotated[list[Annotated[Cat | Dog, Field(discriminator="kind")]], Field(max_length=2)],
    Annotated[str, Field(min_length=2, max_length=8)],
    Annotated[str, Field(pattern=r"^[a-z]+-\d{2}$")],
    Annotated[str, Field(pattern=r"^(mon|tue)$", description="A day")],
    Annotated[int, Field(ge=0)],
    Annotated[int, Field(gt=0, lt=100)],
    Annotated[float, Field(ge=0, le=1)],
    Annotated[float, Field(gt=-1.5, lt=2.25)],
    Annotated[int, Field(multiple_of=5)],
    Annotated[Decimal, Field(ge=0, max_digits=5, decimal_places=2)],
    Annotated[list[int], Field(min_length=1, max_length=3)],
    Annotated[dict[str, int], Field(min_length=1)],
    Annotated[dict[Annotated[str, Field(pattern="^x")], int], Field(max_length=2)],
    Annotated[str, Field(json_schema_extra={"example": "x", "x-order": 1})],
    Annotated[tuple[int, Address], Field(title="A pair")],
]


def sample() -> Iterator[tuple[str, Schema]]:
    """400 schemas, each with where it is from. The same ones on each call."""
    every = list(_all())
    assert len(every) >= 400, f"the sample has only {len(every)} schemas"
    yield from every[:400]


def _all() -> Iterator[tuple[str, Schema]]:
    for schema in json.loads((HERE / "openai.json").read_text(encoding="utf-8")):
        yield "OpenAI", schema
    for kind, parts in json.loads((HERE / "zod.json").read_text(encoding="utf-8")).items():
        for part in parts:
            yield kind, _zod_object({"value": part}, ["value"])
            yield kind, _zod_object({"id": {"type": "string"}, "value": part}, ["id"])
    for kind in TYPES:
        optional: Any = kind | None if kind else kind
        several: Any = list[kind]  # type: ignore[valid-type]
        yield "pydantic", create_model("One", value=(kind, ...)).model_json_schema()
        yield "pydantic", create_model("Two", name=(str, ...), value=(optional, None)).model_json_schema()
        yield "pydantic", create_model("Many", values=(several, Field(max_length=3))).model_json_schema()
    zod = json.loads((HERE / "zod.json").read_text(encoding="utf-8"))["zod 4"]
    for part in zod:
        yield "zod 4", _zod_object({"list": {"type": "array", "items": part}}, ["list"])


def _zod_object(properties: Schema, required: list[str]) -> Schema:
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"}
    return head | {"properties": properties, "required": required, "additionalProperties": False}
