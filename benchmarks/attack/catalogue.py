"""Every attack by its name."""

from collections.abc import Callable, Mapping

from benchmarks.attack.batches import BATCHES
from benchmarks.attack.bodies import BODIES, attack, middling_bodies, short_bodies
from benchmarks.attack.connections import CONNECTIONS
from benchmarks.attack.grammars import GRAMMARS
from benchmarks.attack.wire import Attack, Target

ATTACKS: Mapping[str, Callable[[Target], Attack]] = {
    **{
        f"{name}{suffix}": attack(body, number)
        for name, body in BODIES.items()
        for suffix, number in (("", 1), ("-x8", 8))
    },
    "short-bodies": short_bodies,
    "middling-bodies": middling_bodies,
    **GRAMMARS,
    **BATCHES,
    **CONNECTIONS,
}
"""What makes each: its bodies, which may take a while, before it begins."""
