"""A request's answer on its way: all its choices, as decode goes on with them."""

import logging
from collections.abc import AsyncIterator, Sequence

from common.pb import decode_pb2
from services.gateway.answers.choice import Choice, Piece
from services.gateway.recorder import recorder
from services.gateway.tools.calls import joined
from services.gateway.workers.decode_calls import DecodeCalls

logger = logging.getLogger(__name__)


class Answer:
    """The choices of one response, prompt by prompt.

    Attributes:
        request_id: under which it is logged.
        choices: in the response's order.
        skeletons: what decode tells of each prompt's skeleton.
        ttft_seconds: from the request's arrival until each prompt had its first token.
    """

    def __init__(
        self, calls: DecodeCalls, choices: Sequence[Sequence[Choice]], ttft_seconds: float, request_id: str
    ) -> None:
        """Take the calls and, for each, the choices that it answers."""
        self._calls = calls
        self._by_prompt = choices
        self._closed = False
        self.request_id = request_id
        self.choices = [choice for group in choices for choice in group]
        self.skeletons = calls.skeletons
        self.ttft_seconds = ttft_seconds

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; a prompt with several answers counts once."""
        return sum(group[0].prompt_tokens for group in self._by_prompt)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers so far."""
        return sum(choice.completion_tokens for choice in self.choices)

    def skeleton_of(self, choice: Choice) -> decode_pb2.SkeletonStats:
        """Return what decode tells of the skeleton of a choice's prompt."""
        return self.skeletons[choice.index // len(self._by_prompt[0])]

    async def pieces(self) -> AsyncIterator[tuple[Choice, Piece]]:
        """Yield the choices' text as it becomes certain; with its last piece, even if empty, a choice is finished."""
        for choice in self.choices:
            if choice.echo:
                yield choice, Piece(choice.echo)
        while (read := await self._calls.read()) is not None:
            place, event = read
            choice = self._by_prompt[place][event.answer]
            piece = choice.take(event)
            if choice.finish_reason is not None:
                self._calls.finish(place, event.answer)  # after a stop string, decode would go on
            if not piece.is_empty or choice.finish_reason is not None:
                yield choice, piece
        self.close()

    async def wholes(self) -> list[Piece]:
        """Return each choice's whole text: the same pieces, joined."""
        parts: list[list[Piece]] = [[] for _ in self.choices]
        async for choice, piece in self.pieces():
            parts[choice.index].append(piece)
        return [_join(pieces) for pieces in parts]

    def close(self) -> None:
        """End the calls to decode and log what came of them. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._calls.close()
        for choice in self.choices:
            recorder().finished(choice.finish_reason, choice.completion_tokens)
            self._log(choice)

    def _log(self, choice: Choice) -> None:
        logger.info(
            "answer ended",
            extra={
                "request_id": self.request_id,
                "choice": choice.index,
                "completion_tokens": choice.completion_tokens,
                "finish_reason": choice.finish_reason,
                "ttft_seconds": round(self.ttft_seconds, 4),
            },
        )


def _join(pieces: Sequence[Piece]) -> Piece:
    text = "".join(piece.text for piece in pieces)
    logprobs = [entry for piece in pieces for entry in piece.logprobs]
    return Piece(text, logprobs, joined([delta for piece in pieces for delta in piece.tool_calls]))
