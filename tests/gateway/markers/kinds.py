"""Small tokenizers of all kinds that have markers, each a few hundred tokens."""

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

END, START, CALL, BOS = "<|im_end|>", "<|im_start|>", "<tool_call>", "<s>"
ASCII = [chr(code) for code in range(32, 127)]


def _with_markers(tokenizer: Tokenizer, **flags: bool) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(name, **flags) for name in (BOS, START, END)])
    tokenizer.add_tokens([AddedToken(CALL, special=False, normalized=flags.get("normalized", False))])
    tokenizer.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    tokenizer.add_tokens([AddedToken("<table>", special=False, normalized=False)])
    return tokenizer


def byte_level(*, ignore_merges: bool = False, **flags: bool) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "|"), ("i", "m"), ("im", "_"), ("|", ">"), ("e", "n"), ("en", "d")]
    vocab = {text: token for token, text in enumerate([BOS, START, END, *alphabet, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_markers(tokenizer, **flags)


def nfc(**flags: bool) -> Tokenizer:
    tokenizer = byte_level(**flags)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def nfkc_lowercase(**flags: bool) -> Tokenizer:
    tokenizer = byte_level(**flags)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return tokenizer


def unigram(scheme: str, **flags: bool) -> Tokenizer:
    """Return one whose vocabulary holds the markers as well: their texts would be found in any text."""
    texts = ["<unk>", BOS, START, END, "▁", "\n", *ASCII, "▁a", "end", "<|", "▁<|", "|>", "é"]
    scores = [(text, -float(place % 7) - len(texts) / (1 + len(text))) for place, text in enumerate(texts)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _with_markers(tokenizer, **flags)


def llama_like(**flags: bool) -> Tokenizer:
    """Return one whose normaliser prepends to each section between markers, and which falls back to bytes."""
    texts = ["<unk>", BOS, "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *ASCII, "▁a", "<|"]
    vocab = {text: token for token, text in enumerate(texts)}
    merges = [("▁", "a"), ("<", "|")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with_markers(tokenizer, **flags)


def words(**flags: bool) -> Tokenizer:
    """Return one that knows whole words, markers among them."""
    texts = ["<unk>", BOS, START, END, CALL, "user", "system", "a", "end", "im_", "<", "|", ">", "\n"]
    tokenizer = Tokenizer(models.WordLevel({text: token for token, text in enumerate(texts)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return _with_markers(tokenizer, **flags)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "byte_level, merges ignored": lambda: byte_level(ignore_merges=True),
    "byte_level, stripping": lambda: byte_level(lstrip=True, rstrip=True),
    "byte_level, single words": lambda: byte_level(single_word=True),
    "nfc": nfc,
    "nfc, markers normalised": lambda: nfc(normalized=True),
    "nfkc": nfkc_lowercase,
    "nfkc, markers normalised": lambda: nfkc_lowercase(normalized=True),
    "unigram, first": lambda: unigram("first"),
    "unigram, always": lambda: unigram("always"),
    "unigram, stripping": lambda: unigram("first", lstrip=True, rstrip=True),
    "llama": llama_like,
    "words": words,
}
