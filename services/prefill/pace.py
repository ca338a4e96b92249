"""How far the host may run ahead of a GPU."""

from collections import deque

import torch

_AHEAD = 2
"""Steps that are queued and not done: one to run, and one so that the device need not wait for the next."""


class Pace:
    """Lets the host queue a step only when all but the last few are done.

    Or a layer of a long prompt would be queued at once, and another prompt's first step wait behind all of it.
    """

    def __init__(self, device: torch.device) -> None:
        """Take the device; on a CPU a step that returns is done."""
        self._device = device
        self._queued: deque[torch.cuda.Event] = deque()

    def step(self) -> None:
        """Note that a step was queued, and wait for the one two before it."""
        if self._device.type != "cuda":
            return
        done = torch.cuda.Event(blocking=True)  # the wait leaves the core to others
        done.record(torch.cuda.current_stream(self._device))
        self._queued.append(done)
        if len(self._queued) > _AHEAD:
            self._queued.popleft().synchronize()
