"""litellm's exceptions, and its own retries against a full service."""

import os
import threading

import litellm

MODEL, BASE = os.environ["MODEL"], os.environ["OPENAI_BASE_URL"]
HELLO = [{"role": "user", "content": "Hello!"}]
GUARDED = {"api_base": os.environ["GUARDED_URL"], "api_key": os.environ["GUARDED_KEY"]}


def raises(kind: type[Exception], model: str = f"openai/{MODEL}", **changes) -> None:
    """Check that this very class comes: litellm's are also OpenAI's."""
    try:
        litellm.completion(model, **{"messages": HELLO, "max_tokens": 1, "num_retries": 0, "max_retries": 0, **changes})
    except Exception as error:
        assert type(error) is kind, repr(error)
    else:
        raise AssertionError(f"{changes} was answered")


raises(litellm.BadRequestError, temperature=-1)
raises(litellm.ContextWindowExceededError, messages=[{"role": "user", "content": "word " * 10_000}])
raises(litellm.NotFoundError, "openai/gpt-9")
raises(litellm.AuthenticationError, api_base=os.environ["GUARDED_URL"], api_key="wrong")

busy = litellm.completion(
    f"openai/{MODEL}", HELLO, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}, **GUARDED
)
next(busy)
raises(litellm.RateLimitError, **GUARDED)
threading.Timer(0.5, busy.completion_stream.close).start()
assert litellm.completion(f"openai/{MODEL}", HELLO, max_tokens=1, max_retries=5, **GUARDED).choices
