"""The tables and formulas of docs/deploy.md against what the services themselves compute sizes with."""

import math
from pathlib import Path

import pytest
import torch

from common.model.decoder import ModelSpec
from common.skeleton.codecs import Codec
from common.skeleton.selection import CODECS, Selection
from services.decode.engine import _RESERVED_NEW_TOKENS
from services.decode.pool import KVPool

DOCUMENT = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
LLAMA_8B = ModelSpec(
    fingerprint="llama-3.1-8b",
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    hidden_size=4096,
    vocab_size=128_256,
    max_tokens=131_072,
    windows=(None,) * 32,
    dtype=torch.bfloat16,
)
LENGTHS = (8192, 32_768, 131_072)
SHARES = (0.05, 0.1, 0.2, 1.0)
PROMPT_TOKENS_PER_SECOND = (1000, 10_000, 50_000)


def selection(share: float, codec: str = "int8") -> Selection:
    return Selection(method="full") if share == 1 else Selection(kv_retention=share, codec=codec)


def kv_bytes(spec: ModelSpec, prompt_tokens: int, share: float) -> int:
    """Return what a decode worker sets aside for a request."""
    kept = selection(share).max_kept_tokens(prompt_tokens, spec.windows)
    return KVPool.block_bytes(spec) * KVPool.blocks_needed([tokens + _RESERVED_NEW_TOKENS for tokens in kept])


def wire_bytes(spec: ModelSpec, prompt_tokens: int, share: float, codec: str) -> int:
    """Return a skeleton's bytes on the wire and in the store."""
    chosen = selection(share, codec)
    form = Codec.of(spec, prompt_tokens, chosen)
    kept = chosen.max_kept_tokens(prompt_tokens, spec.windows)
    return sum(form.num_bytes(form.split(tokens, 0, tokens)) for tokens in kept)


def sizes() -> list[str]:
    lines = [
        "| prompt tokens | kept | KV memory of a request | skeleton, `int8` | `int4` | `raw` |",
        "|---|---|---|---|---|---|",
    ]
    for tokens in LENGTHS:
        for share in SHARES:
            skeletons = [
                f"{wire_bytes(LLAMA_8B, tokens, share, codec) / 1e6:,.0f} MB" for codec in ("int8", "int4", "raw")
            ]
            if share == 1:
                skeletons[:2] = ["as `raw`", "as `raw`"]
            kept = "all" if share == 1 else f"{share:.0%}"
            memory = kv_bytes(LLAMA_8B, tokens, share) / 2**20
            lines.append(f"| {tokens:,} | {kept} | {memory:,.0f} MiB | {' | '.join(skeletons)} |")
    return lines


def bandwidths() -> list[str]:
    per_token = {codec: wire_bytes(LLAMA_8B, 32_768, 0.1, codec) / 32_768 for codec in CODECS}
    per_token["full"] = LLAMA_8B.full_kv_bytes(32_768) / 32_768
    names = ("int8", "int4", "raw", "full")
    lines = [
        "| prompt tokens a second | `int8` | `int4` | `raw` | the full cache, for comparison |",
        "|---|---|---|---|---|",
    ]
    for rate in PROMPT_TOKENS_PER_SECOND:
        cells = [f"{per_token[name] * rate * 8 / 1e6:,.0f} Mbit/s" for name in names]
        lines.append(f"| {rate:,} | {' | '.join(cells)} |")
    return lines


@pytest.mark.parametrize("table", [sizes, bandwidths])
def test_the_tables_are_what_the_code_computes(table) -> None:
    assert "\n".join(table()) in DOCUMENT


@pytest.mark.parametrize("tokens", [300, 8192, 100_000])
@pytest.mark.parametrize("share", SHARES)
def test_the_formula_of_memory(tokens: int, share: float) -> None:
    assert "`L x ceil((k + 128) / 16) x 16 x 2 x G x d x b`, with `k = max(ceil(r N), 36)`" in DOCUMENT
    kept = tokens if share == 1 else max(math.ceil(share * tokens), 36)
    assert kv_bytes(LLAMA_8B, tokens, share) == 32 * math.ceil((kept + 128) / 16) * 16 * 2 * 8 * 128 * 2


@pytest.mark.parametrize(("codec", "bytes_per_number"), [("raw", 2), ("int8", 1.1), ("int4", 0.6)])
@pytest.mark.parametrize("tokens", [8192, 131_072])
def test_the_formula_of_skeletons(tokens: int, codec: str, bytes_per_number: float) -> None:
    assert "with `c` 2 bytes for `raw`, 1.1 for `int8`, 0.6 for `int4`" in DOCUMENT
    estimate = 32 * math.ceil(tokens / 10) * 2 * 8 * 128 * bytes_per_number
    assert wire_bytes(LLAMA_8B, tokens, 0.1, codec) == pytest.approx(estimate, rel=0.1)
