"""What is drawn ahead by other processes is what the run would have drawn itself, in order."""

import os

import pytest
import torch

from tracker_ros.training.ahead import Ahead, choose_workers


def test_workers_are_chosen_only_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(os, "cpu_count", lambda: 17)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert [choose_workers(wanted, cpu) for wanted in (-1, 0, 3)] == [0, 0, 3]
    assert [choose_workers(wanted, gpu) for wanted in (-1, 0, 3)] == [8, 0, 3]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_workers(-1, gpu) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_come_in_order_from_anywhere(workers: int) -> None:
    ahead = Ahead(lambda step: (step, step**2), workers)
    assert [ahead(step) for step in range(5, 12)] == [(step, step**2) for step in range(5, 12)]
    assert [ahead(step) for step in (2, 3)] == [(2, 4), (3, 9)]  # as after a checkpoint is loaded


def test_workers_are_other_processes() -> None:
    ahead = Ahead(lambda step: os.getpid(), 2)
    found = [ahead(step) for step in range(4)]
    assert os.getpid() not in found
    assert len(set(found)) == 2


def test_an_error_in_a_worker_reaches_the_run() -> None:
    def plan(step: int) -> int:
        if step == 2:
            raise ValueError("no image of the pool has a usable box")
        return step

    ahead = Ahead(plan, 1)
    assert [ahead(0), ahead(1)] == [0, 1]
    with pytest.raises(ValueError, match="usable box"):
        ahead(2)
