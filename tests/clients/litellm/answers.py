"""litellm, to an OpenAI-compatible service and to vLLM's kind of one."""

import asyncio
import os

import litellm

MODEL, BASE = os.environ["MODEL"], os.environ["OPENAI_BASE_URL"]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
asked = {"messages": QUESTION, "temperature": 0, "max_tokens": 24}

# By the variables that litellm shares with OpenAI's package, and by vLLM's provider with an address.
plain = litellm.completion(f"openai/{MODEL}", **asked)
assert "Paris" in plain.choices[0].message.content
assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
hosted = litellm.completion(f"hosted_vllm/{MODEL}", api_base=BASE, api_key="none", **asked)
assert hosted.choices[0].message.content == plain.choices[0].message.content

# Streamed, with the usage at the end.
chunks = list(litellm.completion(f"openai/{MODEL}", **asked, stream=True, stream_options={"include_usage": True}))
whole = litellm.stream_chunk_builder(chunks)
assert whole.choices[0].message.content == plain.choices[0].message.content
assert whole.choices[0].finish_reason == "stop"
assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens

# Texts that go on.
text = litellm.text_completion(
    model=f"text-completion-openai/{MODEL}", prompt="The capital of France is", max_tokens=8, temperature=0
)
assert "Paris" in text.choices[0].text


async def several() -> list[str]:
    answers = await asyncio.gather(*(litellm.acompletion(f"openai/{MODEL}", **asked) for _ in range(4)))
    return [answer.choices[0].message.content for answer in answers]


assert asyncio.run(several()) == [plain.choices[0].message.content] * 4

# Our own parameters pass through.
reduced = litellm.completion(f"openai/{MODEL}", **asked, extra_body={"structkv": {"return_stats": True}})
assert reduced.model_extra["structkv"]["method"] == "structkv"
