"""/tokenize and /detokenize, in vLLM's shapes: text to the served model's tokens and back."""

import json

from pydantic import ConfigDict, Field, model_validator

from common.errors import InvalidRequestError
from services.gateway.answers.logprob_shapes import JsonObject
from services.gateway.long_texts import check_length
from services.gateway.requests.messages import Messages
from services.gateway.requests.strict_body import StrictBody
from services.gateway.text_model import TextModel
from services.gateway.tools.conversation import conversation
from services.gateway.tools.schemas import Tools


class TokenizeRequest(StrictBody):
    """A text or a conversation to be tokenised, as the endpoint that answers it would."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["prompt"]}, {"required": ["messages"]}]})

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools = Field([])
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check_one_is_given(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("either prompt or messages must be given", param="prompt")
        return self

    def token_ids(self, model: TextModel) -> list[int]:
        """Return the tokens. A chat template writes its special tokens itself, so only a text gets them by default."""
        if self.messages is None:
            check_length(self.prompt or "", model.context_tokens)
            return model.encode(self.prompt or "", add_special_tokens=self.add_special_tokens is not False)
        messages, tools = conversation(self.messages, self.tools, model)
        return model.chat_token_ids(
            messages,
            tools,
            add_generation_prompt=self.add_generation_prompt,
            add_special_tokens=self.add_special_tokens is True,
        )


MAX_DETOKENIZED = 2**18
"""More would keep the others waiting while it is read; a longer text can be asked for in parts."""


class DetokenizeRequest(StrictBody):
    """Tokens to be decoded."""

    model: str | None = None
    tokens: list[int] = Field(max_length=MAX_DETOKENIZED, fail_fast=True)


def tokenized(body: TokenizeRequest, model: TextModel) -> bytes:
    """Return a text's or a conversation's tokens and how many there are, as JSON."""
    token_ids = body.token_ids(model)
    names = [model.tokenizer.id_to_token(token_id) for token_id in token_ids] if body.return_token_strs else None
    count, context_tokens = len(token_ids), model.context_tokens
    return _json({"count": count, "max_model_len": context_tokens, "tokens": token_ids, "token_strs": names})


def detokenized(body: DetokenizeRequest, model: TextModel) -> bytes:
    """Return the tokens' text, special tokens included, as JSON."""
    for token_id in body.tokens:
        model.check_token_id(token_id, "tokens")
    return _json({"prompt": model.decode(body.tokens, skip_special_tokens=False)})


def _json(content: JsonObject) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
