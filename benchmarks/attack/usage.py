"""Memory and CPU time of processes, each with its children."""

import contextlib
from collections.abc import Mapping

import psutil


class Usage:
    """Looks at processes by name; those that have ended have nothing."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}

    def memory(self) -> dict[str, int]:
        """Return resident bytes; what children share with their parent counts for each."""
        return {name: sum(_memory(own) for own in _tree(process)) for name, process in self._processes.items()}

    def cpu(self) -> dict[str, float]:
        """Return CPU seconds since the start, those of children that have ended too."""
        return {name: sum(_cpu(own) for own in _tree(process)) for name, process in self._processes.items()}


def _tree(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def _memory(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        return int(process.memory_info().rss)
    return 0


def _cpu(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0
