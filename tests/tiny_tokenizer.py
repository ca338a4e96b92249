"""A tokenizer whose tokens are bytes and a few pairs of them: real, and quick to build."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

EOS = 259
TINY_VOCAB_SIZE = 264
_MERGES = [('"', "}"), ('"', ":"), ('"', ",")]


def write_tiny_tokenizer(folder: Path) -> Tokenizer:
    """Write a model's token files without the model; return its tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: token for token, text in enumerate([*alphabet, *map("".join, _MERGES)])}
    tokenizer = Tokenizer(models.BPE(vocab, _MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    assert tokenizer.token_to_id("<|end|>") == EOS
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(f'{{"eos_token_id": {EOS}}}')
    return tokenizer
