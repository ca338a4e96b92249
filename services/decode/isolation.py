"""Whose fault it is that a step fails: one sequence's, which fails alone, or the worker's, which then has to end."""

import logging

from common.errors import WorkerFailedError
from services.decode.engine import DecodeEngine, Sequence

logger = logging.getLogger(__name__)


def step_apart(engine: DecodeEngine, batch: list[Sequence]) -> list[tuple[Sequence, Exception]]:
    """Run a step; return the sequences that fail also without the others, which all have their token.

    Raises WorkerFailedError if everything fails, and a trial that has nothing of theirs as well.
    """
    failed = _by_halves(engine, batch)
    if len(failed) == len(batch):
        try_out(engine, failed[0][1])
    return failed


def try_out(engine: DecodeEngine, error: Exception) -> None:
    """Raise WorkerFailedError, because of an error that was seen, unless the worker can still compute."""
    try:
        engine.try_out()
    except Exception as failure:
        logger.exception("this worker can no longer compute")
        raise WorkerFailedError(f"the worker can no longer compute: {type(failure).__name__}") from error


def _by_halves(engine: DecodeEngine, batch: list[Sequence]) -> list[tuple[Sequence, Exception]]:
    """A step changes no sequence before all of it is computed, and writes into slots that it would write to again."""
    try:
        engine.step(batch)
    except Exception as error:  # whatever it is: its sequence's caller gets and reports it
        if len(batch) == 1:
            return [(batch[0], error)]
        logger.warning("step failed, tried by halves", extra={"num_running": len(batch), "error": str(error)})
        half = len(batch) // 2
        return _by_halves(engine, batch[:half]) + _by_halves(engine, batch[half:])
    return []
