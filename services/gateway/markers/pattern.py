"""Which tokens are markers, and the pattern that finds them."""

import re
from collections.abc import Iterable

from tokenizers import AddedToken

_BRACKETED = re.compile(r"[<\[({|].*[>\])}|]", re.DOTALL)
_BLANKS = " \t\r\n\N{LOWER ONE EIGHTH BLOCK}"
_HTML = re.compile(
    "</?(a|b|blockquote|body|br|caption|code|div|em|footer|h[1-6]|head|header|hr|html|i|iframe|img|li|ol|p|pre|s|span|"
    "strong|sub|sup|table|tbody|td|tfoot|th|thead|tr|u|ul)>"
)

Tree = dict[str, "Tree"]

_END = ""
"""In a tree: a name ends here."""


def is_marker(token: AddedToken, template: str) -> bool:
    """Tell whether an added token is more than the text it is written as.

    Some tokenizers have white space, words and HTML's tags (Gemma's) as added tokens, which are text. All others in
    brackets may be control tokens, whatever their flag says (Qwen's `<tool_call>`).
    """
    text = token.content
    if len(text) < 2 or not text.strip(_BLANKS):
        return False
    return token.special or (bool(_BRACKETED.fullmatch(text)) and (text in template or not _HTML.fullmatch(text)))


def pattern_of(markers: Iterable[AddedToken]) -> re.Pattern[str]:
    """Return what finds markers as `tokenizers` does: the first, of those the longest.

    It is a tree of their characters, for with thousands of alternatives each `<` would be compared with all.
    """
    whole_words, anywhere = Tree(), Tree()
    for marker in markers:
        tree = whole_words if marker.single_word else anywhere
        for char in marker.content:
            tree = tree.setdefault(char, {})
        tree[_END] = {}
    forms = [rf"(?<!\w)(?:{_regex(whole_words)})(?!\w)"] if whole_words else []
    return re.compile("|".join([*forms, _regex(anywhere)] if anywhere else forms) or r"(?!)")


def _regex(tree: Tree) -> str:
    prefix = ""
    while len(tree) == 1 and _END not in tree:
        ((char, tree),) = tree.items()
        prefix += re.escape(char)
    longer = "|".join(re.escape(char) + _regex(rest) for char, rest in tree.items() if char != _END)
    if not longer:
        return prefix
    return f"{prefix}(?:{longer}){'?' if _END in tree else ''}"
