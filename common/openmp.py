"""How long threads that compute together spin, before they sleep, between two operations."""

import os

_SPINS = "3000"
"""A tenth of a millisecond. libgomp's own 300,000 are ten, in which a thread keeps its core from another process."""
_POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly() -> None:
    """Have OpenMP's threads leave their cores soon; for this process, if torch is not imported yet, and its children.

    Whoever sets one of OpenMP's own variables is left to it.
    """
    if not any(policy in os.environ for policy in _POLICIES):
        os.environ["GOMP_SPINCOUNT"] = _SPINS
