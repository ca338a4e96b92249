"""Peak memory of one prefill on a CPU, in a process that does nothing else.

`python -m benchmarks.peak MODEL METHOD TOKENS` prints bytes: the largest resident set during the prompt, less the
resident set before it, with the model loaded and warm.
"""

import contextlib
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.engines import TimedPrefill, load_prefill, model_dtype
from benchmarks.measure import random_tokens
from benchmarks.record import Parameters, Row
from benchmarks.reference import ReferencePrefill, load_reference
from common.skeleton.selection import Selection

_WARM_UP_TOKENS = 64


def peak_row(model: str, method: str, length: int, device: str) -> Row:
    """Measure in a child process."""
    parameters: Parameters = {"method": method, "length": length}
    command = [sys.executable, "-m", "benchmarks.peak", model, method, str(length), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Row("peak_memory", parameters, [], "bytes", lines[-1])
    return Row("peak_memory", parameters, [float(done.stdout.split()[-1])], "bytes")


def _peak(model: str, method: str, length: int, device: str) -> int:
    import torch  # noqa: PLC0415

    run: Callable[[list[int]], object]
    engine = load_prefill(model, device)
    spec, dtype = engine.model.spec, model_dtype(engine.model)
    if method == "transformers":
        del engine
        run = ReferencePrefill(load_reference(model, dtype, device))
    else:
        run = TimedPrefill(engine, Selection(method=method))
    token_ids = random_tokens(min(length, spec.max_tokens), spec.vocab_size)
    run(token_ids[:_WARM_UP_TOKENS])
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        run(token_ids)
        return torch.cuda.max_memory_allocated() - allocated
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of loading (Linux)
    before = psutil.Process().memory_info().rss
    run(token_ids)
    return _largest_rss() - before


def _largest_rss() -> int:
    """Return the largest resident set so far, in bytes.

    On Linux from the kernel's own mark: `ru_maxrss` cannot be reset, and begins with that of the parent, whose memory
    a child has until it runs its own program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(_peak(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))  # noqa: T201
