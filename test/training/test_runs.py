"""Runs: schedule, resume, settings, and the recipes on tiny networks."""

import argparse
import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tracker_ros import cli, weights
from tracker_ros.networks.backbones import BACKBONE18, BACKBONES, build_backbone
from tracker_ros.networks.dimp import DIMP18, DiMPNet
from tracker_ros.networks.inference import choose_dtype
from tracker_ros.networks.resnet import RESNET18, ResNet
from tracker_ros.training.command import RECIPES
from tracker_ros.training.data import ImagePool, TrainingImage, pyramid
from tracker_ros.training.dimp import (
    DiMPOptions,
    DiMPTraining,
    warm_start,
)
from tracker_ros.training.distill import (
    TEACHER_CHANNELS,
    Distillation,
    DistillOptions,
    Heads,
    plan_pair,
    starting_state,
    videos_of,
)
from tracker_ros.training.inputs import add_data_arguments, read_pool
from tracker_ros.training.run import with_settings
from tracker_ros.training.sets import SetOptions


@pytest.fixture(scope="module")
def pool() -> ImagePool:
    images = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        picture = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
        images.append(TrainingImage(pyramid(picture), np.array([[120, 90, 40, 40]], np.float32), "test", f"{seed}"))
    return ImagePool(images)


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


def _distillation(pool: ImagePool, out: Path) -> Distillation:
    options = DistillOptions(steps=4, pairs=2, crop=64, bf16=False, log_every=1)
    return Distillation(pool, Teacher(), out, options)


def test_bfloat16_where_the_device_computes_it(pool: ImagePool, tmp_path: Path) -> None:
    native = choose_dtype("auto", torch.device("cpu")) is torch.bfloat16
    for wanted in (True, False):
        options = DistillOptions(steps=1, pairs=1, crop=64, bf16=wanted, device="cpu")
        run = Distillation(pool, Teacher(), tmp_path, options)
        with run.autocast():
            made = torch.zeros(2, 2) @ torch.zeros(2, 2)
        assert made.dtype is (torch.bfloat16 if wanted and native else torch.float32)


def _training(pool: ImagePool, out: Path, **changes: float) -> DiMPTraining:
    options = DiMPOptions(
        steps=4,
        sets=2,
        iterations=2,
        box_sets=2,
        box_frames=3,
        box_crop=96,
        box_count=4,
        validation=2,
        bf16=False,
        log_every=1,
    )
    options = with_settings(options, [f"{key}={value}" for key, value in changes.items()])
    return DiMPTraining(pool, pool, out, options, layout=SetOptions(size=144, area=2.5))


def _equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("build", [_distillation, _training])
def test_resuming_equals_not_stopping(build, pool: ImagePool, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    whole = build(pool, tmp_path / "whole")
    for _ in range(4):
        whole.train_step()
    part = build(pool, tmp_path / "part")
    for _ in range(2):
        part.train_step()
    part.save()
    resumed = build(pool, tmp_path / "part")
    resumed.load(resumed.checkpoint)
    assert resumed.step == 2
    for _ in range(2):
        resumed.train_step()
    assert _equal(whole.averaged, resumed.averaged)
    assert _equal(whole.average, resumed.average)


def test_nothing_to_resume_is_said(pool: ImagePool, tmp_path: Path) -> None:
    run = _distillation(pool, tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        run.load(run.checkpoint)


def test_distillation_reduces_its_loss(pool: ImagePool, tmp_path: Path) -> None:
    options = DistillOptions(steps=30, pairs=2, crop=64, bf16=False, warm_up=0.2)
    run = Distillation(pool, Teacher(), tmp_path, options)
    losses = [run.train_step()["total"] for _ in range(30)]
    assert np.mean(losses[-6:]) < 0.85 * np.mean(losses[:6])


def _video_pool(pool: ImagePool) -> ImagePool:
    """The images of `pool` as stills, and again as the frames of a video whose target moves."""
    video = [TrainingImage(i.levels, i.boxes + 10 * n, "video", i.name) for n, i in enumerate(pool.images)]
    return ImagePool([*pool.images, *video], [[3, 4, 5]])


def test_pairs_of_a_video_show_its_target_in_two_frames(pool: ImagePool) -> None:
    moving = _video_pool(pool)
    moving.images = moving.images[3:]
    moving.sequences = [[0, 1, 2]]
    together = 0
    for seed in range(60):
        views = [plan.layers[0] for plan in plan_pair(moving, 64, np.random.default_rng(seed), videos_of(moving))]
        together += views[0].image != views[1].image
        still = [plan.layers[0] for plan in plan_pair(moving, 64, np.random.default_rng(seed))]
        assert still[0].image == still[1].image
    assert 15 < together < 45


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_learns_and_is_judged_on_held_out_stills_and_videos(
    name: str, pool: ImagePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = _video_pool(pool)
    options = DistillOptions(steps=3, pairs=1, crop=64, backbone=name, validation=1, rate=1e-3)
    torch.manual_seed(8)
    start = build_backbone(BACKBONES[name]).state_dict()
    run = Distillation(both, Teacher(), tmp_path, options, start=start, held_out=both)
    assert all(torch.equal(value, start[key]) for key, value in run.student.state_dict().items())
    run.run()
    (line,) = [json.loads(text) for text in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert {"projected_stills", "relation_stills", "projected_videos", "relation_videos"} <= line.keys()
    assert run.validate() == run.validate()
    monkeypatch.setenv("TRACKER_ROS_MODELS", str(tmp_path))
    weights.load_backbone(build_backbone(BACKBONES[name]), name)
    assert starting_state(name, tmp_path / f"{name}.safetensors") is not None


def test_a_backbone_that_there_is_not(pool: ImagePool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backbone=vgg: expected one of backbone18, backbone_lite0"):
        Distillation(pool, Teacher(), tmp_path, DistillOptions(backbone="vgg"))


def test_distillation_writes_the_backbone_that_heads_share(pool: ImagePool, tmp_path: Path, monkeypatch) -> None:
    run = _distillation(pool, tmp_path)
    run.save()
    monkeypatch.setenv("TRACKER_ROS_MODELS", str(tmp_path))
    backbone = ResNet(RESNET18)
    weights.load_backbone(backbone, BACKBONE18)
    for mine, theirs in zip(backbone.parameters(), run.average.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_training_writes_weights_that_load(pool: ImagePool, tmp_path: Path) -> None:
    run = _training(pool, tmp_path)
    run.run()
    assert run.step == 4
    assert (tmp_path / "dimp18.jsonl").read_text().count("classify") == 4
    net = DiMPNet(DIMP18)
    weights.load(tmp_path / "dimp18.safetensors", net, "dimp18")
    for mine, theirs in zip(net.parameters(), run.average.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_backbone_stays_fixed_until_it_is_tuned(pool: ImagePool, tmp_path: Path) -> None:
    run = _training(pool, tmp_path, backbone_rate=0.1, backbone_from=0.5)
    before = [p.clone() for p in run.net.backbone.parameters()]
    run.train_step()
    run.train_step()
    assert all(torch.equal(a, b) for a, b in zip(before, run.net.backbone.parameters(), strict=True))
    run.train_step()
    changed = {
        name.split(".")[0]
        for (name, p), b in zip(run.net.backbone.named_parameters(), before, strict=True)
        if not torch.equal(p, b)
    }
    assert changed == {"layer3"}


def test_iou_net_can_be_trained_alone(pool: ImagePool, tmp_path: Path) -> None:
    run = _training(pool, tmp_path, sets=0, backbone_rate=0.0)
    before = [p.clone() for p in run.net.classifier.parameters()]
    assert set(run.train_step()) == {"iou", "total"}
    assert all(torch.equal(a, b) for a, b in zip(before, run.net.classifier.parameters(), strict=True))


def test_labels_lie_where_the_target_is(pool: ImagePool, tmp_path: Path) -> None:
    run = _training(pool, tmp_path)
    batch, _ = run.batches(run.plan(0))
    assert batch is not None
    batch.boxes[0, 2] = torch.tensor([56.0, 24.0, 16.0, 48.0])  # centre (64, 48): cell (4, 3)
    batch.present[0, 2] = True
    batch.present[1, 2] = False
    labels = run.labels(batch, 10)
    assert labels.shape == (2, 1, 10, 10)
    assert labels[0, 0].argmax() == 3 * 10 + 4
    assert labels[1, 0].abs().sum() == 0


def test_rate_warms_up_and_falls_to_zero(pool: ImagePool, tmp_path: Path) -> None:
    run = _training(pool, tmp_path, steps=100, warm_up=0.1)
    factors = []
    for step in range(100):
        run.step = step
        factors.append(run.factor())
    assert factors[5] == pytest.approx(0.5)
    assert max(factors) == pytest.approx(1.0)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.01


def test_warm_start_begins_with_the_distilled_projection() -> None:
    torch.manual_seed(0)
    net, heads = DiMPNet(DIMP18), Heads((128, 256), TEACHER_CHANNELS)
    features = torch.rand(1, 256, 6, 6)
    with torch.no_grad():  # heads whose output has mean zero over these features
        mean = features.mean((0, 2, 3))
        heads.projected.bias.copy_(-heads.projected.weight[:, :, 0, 0] @ mean)  # type: ignore[union-attr]
    warm_start(net, net.backbone.state_dict(), heads)
    net.eval()
    with torch.no_grad():
        mine = net.classifier.features[:-1](features).flatten(2)
        theirs = heads.projected(features).flatten(2)
    similarity = torch.nn.functional.cosine_similarity(mine[..., 7:29], theirs[..., 7:29], dim=1)
    assert similarity.mean() > 0.9


def test_settings_are_checked() -> None:
    options = with_settings(DiMPOptions(), ["sets=3", "bf16=false", "rate=0.01"])
    assert (options.sets, options.bf16, options.rate) == (3, False, 0.01)
    with pytest.raises(ValueError, match="expected key=value with one of"):
        with_settings(options, ["speed=3"])
    with pytest.raises(ValueError, match="'sets' takes a int"):
        with_settings(options, ["sets=three"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill"], "needs training data (--data or --images) and --teacher"),
        (["dimp18"], "needs training data (--data or --images)"),
        (["dimp18", "--data", "sequences:nowhere"], "folder nowhere not found"),
        (["dimp18", "--data", "films:nowhere"], "films"),
        (["dimp18", "--images", "nowhere", "--backbone", "none.pt"], "not found: none.pt, nowhere"),
    ],
)
def test_missing_data_is_named(arguments: list[str], message: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert cli.main(["train", *arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_the_networks_work_is_pictured(pool: ImagePool, tmp_path: Path) -> None:
    training = _training(pool, tmp_path)
    pictures = training.pictures()
    assert pictures["classifier"].shape == (2 * 144 + 2, 6 * 144 + 5 * 2, 3)
    assert pictures["boxes"].shape == (2 * 96 + 2, 3 * 96 + 2 * 2, 3)
    distillation = _distillation(pool, tmp_path)
    distillation.measure(1)
    assert distillation.pictures()["features"].shape == (4 * 64 + 3 * 2, 3 * 64 + 2 * 2, 3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_can_be_found(recipe: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    module, _, function = RECIPES[recipe].builder.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert f"  {recipe} " in capsys.readouterr().out


def test_data_sets_and_images_make_one_pool(tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 3)):
        (tmp_path / name / "jpg").mkdir(parents=True)
        rows = ["image,source,x,y,w,h,label"]
        for number in range(count):
            cv2.imwrite(str(tmp_path / name / "jpg" / f"{number}.jpg"), np.full((60, 80, 3), 90, np.uint8))
            rows.append(f"{number}.jpg,{name},10,10,20,20,car")
        (tmp_path / name / "boxes.csv").write_text("\n".join(rows) + "\n")
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    pool = read_pool(parser.parse_args(["--images", str(tmp_path / "a"), "--data", f"images:{tmp_path / 'b'}"]))
    assert sorted(image.source for image in pool.images) == ["a", "a", "b", "b", "b"]
    assert all(image.levels[0].shape == (60, 80, 3) and len(image.boxes) == 1 for image in pool.images)


def test_smoke_recipe_trains_without_files(tmp_path: Path) -> None:
    board = ["--tensorboard"] if importlib.util.find_spec("tensorboard") else []
    settings = ["steps=2", "validation=0", "log_every=1"]
    assert cli.main(["train", "smoke", "--out", str(tmp_path), *board, *(f"--set={s}" for s in settings)]) == 0
    assert (tmp_path / "dimp18.safetensors").is_file()
    assert bool(board) == any((tmp_path / "tensorboard").glob("events.*"))
