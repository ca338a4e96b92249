"""The asynchronous client, many at once."""

import asyncio
import os

import openai

MODEL = os.environ["MODEL"]


async def streamed(client: openai.AsyncOpenAI, prompt: str) -> str:
    stream = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=12, temperature=0, stream=True)
    return "".join([chunk.choices[0].text async for chunk in stream])


async def whole(client: openai.AsyncOpenAI, prompt: str) -> str:
    answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=12, temperature=0)
    return answer.choices[0].text


async def main() -> None:
    prompts = [f"{number} times two is" for number in range(8)]
    async with openai.AsyncOpenAI() as client:
        plain = await asyncio.gather(*(whole(client, prompt) for prompt in prompts))
        assert await asyncio.gather(*(streamed(client, prompt) for prompt in prompts)) == plain
        assert len(set(plain)) > 1
        assert [model.id async for model in client.models.list()] == [MODEL]


asyncio.run(main())
