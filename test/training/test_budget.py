"""The recipe that goes from images to weights within a given time, on tiny networks' worth of work."""

import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tracker_ros import cli, weights
from tracker_ros.networks.dimp import DIMP18, DiMPNet
from tracker_ros.training.budget import Budget, BudgetOptions, schedule
from tracker_ros.training.data import ImagePool, TrainingImage, pyramid
from tracker_ros.training.device import DeviceImages
from tracker_ros.training.dimp import DiMPOptions, DiMPTraining
from tracker_ros.training.distill import TEACHER_CHANNELS, Distillation, DistillOptions
from tracker_ros.training.pack import split_file
from tracker_ros.training.sets import SetOptions

LAYOUT = SetOptions(size=144, area=2.5)


class Teacher(nn.Module):
    """Fixed random projections with the teacher's layout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(
            nn.Conv2d(3, channels, stride, stride)
            for channels, stride in zip(TEACHER_CHANNELS, (8, 16, 16), strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers]


@pytest.fixture(scope="module")
def pool() -> ImagePool:
    images = []
    for seed in range(3):
        coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
        picture = cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC)
        images.append(TrainingImage(pyramid(picture), np.array([[120, 90, 40, 40]], np.float32), "test", f"{seed}"))
    return ImagePool(images)


def _parts(options: BudgetOptions) -> tuple[DistillOptions, DiMPOptions]:
    """The schedule with everything as small as it can be."""
    distill, heads = schedule(options, torch.device("cpu"))
    distill = replace(distill, pairs=1, crop=64)
    return distill, replace(
        heads, sets=1, box_sets=1, box_frames=2, box_crop=96, box_count=4, iterations=1, validation=0
    )


def _budget(pool: ImagePool, out: Path, steps: int = 2) -> Budget:
    options = BudgetOptions(steps=steps, bf16=False, log_every=1, part_megabytes=8)
    return Budget(pool, ImagePool(), Teacher(), out, options, _parts(options), LAYOUT)


@pytest.fixture(scope="module")
def finished(pool: ImagePool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a budget was trained to its end."""
    out = tmp_path_factory.mktemp("finished")
    _budget(pool, out).run()
    return out


def test_a_budget_ends_with_weights_and_their_parts(finished: Path) -> None:
    whole = finished / "dimp18.safetensors"
    parts = sorted((finished / "parts").glob("*.part*"))
    assert len(parts) == 3
    assert all(part.stat().st_size <= 8e6 for part in parts)
    joined = subprocess.run(
        "cat dimp18.safetensors.part* > dimp18.safetensors && sha256sum -c dimp18.safetensors.sha256",
        shell=True,
        cwd=finished / "parts",
        capture_output=True,
        text=True,
    )
    assert joined.returncode == 0, joined.stderr
    assert (finished / "parts/dimp18.safetensors").read_bytes() == whole.read_bytes()
    net = DiMPNet(DIMP18)
    weights.load(whole, net, "dimp18")
    distilled = torch.load(finished / "distill.pt", weights_only=True)["average"]
    torch.testing.assert_close(net.backbone.conv1.weight, distilled["conv1.weight"], rtol=1e-3, atol=1e-4)


def test_a_budget_goes_on_where_it_stopped(pool: ImagePool, finished: Path, tmp_path: Path) -> None:
    stopped = _budget(pool, tmp_path)
    stopped.first.train_step()
    stopped.first.save()
    resumed = _budget(pool, tmp_path)  # within the first run
    resumed.load(resumed.checkpoint)
    assert resumed.step == 1
    resumed.run()
    nets = DiMPNet(DIMP18), DiMPNet(DIMP18)
    for net, folder in zip(nets, (tmp_path, finished), strict=True):
        weights.load(folder / "dimp18.safetensors", net, "dimp18")
    for mine, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=1e-6)

    again = _budget(pool, tmp_path, steps=3)  # within the second one
    again.load(again.checkpoint)
    assert isinstance(again.active, DiMPTraining)
    assert again.step == 2
    again.run()
    assert again.step == 3


def test_nothing_to_go_on_with_is_said(pool: ImagePool, tmp_path: Path) -> None:
    budget = _budget(pool, tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        budget.load(budget.checkpoint)


def test_the_time_is_shared_out() -> None:
    options = BudgetOptions(minutes=25)
    on_cpu, on_gpu = (schedule(options, torch.device(name)) for name in ("cpu", "cuda"))
    for distill, heads in (on_cpu, on_gpu):
        assert 23 < distill.minutes + heads.minutes < 25
        assert distill.minutes == pytest.approx(0.45 * 24)
    assert (on_cpu[0].pairs, on_cpu[1].sets) == (8, 4)
    assert on_gpu[0].pairs > 8
    chosen = schedule(replace(options, pairs=3, sets=5, box_sets=7, workers=1), torch.device("cuda"))
    assert (chosen[0].pairs, chosen[1].sets, chosen[1].box_sets, chosen[1].workers) == (3, 5, 7, 1)


def test_late_heads_get_the_time_that_is_left(pool: ImagePool, tmp_path: Path) -> None:
    budget = _budget(pool, tmp_path)
    budget.started -= 60 * 20
    assert budget._heads().settings.minutes == pytest.approx(24 - 20, abs=0.1)


def test_crops_from_the_device_train_like_those_from_the_host(pool: ImagePool, tmp_path: Path) -> None:
    """The renderer and the number of workers change nothing but the last bits of a pixel."""
    losses = []
    for number, (images, workers) in enumerate([(None, 0), (DeviceImages(pool, "cpu"), 0), (None, 1)]):
        options = BudgetOptions(steps=2, bf16=False, workers=workers)
        distill, heads = (replace(part, rate=1e-4) for part in _parts(options))
        out = tmp_path / str(number)
        first = Distillation(pool, Teacher(), out, distill, images)
        second = DiMPTraining(pool, ImagePool(), out, heads, layout=LAYOUT, images=images)
        losses.append([first.train_step()["total"], second.train_step()["total"]])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[2] == losses[0]


def test_missing_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = tmp_path / "teacher.ts"
    teacher.write_bytes(b"")
    assert cli.main(["train", "budget", "--teacher", str(teacher), "--out", str(tmp_path)]) == 2
    assert "needs training data" in capsys.readouterr().err
    assert cli.main(["train", "budget", "--out", str(tmp_path)]) == 2
    assert "needs --teacher" in capsys.readouterr().err


def test_a_file_that_makes_too_many_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    assert len(split_file(tmp_path / "file", tmp_path / "parts", 0.0003)) == 4
    assert len(split_file(tmp_path / "file", tmp_path / "parts", 0.001)) == 1
    assert [path.name for path in sorted((tmp_path / "parts").iterdir())] == ["file.part00", "file.sha256"]
    with pytest.raises(ValueError, match="more than 100 parts"):
        split_file(tmp_path / "file", tmp_path / "parts", 0.000005)
