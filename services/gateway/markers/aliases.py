"""A tokenizer that knows markers by other names, so that their own are words to it."""

import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

from common.errors import ModelLoadError

Model = dict[str, Any]


def aliases_of(names: Iterable[str]) -> dict[str, str]:
    """Return an alias for each marker's name: nobody can guess it, and it begins and ends as the name does."""
    nonce = secrets.token_hex(16)
    return {name: f"{name[0]}{nonce}{place:06d}{name[-1]}" for place, name in enumerate(names)}


def with_aliases(tokenizer: Tokenizer, aliases: Mapping[str, str]) -> Tokenizer:
    """Return a copy in which each name's token is found by its alias alone. Its ids are the same."""
    described = json.loads(tokenizer.to_str())
    for token in described["added_tokens"]:
        if token["content"] in aliases:
            token["content"] = aliases[token["content"]]
            # Whether a name counts where it stands is looked at before its alias is put there, which always does.
            token["single_word"] = token["normalized"] = False
    _rename(described["model"], aliases)
    copy = Tokenizer.from_str(json.dumps(described, ensure_ascii=False))
    if any(copy.token_to_id(alias) != tokenizer.token_to_id(name) for name, alias in aliases.items()):
        raise ModelLoadError("the tokenizer's special tokens cannot be told from text: their ids depend on their names")
    return copy


def _rename(model: Model, aliases: Mapping[str, str]) -> None:
    """Rename the markers that are in the vocabulary as well, of which a text could be made up otherwise."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {aliases.get(text, text): token for text, token in vocabulary.items()}
    else:  # of Unigram: in the order of its ids, each with its score
        model["vocab"] = [[aliases.get(text, text), score] for text, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = aliases.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not {*pair, "".join(pair)} & aliases.keys()]
