"""Conversations: what is asked for shapes the answer."""

import os

import openai

MODEL = os.environ["MODEL"]
QUESTION = {"role": "user", "content": "What is the capital of France?"}
client = openai.OpenAI()

# A greedy answer, with its counts.
answer = client.chat.completions.create(model=MODEL, messages=[QUESTION], temperature=0, max_completion_tokens=32)
assert "Paris" in answer.choices[0].message.content
assert answer.choices[0].message.role == "assistant"
assert answer.choices[0].finish_reason == "stop"
assert answer.object == "chat.completion"
assert answer.model == MODEL
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
assert answer.usage.prompt_tokens_details.cached_tokens == 0

# Content in parts, and a system's message before it: the same conversation, one message longer.
parts = {"role": "user", "content": [{"type": "text", "text": QUESTION["content"]}]}
system = {"role": "system", "content": "You answer in one short sentence."}
longer = client.chat.completions.create(model=MODEL, messages=[system, parts], temperature=0, max_tokens=32)
assert "Paris" in longer.choices[0].message.content

# A limit ends it, and so does a word.
cut = client.chat.completions.create(model=MODEL, messages=[QUESTION], temperature=0, max_tokens=2)
assert cut.choices[0].finish_reason == "length"
assert cut.usage.completion_tokens == 2
assert answer.choices[0].message.content.startswith(cut.choices[0].message.content)
stopped = client.chat.completions.create(model=MODEL, messages=[QUESTION], temperature=0, max_tokens=32, stop=["Paris"])
assert stopped.choices[0].finish_reason == "stop"
assert stopped.choices[0].message.content == answer.choices[0].message.content.partition("Paris")[0]

# A seed repeats a drawn answer; another seed draws another.
story = [{"role": "user", "content": "Tell me a story."}]
drawn = [
    client.chat.completions.create(model=MODEL, messages=story, max_tokens=24, temperature=1.0, seed=seed)
    for seed in (1, 1, 2)
]
texts = [one.choices[0].message.content for one in drawn]
assert texts[0] == texts[1] != texts[2]

# What a client adds on its own harms nothing.
client.chat.completions.create(
    model=MODEL, messages=[QUESTION], max_tokens=1, user="anna", metadata={"team": "search"}, store=False
)
