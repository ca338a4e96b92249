"""Calls of functions: asked for, required, forbidden, and their results given back."""

import json
import os
from typing import Literal

import openai
from pydantic import BaseModel

MODEL = os.environ["MODEL"]
client = openai.OpenAI()


class GetWeather(BaseModel):
    """Tell the weather in a city."""

    city: str
    unit: Literal["celsius", "fahrenheit"]


tool = openai.pydantic_function_tool(GetWeather)
question = {"role": "user", "content": "What is the weather in Paris, in celsius?"}
asked = {"model": MODEL, "messages": [question], "tools": [tool], "max_tokens": 200, "temperature": 0}
named = {"type": "function", "function": {"name": "GetWeather"}}

# A named tool is called, with arguments of its schema.
answer = client.chat.completions.parse(**asked, tool_choice=named)
(call,) = answer.choices[0].message.tool_calls
assert call.function.name == "GetWeather"
assert isinstance(call.function.parsed_arguments, GetWeather)
assert answer.choices[0].message.content in {None, ""}

# Some tool is required; there is one.
required = client.chat.completions.create(**asked, tool_choice="required").choices[0]
assert required.finish_reason == "tool_calls"
assert required.message.tool_calls[0].function.name == "GetWeather"
GetWeather.model_validate_json(required.message.tool_calls[0].function.arguments)

# Streamed, the pieces of the arguments are the call.
arguments = ""
for chunk in client.chat.completions.create(**asked, tool_choice=named, stream=True):
    for delta in chunk.choices[0].delta.tool_calls or ():
        arguments += delta.function.arguments or ""
assert json.loads(arguments) == json.loads(call.function.arguments)

# Forbidden, there are words.
assert client.chat.completions.create(**asked, tool_choice="none").choices[0].message.tool_calls is None

# The result goes back, and the conversation goes on.
called = call.model_dump(include={"id": True, "type": True, "function": {"name", "arguments"}})
history = [
    question,
    {"role": "assistant", "tool_calls": [called]},
    {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, light rain"},
]
told = client.chat.completions.create(**{**asked, "messages": history}, tool_choice="none")
assert told.choices[0].message.content

# A tool that was not given cannot be chosen.
try:
    client.chat.completions.create(**asked, tool_choice={"type": "function", "function": {"name": "Missing"}})
except openai.BadRequestError as error:
    assert error.param == "tool_choice"
else:
    raise AssertionError("a missing tool was chosen")
