"""Two processes on the CPU, started by torchrun, train one network."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch
from small_run import OPTIONS, SmallRun, tensors
from torch import Tensor

from tracker_ros.networks.inference import DeviceError
from tracker_ros.training import parallel

ROOT = Path(__file__).parents[2]


def _torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCHELASTIC_ERROR_FILE": os.devnull}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*launcher, small_run.__file__, *arguments], env=environment, capture_output=True, text=True, timeout=240
    )


class _Both(SmallRun):
    """One process that sees the batches of both."""

    def losses(self, step: int) -> dict[str, Tensor]:
        self.net["late"].requires_grad_(2 <= step < 5)
        each = [self.terms(np.random.default_rng([OPTIONS.seed, step, rank, 2])) for rank in range(2)]
        return {name: (each[0][name] + each[1][name]) / 2 for name in each[0]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes leave."""
    out = tmp_path_factory.mktemp("parallel")
    result = _torchrun("train", str(out))
    assert result.returncode == 0, result.stderr
    return out


def _load(out: Path, rank: int, which: str) -> dict[str, Tensor]:
    state: dict[str, dict[str, Tensor]] = torch.load(out / f"rank{rank}.pt", weights_only=True)
    return state[which]


def test_both_processes_have_the_same_weights(trained: Path) -> None:
    first, second = (_load(trained, rank, "whole") for rank in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_two_processes_equal_one_that_sees_both_batches(trained: Path, tmp_path: Path) -> None:
    run = _Both(tmp_path, OPTIONS)
    run.run()
    start = tensors(SmallRun(tmp_path, OPTIONS))
    for key, value in _load(trained, 0, "whole").items():
        torch.testing.assert_close(value, tensors(run)[key], rtol=1e-5, atol=1e-6)
        assert torch.equal(value, start[key]) == ("unused" in key)  # the part that learns late has learnt


def test_resuming_with_two_processes_equals_not_stopping(trained: Path) -> None:
    for rank in range(2):
        whole, resumed = (_load(trained, rank, which) for which in ("whole", "resumed"))
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_the_first_process_prepares_ahead_of_the_other(trained: Path) -> None:
    assert (trained / "order").read_text() == "01"


def test_only_the_first_process_writes(trained: Path) -> None:
    assert sorted(path.name for path in (trained / "whole").iterdir()) == ["small.jsonl", "small.pt"]
    assert len((trained / "whole" / "small.jsonl").read_text().splitlines()) == 3


def test_a_failure_of_one_process_ends_all_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    result = _torchrun("fail", str(tmp_path))  # the run of the first is endless
    assert result.returncode != 0
    assert "the second process has no memory left" in result.stderr
    run = SmallRun(tmp_path, OPTIONS)
    run.load(run.checkpoint)
    assert run.step == 1


def test_each_process_draws_for_itself(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, OPTIONS)
    alone = run.generator(3).random()
    assert alone == np.random.default_rng([OPTIONS.seed, 3]).random()
    draws = set()
    for rank in range(3):
        run.ranks = parallel.Ranks(rank, 3)
        draws.add(run.generator(3).random())
        assert run.generator(3, common=True).random() == alone
    assert len(draws | {alone}) == 4


def test_one_device_does_not_serve_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parallel.choose_own_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="cuda:99"):
        parallel.choose_own_device("cuda:99")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parallel.choose_own_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="cannot serve 2 processes"):
        parallel.choose_own_device("cuda:0")


def test_what_would_be_trained_by_each_process_for_itself_is_refused(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, OPTIONS)
    run.ranks = parallel.Ranks(0, 2)
    del run.modules["weight"]
    with pytest.raises(RuntimeError, match="1 parameters of the optimizer belong to none"):
        run.train_step()
