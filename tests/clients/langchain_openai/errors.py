"""LangChain's own errors, which its retries and fallbacks look at."""

import os

import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_openai import ChatOpenAI

MODEL = os.environ["MODEL"]
HELLO = "Hello!"
hasty = ChatOpenAI(model=MODEL, max_tokens=1, max_retries=0)

for kind, chat, message in (
    (ContextOverflowError, hasty, "word " * 10_000),
    (openai.BadRequestError, hasty.bind(temperature=-1), HELLO),
    (openai.NotFoundError, ChatOpenAI(model="gpt-9", max_retries=0), HELLO),
    (openai.AuthenticationError, ChatOpenAI(model=MODEL, base_url=os.environ["GUARDED_URL"], max_retries=0), HELLO),
):
    try:
        chat.invoke(message)
    except kind:
        continue
    raise AssertionError(f"no {kind.__name__}")

# What one service refuses, a fallback answers.
lost = ChatOpenAI(model=MODEL, base_url="http://127.0.0.1:9/v1", max_retries=0)
assert lost.with_fallbacks([hasty]).invoke(HELLO).content
