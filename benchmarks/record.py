"""What a measurement leaves: rows of samples under a head that says where they come from, as JSON."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Self

import psutil

Parameter = str | int | float | None
Parameters = dict[str, Parameter]

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("torch", "transformers", "grpcio", "fastapi")
_OWN_RESULTS = (":!benchmarks/results", ":!benchmarks/RESULTS.md")
"""Written by the run itself: they say nothing about the code that ran."""


@dataclass(frozen=True, slots=True)
class Row:
    """Samples of one thing.

    Attributes:
        name: what was measured.
        parameters: with what: a method, a length in tokens, a batch.
        samples: one for each repeat, or step; empty if it could not be measured.
        unit: of the samples.
        error: why there are none.
    """

    name: str
    parameters: Mapping[str, Parameter]
    samples: Sequence[float]
    unit: str
    error: str | None = None

    @property
    def median(self) -> float | None:
        """The middle sample."""
        return median(self.samples) if self.samples else None

    def to_json(self) -> dict[str, object]:
        """Return the entry that `from_json` reads."""
        return {
            "name": self.name,
            "parameters": dict(self.parameters),
            "median": self.median,
            "min": min(self.samples, default=None),
            "max": max(self.samples, default=None),
            "samples": list(self.samples),
            "unit": self.unit,
            **({} if self.error is None else {"error": self.error}),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, object]) -> Self:
        """Read an entry."""
        names = ("name", "parameters", "samples", "unit", "error")
        return cls(**{name: entry[name] for name in names if name in entry})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Record:
    """One part's measurements."""

    part: str
    head: Mapping[str, object]
    rows: Sequence[Row] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """Write PART.json into a folder, which is made; return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.part}.json"
        content = {"part": self.part, "head": self.head, "rows": [row.to_json() for row in self.rows]}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a part's file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(content["part"], content["head"], [Row.from_json(row) for row in content["rows"]])

    def find(self, name: str, **parameters: Parameter) -> Row | None:
        """Return the first row of that name with these parameters, others left open."""
        for row in self.rows:
            if row.name == name and all(row.parameters.get(key) == value for key, value in parameters.items()):
                return row
        return None

    def median(self, name: str, **parameters: Parameter) -> float | None:
        """Return the median of the row that `find` finds; None where there is none."""
        row = self.find(name, **parameters)
        return None if row is None else row.median


def head(**extra: object) -> dict[str, object]:
    """Return where and how this process measures."""
    return {
        "command": _command(sys.argv[1:]),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": _gpu(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        **extra,
    }


def _command(arguments: Sequence[str]) -> str:
    """Return the command line; where the peer's environment lies is this machine's affair."""
    before = ["", *arguments]
    shown = ["PEER_PYTHON" if flag == "--peer-python" else own for flag, own in zip(before, arguments, strict=False)]
    return shlex.join(["python", "-m", "benchmarks", *shown])


def _commit() -> str | None:
    """Return the commit that ran, marked if the code differs from it; None outside a repository."""
    known = _git("rev-parse", "--short", "HEAD")
    if not known:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *_OWN_RESULTS)
    return f"{known}-dirty" if changed else known


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(_ROOT), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # a part that never loaded it used no GPU
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else None
