"""The choices that a request asks for, each ready for its tokens."""

from services.gateway.answers.choice import Choice, Ending
from services.gateway.answers.detokenizer import Detokenizer
from services.gateway.answers.stop_strings import StopStrings
from services.gateway.answers.token_bytes import TokenBytes
from services.gateway.answers.token_logprobs import HeldLogprobs
from services.gateway.intake.accepted import AcceptedRequest
from services.gateway.text_model import TextModel
from services.gateway.tools.request import parser_of


class ChoiceFactory:
    """Makes choices for one served model."""

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self._token_bytes = TokenBytes(model.tokenizer)

    def make(self, accepted: AcceptedRequest) -> list[list[Choice]]:
        """Return n choices for each prompt; the response counts them prompt by prompt."""
        return [
            [self._choice(accepted, place, place * accepted.n + answer) for answer in range(accepted.n)]
            for place in range(len(accepted.requests))
        ]

    def _choice(self, accepted: AcceptedRequest, place: int, index: int) -> Choice:
        tools = parser_of(accepted.calls, self._model)
        skipped = self._model.special_token_ids if accepted.skip_special_tokens else frozenset()
        if tools is not None:
            skipped -= frozenset(self._model.tool_marker_ids.values())
        prompt = accepted.requests[place].prompt_token_ids
        return Choice(
            index,
            len(prompt),
            Detokenizer(self._model.tokenizer, skipped, prompt if accepted.continues else ()),
            StopStrings(accepted.stop, included=accepted.stop_included),
            Ending(accepted.stop_token_ids, accepted.min_tokens, accepted.stop_included),
            HeldLogprobs(self._token_bytes) if accepted.with_logprobs else None,
            accepted.echoes[place],
            tools,
        )
