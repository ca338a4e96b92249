"""Whether a model still finds what it looks for when its keys and values are quantised to four bits.

Some models fail outright at four bits. So each worker asks its own model, once at start: a text with numbers in it is
run, its cache goes through the codec, and the numbers are asked for.
"""

import logging
from pathlib import Path

import torch
from tokenizers import Tokenizer

from common.skeleton.codecs import Codec
from common.skeleton.selection import Selection
from services.decode.engine import DecodeEngine
from services.decode.pool import SequenceKV

_HAYSTACK_TOKENS = 512
_NEEDLES = {"amber-harbor": "4728", "silver-orchard": "9163", "copper-bridge": "3507", "quiet-meadow": "8249"}
_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"

logger = logging.getLogger(__name__)


@torch.inference_mode()
def finds_needles(engine: DecodeEngine, folder: Path, codec: str) -> bool:
    """Tell whether a model finds with a codec all that it finds without, and at least half of what there is.

    `folder` is the model's, with its tokenizer.json. False, with the reason in the log, also where it cannot be told.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        logger.warning("no tokenizer.json: the codec cannot be probed", extra={"codec": codec, "folder": str(folder)})
        return False
    tokenizer = Tokenizer.from_file(str(path))
    haystack = _haystack(tokenizer, min(_HAYSTACK_TOKENS, engine.model.spec.max_tokens // 2))
    slots = [len(haystack) + 64] * engine.model.spec.num_layers
    if 2 * engine.pool.blocks_needed(slots) > engine.pool.allocator.num_free:
        logger.warning("too little KV memory to probe the codec", extra={"codec": codec})
        return False
    original = engine.pool.allocate(slots)
    engine.run_tokens(original, haystack, 0)
    found = {
        name: [
            _answers(engine, original, len(haystack), *_question(tokenizer, place, number), name)
            for place, number in _NEEDLES.items()
        ]
        for name in ("raw", codec)
    }
    engine.pool.free(original)
    passed = all(with_codec >= plain for plain, with_codec in zip(*found.values(), strict=True))
    passed = passed and 2 * sum(found["raw"]) >= len(_NEEDLES)
    extra = {"codec": codec, "passed": passed, "found_raw": sum(found["raw"]), "found": sum(found[codec])}
    logger.info("needle probe", extra=extra)
    return passed


def _haystack(tokenizer: Tokenizer, num_tokens: int) -> list[int]:
    """Return noise of about `num_tokens` with the needles spread evenly over it."""
    rounds = max(1, num_tokens // (len(_tokens(tokenizer, _NOISE)) * len(_NEEDLES)))
    intro = "Some special magic numbers are hidden within the following text. Make sure to memorize them.\n"
    needles = (f"One of the special magic numbers for {place} is: {number}.\n" for place, number in _NEEDLES.items())
    return _tokens(tokenizer, intro + "".join(needle + _NOISE * rounds for needle in needles))


def _question(tokenizer: Tokenizer, place: str, number: str) -> tuple[list[int], list[int]]:
    """Return a question's tokens and its answer's."""
    text = f"\nWhat is the special magic number for {place}? The special magic number for {place} is:"
    question, whole = _tokens(tokenizer, text), _tokens(tokenizer, f"{text} {number}")
    return question, whole[len(question) :]


def _tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _answers(
    engine: DecodeEngine, original: SequenceKV, position: int, question: list[int], answer: list[int], codec: str
) -> bool:
    """Tell whether each token of an answer is the likeliest one behind the question, over a copy of the cache."""
    copy = engine.pool.allocate([table.capacity for table in original.tables])
    _copy_through(engine, original, copy, codec)
    hidden = engine.run_tokens(copy, question + answer[:-1], position)
    engine.pool.free(copy)
    return engine.model.logits(hidden[len(question) - 1 :]).argmax(dim=-1).tolist() == answer


def _copy_through(engine: DecodeEngine, original: SequenceKV, copy: SequenceKV, name: str) -> None:
    """Fill a sequence with another's keys and values as they come out of a codec."""
    spec = engine.model.spec
    codec = Codec.of(spec, spec.max_tokens, Selection(codec=name, floor_tokens=0))
    for source, target in zip(original.tables, copy.tables, strict=True):
        tokens = source.length - source.first
        split = codec.split(tokens, 0, tokens)
        keys, values = engine.pool.view(source)
        keys = codec.decode("keys", codec.encode("keys", keys, split), split, device=keys.device)
        values = codec.decode("values", codec.encode("values", values, split), split, device=values.device)
        positions = [] if source.window is None else source.live_positions().tolist()
        engine.pool.write(target, keys, values, positions)
