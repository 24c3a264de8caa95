"""CLNet's training: sets and mining on hand-made cases, what learns, and runs on tiny networks."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from siamese_nets import build

from tracker_ros import cli, weights
from tracker_ros.geometry.anchors import anchor_shapes, anchors, overlap
from tracker_ros.networks.backbones import SharedBackboneConfig
from tracker_ros.networks.clnet import AdjustedKernels, CLNet, CLNetConfig
from tracker_ros.networks.resnet import ResNetConfig
from tracker_ros.networks.siamrpn import SiamRPNConfig, SiamRPNNet
from tracker_ros.trackers import clnet as tracker
from tracker_ros.training.clnet import (
    CLNetOptions,
    CLNetTraining,
    adjustment_sets,
    adopt,
    gather,
    respond,
)
from tracker_ros.training.data import ImagePool, TrainingImage, pyramid

CONFIG = CLNetConfig(
    SiamRPNConfig(SharedBackboneConfig(ResNetConfig((1, 1, 1), False)), neck=8, hidden=8), latent=(4, 8), width=8
)


@pytest.fixture(scope="module")
def pool() -> ImagePool:
    images = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        picture = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
        images.append(TrainingImage(pyramid(picture), np.array([[120, 90, 40, 40]], np.float32), "test", f"{seed}"))
    return ImagePool(images)


def _network() -> CLNet:
    """A CLNet that builds on a base with random weights."""
    torch.manual_seed(5)
    net, base = CLNet(CONFIG), SiamRPNNet(CONFIG.base)
    adopt(net, base)
    return net


def _training(pool: ImagePool, out: Path, **changes: int) -> CLNetTraining:
    options = CLNetOptions(
        **{
            "steps": 4,
            "sequences": 2,
            "frames": 2,
            "memory": 5,
            "start": 3,
            "fresh": 1,
            "validation": 2,
            "log_every": 1,
            **changes,
        },  # type: ignore[arg-type]
        bf16=False,
        rate=1e-2,
    )
    return CLNetTraining(_network(), pool, pool, out, options)


def _overlaps(box: tuple[float, ...]) -> torch.Tensor:
    grid = torch.from_numpy(anchors(anchor_shapes(), 25))
    return overlap(grid, torch.tensor(box))[None]


# --- sets ------------------------------------------------------------------------------------------------------------


def test_sets_of_a_square_target_in_the_middle() -> None:
    """A target of 64x64: of its own anchor shape, offsets of up to 8 pixels a side overlap it by more than 0.6."""
    scores = torch.zeros(1, 5 * 625)
    positive, negative = adjustment_sets(_overlaps((0, 0, 64, 64)), scores, 625, np.random.default_rng(0))
    expected = torch.zeros(25, 25, dtype=torch.bool)
    expected[11:14, 11:14] = True
    assert torch.equal(positive[0].reshape(25, 25), expected)
    assert not (positive & negative).any()
    # Its neighbours, which overlap by 0.3 to 0.6, all count as negative.
    ring = torch.zeros(25, 25, dtype=torch.bool)
    ring[10:15, 10:15] = True
    assert negative[0].reshape(25, 25)[ring & ~expected].all()
    far = torch.from_numpy(anchors(anchor_shapes(), 25))[:625, :2].abs().amax(1) > 64
    assert 30 <= int(negative[0][far].sum()) <= 64


def test_sets_are_those_of_the_tracker() -> None:
    """With as many samples as there are anchors nothing is left to chance, and both rules give the same sets."""
    box = (3.0, -2.0, 50.0, 80.0)
    overlaps = _overlaps(box)
    scores = torch.rand(1, 5 * 625, generator=torch.Generator().manual_seed(1))
    mine = adjustment_sets(overlaps, scores, 625, np.random.default_rng(0), 10**4, 0, 10**4)
    preset = tracker.PRESETS["clnet"].vary(hard_negatives=512, device="cpu")
    rule = tracker.CLNet("clnet", preset, build("clnet"))  # type: ignore[arg-type]
    labels = rule.label(np.array(box), torch.stack([1 - scores[0], scores[0]]).log().double().numpy(), 25)
    positive, _ = rule.sets(labels)
    assert np.array_equal(mine[0][0].numpy(), positive)
    assert mine[0].any()
    assert torch.equal(mine[1], ~mine[0])


def test_the_diverse_samples_are_those_that_the_base_takes_for_the_target() -> None:
    overlaps = _overlaps((0, 0, 64, 64))
    scores = torch.zeros(1, 5 * 625)
    fooled = [3 * 25 + 4, 20 * 25 + 21, 2 * 625 + 22 * 25 + 2]  # cells far from the target
    scores[0, fooled] = torch.tensor([0.9, 0.8, 0.7])
    cells = [index % 625 for index in fooled]
    for diverse, expected in ((0, 0), (2, 2), (3, 3)):
        _, negative = adjustment_sets(overlaps, scores, 625, np.random.default_rng(0), 16, 0, diverse)
        assert negative[0, cells].tolist() == [True] * expected + [False] * (3 - expected)


# --- what learns -----------------------------------------------------------------------------------------------------


def test_an_untrained_adjustment_changes_nothing(pool: ImagePool, tmp_path: Path) -> None:
    run = _training(pool, tmp_path)
    terms = run.losses(0)
    torch.testing.assert_close(terms["total"].detach(), terms["base"])
    figures = run.validate()
    for name in ("v_loss", "v_iou", "v_ap"):
        assert figures[name] == pytest.approx(figures[f"{name}_base"], rel=1e-5)


def test_only_the_adjusting_networks_learn(pool: ImagePool, tmp_path: Path) -> None:
    run = _training(pool, tmp_path)
    before = {name: value.clone() for name, value in run.net.state_dict().items()}
    run.train_step()
    run.train_step()
    assert all(p.grad is None for name, p in run.net.named_parameters() if not name.startswith("adjustments."))
    # From the second step on the gradient reaches all of each adjusting network.
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in run.net.adjustments.parameters() if p.ndim > 1)
    for name, value in run.net.state_dict().items():
        assert name.startswith("adjustments.") or torch.equal(value, before[name]), name
    weighted = [name for name, p in run.net.adjustments.named_parameters() if p.ndim > 1]
    assert all(not torch.equal(run.net.state_dict()[f"adjustments.{n}"], before[f"adjustments.{n}"]) for n in weighted)


def test_training_beats_the_base(pool: ImagePool, tmp_path: Path) -> None:
    run = _training(pool, tmp_path, steps=40, fresh=0)
    terms = [run.train_step() for _ in range(40)]
    late = terms[-8:]
    assert sum(t["total"] for t in late) < 0.9 * sum(t["base"] for t in late)


@torch.no_grad()
def test_a_batch_of_sequences_is_each_alone(pool: ImagePool, tmp_path: Path) -> None:
    run = _training(pool, tmp_path, validation=3)
    for part in run.net.adjustments.parameters():
        part.normal_(0, 0.2)
    both = gather(run.held_out)
    base = respond(run.net, both, run.net.unadjusted(both.kernels))
    scores, frames = base.scores, both.present.shape[1]
    overlaps = run.overlaps(both, base)
    sets = adjustment_sets(overlaps[:, 0], scores.unflatten(0, both.present.shape)[:, 0], 625, np.random.default_rng(0))
    layers = run.net.adjust(both.kernels, both.first, *sets)
    maps = respond(run.net, both, layers)
    for i, one in enumerate(run.held_out):
        alone = gather([one])
        own = run.net.adjust(alone.kernels, alone.first, sets[0][i : i + 1], sets[1][i : i + 1])
        torch.testing.assert_close(own.cls_weight[0], layers.cls_weight[i], atol=1e-5, rtol=1e-4)
        single = respond(run.net, alone, own)
        rows = slice(i * frames, (i + 1) * frames)
        torch.testing.assert_close(single.cls, maps.cls[rows], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(single.loc, maps.loc[rows], atol=1e-4, rtol=1e-4)
    assert (layers.cls_weight[0] - layers.cls_weight[1]).abs().max() > 1e-4


@torch.no_grad()
def test_a_sequence_is_what_the_network_sees(pool: ImagePool, tmp_path: Path) -> None:
    """The kept hidden maps lead to the maps that the network makes of the crops."""
    from tracker_ros.training.pairs import PairOptions, PairSampler

    run = _training(pool, tmp_path)
    sampler = PairSampler(pool, PairOptions(templates=1, searches=2))
    kept = gather([run.watch(sampler, np.random.default_rng(3))])
    scene = sampler.scene(np.random.default_rng(3))
    template, searches = (
        torch.from_numpy(crops.copy()).permute(0, 3, 1, 2).float() for crops in (scene.templates, scene.searches)
    )
    kernels = run.net.template(template)
    expected = run.net(searches, type(kernels)(*(part.expand(3, *part.shape[1:]) for part in kernels)))
    maps = respond(run.net, kept, run.net.unadjusted(kept.kernels))
    torch.testing.assert_close(maps.cls, expected.cls, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(maps.loc, expected.loc, atol=2e-3, rtol=2e-3)
    # The first frame is the template's, with the target in the middle.
    assert kept.boxes[0, 0, :2].abs().max() < 1.0
    assert kept.present[0, 0]


# --- runs ------------------------------------------------------------------------------------------------------------


def test_resuming_equals_not_stopping(pool: ImagePool, tmp_path: Path) -> None:
    whole = _training(pool, tmp_path / "whole", validation=0)
    for _ in range(4):
        whole.train_step()
    part = _training(pool, tmp_path / "part", validation=0)
    part.train_step()
    part.train_step()
    (tmp_path / "part").mkdir()
    torch.save(part.state(), part.checkpoint)
    resumed = _training(pool, tmp_path / "part", validation=0)
    resumed.load(resumed.checkpoint)
    assert resumed.step == 2
    resumed.train_step()
    resumed.train_step()
    for mine, theirs in ((whole.net, resumed.net), (whole.average, resumed.average)):
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in mine.state_dict().items())


def test_a_base_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "clnet", "--base", str(tmp_path / "none.safetensors"), "--out", str(tmp_path)]
    assert cli.main(arguments) == 2
    assert "none.safetensors" in capsys.readouterr().err


def test_what_is_written_tracks_without_and_with_adjustment(pool: ImagePool, tmp_path: Path) -> None:
    """The recipe's file on the full compact shape loads into the tracker; each ablation is another tracker."""
    from tracker_ros.geometry.boxes import Box
    from tracker_ros.networks.clnet import CLNET18
    from tracker_ros.networks.siamrpn import SIAMRPNPP18

    if not weights.shipped("backbone18").is_file():
        pytest.skip("models/backbone18.safetensors is not there; it is shipped with the package")
    torch.manual_seed(0)
    net, base = CLNet(CLNET18), SiamRPNNet(SIAMRPNPP18)
    weights.load_backbone(base.backbone, "backbone18")
    adopt(net, base)
    for parameter in net.adjustments.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.1)
    run = CLNetTraining(net, pool, pool, tmp_path, CLNetOptions(steps=1, validation=0))
    run.save()
    frame = pool.images[0].levels[0]
    layers: dict[str, AdjustedKernels] = {}
    for adjust in ("none", "cls", "loc", "both"):
        options = tracker.PRESETS["clnet"].vary(
            network="clnet18", weights=str(tmp_path / "clnet18.safetensors"), device="cpu", adjust=adjust
        )
        assert isinstance(options, tracker.CLNetOptions)
        made = tracker.CLNet("clnet", options)
        target = made.start(frame, [Box(120, 90, 40, 40)])
        layers[adjust] = cast(AdjustedKernels, target[0].template)
    plain, both = layers["none"], layers["both"]
    for adjust, changed in (("cls", ("cls_weight", "cls_bias")), ("loc", ("loc_weight", "loc_bias"))):
        for field in ("cls_weight", "cls_bias", "loc_weight", "loc_bias"):
            kept = both if field in changed else plain
            torch.testing.assert_close(getattr(layers[adjust], field), getattr(kept, field))
    assert not torch.equal(plain.cls_weight, both.cls_weight)
    assert not torch.equal(plain.loc_weight, both.loc_weight)
