"""Load on real processes while they are killed. `python -m tests.chaos` prints what became of it."""
