"""Where a prompt's time goes, layer by layer: a few additions a step, and what metrics and traces make of them."""

import time
from dataclasses import astuple, dataclass, field

from opentelemetry.context import Context

from common import tracing

PHASES = ("queue", "compute", "select", "encode", "send")


@dataclass(slots=True)
class Times:
    """Seconds of a prompt, or of some of its layers, in the compute thread and waiting for it.

    Attributes:
        queue: waiting for a turn, and for a reader that is behind.
        compute: the layers themselves.
        select: scoring and choosing what is kept.
        encode: quantising it and writing messages. On a GPU that is queueing it, waiting for what the layer before
            kept, and writing that one's messages.
    """

    queue: float = 0.0
    compute: float = 0.0
    select: float = 0.0
    encode: float = 0.0

    @property
    def prefill(self) -> float:
        """All but the waiting."""
        return self.compute + self.select + self.encode

    def add(self, other: "Times") -> None:
        """Add other layers' or another step's."""
        self.queue += other.queue
        self.compute += other.compute
        self.select += other.select
        self.encode += other.encode


@dataclass(slots=True)
class Phases:
    """A prompt's times. On a GPU, what is queued on the device counts for the phase that waits for it.

    Attributes:
        arrived: when the prompt came, on the monotonic clock.
        layers: of each layer that is done.
        send: seconds in which its messages were handed to the network or the store, beside the computation.
        first_wait: seconds until its first step.
        pivot_layer: L* if a cut was made, once known.
        finished: whether the prompt is computed to its end.
    """

    arrived: float = field(default_factory=time.monotonic)
    layers: list[Times] = field(default_factory=list)
    send: float = 0.0
    first_wait: float | None = None
    pivot_layer: int | None = None
    finished: bool = False
    _current: Times = field(default_factory=Times)

    def step(self, times: Times, *, ends_layer: bool) -> None:
        """Take a step: a chunk through a layer, or the prompt's end."""
        if self.first_wait is None:
            self.first_wait, times.queue = times.queue, 0.0
        self._current.add(times)
        if ends_layer:
            self.layers.append(self._current)
            self._current = Times()

    def total(self) -> Times:
        """Return the whole prompt's times so far."""
        total = _sum([*self.layers, self._current])
        total.queue += self.first_wait or 0.0
        return total

    def add_spans(self) -> None:
        """Add the phases to the current trace, on one line of time.

        Layers up to the pivot and after it are a span each. The phases alternate with every layer, so a stage's spans
        are their sums, laid one behind the other: they tell how long, not when.
        """
        started = time.monotonic() if self.first_wait is None else self.arrived + self.first_wait
        tracing.add_span("prefill.queue", self.arrived, started)
        if self.pivot_layer is None:
            _add_stage("prefill.layers", self.layers, self._current, started)
            return
        middle = _add_stage("prefill.layers_to_pivot", self.layers[: self.pivot_layer], Times(), started)
        _add_stage("prefill.layers_after_pivot", self.layers[self.pivot_layer :], self._current, middle)


def _sum(layers: list[Times]) -> Times:
    total = Times()
    for layer in layers:
        total.add(layer)
    return total


def _add_stage(name: str, layers: list[Times], rest: Times, started: float) -> float:
    """Add a stage's span and those of its phases, with the rest that is no layer's; return when it ended."""
    times = _sum([*layers, rest])
    ended = started + times.queue + times.prefill
    stage: Context = tracing.add_span(name, started, ended, {"structkv.layers": len(layers)})
    for phase, seconds in zip(("wait", "compute", "select", "encode"), astuple(times), strict=True):
        if seconds:
            tracing.add_span(f"prefill.{phase}", started, started + seconds, {"structkv.sum": True}, parent=stage)
            started += seconds
    return ended
