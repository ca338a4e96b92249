"""A full service says when to come again, and the package does."""

import os
import threading
import time

import openai

MODEL = os.environ["MODEL"]
client = openai.OpenAI(base_url=os.environ["GUARDED_URL"], api_key=os.environ["GUARDED_KEY"])


def ask(client: openai.OpenAI) -> str:
    return client.completions.create(model=MODEL, prompt="Hello", max_tokens=4, temperature=0).choices[0].text


# This gateway takes one request at a time: a stream that is being read.
busy = client.completions.create(
    model=MODEL, prompt="Hello", max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
)
next(iter(busy))

try:
    ask(client.with_options(max_retries=0))
except openai.RateLimitError as error:
    assert error.status_code == 429
    assert error.type == "overloaded_error"
    assert int(error.response.headers["Retry-After"]) >= 1
else:
    raise AssertionError("a second request was taken")

# With retries, the same call waits as long as it was told, and is answered when there is room.
threading.Timer(0.5, busy.close).start()
began = time.monotonic()
assert ask(client.with_options(max_retries=5))
assert time.monotonic() - began >= 1
