"""Several answers and log probabilities through LangChain."""

import os

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

MODEL = os.environ["MODEL"]

chat = ChatOpenAI(model=MODEL, temperature=1.0, max_tokens=12, n=2, seed=5)
generated = chat.generate([[HumanMessage("Tell me a story.")]])
first, second = (generation.message.content for generation in generated.generations[0])
assert first
assert second
assert first != second

sure = ChatOpenAI(model=MODEL, temperature=0, max_tokens=6, logprobs=True, top_logprobs=2)
logprobs = sure.invoke("What is the capital of France?").response_metadata["logprobs"]["content"]
assert len(logprobs) == 6
assert all(entry["logprob"] <= 0 for entry in logprobs)
