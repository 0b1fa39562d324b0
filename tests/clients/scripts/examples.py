# mypy: ignore-errors
"""A tool and an object that the scripts ask for. Their schemas are bounded: even a tiny model comes to an end."""

from typing import Literal

from pydantic import BaseModel, Field

WEATHER_QUESTION = "What is the weather in Paris?"
PERSON_QUESTION = "Invent a person."
CITIES = ("Paris", "Rome", "Oslo")


class Person(BaseModel):
    """A person who does not exist."""

    name: str = Field(description="First name", max_length=20)
    age: int = Field(ge=0, le=150)
    kind: Literal["child", "adult"]


def get_weather(city: Literal["Paris", "Rome", "Oslo"], unit: Literal["celsius", "fahrenheit"]) -> str:
    """Returns the weather of a city.

    Args:
        city: The city.
        unit: The unit of the temperature.
    """
    assert city in CITIES, city
    assert unit in ("celsius", "fahrenheit"), unit
    return f"It is 20 degrees {unit} in {city}."


WEATHER_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": list(CITIES)},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
