"""The choices that a body asks for, each ready for its tokens."""

from collections.abc import Sequence

from services.gateway.answers.choice import Choice, Ending
from services.gateway.answers.detokenizer import Detokenizer
from services.gateway.answers.stop_strings import StopStrings
from services.gateway.answers.token_bytes import TokenBytes
from services.gateway.answers.token_logprobs import HeldLogprobs
from services.gateway.requests.schemas import CompletionRequest, GenerationRequest
from services.gateway.text_model import Prompt, TextModel
from services.gateway.tools.request import parser_of


class ChoiceFactory:
    """Makes choices for one served model."""

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self._token_bytes = TokenBytes(model.tokenizer)

    def make(self, body: GenerationRequest, prompts: Sequence[Prompt]) -> list[list[Choice]]:
        """Return n choices for each prompt; the response counts them prompt by prompt."""
        return [
            [self._choice(body, prompt, place * body.n + answer) for answer in range(body.n)]
            for place, prompt in enumerate(prompts)
        ]

    def _choice(self, body: GenerationRequest, prompt: Prompt, index: int) -> Choice:
        tools = parser_of(body, self._model)
        skipped = self._model.special_token_ids if body.skip_special_tokens else frozenset()
        if tools is not None:
            skipped -= frozenset(self._model.tool_marker_ids.values())
        context = prompt.token_ids if prompt.continues else ()
        included = body.include_stop_str_in_output
        return Choice(
            index,
            len(prompt.token_ids),
            Detokenizer(self._model.tokenizer, skipped, context),
            StopStrings(body.stop, included=included),
            Ending(body.stop_token_ids, body.min_tokens, included),
            None if body.num_top_logprobs is None else HeldLogprobs(self._token_bytes),
            self._echo(body, prompt, index // body.n),
            tools,
        )

    def _echo(self, body: GenerationRequest, prompt: Prompt, place: int) -> str:
        if not isinstance(body, CompletionRequest) or not body.echo:
            return ""
        sent = body.prompt[place]
        if isinstance(sent, str):
            return sent
        return self._model.decode(prompt.token_ids, skip_special_tokens=body.skip_special_tokens)
