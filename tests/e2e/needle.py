"""RULER's single needle in noise: a number hidden in repeated sentences, asked for at the end."""

import random

_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_PLACES = ["amber-harbor", "quiet-meadow", "copper-bridge", "hollow-lantern", "silver-orchard"]
_SENTENCES_PER_1600_TOKENS = 61


def needle_prompt(seed: int, tokens: int = 1600) -> tuple[str, str]:
    """Return a prompt of about that many tokens, which ends in the answer's prefix, and its 7-digit answer."""
    rng = random.Random(seed)
    key, number = rng.choice(_PLACES), str(rng.randint(1_000_000, 9_999_999))
    sentences = [_NOISE] * (tokens * _SENTENCES_PER_1600_TOKENS // 1600)
    needle = f"One of the special magic numbers for {key} is: {number}."
    sentences.insert(rng.randint(0, len(sentences)), needle)
    return (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
        + "\n".join(sentences)
        + f"\nWhat is the special magic number for {key} mentioned in the provided text?"
        + f" The special magic number for {key} mentioned in the provided text is"
    ), number
