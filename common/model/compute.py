"""The one thread of a worker that computes."""

import sys
from concurrent.futures import ThreadPoolExecutor

import torch

_SWITCH_SECONDS = 0.0005
"""The thread gives the interpreter up with every operation, hundreds of times in a step, and beside a busy event loop
gets it back only so much later each time. Python's own choice is 5 ms."""


def compute_thread(name: str, num_threads: int | None) -> ThreadPoolExecutor:
    """Return an executor of one thread in which torch uses `num_threads` threads, by default its own choice.

    The calling thread computes with one from now on. OpenMP keeps a team of threads for every thread that computes,
    and as soon as they are more than the cores, all of them sleep between two operations instead of spinning for a
    moment: on two cores that doubles the time of a decode step.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    chosen = num_threads or torch.get_num_threads()
    torch.set_num_threads(1)
    executor = ThreadPoolExecutor(1, thread_name_prefix=name)
    executor.submit(torch.set_num_threads, chosen).result()
    return executor
