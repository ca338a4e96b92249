"""Log probabilities as OpenAI's two endpoints write them."""

from collections.abc import Sequence

from services.gateway.answers.token_logprobs import ScoredToken, TokenLogprob, alternatives

JsonObject = dict[str, object]


def completion_logprobs(entries: Sequence[TokenLogprob]) -> JsonObject:
    """Return the four lists of a completion, with the chosen token among the likeliest."""
    return {
        "text_offset": [entry.offset for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "tokens": [_name(entry.token, "bytes:") for entry in entries],
        "top_logprobs": [_by_name(entry) for entry in entries],
    }


def chat_logprobs(entries: Sequence[TokenLogprob]) -> JsonObject:
    """Return a chat answer's list of tokens."""
    content = [
        {**_scored((entry.token, entry.logprob)), "top_logprobs": [_scored(other) for other in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _by_name(entry: TokenLogprob) -> dict[str, float]:
    scored: dict[str, float] = {}
    for token, logprob in alternatives(entry):
        scored.setdefault(_name(token, "bytes:"), logprob)  # of tokens that look alike, the likelier one
    return scored


def _scored(scored: ScoredToken) -> JsonObject:
    token, logprob = scored
    return {"token": _name(token), "logprob": logprob, "bytes": list(token)}


def _name(token: bytes, prefix: str = "") -> str:
    """Return a token's text; where it is a part of a character, its bytes as OpenAI writes them."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in token)
