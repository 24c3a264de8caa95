"""Training of the Siamese trackers: scenes, replay, labels and losses by hand, resume."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tracker_ros import registry, weights
from tracker_ros.geometry.crops import template_side
from tracker_ros.networks.backbones import SharedBackboneConfig, shared_backbone
from tracker_ros.networks.siamban import SiamBANConfig, SiamBANNet
from tracker_ros.networks.siamese import Kernels
from tracker_ros.networks.siamrpn import SiamRPNConfig, SiamRPNNet
from tracker_ros.training import replay
from tracker_ros.training.command import add_arguments
from tracker_ros.training.data import ImagePool, TrainingImage, pyramid
from tracker_ros.training.losses import (
    anchor_labels,
    anchor_offsets,
    balanced_cross_entropy,
    distance_loss,
    ellipse_labels,
    offset_loss,
    sample_labels,
)
from tracker_ros.training.pairs import PairOptions, PairSampler
from tracker_ros.training.siamese import SiameseOptions, SiameseTraining, build, start_heads

QUIET = PairOptions(distractors=0, transplant=0, occluder=0, absent=0, videos=0)


def _pool(count: int = 3) -> ImagePool:
    images = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        picture = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
        images.append(TrainingImage(pyramid(picture), np.array([[120, 90, 50, 30]], np.float32), "test", f"{seed}"))
    return ImagePool(images)


@pytest.fixture(scope="module")
def pool() -> ImagePool:
    return _pool()


def test_templates_are_cut_as_the_tracker_cuts_them(pool: ImagePool) -> None:
    scene = PairSampler(pool, QUIET).scene(np.random.default_rng(0))
    assert scene.templates.shape == (2, 127, 127, 3)
    assert scene.searches.shape == (4, 255, 255, 3)
    # The first search crop is the first template's frame, with the template in its middle.
    assert np.array_equal(scene.searches[0, 64:191, 64:191], scene.templates[0])
    np.testing.assert_allclose(scene.boxes[0] - [64, 64, 0, 0], scene.template_boxes[0])
    centres = scene.template_boxes[:, :2] + scene.template_boxes[:, 2:] / 2
    np.testing.assert_allclose(centres, 63.5, atol=0.01)
    expected = 50 * 30 / template_side(np.array([50.0, 30.0]), 0.5) ** 2 * 127**2
    areas = scene.template_boxes[:, 2:].prod(1)
    assert np.all(np.abs(np.log(areas / expected)) < 0.25)


def test_targets_lie_where_the_options_allow(pool: ImagePool) -> None:
    sampler = PairSampler(pool, QUIET)
    boxes = np.concatenate([sampler.scene(np.random.default_rng(i)).boxes[1:] for i in range(60)])
    away = boxes[:, :2] + boxes[:, 2:] / 2 - 127.5
    assert np.abs(away).max() <= QUIET.shift * 1.35  # a turned crop can move a corner further
    assert np.abs(away).max() > 0.7 * QUIET.shift
    assert np.abs(away).mean(0).max() < 0.6 * QUIET.shift


def test_replay_holds_the_last_scenes_and_repeats_them(pool: ImagePool) -> None:
    torch.manual_seed(0)
    backbone = shared_backbone(SharedBackboneConfig()).eval()
    sampler = PairSampler(pool, QUIET)
    gone_on, resumed = (replay.Replay(sampler, backbone, 3, (1, 0, 1)) for _ in range(2))
    for count in range(1, 6):
        gone_on.advance(count)
    resumed.advance(5)
    assert len(gone_on) == len(resumed) == 3
    slots = np.arange(3)
    for a, b in zip(gone_on.take(slots).searches, resumed.take(slots).searches, strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        first = replay.embed(sampler, backbone, np.random.default_rng([1, 0, 1, 4]))
    assert torch.equal(resumed.take(np.array([4 % 3])).boxes, first.boxes)


def test_ellipse_labels_by_hand() -> None:
    box = torch.tensor([[10.0, 0.0, 40.0, 20.0]])
    at = torch.tensor([[10.0, 0.0], [19.0, 0.0], [21.0, 0.0], [29.0, 0.0], [31.0, 0.0], [10.0, 4.0], [10.0, 11.0]])
    assert ellipse_labels(box, at).tolist() == [[1, 1, -1, -1, 0, 1, 0]]


def test_anchor_labels_and_offsets_by_hand() -> None:
    assert anchor_labels(torch.tensor([[0.7, 0.5, 0.2]])).tolist() == [[1, -1, 0]]
    anchors = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    found = anchor_offsets(torch.tensor([[5.0, -10.0, 20.0, 20.0]]), anchors)
    torch.testing.assert_close(found, torch.tensor([[[0.5], [-0.5], [np.log(2.0)], [0.0]]], dtype=torch.float32))
    labels = torch.tensor([[1]])
    assert offset_loss(found, found, labels) == 0
    # Beyond 1/9 the loss is |x| - 1/18.
    assert float(offset_loss(found + torch.tensor([1.0, 0, 0, 0])[:, None], found, labels)) == pytest.approx(1 - 1 / 18)
    assert offset_loss(found + 1, found, torch.tensor([[0]])) == 0


def test_distance_loss_is_one_minus_iou() -> None:
    at, box = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    right = torch.full((1, 4, 1), 10.0)
    assert float(distance_loss(right, box, at, torch.tensor([[1]]))) == pytest.approx(0)
    half = torch.tensor([[[10.0], [10.0], [10.0], [0.0]]])
    assert float(distance_loss(half, box, at, torch.tensor([[1]]))) == pytest.approx(0.5)
    assert float(distance_loss(half, box, at, torch.tensor([[0]]))) == 0


def test_classes_weigh_the_same_whatever_their_number() -> None:
    logits = torch.zeros(1, 2, 5)
    logits[0, 1, 0] = 2.0  # the only positive
    labels = torch.tensor([[1, 0, 0, 0, -1]])
    expected = (np.log(1 + np.exp(-2)) + np.log(2)) / 2
    assert float(balanced_cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-5)


def test_samples_hold_the_hardest_negatives() -> None:
    labels = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0, 0, -1]])
    hardness = torch.tensor([[0.0, 0, 0, 0.1, 0.9, 0.2, 0.8, 0.3, 0.4, 1.0]])
    for seed in range(5):
        kept = sample_labels(labels, hardness, 2, 4, np.random.default_rng(seed))
        assert (kept == 1).sum() == 2
        assert (kept == 0).sum() == 4
        assert kept[0, 4] == kept[0, 6] == 0
        assert kept[0, 9] == -1
        assert bool(((kept == labels) | (kept == -1)).all())


def _training(pool: ImagePool, out: Path, kind: str, **changes: float) -> SiameseTraining:
    torch.manual_seed(5)
    shared = SharedBackboneConfig()
    net: SiamRPNNet | SiamBANNet = {
        "siamban18": lambda: SiamBANNet(SiamBANConfig(shared, neck=8, hidden=8)),
        "siamrpnpp18": lambda: SiamRPNNet(SiamRPNConfig(shared, neck=8, hidden=8)),
        "siamrpn18": lambda: SiamRPNNet(SiamRPNConfig(SharedBackboneConfig(stages=(3,)), neck=8)),
    }[kind]()
    start_heads(net)
    settings: dict[str, float] = {"steps": 4, "searches": 3, "scenes": 8, "fresh": 1, "validation": 2, "bf16": False}
    options = SiameseOptions(**(settings | changes))  # type: ignore[arg-type]
    return SiameseTraining(kind, net, pool, _pool(2), out, options)


def test_a_comparison_shares_the_search_branch(pool: ImagePool, tmp_path: Path) -> None:
    """What a step compares is what the network itself says of every pair alone."""
    for kind in ("siamban18", "siamrpnpp18", "siamrpn18"):
        run = _training(pool, tmp_path, kind)
        rng = np.random.default_rng(3)
        net = run.net.eval()
        with torch.no_grad():
            scenes = run.scenes(0, rng)
            drawn = run.comparison(scenes, rng)
            assert drawn.own == 3
            assert len(drawn.pairs.kernel) == 5  # and half of three with a stranger's template
            assert not drawn.present[3:].any()
            kernels = net.kernels(run.levels(net, scenes.templates, drawn.template))
            levels = run.levels(net, scenes.searches, drawn.search)
            maps = run.compare(net, scenes, drawn)
            assert maps.loc.shape[0] == drawn.own
            for i in range(len(drawn.pairs.kernel)):
                k, row = int(drawn.pairs.kernel[i]), int(drawn.pairs.search[i])
                one = Kernels(*(part[k : k + 1] for part in kernels))
                alone = net.compare([level[row : row + 1] for level in levels], one)
                torch.testing.assert_close(maps.cls[i], alone.cls[0], atol=1e-5, rtol=1e-4)
                if i < drawn.own:
                    torch.testing.assert_close(maps.loc[i], alone.loc[0], atol=1e-4, rtol=1e-4)


def test_resumed_is_uninterrupted(pool: ImagePool, tmp_path: Path) -> None:
    whole = _training(pool, tmp_path / "a", "siamrpnpp18")
    whole.run()
    first = _training(pool, tmp_path / "b", "siamrpnpp18")
    for _ in range(2):
        first.train_step()
    first.save()
    second = _training(pool, tmp_path / "b", "siamrpnpp18")
    second.load(second.checkpoint)
    second.run()
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name]), name
    assert (tmp_path / "a" / "siamrpnpp18.safetensors").is_file()


def test_only_the_heads_learn_and_the_loss_falls(pool: ImagePool, tmp_path: Path) -> None:
    run = _training(pool, tmp_path, "siamban18", steps=80, fresh=0, searches=4, rate=3e-3)
    before = {name: value.clone() for name, value in run.net.backbone.state_dict().items()}
    losses = [run.train_step()["total"] for _ in range(80)]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert all(torch.equal(value, before[name]) for name, value in run.net.backbone.state_dict().items())
    figures = run.validate()
    assert 0 <= figures["v_iou"] <= figures["v_best"] <= 1


def test_a_run_goes_on_from_weights_of_its_network(tmp_path: Path) -> None:
    (tmp_path / "jpg").mkdir()
    rows = []
    for number in range(3):
        picture = np.random.default_rng(number).integers(0, 255, (120, 160, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "jpg" / f"{number}.jpg"), picture)
        rows.append(f"{number}.jpg,x,40,30,50,40,1\n")
    (tmp_path / "boxes.csv").write_text("image,source,x,y,w,h,label\n" + "".join(rows))
    settings = ["steps=1", "searches=2", "scenes=4", "validation=0", "bf16=false", "angle=0.4"]
    words = ["siamban", "--images", str(tmp_path), "--out", str(tmp_path / "run")]
    words += ["--base", str(weights.shipped("siamban18")), *(word for s in settings for word in ("--set", s))]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run = build(parser.parse_args(words))
    expected = registry.networks()["siamban18"].create()
    weights.load(weights.shipped("siamban18"), expected, "siamban18")
    for name, value in expected.state_dict().items():
        assert torch.equal(run.net.state_dict()[name], value), name
    assert run.layout().angle == 0.4
