"""An answer on its way: tokens from decode become text, up to where it ends."""

import logging
from collections.abc import AsyncIterator

from common.errors import StructKVError
from common.pb import decode_pb2
from services.gateway.decode_client import DecodeCall
from services.gateway.detokenizer import Detokenizer
from services.gateway.recorder import recorder
from services.gateway.stop_strings import StopStrings

_FINISH_REASONS = {
    decode_pb2.FINISH_REASON_UNSPECIFIED: None,
    decode_pb2.FINISH_REASON_STOP: "stop",
    decode_pb2.FINISH_REASON_LENGTH: "length",
}


logger = logging.getLogger(__name__)


class Answer:
    """The text of one answer, and what is known of it so far.

    Attributes:
        request_id: under which it is logged.
        skeleton: what decode tells of the prompt's skeleton.
        ttft_seconds: from the request's arrival to the first token.
        completion_tokens: tokens received, a stop token included.
        finish_reason: "stop" or "length"; None while it runs.
    """

    def __init__(
        self,
        call: DecodeCall,
        detokenizer: Detokenizer,
        stop_strings: StopStrings,
        ttft_seconds: float,
        request_id: str,
    ) -> None:
        self._call = call
        self._detokenizer = detokenizer
        self._stop_strings = stop_strings
        self.request_id = request_id
        self._closed = False
        self.skeleton = call.first.skeleton
        self.ttft_seconds = ttft_seconds
        self.completion_tokens = 0
        self.finish_reason: str | None = None

    async def pieces(self) -> AsyncIterator[str]:
        """Yield the text as it becomes certain; afterwards `finish_reason` is set. Never yields an empty piece."""
        async for event in self._call.events():
            if text := self._take(event):
                yield text
            if self.finish_reason is not None:
                self.close()  # after a stop string, decode would go on
                return
        raise StructKVError("the decode worker gave an unknown finish reason")

    async def text(self) -> str:
        """Return the whole text: the same pieces, joined."""
        return "".join([piece async for piece in self.pieces()])

    def close(self) -> None:
        """End the call to decode and log what came of it. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._call.close()
        recorder().finished(self.finish_reason, self.completion_tokens)
        logger.info(
            "answer ended",
            extra={
                "request_id": self.request_id,
                "completion_tokens": self.completion_tokens,
                "finish_reason": self.finish_reason,
                "ttft_seconds": round(self.ttft_seconds, 4),
            },
        )

    def _take(self, event: decode_pb2.GenerateEvent) -> str:
        token_ids = list(event.token_ids)
        self.completion_tokens += len(token_ids)
        if event.finish_reason == decode_pb2.FINISH_REASON_STOP:
            token_ids = token_ids[:-1]  # the stop token itself is not text
        finish_reason = _FINISH_REASONS.get(event.finish_reason)
        text = self._detokenizer.push(token_ids)
        if finish_reason is not None:
            text += self._detokenizer.flush()
        text, stopped = self._stop_strings.push(text)
        if stopped:
            self.finish_reason = "stop"
            return text
        self.finish_reason = finish_reason
        return text if finish_reason is None else text + self._stop_strings.flush()
