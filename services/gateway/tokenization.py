"""/tokenize and /detokenize, in vLLM's shapes: text to the served model's tokens and back."""

import asyncio

from fastapi import Request
from pydantic import ConfigDict, Field, model_validator

from common.errors import InvalidRequestError
from services.gateway.answers.logprob_shapes import JsonObject
from services.gateway.http.reader import RequestReader
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
    tokens: list[int] = Field(max_length=MAX_DETOKENIZED)


class TokenizationHandler:
    """Answers both for one served model."""

    def __init__(self, reader: RequestReader, model: TextModel) -> None:
        self._reader = reader
        self._model = model

    async def tokenize(self, http: Request) -> JsonObject:
        """Return a text's or a conversation's tokens and how many there are."""
        body = await self._reader.read(http, TokenizeRequest)
        self._reader.check_model(body.model)
        token_ids = await asyncio.to_thread(body.token_ids, self._model)
        names = await asyncio.to_thread(self._names, token_ids) if body.return_token_strs else None
        return {
            "count": len(token_ids),
            "max_model_len": self._model.context_tokens,
            "tokens": token_ids,
            "token_strs": names,
        }

    def _names(self, token_ids: list[int]) -> list[str | None]:
        return [self._model.tokenizer.id_to_token(token_id) for token_id in token_ids]

    async def detokenize(self, http: Request) -> JsonObject:
        """Return the tokens' text, special tokens included."""
        body = await self._reader.read(http, DetokenizeRequest)
        self._reader.check_model(body.model)
        return {"prompt": await asyncio.to_thread(self._text, body.tokens)}

    def _text(self, token_ids: list[int]) -> str:
        for token_id in token_ids:
            self._model.check_token_id(token_id, "tokens")
        return self._model.decode(token_ids, skip_special_tokens=False)
