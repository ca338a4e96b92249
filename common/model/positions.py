"""Where the tokens of a sequence stand in their prompt."""

from functools import cached_property

from torch import Tensor


class Positions:
    """A sequence's positions, ascending, but with gaps where tokens were left behind.

    A mask needs them on the device; the host, to know what to launch, on its own side. It asks the device for them
    once, and not at all where they were given.

    Attributes:
        on_device: [N], int64.
    """

    def __init__(self, on_device: Tensor, on_host: Tensor | None = None) -> None:
        """Take them [N] as they are on the device and, where known, on the host."""
        self.on_device = on_device
        if on_host is not None:
            self.on_host = on_host

    @cached_property
    def on_host(self) -> Tensor:
        """The same on the host, [N], int64."""
        return self.on_device.cpu()

    def __len__(self) -> int:
        return len(self.on_device)

    def at(self, indices: Tensor) -> "Positions":
        """Return those at some ascending indices, [tokens'], which are on the device."""
        return Positions(self.on_device[indices])

    def span(self, num_tokens: int) -> int:
        """Return over how many positions the first tokens stretch: as many as they are if there are no gaps."""
        return int(self.on_host[num_tokens - 1] - self.on_host[0]) + 1
