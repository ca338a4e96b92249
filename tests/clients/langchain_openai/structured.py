"""LangChain's idioms for shapes and tools."""

import os

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

MODEL = os.environ["MODEL"]
chat = ChatOpenAI(model=MODEL, temperature=0, max_tokens=200)


class Person(BaseModel):
    """A person."""

    name: str = Field(description="first name")
    age: int


# By a JSON schema, which is its default, and by a call of a function.
for method in ("json_schema", "function_calling"):
    person = chat.with_structured_output(Person, method=method).invoke("Anna is 42 years old. Describe her.")
    assert isinstance(person, Person), method

# Errors of shape stay visible where they are asked for.
raw = chat.with_structured_output(Person, include_raw=True).invoke("Bob is 7.")
assert raw["parsing_error"] is None
assert raw["raw"].content


@tool
def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"18 degrees and light rain in {city}"


# A tool is called, run, and its result given back.
question = HumanMessage("What is the weather in Paris?")
called = chat.bind_tools([get_weather], tool_choice="get_weather").invoke([question])
(call,) = called.tool_calls
assert call["name"] == "get_weather"
result = get_weather.invoke(call)
assert isinstance(result, ToolMessage)
told = chat.invoke([question, called, result])
assert told.content

# Streamed, the pieces add up to the call.
whole = None
for chunk in chat.bind_tools([get_weather], tool_choice="get_weather").stream([question]):
    whole = chunk if whole is None else whole + chunk
assert whole.tool_calls[0]["args"] == call["args"]
