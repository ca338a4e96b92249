"""Shapes and tools through litellm."""

import json
import os

import litellm
from pydantic import BaseModel

MODEL, BASE = os.environ["MODEL"], os.environ["OPENAI_BASE_URL"]
QUESTION = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]


class Weather(BaseModel):
    city: str
    degrees: int


answer = litellm.completion(f"openai/{MODEL}", QUESTION, response_format=Weather, max_tokens=200, temperature=0)
assert isinstance(Weather.model_validate_json(answer.choices[0].message.content), Weather)

tool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
for provider in ("openai", "hosted_vllm"):
    called = litellm.completion(
        f"{provider}/{MODEL}",
        QUESTION,
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=200,
        temperature=0,
        api_base=BASE,
        api_key="none",
    )
    (call,) = called.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)
