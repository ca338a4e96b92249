"""Answers of a given shape, through the package's own helpers."""

import json
import os
from typing import Literal

import openai
from pydantic import BaseModel

MODEL = os.environ["MODEL"]
client = openai.OpenAI()
asked = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Anna is 42 years old and lives in Paris. Describe her in JSON."}],
    "max_tokens": 200,
    "temperature": 0,
}


class Person(BaseModel):
    name: str
    age: int
    city: Literal["Paris", "London", "Rome"]


# A pydantic model in, an instance of it out.
answer = client.chat.completions.parse(**asked, response_format=Person)
person = answer.choices[0].message.parsed
assert isinstance(person, Person)
assert answer.choices[0].finish_reason == "stop"

# Streamed, the same.
with client.chat.completions.stream(**asked, response_format=Person) as events:
    assert events.get_final_completion().choices[0].message.parsed == person

# Any JSON object.
free = client.chat.completions.create(**asked, response_format={"type": "json_object"})
if free.choices[0].finish_reason == "stop":
    assert isinstance(json.loads(free.choices[0].message.content), dict)

# An answer that a limit cuts is no instance, and the package says so.
try:
    client.chat.completions.parse(**{**asked, "max_tokens": 3}, response_format=Person)
except openai.LengthFinishReasonError as error:
    assert error.completion.usage.completion_tokens == 3
else:
    raise AssertionError("three tokens were taken for a person")

# A schema that cannot be followed is named.
try:
    schema = {"name": "odd", "schema": {"type": "no-such-type"}}
    client.chat.completions.create(**asked, response_format={"type": "json_schema", "json_schema": schema})
except openai.BadRequestError as error:
    assert "response_format" in error.message or "response_format" in (error.param or "")
else:
    raise AssertionError("an impossible schema was answered")
