"""How far the host runs ahead of a GPU, with events that note what is asked of them."""

from typing import ClassVar

import pytest
import torch

from services.prefill.pace import Pace


class Event:
    log: ClassVar[list[str]] = []

    def __init__(self, *, blocking: bool) -> None:
        self.name = str(sum(entry.startswith("queued") for entry in self.log))

    def record(self, stream: object) -> None:
        self.log.append(f"queued {self.name}")

    def synchronize(self) -> None:
        self.log.append(f"waited for {self.name}")


def test_a_step_waits_for_the_one_two_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(Event, "log", [])
    pace = Pace(torch.device("cuda:0"))
    for _ in range(4):
        pace.step()
    assert Event.log == ["queued 0", "queued 1", "queued 2", "waited for 0", "queued 3", "waited for 1"]


def test_on_a_cpu_there_is_nothing_to_wait_for() -> None:
    pace = Pace(torch.device("cpu"))
    for _ in range(4):
        pace.step()
    assert not pace._queued


@pytest.mark.gpu
def test_a_gpu_is_at_most_two_steps_behind() -> None:
    pace, device = Pace(torch.device("cuda:0")), "cuda:0"
    square = torch.randn(4096, 4096, device=device)
    done = []
    for _ in range(8):
        for _ in range(20):
            square = (square @ square).tanh_()
        done.append(torch.cuda.Event())
        done[-1].record()
        pace.step()
        assert all(event.query() for event in done[:-2])
