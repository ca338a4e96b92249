"""Starts vLLM in an environment of its own and asks it; see `vllm_peer`."""

import json
import os
import selectors
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from common.errors import StructKVError

_HERE = Path(__file__).parent
_START_SECONDS = 900.0
"""The first start compiles the model."""
_ANSWER_SECONDS = 1800.0


_LEAST_BATCH = 16
"""vLLM compiles a model anew for every largest batch: one for all parts saves that."""


class PeerError(StructKVError):
    """The peer cannot be measured; the message is the last that it said."""


class VllmPeer:
    """A vLLM engine in a process; a context manager."""

    def __init__(
        self, python: Path, folder: Path, *, dtype: str, threads: int, max_tokens: int, log: Path, max_batch: int = 1
    ) -> None:
        """Start it with an environment's Python on a model folder; what it says goes to `log`."""
        self._log = log
        self.max_tokens = max_tokens
        command = [str(python), str(_HERE / "vllm_peer.py"), "--model", str(folder), "--dtype", dtype]
        command += [
            "--threads",
            str(threads),
            "--max-tokens",
            str(max_tokens),
            "--max-batch",
            str(max(max_batch, _LEAST_BATCH)),
        ]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=os.environ | {"PYTHONPATH": str(_HERE / "vllm_site")},
            )
        self._pending = b""
        try:
            self.about = self._read(_START_SECONDS)
        except PeerError:
            self._process.kill()
            self._process.wait()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def prefill(self, token_ids: list[int]) -> float:
        """Return the seconds to a prompt's first token; it is cut to what vLLM takes, which wants room for that."""
        return float(self._ask(op="prefill", prompts=[token_ids[: self.max_tokens - 1]])["seconds"])

    def grow(self, prompts: list[list[int]]) -> None:
        """Add prompts to the running batch."""
        self._ask(op="grow", prompts=prompts)

    def steps(self, count: int) -> list[float]:
        """Return the seconds of each of the running batch's next steps."""
        return [float(seconds) for seconds in self._ask(op="steps", count=count)["seconds"]]

    def _ask(self, **question: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(self._last_words()) from None
        return self._read(_ANSWER_SECONDS)

    def _read(self, timeout_seconds: float) -> dict[str, Any]:
        """Return the next line's object; raise PeerError if none comes in time."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_seconds
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    raise PeerError(f"no answer in {timeout_seconds:g} s")
                data = os.read(self._process.stdout.fileno(), 1 << 16)
                if not data:
                    raise PeerError(self._last_words())
                self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        """Return the last line that it printed; its threads may still be at it, so it is waited for."""
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it ended without a word")
