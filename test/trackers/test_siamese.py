"""The Siamese trackers on small networks with seeded random weights, and their arithmetic with a network that sees."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from siamese_nets import build
from torch import Tensor

import tracker_ros
from tracker_ros import registry
from tracker_ros.errors import WeightsMissing
from tracker_ros.geometry.anchors import cosine_window
from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.networks.siamese import SiameseNet
from tracker_ros.trackers.base import Estimate, InvalidOption, TrackState
from tracker_ros.trackers.search import calibrated
from tracker_ros.trackers.siamese import Response, SiameseTracker, select

W, H = 320, 240
NAMES = ("siamrpn", "siamrpnpp", "clnet", "siamban", "siamrn")


def _tracker(name: str, kind: str = "", **options: Any) -> Any:
    entry = registry.get(name)
    defaults = {"device": "cpu", "precision": "float32"}
    network = build(kind or {"siamrpn": "alex_dw"}.get(name, name))
    factory: Any = entry.load()[0]
    return factory(name, entry.options.vary(**(defaults | options)), network)


def _scene(box: Box, seed: int = 0) -> NDArray[np.uint8]:
    """A bright rectangle on darkness, drawn with the pixels that it covers in part."""
    r = np.random.RandomState(seed)
    frame = r.randint(0, 4, (H, W, 3)).astype(np.float32)
    y, x = np.mgrid[:H, :W]
    cover_x = np.clip(np.minimum(x + 1, box.x + box.w) - np.maximum(x, box.x), 0, 1)
    cover_y = np.clip(np.minimum(y + 1, box.y + box.h) - np.maximum(y, box.y), 0, 1)
    return np.clip(frame + (240 * cover_x * cover_y)[..., None], 0, 255).round().astype(np.uint8)


class Seeing(SiameseTracker):
    """A tracker whose network finds the bright rectangle of `_scene` in the crop by its moments."""

    network: SiameseNet

    def build(self, network: SiameseNet) -> None:
        self.network = network
        self.confidence = 1.0

    def grid(self, cells: int) -> NDArray[np.float32]:
        return np.zeros((cells * cells, 2), np.float32)

    def embed(self, crops: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        self.seen = self._moments(crops)
        self.told = boxes
        return self.network.template(crops)  # type: ignore[operator]

    def respond(self, crops: Tensor, template: tuple[Tensor, ...]) -> tuple[Response, int]:
        boxes = self._moments(crops)[:, None].expand(-1, 25 * 25, -1)
        scores = torch.zeros(len(crops), 25, 25)
        scores[:, 12, 12] = self.confidence
        return Response(scores.flatten(1), boxes), 25

    def _moments(self, crops: Tensor) -> Tensor:
        """cx, cy, w, h relative to the crop's centre."""
        light = (crops.mean(1) - 10).clamp_min(0).double()
        at = torch.arange(crops.shape[-1]) + 0.5 - crops.shape[-1] / 2
        total = light.sum((1, 2))
        rows, columns = light.sum(2) / total[:, None], light.sum(1) / total[:, None]
        cx, cy = (columns * at).sum(1), (rows * at).sum(1)
        # A uniform bar of width w has the variance w^2 / 12.
        w = (12 * (columns * (at - cx[:, None]) ** 2).sum(1)).sqrt()
        h = (12 * (rows * (at - cy[:, None]) ** 2).sum(1)).sqrt()
        return torch.stack([cx, cy, w, h], 1).float()


def _seeing(**options: Any) -> Seeing:
    preset = registry.get("siamban").options.vary(
        device="cpu", precision="float32", size_rate=1.0, penalty=0.0, score_scale=1.0, score_shift=0.0, **options
    )
    return Seeing("siamban", preset, build("siamban"))  # type: ignore[arg-type]


def test_boxes_come_out_as_they_are_seen() -> None:
    """No crop, resize or map leaves a bias: positions are exact to what the pixels show, frame after frame."""
    tracker = _seeing()
    box = Box(101.3, 80.6, 47.0, 31.0)
    tracker.initialize(_scene(box), box)
    inside = Box(*tracker.told[0].tolist())
    cx, cy, w, h = tracker.seen[0].tolist()
    assert np.allclose(inside.center, (cx + 63.5, cy + 63.5), atol=0.05)
    assert np.allclose(inside[2:], (w, h), atol=0.5)
    for i in range(1, 25):
        truth = Box(101.3 + 1.7 * i, 80.6 + 0.9 * i, 47.0 + 0.5 * i, 31.0)
        estimate = tracker.track(_scene(truth, i))
        assert np.allclose(estimate.box.center, truth.center, atol=0.1), i
        assert np.allclose(estimate.box[2:], truth[2:], atol=0.7), i


def test_published_boxes_are_half_a_pixel_off() -> None:
    tracker = _seeing(compat="published")
    box = Box(101.0, 80.0, 47.0, 31.0)
    tracker.initialize(_scene(box), box)
    offsets = []
    for i in range(1, 25):
        truth = Box(101.0 + 2 * i, 80.0 + i, 47.0, 31.0)
        estimate = tracker.track(_scene(truth, i))
        offsets.append(np.subtract(estimate.box.center, truth.center))
    assert np.abs(offsets).max() < 1.5
    assert np.allclose(np.mean(offsets, 0), 0.5, atol=0.2)


def test_the_published_tracker_moves_on_every_score() -> None:
    tracker = _seeing(compat="published")
    box = Box(101.0, 80.0, 47.0, 31.0)
    tracker.initialize(_scene(box), box)
    tracker.confidence = 0.05
    for i in range(1, 12):
        truth = Box(101.0 + 2 * i, 80.0 + i, 47.0, 31.0)
        estimate = tracker.track(_scene(truth, i))
        assert np.allclose(estimate.box.center, truth.center, atol=1.5)
    assert estimate.state is TrackState.LOST


def test_a_target_that_is_not_found_keeps_its_box_to_the_last_digit() -> None:
    tracker = _seeing()
    box = Box(101.3, 80.6, 5.25, 31.7)
    tracker.initialize(_scene(box), box)
    tracker.confidence = 0.1
    for i in range(3):
        estimate = tracker.track(_scene(Box(200, 100, 40, 40), i))
        assert np.allclose(estimate.box, box, rtol=0, atol=1e-12)
    assert estimate.score == pytest.approx(0.1)


def test_a_lost_target_is_searched_for_all_over_the_image_and_found_again() -> None:
    tracker = _seeing(lost_after=3)
    box = Box(20.0, 20.0, 30.0, 30.0)
    tracker.initialize(_scene(box), box)
    tracker.track(_scene(box, 1))
    tracker.confidence = 0.0
    states = [tracker.track(_scene(Box(270, 190, 30, 30), i)).state for i in range(6)]
    assert states[-1] is TrackState.LOST

    class Nearsighted(Seeing):
        """Only sure of what lies well inside the crop."""

        def respond(self, crops: Tensor, template: tuple[Tensor, ...]) -> tuple[Response, int]:
            self.confidence = 1.0
            response, cells = super().respond(crops, template)
            light = crops.float().mean((1, 2, 3)) > 5
            return Response(response.scores * light[:, None], response.boxes.nan_to_num(0.0)), cells

    tracker.__class__ = Nearsighted
    truth = Box(270.0, 190.0, 30.0, 30.0)
    estimates = [tracker.track(_scene(truth, 10 + i)) for i in range(12)]
    assert estimates[-1].state is TrackState.TRACKING
    assert iou(estimates[-1].box, truth) > 0.8
    regained = next(i for i, e in enumerate(estimates) if e.state is TrackState.TRACKING)
    assert all(e.state is TrackState.LOST for e in estimates[:regained])


def test_the_heatmap_lies_over_what_the_map_covers() -> None:
    tracker = _seeing()
    box = Box(100.0, 80.0, 40.0, 40.0)
    tracker.initialize(_scene(box), box)
    estimate = tracker.track(_scene(box, 1))
    assert estimate.heatmap is not None
    assert estimate.heatmap.shape == (25, 25)
    region = estimate.search_region
    # The template shows twice the target in 127 pixels; the map covers 200 of the crop's 255.
    assert region.w == pytest.approx(80 / 127 * 200, rel=0.02)
    y, x = np.unravel_index(estimate.heatmap.argmax(), (25, 25))
    cell = region.w / 25
    assert region.x + (x + 0.5) * cell == pytest.approx(120, abs=1)
    assert region.y + (y + 0.5) * cell == pytest.approx(100, abs=1)


# --- proposal selection ----------------------------------------------------------------------------------------------


WINDOW = torch.from_numpy(cosine_window(3))


def _select(scores: list[float], boxes: list[list[float]], influence: float = 0.0, **options: Any) -> Any:
    """Select among nine proposals, one a cell of a map of 3x3."""
    full = torch.zeros(1, 9)
    full[0, : len(scores)] = torch.tensor(scores)
    proposals = torch.tensor(boxes + [[500.0, 500.0, 40.0, 40.0]] * (9 - len(boxes)))[None]
    preset = registry.get("siamban").options.vary(**options)
    found, rate = select(
        Response(full, proposals), torch.tensor([[40.0, 40.0]]), torch.tensor([influence]), WINDOW, preset
    )
    return SimpleNamespace(**found._asdict(), rate=rate)


def test_a_change_of_size_is_penalised() -> None:
    boxes = [[0.0, 0, 40, 40], [0.0, 0, 80, 80]]
    assert _select([0.8, 0.9], boxes, penalty=0.0).box[0, 2] == 80
    found = _select([0.8, 0.9], boxes, penalty=0.5, size_rate=0.5)
    assert found.box[0, 2] == 40
    assert found.rate[0] == pytest.approx(0.8 * 0.5)


def test_the_window_prefers_the_centre() -> None:
    boxes = [[-8.0, -8, 40, 40], [0, -8, 40, 40], [8, -8, 40, 40], [-8, 0, 40, 40], [0.0, 0, 40, 40]]
    scores = [0.9, 0, 0, 0, 0.8]
    assert _select(scores, boxes).box[0, 0] == -8
    assert _select(scores, boxes, influence=0.4).box[0, 0] == 0


def test_the_centre_region_and_the_best_scores_are_what_counts() -> None:
    boxes = [[float(i), 0, 40, 40] for i in range(9)]
    scores = [0.9, 0.1, 0.2, 0.3, 0.05, 0.4, 0.5, 0.6, 0.7]
    assert _select(scores, boxes).box[0, 0] == 0
    # On a map of 3x3 only the middle cell has no neighbour beyond a radius below one; one cell away is all of them.
    assert _select(scores, boxes, center_radius=1).box[0, 0] == 0
    grown = [[float(i), 0, 40 + 10 * (i != 4), 40] for i in range(9)]
    assert _select(scores, grown, penalty=2.0).box[0, 0] != 8
    assert _select([0.5] * 4 + [0.45] + [0.5] * 4, grown, penalty=2.0).box[0, 0] == 4
    assert _select([0.5] * 4 + [0.45] + [0.5] * 4, grown, penalty=2.0, top_k=8).box[0, 0] != 4
    assert _select([0.5] * 4 + [0.45] + [0.5] * 4, grown, penalty=2.0, top_k=8, compat="published").box[0, 0] == 4


def test_proposals_without_numbers_are_none() -> None:
    nan, inf = float("nan"), float("inf")
    boxes = [[0.0, 0, inf, inf], [nan, nan, nan, nan], [3.0, 0, 40, 40], [0, 0, 40, 40]]
    found = _select([0.9, 0.8, 0.5, nan], boxes)
    assert found.box[0].tolist() == [3, 0, 40, 40]
    assert found.score[0] == 0.5


def test_the_second_peak_is_another_object() -> None:
    boxes = [[0.0, 0, 40, 40], [4.0, 0, 40, 40], [90.0, 0, 40, 40]]
    found = _select([0.9, 0.85, 0.6], boxes)
    assert found.second[0] == pytest.approx(0.6)
    energy = np.square([0.9, 0.85, 0.6])
    assert found.focus[0] == pytest.approx(energy[:2].sum() / energy.sum())


# --- every tracker of the family -------------------------------------------------------------------------------------


def _run(tracker: Any, boxes: list[Box], frames: list[NDArray[np.uint8]]) -> list[list[Estimate]]:
    targets = tracker.start(frames[0], boxes)
    return [tracker.step(frame, targets) for frame in frames[1:]]


@pytest.fixture(scope="module")
def frames() -> list[NDArray[np.uint8]]:
    r = np.random.RandomState(3)
    world = cv2.resize(r.randint(0, 255, (40, 50, 3)).astype(np.uint8), (W + 60, H + 60), interpolation=cv2.INTER_CUBIC)
    return [np.ascontiguousarray(world[2 * i : H + 2 * i, 3 * i : W + 3 * i]) for i in range(4)]


BOXES = [Box(100.5, 80.25, 50.0, 40.0), Box(200.0, 120.0, 30.0, 45.5)]


@pytest.mark.parametrize("compat", ["off", "published"])
@pytest.mark.parametrize("name", NAMES)
def test_estimates_are_sound_and_batches_are_single_tracks(
    name: str, compat: str, frames: list[NDArray[np.uint8]]
) -> None:
    tracker = _tracker(name, compat=compat)
    both = _run(tracker, BOXES, frames)
    previous = BOXES
    for estimates in both:
        for estimate in estimates:
            assert np.isfinite(estimate.box).all()
            assert estimate.box.w > 0
            assert estimate.box.h > 0
            assert 0 <= estimate.score <= 1
            assert all(np.isfinite(value) for value in estimate.cues.values())
            assert estimate.heatmap is not None
            assert estimate.heatmap.dtype == np.float32
            assert 0 <= estimate.heatmap.min() < estimate.heatmap.max() <= 1
        for estimate, box in zip(estimates, previous, strict=True):
            assert iou(estimate.search_region, box) > 0
        previous = [estimate.box for estimate in estimates]
    for i, box in enumerate(BOXES):
        single = _run(tracker, [box], frames)
        np.testing.assert_allclose([e[0].box for e in single], [e[i].box for e in both], atol=0.05)
        np.testing.assert_allclose([e[0].score for e in single], [e[i].score for e in both], atol=1e-3)
    assert tracker.step(frames[0], []) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_track_leaves_nothing_to_the_next(name: str, frames: list[NDArray[np.uint8]]) -> None:
    tracker = _tracker(name)
    first = _run(tracker, BOXES[:1], frames)
    _run(tracker, BOXES[1:], frames)
    again = _run(tracker, BOXES[:1], frames)
    assert [e[0].box for e in first] == [e[0].box for e in again]
    fresh = _run(_tracker(name), BOXES[:1], frames)
    assert [e[0].box for e in first] == [e[0].box for e in fresh]


def test_up_channel_network_tracks_behind_the_same_name(frames: list[NDArray[np.uint8]]) -> None:
    tracker = _tracker("siamrpn", "alex_up", network="siamrpn_alex_up")
    assert all(np.isfinite(e[0].box).all() for e in _run(tracker, BOXES[:1], frames))


@pytest.mark.parametrize("name", NAMES)
def test_the_plain_networks_give_the_same_results(name: str, frames: list[NDArray[np.uint8]]) -> None:
    fast, plain = (_run(_tracker(name, plain=plain), BOXES, frames) for plain in (False, True))
    for ours, theirs in zip(fast, plain, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.box, b.box, atol=0.01)
            assert a.score == pytest.approx(b.score, abs=1e-4)
            assert a.heatmap is not None
            assert b.heatmap is not None
            np.testing.assert_allclose(a.heatmap, b.heatmap, atol=1e-3)


def test_large_targets_are_decimated(frames: list[NDArray[np.uint8]]) -> None:
    """A region far larger than the crop, part of it outside of the image."""
    tracker = _tracker("siamrpn")
    estimates = _run(tracker, [Box(20.0, 10.0, 290.0, 220.0)], frames)
    assert all(np.isfinite(e[0].box).all() for e in estimates)
    assert estimates[0][0].search_region.w > 2 * 0.5 * W


def test_low_precision_and_no_heatmap(frames: list[NDArray[np.uint8]]) -> None:
    for name in NAMES:
        tracker = _tracker(name, precision="bfloat16", heatmap=False)
        estimates = _run(tracker, BOXES, frames)
        assert all(np.isfinite(e.box).all() and e.heatmap is None for pair in estimates for e in pair)


def test_clnet_without_positive_anchors_is_its_base(frames: list[NDArray[np.uint8]]) -> None:
    """No anchor overlaps a very elongated target by 0.6; the other target of the batch is adjusted all the same."""
    thin, square = Box(60.0, 100.0, 200.0, 8.0), BOXES[0]
    adjusting, base = _tracker("clnet"), _tracker("clnet", adjust="none")
    with_both, without = adjusting.start(frames[0], [thin, square]), base.start(frames[0], [thin, square])
    for a, b in zip(with_both[0].template, without[0].template, strict=True):
        torch.testing.assert_close(a, b)
    change = with_both[1].template.cls_weight - without[1].template.cls_weight
    assert change.abs().max() > 1e-3
    assert adjusting.step(frames[1], with_both)[1].score != base.step(frames[1], without)[1].score


def test_siamrn_scores_all_or_the_best_proposals(frames: list[NDArray[np.uint8]]) -> None:
    everything = _run(_tracker("siamrn", top_k=0), BOXES, frames)
    as_many = _run(_tracker("siamrn", top_k=625), BOXES, frames)
    assert [e.box for pair in everything for e in pair] == [e.box for pair in as_many for e in pair]
    tracker = _tracker("siamrn", top_k=40)
    few = _run(tracker, BOXES, frames[:2])[0]
    for estimate, complete in zip(few, everything[0], strict=True):
        assert estimate.heatmap is not None
        assert complete.heatmap is not None
        scored = estimate.heatmap > 0
        assert scored.sum() == 40
        np.testing.assert_allclose(estimate.heatmap[scored], complete.heatmap[scored], atol=1e-4)


def _respond(frames: list[NDArray[np.uint8]], **options: Any) -> Tensor:
    """Scores of SiamRN's network for two targets in the second frame, 2x625; of all proposals, without a floor."""
    tracker = _tracker("siamrn", **{"top_k": 0, "least_match": 0.0, **options})
    found: list[Response] = []
    respond = tracker.respond

    def watch(crops: Tensor, template: tuple[Tensor, ...]) -> tuple[Response, int]:
        found.append(respond(crops, template)[0])
        return found[0], 25

    tracker.respond = watch
    tracker.step(frames[1], tracker.start(frames[0], BOXES))
    return found[0].scores


def test_siamrn_ablations_change_what_they_name(frames: list[NDArray[np.uint8]]) -> None:
    scores = {kind: _respond(frames, scores=kind) for kind in ("refined", "blend", "product", "matching", "class")}
    torch.testing.assert_close(scores["product"], scores["class"] * scores["matching"])
    odds = [torch.logit(scores[kind], eps=1e-7) for kind in ("refined", "blend", "class")]
    torch.testing.assert_close(odds[1], (odds[0] + odds[2]) / 2, atol=1e-2, rtol=1e-3)
    # Where no matching score may be less than 1, nothing is left of the relation detector.
    torch.testing.assert_close(_respond(frames, scores="refined", least_match=1.0), scores["class"])
    floored = scores["class"] * scores["matching"].clamp_min(0.4)
    torch.testing.assert_close(_respond(frames, scores="product", least_match=0.4), floored)
    torch.testing.assert_close(_respond(frames, scores="matching", least_match=0.4), scores["matching"])
    banned = _tracker("siamban", "siamrn")  # the same network, its relation detector unused
    siamban = _run(banned, BOXES, frames[:2])[0]
    alone = _run(_tracker("siamrn", scores="class", top_k=0, **_settings(banned)), BOXES, frames[:2])[0]
    assert [e.box for e in alone] == [e.box for e in siamban]
    parts = ("global_detector", "local_detector", "patch_detector", "self_attention")
    results = [scores["matching"], *(_respond(frames, **{"scores": "matching", part: False}) for part in parts)]
    for i, one in enumerate(results):
        assert all((one - other).abs().max() > 1e-4 for other in results[:i])
    # Without the relation detector its parts make no difference.
    torch.testing.assert_close(_respond(frames, scores="class", local_detector=False), scores["class"])
    with pytest.raises(InvalidOption, match="scores=class"):
        registry.get("siamrn").options.vary(**dict.fromkeys(parts[:3], False))


def _settings(tracker: Any) -> dict[str, float]:
    """The numbers by which SiamBAN's and SiamRN's settings differ."""
    names = ("penalty", "window_influence", "size_rate", "score_scale", "score_shift")
    design = tracker.options.design
    return {name: getattr(tracker.options, name, getattr(design, name, None)) for name in names}


@pytest.mark.parametrize("kind", ["refined", "product", "matching"])
def test_siamrn_with_few_proposals_scores_these_as_with_all(kind: str, frames: list[NDArray[np.uint8]]) -> None:
    every, few = _respond(frames, scores=kind), _respond(frames, scores=kind, top_k=50)
    kept = few > 0
    assert (kept.sum(1) == 50).all()
    torch.testing.assert_close(few[kept], every[kept], atol=1e-5, rtol=1e-4)
    best = _respond(frames, scores="class").topk(50, 1).indices
    assert kept.gather(1, best).all()


def test_the_compact_siamrn_computed_plainly_gives_the_same(frames: list[NDArray[np.uint8]]) -> None:
    torch.manual_seed(11)
    network = registry.networks()["siamrn18"].create()
    entry = registry.get("siamrn")
    factory: Any = entry.load()[0]
    found = []
    for plain in (False, True):
        options = entry.options.vary(device="cpu", precision="float32", plain=plain, top_k=60)
        found.append(_run(factory("siamrn", options, network), BOXES, frames[:2])[0])
    for quick, slow in zip(*found, strict=True):
        np.testing.assert_allclose(quick.box, slow.box, atol=1e-2)
        assert quick.score == pytest.approx(slow.score, abs=1e-4)
        np.testing.assert_allclose(quick.heatmap, slow.heatmap, atol=1e-4)


def test_missing_weights_name_the_command_that_imports_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TRACKER_ROS_MODELS", str(tmp_path))
    for name in NAMES:
        with pytest.raises(WeightsMissing, match=rf"put {name}18.safetensors into"):
            tracker_ros.create(name, device="cpu")
    for name in ("siamrpn_alex_up", "siamrpnpp_r50", "clnet_r50", "siamban_r50", "siamrn_r50"):
        with pytest.raises(WeightsMissing, match=rf"import-weights CHECKPOINT --tracker {name} --out"):
            tracker_ros.create(name, device="cpu")
    with pytest.raises(InvalidOption, match="network"):
        tracker_ros.create("clnet", network="siamrpn_alex_dw")


def test_crops_that_cannot_be_aligned_are_refused(frames: list[NDArray[np.uint8]]) -> None:
    for options in (
        {"search_size": 256},
        {"search_size": 263},
    ):
        with pytest.raises(InvalidOption, match=r"'search_size' must be .*, got \d+"):
            registry.get("siamrpnpp").options.replace(**options)
    for name in NAMES:  # the smallest and a large one
        for size in (143, 383):
            estimates = _run(_tracker(name, search_size=size), BOXES, frames[:2])[0]
            assert all(np.isfinite(e.box).all() for e in estimates)
            assert all(e.heatmap is not None and len(e.heatmap) % 2 == 1 for e in estimates)


def test_every_choice_of_network_has_a_builder() -> None:
    known = registry.networks()
    for name in NAMES:
        options: Any = registry.get(name).options
        choices = type(options.design).__dataclass_fields__["network"].metadata["choices"]
        assert options.design.network in choices
        assert set(choices) <= set(known)


def test_calibrated_scores_keep_their_order() -> None:
    tensor = torch.tensor([[0.0, 0.1, 0.5, 0.9, 1.0]])
    assert torch.equal(calibrated(tensor, 1.0, 0.0), tensor)
    found = calibrated(tensor, 0.5, -1.0)
    assert bool((found.diff() > 0).all())
    assert float(found[0, 2]) == pytest.approx(1 / (1 + np.e))
    assert float(found[0, 0]) == 0
    assert float(found[0, 4]) < 1
