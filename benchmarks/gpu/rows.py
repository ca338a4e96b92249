"""Rows that pass or fail."""

from benchmarks.record import Row


def check(what: str, value: float, limit: float) -> Row:
    """Return a row that passes if the value is at most the limit; one that is no number fails."""
    return Row("check", {"what": what, "limit": limit}, [value], "")


def passes(row: Row) -> bool:
    """Tell whether a check holds."""
    limit = row.parameters["limit"]
    assert isinstance(limit, int | float)
    return row.error is None and all(value <= limit for value in row.samples)
