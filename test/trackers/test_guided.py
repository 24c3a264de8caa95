"""Guided detectors as trackers: on a detector that sees red, and on the real networks with random weights."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracker_ros import registry
from tracker_ros.geometry import detection as boxes_of
from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.networks.adaptation import drift_limit, norm
from tracker_ros.networks.detection import Candidates, Detections
from tracker_ros.trackers import guided
from tracker_ros.trackers.base import InvalidOption, TrackState
from tracker_ros.trackers.guided import PRESETS, GuidedTracker, change_penalty, response_map, select
from tracker_ros.trackers.state import ConfidenceThresholds

W, H = 320, 240
SIDE, CELLS = 64, 32


class Linear(nn.Module):
    """Class and box of a cell from its features."""

    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Linear(2, 2)
        self.loc = nn.Linear(2, 4)
        with torch.no_grad():
            self.cls.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
            self.cls.bias.copy_(torch.tensor([3.5, -3.5]))
            self.loc.weight.zero_()
            self.loc.bias.zero_()

    def forward(self, cells: Tensor) -> Detections:
        return Detections(self.cls(cells), self.loc(cells))


class RedDetector(nn.Module):
    """Finds what is as red as the exemplar: an anchor of a fifth of the crop around every cell."""

    two_stage = False

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(search=SIDE, search_context=5.0, exemplar=32, exemplar_context=2.0)
        self.head = Linear()
        size = SIDE / 5
        self.anchors = boxes_of.grid(CELLS, SIDE / CELLS, SIDE / CELLS / 2, [(size, size)])

    def convolutions(self) -> list[nn.Module]:
        return []

    def inner_rates(self, factor: float = 1.0) -> dict[str, Tensor]:
        return {name: torch.tensor(0.05 * factor) for name, _ in self.head.named_parameters()}

    def _redness(self, crops: Tensor) -> Tensor:
        crops = crops.float()
        return (crops[:, 2] - crops[:, :2].amax(1)).clamp_min(0) / 255

    def embed(self, exemplars: Tensor, boxes: Tensor) -> Tensor:
        middle = exemplars.shape[-1] // 2
        return self._redness(exemplars)[:, middle - 2 : middle + 2, middle - 2 : middle + 2].mean((1, 2))[:, None]

    def features(self, crops: Tensor) -> list[Tensor]:
        area = round(SIDE / 5) | 1
        mean = nn.functional.avg_pool2d(self._redness(crops)[:, None], area, SIDE // CELLS, area // 2)
        return [mean]

    def guided(self, features: list[Tensor], guidance: Tensor) -> list[Tensor]:
        alike = (features[0] / guidance[:, :, None, None].clamp_min(0.05)).clamp_max(1.0)
        return [torch.cat([8 * alike, torch.ones_like(alike)], 1)]

    def candidates(self, maps: list[Tensor], extra: Tensor | None = None) -> Candidates:
        cells = maps[0].flatten(2).mT
        boxes = self.anchors.expand(len(cells), -1, -1)
        return Candidates((cells,), boxes, torch.ones_like(boxes[..., 0], dtype=torch.bool))

    def decode(self, loc: Tensor, boxes: Tensor) -> Tensor:
        return boxes_of.decode(loc, boxes)

    def encode(self, targets: Tensor, boxes: Tensor) -> Tensor:
        return boxes_of.encode(targets, boxes)

    def match(self, boxes: Tensor, targets: Tensor) -> Tensor:
        return boxes_of.label(boxes_of.overlap_matrix(boxes, targets[:, None])[..., 0], 0.5, 0.4)


class Credulous(GuidedTracker):
    """Takes every frame for a good one."""

    def thresholds(self) -> ConfidenceThresholds:
        return replace(super().thresholds(), good_score=0.0, bad_score=0.0, max_distractor=1.0, min_sharpness=0.0)


def _tracker(kind: type[GuidedTracker] = GuidedTracker, **options: Any) -> GuidedTracker:
    # The preset's calibration is that of the shipped head, not of this one.
    defaults: dict[str, Any] = {
        "device": "cpu", "precision": "float32", "update_interval": 1, "learn_score": 0.0, "score_scale": 1.0,
        "score_shift": 0.0,
    }  # fmt: skip
    network: Any = RedDetector()
    return kind("guided_ssd", PRESETS["guided_ssd"].vary(**(defaults | options)), network)  # type: ignore[arg-type]


def _scene(*boxes: Box, colour: tuple[int, int, int] = (20, 20, 250)) -> NDArray[np.uint8]:
    frame = np.full((H, W, 3), 90, np.uint8)
    for box in boxes:
        x, y, w, h = (round(v) for v in box)
        frame[max(y, 0) : y + h, max(x, 0) : x + w] = colour
    return frame


def _path(index: int, lane: int = 0) -> Box:
    return Box(60.0 + 4 * index, 60.0 + 2 * index + 90 * lane, 30.0, 30.0)


# --- localisation ------------------------------------------------------------------------------------------------


def test_penalty_is_equation_5() -> None:
    sizes = torch.tensor([[40.0, 20.0]])
    boxes = torch.tensor([[[0, 0, 40.0, 20.0], [9, 9, 80.0, 40.0], [0, 0, 20.0, 40.0], [0, 0, 20.0, 10.0]]])
    penalty = change_penalty(boxes, sizes, 0.55)[0]
    # Twice or half the size: d_s = 2, d_r = 1. Turned by 90 degrees: d_r = 4, d_s = 1.
    literal = torch.tensor([1 + 1 - 1, 1 + 2 - 1, 4 + 1 - 1, 1 + 2 - 1]).float().neg().div(0.55).exp()
    torch.testing.assert_close(penalty, literal / literal[0])


def test_selection_prefers_what_changes_little_and_is_near() -> None:
    boxes = torch.tensor([[[128, 128, 50.0, 50.0], [128, 128, 100.0, 100.0], [20, 20, 50.0, 50.0]]])
    scores = torch.tensor([[0.7, 0.8, 0.75]])
    found = select(scores, boxes, torch.tensor([[50.0, 50.0]]), torch.tensor([0.3]), 256.0)
    assert found.box.tolist() == [[128, 128, 50, 50]]
    assert found.score.item() == pytest.approx(0.7)
    assert found.second.item() == pytest.approx(0.75)  # the other object, not the larger box of the same
    assert found.focus.item() == pytest.approx((0.49 + 0.64) / (0.49 + 0.64 + 0.5625))


def test_numbers_that_are_none_are_not_selected() -> None:
    boxes = torch.tensor([[[128, 128, math.nan, 50.0], [100, 100, 50.0, 50.0]]])
    scores = torch.tensor([[math.nan, 0.4]])
    found = select(scores, boxes, torch.tensor([[50.0, 50.0]]), torch.tensor([0.3]), 256.0)
    assert found.box.tolist() == [[100, 100, 50, 50]]


def test_response_map_shows_the_best_box_of_each_cell() -> None:
    boxes = torch.tensor([[[8, 8, 5.0, 5.0], [9, 9, 5.0, 5.0], [250, 40, 5.0, 5.0], [900, -50, 5.0, 5.0]]])
    grid = response_map(torch.tensor([[0.2, 0.6, 0.3, 0.1]]), boxes, 256.0, 16)[0]
    assert grid[0, 0] == pytest.approx(0.6)
    assert grid[2, 15] == pytest.approx(0.3)
    assert grid[0, 15] == pytest.approx(0.1)  # beyond the crop: at its edge
    assert (grid > 0).sum() == 3


# --- tracking ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["none", "maml", "maml_anchored"])
def test_follows_a_target(update: str) -> None:
    tracker = _tracker(update=update)
    tracker.initialize(_scene(_path(0)), _path(0))
    for index in range(1, 16):
        estimate = tracker.track(_scene(_path(index)))
        assert iou(estimate.box, _path(index)) > 0.5
        assert estimate.state is not TrackState.LOST
    assert estimate.heatmap is not None
    assert estimate.heatmap.max() > 0.3


def test_first_frame_teaches_the_head_what_is_not_the_target() -> None:
    """A look-alike beside the target in the first frame: after the inner steps it scores lower than before."""
    near = Box(110.0, 62.0, 30.0, 30.0)
    frame = _scene(_path(0))
    x, y = int(near.x), int(near.y)
    frame[y : y + 30, x : x + 30] = (20, 20, 200)
    second = {}
    for steps in (0, 20):
        tracker = _tracker(update="none", init_iterations=steps)
        tracker.initialize(frame, _path(0))
        second[steps] = tracker.track(frame).cues["second_peak"]
    assert second[20] < second[0]


def test_lost_when_gone_and_found_again_elsewhere() -> None:
    tracker = _tracker()
    tracker.initialize(_scene(_path(0)), _path(0))
    for index in range(1, 6):
        tracker.track(_scene(_path(index)))
    for _ in range(10):
        estimate = tracker.track(_scene())
    assert estimate.state is TrackState.LOST
    assert estimate.score < 0.3
    elsewhere = Box(270.0, 190.0, 30.0, 30.0)
    for _ in range(20):
        estimate = tracker.track(_scene(elsewhere))
    assert estimate.state is TrackState.TRACKING
    assert iou(estimate.box, elsewhere) > 0.5


def test_learns_only_while_confident() -> None:
    tracker = _tracker(memory_size=4)
    tracker.initialize(_scene(_path(0)), _path(0))
    target: Any = tracker._target
    for index in range(1, 7):
        tracker.track(_scene(_path(index)))
    assert len(target.memory) == 4
    assert target.updates == 6
    kept = target.parameters
    for _ in range(8):  # gone: nothing to learn, before it is said to be lost and after
        tracker.track(_scene())
    assert target.updates == 6
    assert target.parameters is kept


def test_the_gradient_at_the_anchor_is_computed_once_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is learned is what it would be if it were computed anew in every update."""
    made: list[int] = []
    original = guided.anchored_update

    def again(*args: Any, anchor_gradient: Any, **options: Any) -> dict[str, torch.Tensor]:
        assert anchor_gradient is not None
        known = original(*args, anchor_gradient=anchor_gradient, **options)
        for name, value in original(*args, **options).items():
            torch.testing.assert_close(known[name], value, atol=1e-6, rtol=1e-5)
        made.append(1)
        return known

    monkeypatch.setattr(guided, "anchored_update", again)
    tracker = _tracker(memory_size=4, update_samples=3)
    tracker.initialize(_scene(_path(0)), _path(0))
    memory = tracker._target.memory  # type: ignore[union-attr]
    for index in range(1, 7):
        before = {id(one): one.gradient for one in memory if one.gradient is not None}
        tracker.track(_scene(_path(index)))
        assert all(one.gradient is before[id(one)] for one in memory if id(one) in before)
    assert len(made) == 6


def test_updates_every_t_frames() -> None:
    tracker = _tracker(update_interval=3)
    tracker.initialize(_scene(_path(0)), _path(0))
    counts = []
    for index in range(1, 8):
        tracker.track(_scene(_path(index)))
        counts.append(tracker._target.updates)  # type: ignore[union-attr]
    assert counts == [0, 0, 1, 1, 1, 2, 2]


def test_nothing_changes_without_updates() -> None:
    tracker = _tracker(update="none")
    tracker.initialize(_scene(_path(0)), _path(0))
    target: Any = tracker._target
    first = target.parameters
    for index in range(1, 5):
        tracker.track(_scene(_path(index)))
    assert target.parameters is first
    assert not target.memory


def test_anchored_parameters_stay_within_the_bound_of_equation_4() -> None:
    """With a step a hundred times too long: continuous learning wanders off, anchored learning cannot."""
    drift = {}
    for update in ("maml", "maml_anchored"):
        tracker = _tracker(
            Credulous, update=update, inner_rate=100.0, gradient_limit=0.5, anchor_weight=0.5, init_iterations=0,
            regain_score=0.0, bad_score=0.0, good_score=0.0,
        )  # fmt: skip
        tracker.initialize(_scene(_path(0)), _path(0))
        target: Any = tracker._target
        start = target.anchor
        drift[update] = 0.0
        for index in range(1, 25):
            tracker.track(_scene(_path(index % 4)))
            moved = norm({name: target.parameters[name] - start[name] for name in start})
            drift[update] = max(drift[update], float(moved))
        assert target.updates == 24
        assert target.anchor is start
    assert drift["maml_anchored"] <= drift_limit(5.0, 0.5, 0.5) * (1 + 1e-6)
    assert drift["maml"] > drift["maml_anchored"]


def test_regression_stays_where_it_is_not_adapted() -> None:
    tracker = _tracker(adapt_regression=False)
    tracker.initialize(_scene(_path(0)), _path(0))
    target: Any = tracker._target
    tracker.track(_scene(_path(1)))
    head = tracker.network.head
    assert torch.equal(target.parameters["loc.weight"], head.loc.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(target.parameters["cls.weight"], head.cls.weight)  # type: ignore[union-attr, arg-type]


def test_updates_leave_the_regression_of_the_first_frame_where_they_learn_classes_only() -> None:
    tracker = _tracker(update_regression=False)
    tracker.initialize(_scene(_path(0)), _path(0))
    target: Any = tracker._target
    for index in range(1, 4):
        tracker.track(_scene(_path(index)))
    assert target.updates
    head = tracker.network.head
    assert not torch.equal(target.parameters["loc.weight"], head.loc.weight)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(target.parameters["loc.weight"], target.anchor["loc.weight"])
    assert not torch.equal(target.parameters["cls.weight"], target.anchor["cls.weight"])


def test_targets_together_are_what_they_are_alone() -> None:
    together, alone = _tracker(), [_tracker(), _tracker()]
    first = _scene(_path(0), _path(0, 1))
    targets = together.start(first, [_path(0), _path(0, 1)])
    for lane in range(2):
        alone[lane].initialize(first, _path(0, lane))
    for index in range(1, 6):
        frame = _scene(_path(index), _path(index, 1))
        for lane, estimate in enumerate(together.step(frame, targets)):
            single = alone[lane].track(frame)
            np.testing.assert_allclose(estimate.box, single.box, atol=1e-3)
            assert estimate.score == pytest.approx(single.score, abs=1e-5)


def test_scores_are_calibrated_log_odds() -> None:
    found = []
    for scale, shift in ((1.0, 0.0), (0.5, -1.0)):
        tracker = _tracker(update="none", window_influence=0.0, score_scale=scale, score_shift=shift)
        tracker.initialize(_scene(_path(0)), _path(0))
        found.append(tracker.track(_scene(_path(1))).score)
    odds = np.log(found[0] / (1 - found[0]))
    assert found[1] == pytest.approx(1 / (1 + np.exp(1 - 0.5 * odds)), abs=1e-5)


def test_options_are_checked() -> None:
    with pytest.raises(InvalidOption, match="update"):
        PRESETS["guided_ssd"].replace(update="dimp")


# --- the real networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["guided_ssd", "guided_frcnn"])
def test_networks_run_and_learn_a_target_from_its_first_frame(name: str, texture: NDArray[np.uint8]) -> None:
    """A random head and a random backbone: what the first frame's steps leave scores the target higher than before."""
    torch.manual_seed(0)
    options = PRESETS[name].vary(device="cpu", precision="float32", init_samples=2, init_iterations=5)
    network: Any = registry.networks()[options.design.network].create()  # type: ignore[attr-defined]
    tracker = GuidedTracker(name, options, network)  # type: ignore[arg-type]
    tracker.initialize(texture, (140, 100, 40, 36))
    target: Any = tracker._target
    assert set(target.parameters) == {key for key, _ in network.head.named_parameters()}
    assert any(not torch.equal(target.parameters[key], value) for key, value in network.head.named_parameters())
    estimate = tracker.track(texture)
    assert np.isfinite(estimate.box).all()
    assert 0 <= estimate.score <= 1
    assert estimate.heatmap is not None
    assert estimate.heatmap.shape == (16, 16)
