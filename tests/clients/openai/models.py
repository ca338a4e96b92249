"""What is served, and the ids by which a request is found again."""

import os

import openai

MODEL = os.environ["MODEL"]
client = openai.OpenAI()

(served,) = client.models.list()
assert served.id == MODEL
assert client.models.retrieve(MODEL) == served
assert served.max_model_len == 8192
try:
    client.models.retrieve("gpt-9")
except openai.NotFoundError as error:
    assert error.code == "model_not_found"
else:
    raise AssertionError("a model that is not served was found")

# The id that a client sends comes back.
question = {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1}
raw = client.chat.completions.with_raw_response.create(**question, extra_headers={"X-Request-Id": "order-66"})
assert raw.headers["X-Request-Id"] == "order-66"
assert raw.parse()._request_id == "order-66"

# Without one, each gets its own; an error carries it too.
ids = {client.chat.completions.create(**question)._request_id for _ in range(2)}
assert len(ids) == 2
assert None not in ids
try:
    client.chat.completions.create(**{**question, "max_tokens": 0}, extra_headers={"X-Request-Id": "wrong-one"})
except openai.BadRequestError as error:
    assert error.request_id == "wrong-one"
else:
    raise AssertionError("max_tokens=0 was answered")
