"""DiMP's online tracker on a network with seeded random weights, which can follow a textured patch."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from tracker_ros.errors import WeightsMissing
from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.networks.dimp import DIMP18, DIMP50, DiMPNet
from tracker_ros.networks.inference import DeviceError
from tracker_ros.trackers.base import InvalidOption, TrackState
from tracker_ros.trackers.dimp import (
    PRESETS,
    DiMP,
    DiMPOptions,
    RandomDraws,
    SampleMemory,
    _blur,
    _crop_center,
    _rotate,
)


@pytest.fixture(scope="module")
def network() -> DiMPNet:
    torch.manual_seed(3)
    return DiMPNet(DIMP18).eval()


def _tracker(network: DiMPNet, **options: object) -> DiMP:
    # Untrained features give peaks of about 0.35, so the thresholds are lower than for trained ones.
    defaults: dict[str, object] = {
        "device": "cpu",
        "precision": "float32",
        "refinement_iterations": 0,
        "bad_score": 0.15,
        "good_score": 0.2,
        "regain_score": 0.2,
    }
    return DiMP("dimp18", PRESETS["dimp18"].vary(**(defaults | options)), network)


def _scene(texture: np.ndarray, x: int, y: int, shown: bool = True) -> tuple[np.ndarray, Box]:
    """A checkered square of 36 pixels on a smooth background."""
    frame = cv2.GaussianBlur(texture, (0, 0), 8)
    if shown:
        square = np.kron(np.indices((6, 6)).sum(0) % 2, np.ones((6, 6)))[..., None] * [40, 220, 250]
        frame[y : y + 36, x : x + 36] = square.astype(np.uint8)
    return frame, Box(x, y, 36, 36)


def test_follows_a_moving_patch(network: DiMPNet, texture: np.ndarray) -> None:
    tracker = _tracker(network)
    frame, box = _scene(texture, 100, 90)
    tracker.initialize(frame, box)
    for i in range(1, 12):
        frame, truth = _scene(texture, 100 + 6 * i, 90 + 4 * i)
        estimate = tracker.track(frame)
        assert iou(estimate.box, truth) > 0.4, i
        assert estimate.state is TrackState.TRACKING
    assert estimate.heatmap is not None
    assert estimate.heatmap.shape == (19, 19)
    row, column = np.unravel_index(int(estimate.heatmap.argmax()), estimate.heatmap.shape)
    region = estimate.search_region
    peak = (region.x + (column + 0.5) * region.w / 19, region.y + (row + 0.5) * region.h / 19)
    assert math.dist(peak, truth.center) < 16, "the heatmap, stretched over the search region, peaks at the target"


def test_says_lost_when_the_target_is_gone_and_regains_it_elsewhere(network: DiMPNet, texture: np.ndarray) -> None:
    tracker = _tracker(network)
    frame, box = _scene(texture, 30, 30)
    tracker.initialize(frame, box)
    for _ in range(5):
        assert tracker.track(frame).state is TrackState.TRACKING
    empty, _ = _scene(texture, 0, 0, shown=False)
    states = [tracker.track(empty).state for _ in range(15)]
    assert states[-1] is TrackState.LOST
    back, truth = _scene(texture, 240, 180)
    estimates = [tracker.track(back) for _ in range(20)]
    assert estimates[-1].state is TrackState.TRACKING
    assert iou(estimates[-1].box, truth) > 0.4


def test_the_same_seed_gives_the_same_track(network: DiMPNet, texture: np.ndarray) -> None:
    boxes = []
    for seed in (1, 1, 2):
        tracker = _tracker(network, seed=seed, refinement_iterations=2)
        tracker.initialize(*_scene(texture, 100, 90))
        boxes.append(tuple(tracker.track(_scene(texture, 104, 92)[0]).box))
    assert boxes[0] == boxes[1]
    assert boxes[0] != boxes[2]


def test_targets_of_one_batch_are_tracked_as_if_alone(network: DiMPNet, texture: np.ndarray) -> None:
    tracker = _tracker(network, refinement_iterations=2, update_interval=2)
    frame, box = _scene(texture, 100, 90)
    other = Box(200, 20, 50, 30)
    frames = [_scene(texture, 100 + 5 * i, 90)[0] for i in range(1, 6)]
    together = tracker.start(frame, [box, other])
    joint = [tracker.step(f, together) for f in frames]
    for index, single in enumerate((box, other)):
        alone = tracker.start(frame, [single])
        for f, estimates in zip(frames, joint, strict=True):
            estimate = tracker.step(f, alone)[0]
            assert np.allclose(estimate.box, estimates[index].box, atol=0.05)
            assert estimate.state is estimates[index].state


def test_update_policy(network: DiMPNet, texture: np.ndarray) -> None:
    frame, box = _scene(texture, 100, 90)
    fixed = _tracker(network, update="none")
    target = fixed.start(frame, [box])[0]
    before = target.filter.clone()
    for _ in range(5):
        fixed.step(frame, [target])
    assert target.memory is None
    assert torch.equal(before, target.filter)

    learning = _tracker(network, update="dimp", update_interval=4)
    target = learning.start(frame, [box])[0]
    changed = []
    for _ in range(8):
        before = target.filter
        learning.step(frame, [target])
        changed.append(not torch.equal(before, target.filter))
    assert target.memory is not None
    assert target.memory.count == 15 + 8
    # The first frame counts as 1, and the update comes when (frame - 1) is a multiple of the interval.
    assert changed == [False, False, False, True, False, False, False, True]


def test_optimizers_of_the_ablation(network: DiMPNet, texture: np.ndarray) -> None:
    """none leaves the initializer's filter alone; gradient lowers the loss, steepest descent lowers it further."""
    seen: dict[str, torch.Tensor] = {}

    def keep(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        seen.update(samples=arguments[0], boxes=arguments[1], initial=result)

    frame, box = _scene(texture, 100, 90)
    loss = {}
    for name in ("none", "gradient", "steepest"):
        tracker = _tracker(network, optimizer=name, gradient_step=0.001, update_interval=1)
        tracker.network.classifier.initializer.register_forward_hook(keep)
        target = tracker.start(frame, [box])[0]
        if name == "none":
            assert torch.equal(target.filter, seen["initial"][0])
            tracker.step(frame, [target])
            assert torch.equal(target.filter, seen["initial"][0]), "without an optimizer there is no update"
        with torch.inference_mode():
            optimizer = tracker.network.classifier.optimizer
            loss[name] = float(optimizer.loss(target.filter[None], seen["samples"], seen["boxes"]))
    assert loss["steepest"] < loss["gradient"] < loss["none"]


def test_memory_keeps_the_first_frame_and_forgets_the_least_weighted() -> None:
    memory = SampleMemory.start(torch.zeros(3, 1, 1, 1), torch.zeros(3, 4), 5)
    for i in range(1, 200):
        memory.add(torch.full((1, 1, 1), float(i)), torch.zeros(4), 0.1, 0.25)
        # The published rule for the first frame's share leaves the sum a little off.
        assert memory.weights.sum() == pytest.approx(1, abs=0.02)
        assert memory.weights[:3].sum() >= 0.25 - 1e-12
    assert memory.count == 5
    assert torch.equal(memory.features[:3].flatten(), torch.zeros(3))
    assert sorted(memory.features[3:].flatten().tolist()) == [198.0, 199.0]
    newest = int(memory.features.flatten().argmax())
    assert memory.newest == newest
    assert memory.weights[newest] == memory.weights[3:].max()


@pytest.mark.parametrize("size", [(640, 480), (128, 96), (333, 777)])
@pytest.mark.parametrize("box", [(0.0, 0.0, 20.5, 10.25), (100.0, 60.0, 28.0, 36.0), (2.0, 1.0, 120.0, 90.0)])
def test_any_image_and_box(network: DiMPNet, size: tuple[int, int], box: tuple[float, ...]) -> None:
    width, height = size
    frame = np.random.RandomState(0).randint(0, 255, (height, width, 3)).astype(np.uint8)
    tracker = _tracker(network, refinement_iterations=3)
    tracker.initialize(frame, box)
    for shift in (0, 40):
        estimate = tracker.track(np.roll(frame, shift, 1))
        assert np.isfinite(estimate.box).all()
        assert 0 <= estimate.score <= 1


def test_an_image_of_another_size_in_mid_stream_is_taken(network: DiMPNet, texture: np.ndarray) -> None:
    tracker = _tracker(network)
    tracker.initialize(*_scene(texture, 200, 150))
    estimate = tracker.track(np.ascontiguousarray(texture[:100, :100]))
    assert np.isfinite(estimate.box).all()


def test_the_larger_network_runs(texture: np.ndarray) -> None:
    tracker = DiMP("dimp50", PRESETS["dimp50"].replace(device="cpu"), DiMPNet(DIMP50))
    tracker.initialize(*_scene(texture, 100, 90))
    assert np.isfinite(tracker.track(_scene(texture, 103, 90)[0]).box).all()


def test_refusals(tmp_path: object) -> None:
    with pytest.raises(InvalidOption, match="search_area_scale"):
        DiMPOptions(search_area_scale=0.5)
    with pytest.raises(InvalidOption, match="multiple of 16"):
        DiMPOptions(image_size=300)
    with pytest.raises(InvalidOption, match="one of none, dimp"):
        DiMPOptions(update="always")
    with pytest.raises(WeightsMissing, match=r"nowhere\.safetensors"):
        DiMP("dimp18", DiMPOptions(weights="nowhere.safetensors"))
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="0 CUDA devices"):
            DiMP("dimp18", DiMPOptions(device="cuda:3"), DiMPNet(DIMP18))


def test_augmentations_move_the_image_as_they_say() -> None:
    image = torch.zeros(1, 3, 80, 80)
    image[..., 40:44, 50:54] = 1  # centre (52, 42)

    def center(x: torch.Tensor) -> tuple[float, float]:
        mass = x[0, 0] / x[0, 0].sum()
        grid = torch.arange(x.shape[-1]) + 0.5
        return float((mass.sum(0) * grid).sum()), float((mass.sum(1) * grid).sum())

    assert center(_crop_center(image, 60, np.array([3, -5]))) == pytest.approx((52 - 10 - 5, 42 - 10 + 3), abs=1e-4)
    assert center(_blur(image, 2, 1)) == pytest.approx((52, 42), abs=1e-3)
    angle = math.radians(10)
    dx, dy = 52 - 40, 42 - 40
    expected = (40 + dx * math.cos(angle) + dy * math.sin(angle), 40 - dx * math.sin(angle) + dy * math.cos(angle))
    assert center(_rotate(image, 10)) == pytest.approx(expected, abs=0.05)


def test_draws_are_reproducible() -> None:
    assert torch.equal(RandomDraws(4).jitter(3), RandomDraws(4).jitter(3))
    factors = RandomDraws(0).dropout(2, 1000, 0.2)
    assert set(factors.unique().tolist()) == {0.0, 1.25}
    assert float(factors.mean()) == pytest.approx(1.0, abs=0.05)


def test_a_look_alike_does_not_replace_a_target_that_vanishes(network: DiMPNet, texture: np.ndarray) -> None:
    """Another square, duller than the target, appears elsewhere in the very frame in which the target goes."""
    tracker = _tracker(network, regain_score=0.1)
    frame, box = _scene(texture, 100, 90)
    tracker.initialize(frame, box)
    for _ in range(5):
        tracker.track(frame)
    dull, _ = _scene(texture, 0, 0, shown=False)
    other, _ = _scene(texture, 170, 90)
    dull[90:126, 170:206] = (0.3 * dull[90:126, 170:206] + 0.7 * other[90:126, 170:206]).astype(np.uint8)
    estimates = [tracker.track(dull) for _ in range(12)]
    assert estimates[-1].state is TrackState.LOST
    assert all(iou(e.box, Box(170, 90, 36, 36)) < 0.2 for e in estimates)
    eager = _tracker(network, regain_score=0.1, rules="-jump-vanished")
    eager.initialize(frame, box)
    for _ in range(5):
        eager.track(frame)
    assert iou([eager.track(dull) for _ in range(12)][-1].box, Box(170, 90, 36, 36)) > 0.4, "the scene has a look-alike"


def test_a_covered_target_is_looked_for_at_its_full_size(network: DiMPNet, texture: np.ndarray) -> None:
    tracker = _tracker(network)
    frame, box = _scene(texture, 100, 90)
    target = tracker.start(frame, [box])[0]
    for _ in range(8):
        tracker.step(frame, [target])
    target.size = target.size / 2  # as if a cover had cut the box
    empty, _ = _scene(texture, 0, 0, shown=False)
    while tracker.step(empty, [target])[0].state is not TrackState.LOST:
        pass
    assert np.allclose(target.size, [36, 36])
