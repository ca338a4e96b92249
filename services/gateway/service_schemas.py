"""What the gateway tells of itself, its model and its errors, for its OpenAPI document."""

from typing import Literal

from services.gateway.answers.answer_schemas import ExactObject


class Model(ExactObject):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(ExactObject):
    """The served models."""

    object: Literal["list"]
    data: list[Model]


class ErrorDetails(ExactObject):
    """What went wrong, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(ExactObject):
    """Every answer that is not a success."""

    error: ErrorDetails


class Status(ExactObject):
    """A good answer to a health check."""

    status: Literal["ok", "ready"]


class NotReady(ErrorBody):
    """Why no requests should be sent here now."""

    status: Literal["unavailable", "draining"]
    missing: list[Literal["decode", "prefill"]]


class Version(ExactObject):
    """The gateway's version."""

    version: str


class Tokens(ExactObject):
    """A text's tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TokensText(ExactObject):
    """The text of tokens."""

    prompt: str
