"""One client's connection: uvicorn's, with a bound on every time in which the gateway waits for the client."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Protocol, cast

import h11
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import is_ssl
from uvicorn.server import ServerState

from services.gateway.http.crowding import Crowd, network_of
from services.gateway.http.half_close import Probe
from services.gateway.http.handshakes import Handshake
from services.gateway.http.lines import Lines
from services.gateway.http.strict_http import StrictConnection
from services.gateway.http.timer import Timer
from services.gateway.http.turns import HeldFlow, Turns

_MAX_UNREAD_BYTES = 64 * 1024
"""Of a connection that waits for its first turn."""

logger = logging.getLogger(__name__)
_errors = logging.getLogger("uvicorn.error.protocol")
_errors.setLevel(logging.ERROR)  # its warnings are of clients' doings, as many as they like, with advice for others


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How long a connection may keep the gateway waiting.

    Attributes:
        max_head_bytes: of a request line and headers.
        header_seconds: for the headers, and for the rest of a body that is answered already.
        send_seconds: without a byte taken, for a client that does not read.
    """

    max_head_bytes: int
    header_seconds: float
    send_seconds: float


class LimitingConfig(Protocol):
    """uvicorn's configuration, with the limits, and what all connections share."""

    limits: ConnectionLimits
    turns: Turns
    lines: Lines
    crowd: Crowd


class BoundedProtocol(H11Protocol):
    """uvicorn times only idle connections: one byte now and then is not idle, and neither is who does not read.

    It also begins what was pipelined, and reads what was sent, as quickly as it can. Here both go on in turns.

    Attributes:
        handshake: in whose place it is a connection, over TLS.
    """

    handshake: Handshake | None = None

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = _errors
        limiting = cast(LimitingConfig, config)
        self._limits, self._crowd = limiting.limits, limiting.crowd
        self._turns, self._lines = limiting.turns, limiting.lines
        self.flow: HeldFlow
        self.conn: StrictConnection = StrictConnection(self._limits.max_head_bytes)
        self._receiving = Timer(self.loop, self._limits.header_seconds, self._on_too_slow)
        self._sending = Timer(self.loop, self._limits.send_seconds, self._on_unread)
        self._probe: Probe | None = None
        self._unsent_bytes = 0
        self._line: str | None = None
        self._has_begun = False
        self.phase_began = self.loop.time()
        self.network = ""

    @property
    def is_worked_on(self) -> bool:
        """Whether its request has a place among those that are worked on, and its client reads."""
        place = self.cycle.scope["state"].get("place") if self._is_answering else None
        return place is not None and place.is_taken and not self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take the connection; its first request is due."""
        super().connection_made(transport)
        self.flow = HeldFlow(transport)
        self.network = network_of(self.client[0]) if self.client else ""
        self._receiving.start()
        if self.handshake is not None:
            self._crowd.leave(self.handshake)
        self._crowd.enter(self)

    def data_received(self, data: bytes) -> None:
        """Read on, for as long as the client has time."""
        before = self.conn.their_state
        super().data_received(data)
        self._note_phase(before)

    def handle_events(self) -> None:
        """Go through what was received, as far as it goes before the next turn."""
        if self.flow.is_held:
            return
        if self._line is None and self.conn.has_head:
            self._line = self._lines.of(self.network, self.conn.head)
            self._has_begun = not self._turns.needed(self._line)
        if self._awaits_turn:
            self._await_first_turn()
        elif self.conn.is_pipelining:
            self._hold_next_request()
        else:
            self._handle_events()

    def _handle_events(self) -> None:
        super().handle_events()
        self.flow.is_ahead = self.conn.their_state is h11.DONE and self.conn.has_more
        if self.conn.needs_turn and not self.transport.is_closing():
            self.flow.hold()
            self._await_turn()

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """Go on with an answer whose client has closed its side only; tell whether the connection stays."""
        if is_ssl(self.transport) or not (self._is_answering or self._awaits_turn):  # asyncio has no half-closed TLS
            self._await_reader()
            return False
        if self._probe is None:
            self._probe = Probe(self.loop, self.transport, self.conn.next_byte)
            self._probe.start()
        self._end_behind_last_answer()
        return True

    def pause_writing(self) -> None:
        """Wait for a client that does not read as quickly as it is sent to."""
        super().pause_writing()
        self._begin_phase()
        self._await_reader()

    def resume_writing(self) -> None:
        """Go on with a client that has read."""
        super().resume_writing()
        if not self.transport.is_closing():  # then the rest has to go, too
            self._sending.stop()
            if self.flow.is_held:
                self._await_turn()

    def on_response_complete(self) -> None:
        """Wait for the next request, for what the client still sends of this one, or for the end."""
        self._begin_phase()
        self.flow.is_ahead = False
        if self.conn.their_state is h11.DONE and self.conn.has_more and not self.transport.is_closing():
            self._hold_next_request()
        super().on_response_complete()
        if self._probe is not None:
            self._end_behind_last_answer()
        if self.transport.is_closing():
            self._await_reader()
        elif self._is_behind and self.conn.their_state is not h11.IDLE:
            self._receiving.start()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, whether or not its client takes what it was sent."""
        super().timeout_keep_alive_handler()
        self._await_reader()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; once an answer has begun there is nothing to refuse it with."""
        logger.info("malformed request")
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
            self._await_reader()
        else:
            self.transport.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for timer in (self._receiving, self._sending, self._probe):
            if timer is not None:
                timer.stop()
        self._turns.leave(self._line or self.network, self)
        self._crowd.leave(self)
        super().connection_lost(exc)

    @property
    def _is_behind(self) -> bool:
        """Whether a head is due, or the rest of a body that no handler waits for: its answer is sent already."""
        state = self.conn.their_state
        return state is h11.IDLE or (state is h11.SEND_BODY and self.conn.our_state is h11.DONE)

    @property
    def _awaits_turn(self) -> bool:
        """Whether a request is here that has not begun."""
        return self.conn.their_state is h11.IDLE and (self.flow.is_held or (not self._has_begun and self.conn.has_head))

    @property
    def _is_answering(self) -> bool:
        """Whether a request is here as a whole, and its answer is not given as a whole."""
        answering = self.cycle is not None and not self.cycle.response_complete
        return answering and self.conn.their_state is not h11.SEND_BODY

    def _await_first_turn(self) -> None:
        """Have a new connection wait for its turn. It is read on meanwhile, which tells whether its client stays."""
        if self.conn.num_unread > _MAX_UNREAD_BYTES:
            self.flow.hold()
        self._await_turn()

    def _hold_next_request(self) -> None:
        """Let a pipelined request wait for its turn, and that wait until the answers before it are on their way."""
        self.flow.hold()
        self.transport.set_write_buffer_limits(high=1, low=0)
        if not self.flow.write_paused:
            self._await_turn()

    def _await_turn(self) -> None:
        self._turns.wait(self._line or self.network, self, self._go_on)

    def _go_on(self) -> None:
        """Take the turn: begin the next request, or read more of a body."""
        if self.transport.is_closing():
            return
        self.flow.is_held, self._has_begun = False, True
        self.transport.set_write_buffer_limits()
        self.conn.take_turn()
        before = self.conn.their_state
        if self.cycle is None or self.cycle.response_complete or len(self.cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()  # before the events: what is complete in the buffer stops it again
        self._handle_events()
        self._note_phase(before)
        if self._probe is not None:
            self._end_behind_last_answer()

    def _note_phase(self, before: object) -> None:
        """Take the time of what the client does now; its state was `before`."""
        if self.conn.their_state is not before:
            self._begin_phase()
        if self._is_behind and not self._awaits_turn:
            self._receiving.start()
        else:
            self._receiving.stop()

    def _end_behind_last_answer(self) -> None:
        """Close the connection of a client that sends no more, once all of its requests are answered."""
        if self.flow.is_held or self._awaits_turn:
            return
        if not self._is_answering:
            self.transport.close()
        elif not self.conn.has_more:
            self.cycle.keep_alive = False

    def _begin_phase(self) -> None:
        self.phase_began = self.loop.time()
        self._crowd.begins_phase(self)

    def _await_reader(self) -> None:
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self._sending.start()

    def _on_unread(self) -> None:
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes < self._unsent_bytes:
            self._await_reader()
            return
        logger.info("client does not read", extra={"send_timeout_seconds": self._limits.send_seconds})
        self.transport.abort()

    def _on_too_slow(self) -> None:
        logger.info("client too slow", extra={"header_timeout_seconds": self._limits.header_seconds})
        self.transport.abort()
