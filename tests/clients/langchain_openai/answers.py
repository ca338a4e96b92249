"""LangChain's chat model and text model, told an address by OpenAI's variables."""

import asyncio
import os

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

MODEL = os.environ["MODEL"]
chat = ChatOpenAI(model=MODEL, temperature=0, max_tokens=24, stream_usage=True)

# A message in, a message out, with its counts.
answer = chat.invoke([SystemMessage("You are helpful."), HumanMessage("What is the capital of France?")])
assert isinstance(answer, AIMessage)
assert "Paris" in answer.content
counts = answer.usage_metadata
assert counts["total_tokens"] == counts["input_tokens"] + counts["output_tokens"]
assert answer.response_metadata["finish_reason"] == "stop"
assert answer.response_metadata["model_name"] == MODEL

# A chain, streamed piece by piece, says what it says at once.
chain = ChatPromptTemplate.from_template("What is the capital of {country}?") | chat | StrOutputParser()
whole = chain.invoke({"country": "France"})
pieces = list(chain.stream({"country": "France"}))
assert "".join(pieces) == whole
assert len(pieces) > 3

# Usage at a stream's end.
last = None
for chunk in chat.stream("What is the capital of France?"):
    last = chunk if last is None else last + chunk
assert last.content == whole
assert last.usage_metadata["output_tokens"] > 0

# Many at once.
countries = [{"country": name} for name in ("France", "Germany", "Italy", "Spain")]
assert chain.batch(countries)[0] == whole


async def several() -> list[str]:
    return await asyncio.gather(*(chain.ainvoke(country) for country in countries))


assert asyncio.run(several()) == chain.batch(countries)

# What is ours goes in extra_body.
reduced = chat.bind(extra_body={"structkv": {"method": "full"}}).invoke("What is the capital of France?")
assert reduced.content == whole

# The older text model.
assert "Paris" in OpenAI(model=MODEL, temperature=0, max_tokens=8).invoke("The capital of France is")
