"""A registry's metrics as Prometheus reads them, however many ask."""

import asyncio
import time

from prometheus_client import CollectorRegistry, generate_latest

_PAUSE_SECONDS = 0.1
"""Between two renderings, which take milliseconds of the event loop."""


class Exposition:
    """Renders a registry. All who ask while it pauses get the next text, which is of after they asked.

    They get it one by one, so that a thousand of them do not send their answers before the loop looks at anybody else.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._rendered = -_PAUSE_SECONDS
        self._next: asyncio.Task[bytes] | None = None
        self._one_by_one = asyncio.Lock()

    async def text(self) -> bytes:
        """Return the metrics as they are now or a moment later."""
        if self._next is None:
            self._next = asyncio.create_task(self._render())
        text = await asyncio.shield(self._next)
        async with self._one_by_one:
            await asyncio.sleep(0)
        return text

    async def _render(self) -> bytes:
        await asyncio.sleep(self._rendered + _PAUSE_SECONDS - time.monotonic())
        self._next, self._rendered = None, time.monotonic()
        return generate_latest(self._registry)
