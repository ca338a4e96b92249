"""The part of a model that knows text: its tokenizer, its chat template and the numbers a request is checked by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from common.errors import InvalidRequestError, ModelLoadError
from common.model.source import resolve
from common.model.tokenizer_files import eos_token_ids, read_json
from services.gateway.answers.detokenizer import special_token_ids
from services.gateway.chat_template import ChatMessage, ChatTemplate
from services.gateway.long_texts import check_fits, check_length
from services.gateway.markers.conversation import Conversations
from services.gateway.tools.formats import HERMES, FormatName, ToolFormat, format_of

Tools = Sequence[dict[str, Any]] | None

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the model reads it.

    Attributes:
        token_ids: [N] the tokens.
        closing_tokens: how many of the last tokens are the chat template's, after the last message's content.
        continues: whether the answer goes on in the prompt's own text, rather than being a new one.
    """

    token_ids: list[int]
    closing_tokens: int = 0
    continues: bool = False


@dataclass(frozen=True, slots=True)
class TextModel:
    """What the gateway needs of a model. Methods may run in threads: nothing here changes.

    Attributes:
        tokenizer: text to ids and back.
        chat_template: None for a base model.
        context_tokens: the most tokens of prompt and answer together.
        vocab_size: ids from 0 up to it, not included, exist.
        eos_token_ids: tokens that end an answer.
        special_token_ids: tokens that are not text.
        tool_format: how the model writes calls of tools.
        conversations: renders with the chat template, if there is one.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    context_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    special_token_ids: frozenset[int] = frozenset()
    tool_format: ToolFormat = HERMES
    conversations: Conversations | None = None

    def __post_init__(self) -> None:
        """Read the markers, which takes a moment, unless the model is a copy with the same text side."""
        parts = self.tokenizer, self.chat_template
        known = None if self.conversations is None else self.conversations.parts
        if self.chat_template is not None and known != parts:
            object.__setattr__(self, "conversations", Conversations(self.tokenizer, self.chat_template))

    def __reduce__(self) -> tuple[object, ...]:
        """Let another process have the model, made anew from its parts."""
        parts = (self.tokenizer, self.chat_template, self.context_tokens, self.vocab_size, self.eos_token_ids)
        return TextModel, (*parts, self.special_token_ids, self.tool_format)

    def completion_prompt(self, prompt: str | Sequence[int]) -> Prompt:
        """Tokenise a text, with the tokens the model wants at its start; check token ids and take them as they are.

        The client writes the whole prompt here, so a marker in it is one.
        """
        if isinstance(prompt, str):
            check_fits(prompt, self.tokenizer, self.context_tokens, "prompt")
            return Prompt(self.encode(prompt, add_special_tokens=True), continues=True)
        for token_id in prompt:
            self.check_token_id(token_id, "prompt")
        return Prompt(list(prompt), continues=True)

    @property
    def template_knows_tools(self) -> bool:
        """Whether the chat template describes tools to the model."""
        return self.chat_template is not None and self.chat_template.knows_tools

    @property
    def tool_marker_ids(self) -> dict[str, int]:
        """The markers of calls that are special tokens."""
        markers = {marker: self.tokenizer.token_to_id(marker) for marker in self.tool_format.all_markers}
        return {marker: token for marker, token in markers.items() if token in self.special_token_ids}

    def with_tool_format(self, name: FormatName) -> "TextModel":
        """Return the model with the form of this name, or the one that its chat template shows."""
        template = "" if self.chat_template is None else self.chat_template.source
        return replace(self, tool_format=format_of(template, name))

    def chat_prompt(self, messages: Sequence[ChatMessage], tools: Tools = None) -> Prompt:
        """Render and tokenise a conversation, in whose texts markers are words; count the template's closing tokens."""
        conversations = self._conversations()
        rendering = conversations.render(
            messages, tools, lambda text: check_fits(text, self.tokenizer, self.context_tokens, "messages")
        )
        return Prompt(rendering.encoding.ids, conversations.closing_tokens(rendering))

    def chat_token_ids(
        self,
        messages: Sequence[ChatMessage],
        tools: Tools = None,
        *,
        add_generation_prompt: bool,
        add_special_tokens: bool = False,
    ) -> list[int]:
        """Return a conversation's tokens, up to where the assistant's words begin if they are to come next."""
        rendering = self._conversations().render(
            messages,
            tools,
            lambda text: check_length(text, self.context_tokens),
            add_generation_prompt=add_generation_prompt,
            add_special_tokens=add_special_tokens,
        )
        return rendering.encoding.ids

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return a text's tokens, possibly with those the model wants at its start; none for no text."""
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids if text else []

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of tokens that the model has."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def _conversations(self) -> Conversations:
        if self.conversations is None:
            raise InvalidRequestError(
                "the model has no chat template; use /v1/completions, or serve an instruct model", param="messages"
            )
        return self.conversations

    def check_token_id(self, token_id: int, param: str) -> None:
        """Raise InvalidRequestError for an id the model does not have."""
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequestError(
                f"token id {token_id} is out of the vocabulary of {self.vocab_size} tokens", param=param
            )


def load_text_model(model: str) -> TextModel:
    """Read a model's text side from its folder. Raises ModelLoadError that names the file at fault."""
    folder = resolve(model, weights=False)
    config = read_json(folder / "config.json")
    inner = config.get("text_config") or config
    context_tokens = inner.get("max_position_embeddings") or config.get("max_position_embeddings")
    if not isinstance(context_tokens, int):
        raise ModelLoadError(f"{folder / 'config.json'} does not say max_position_embeddings")
    tokenizer = _load_tokenizer(folder)
    vocab_size = inner.get("vocab_size") or config.get("vocab_size") or tokenizer.get_vocab_size()
    return TextModel(
        tokenizer=tokenizer,
        chat_template=_load_chat_template(folder),
        context_tokens=context_tokens,
        vocab_size=vocab_size,
        eos_token_ids=eos_token_ids(folder),
        special_token_ids=special_token_ids(tokenizer),
    )


def _load_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelLoadError(f"{folder} has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower type
        raise ModelLoadError(f"cannot read {path}: {error}") from error
    tokenizer.no_truncation()  # both may be left over from training, and would change prompts unseen
    tokenizer.no_padding()
    return tokenizer


def _load_chat_template(folder: Path) -> ChatTemplate | None:
    config = read_json(folder / "tokenizer_config.json", optional=True)
    path = folder / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several named templates
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    if not source:
        return None
    return ChatTemplate(source, _special_tokens(config))


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    entries = {name: config.get(name) for name in _SPECIAL_TOKENS}
    contents = {name: entry["content"] if isinstance(entry, dict) else entry for name, entry in entries.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str)}
