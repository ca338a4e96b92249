"""What is wrong comes as the exception that the package has for it, with the parameter's name."""

import os
import socket

import openai

MODEL = os.environ["MODEL"]
HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1}
client = openai.OpenAI(max_retries=0)


def refused(kind: type[openai.APIError], client: openai.OpenAI = client, **changes) -> openai.APIError:
    """Return the error, which must be of this very class."""
    try:
        client.chat.completions.create(**{"model": MODEL, **HELLO, **changes})
    except openai.APIError as error:
        assert type(error) is kind, repr(error)
        return error
    raise AssertionError(f"{changes} was answered")


error = refused(openai.BadRequestError, temperature=-1)
assert (error.status_code, error.param, error.type) == (400, "temperature", "invalid_request_error")
assert "temperature" in error.message

error = refused(openai.BadRequestError, max_tokens="many")
assert error.param == "max_tokens"

error = refused(openai.BadRequestError, messages=[{"role": "user", "content": "word " * 10_000}])
assert error.code == "context_length_exceeded"

error = refused(openai.NotFoundError, model="gpt-9")
assert error.code == "model_not_found"

# A wrong request is wrong before its stream begins.
assert refused(openai.BadRequestError, stream=True, top_p=2).param == "top_p"

# Time: the server's word, and the client's own patience.
late = refused(openai.InternalServerError, extra_headers={"X-Request-Timeout": "0.001"})
assert (late.status_code, late.code) == (504, "deadline_exceeded")
refused(openai.APITimeoutError, max_tokens=2000, timeout=0.2, extra_body={"ignore_eos": True})

# Nobody there.
with socket.create_server(("127.0.0.1", 0)) as held:
    nobody = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
refused(openai.APIConnectionError, client.with_options(base_url=nobody))

# A key is asked for, and the right one is taken.
guarded = openai.OpenAI(base_url=os.environ["GUARDED_URL"], api_key="wrong", max_retries=0)
assert refused(openai.AuthenticationError, guarded).status_code == 401
assert guarded.with_options(api_key=os.environ["GUARDED_KEY"]).models.list().data[0].id == MODEL
