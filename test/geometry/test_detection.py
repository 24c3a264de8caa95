from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tracker_ros.geometry.detection import (
    centers,
    clip,
    corners,
    cosine_window,
    decode,
    encode,
    grid,
    label,
    nms,
    overlap_matrix,
    shape,
)


def _random_boxes(*count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    r = torch.rand(*count, 4, generator=generator)
    return torch.cat([r[..., :2] * 100, 5 + r[..., 2:] * 60], -1)


def _iou(a: list[float], b: list[float]) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    w = min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2)
    h = min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2)
    shared = max(w, 0) * max(h, 0)
    return shared / (aw * ah + bw * bh - shared)


def _greedy(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Non-maximum suppression as torchvision documents it, one box after another."""
    left = sorted(range(len(boxes)), key=lambda i: -float(scores[i]))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if _iou(boxes[best].tolist(), boxes[i].tolist()) <= threshold]
    return sorted(kept)


def test_corners_and_centers_are_inverse() -> None:
    boxes = _random_boxes(7)
    assert torch.allclose(centers(corners(boxes)), boxes, atol=1e-4)
    assert corners(torch.tensor([5.0, 6.0, 4.0, 2.0])).tolist() == [3, 5, 7, 7]


def test_clipped_boxes_lie_inside() -> None:
    clipped = clip(torch.tensor([[2.0, 50.0, 10.0, 20.0], [-30.0, 50.0, 10.0, 20.0]]), 60)
    assert clipped[0].tolist() == [3.5, 50, 7, 20]
    assert float(clipped[1, 2]) == 0


def test_coding_round_trips_and_is_zero_for_the_anchor_itself() -> None:
    anchors, targets = _random_boxes(9), _random_boxes(9, seed=1)
    assert torch.allclose(decode(encode(targets, anchors), anchors), targets, rtol=1e-4, atol=1e-3)
    assert encode(anchors, anchors).abs().max() == 0


def test_coding_is_that_of_the_detectors() -> None:
    """Weights 10, 10, 5, 5."""
    anchor, target = torch.tensor([10.0, 20.0, 40.0, 20.0]), torch.tensor([14.0, 18.0, 80.0, 10.0])
    expected = [10 * 4 / 40, 10 * -2 / 20, 5 * math.log(2), -5 * math.log(2)]
    assert torch.allclose(encode(target, anchor), torch.tensor(expected))


def test_a_decoded_size_stays_finite() -> None:
    decoded = decode(torch.full((1, 4), 1e6), torch.tensor([[0.0, 0.0, 16.0, 16.0]]))
    assert torch.allclose(decoded[0, 2:], torch.tensor([1000.0, 1000.0]))


def test_a_target_without_size_gives_finite_codes() -> None:
    assert torch.isfinite(encode(torch.zeros(4), torch.tensor([1.0, 1.0, 8.0, 8.0]))).all()


def test_overlaps_agree_with_one_at_a_time() -> None:
    a, b = _random_boxes(6), _random_boxes(5, seed=2)
    matrix = overlap_matrix(a, b)
    for i in range(6):
        for j in range(5):
            assert float(matrix[i, j]) == pytest.approx(_iou(a[i].tolist(), b[j].tolist()), abs=1e-5)
    assert float(overlap_matrix(torch.zeros(1, 4), torch.zeros(1, 4))) == 0


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
def test_suppression_agrees_with_one_box_after_another(threshold: float) -> None:
    boxes = _random_boxes(3, 60, seed=3)
    scores = torch.rand(3, 60, generator=torch.Generator().manual_seed(4))
    keep = nms(boxes, scores, threshold)
    for b in range(3):
        assert keep[b].nonzero().flatten().tolist() == _greedy(boxes[b], scores[b], threshold)


def test_a_suppressed_box_suppresses_nothing() -> None:
    """A chain in which each box overlaps the next: every second one stays."""
    boxes = torch.tensor([[10.0 + 4 * i, 10.0, 10.0, 10.0] for i in range(7)])
    scores = torch.arange(7, 0, -1).float()
    assert nms(boxes[None], scores[None], 0.3)[0].tolist() == [True, False] * 3 + [True]


def test_of_a_chain_too_long_to_settle_no_two_that_overlap_are_kept() -> None:
    boxes = torch.tensor([[[10.0 + 4 * i, 10.0, 10.0, 10.0] for i in range(100)]])
    keep = nms(boxes, torch.arange(100, 0, -1).float()[None], 0.3)[0].tolist()
    assert keep[:30] == [True, False] * 15
    assert not any(a and b for a, b in itertools.pairwise(keep))


def test_an_overlap_equal_to_the_threshold_is_kept_and_the_first_of_equals_stays() -> None:
    half = torch.tensor([[[10.0, 10.0, 20.0, 10.0], [5.0, 10.0, 10.0, 10.0]]])  # IoU exactly 0.5
    assert nms(half, torch.ones(1, 2), 0.5).tolist() == [[True, True]]
    assert nms(half, torch.ones(1, 2), 0.49).tolist() == [[True, False]]


def test_labels() -> None:
    overlaps = torch.tensor([[0.7, 0.5, 0.45, 0.1], [0.3, 0.2, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]])
    # The best one is positive however low it is, unless there is no overlap at all.
    assert label(overlaps, 0.5, 0.4).tolist() == [[1, 1, -1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_anchors_run_over_rows_then_columns_then_shapes() -> None:
    anchors = grid(2, 8, 0.5, [(4.0, 4.0), shape(4, 4.0)])
    assert anchors[:, :2].tolist() == [[0.5, 0.5]] * 2 + [[8.5, 0.5]] * 2 + [[0.5, 8.5]] * 2 + [[8.5, 8.5]] * 2
    assert anchors[1, 2:].tolist() == [8, 2]


def test_the_window_is_one_at_the_centre_and_zero_at_the_border() -> None:
    at = torch.tensor([[32.0, 32.0, 1.0, 1.0], [0.0, 32.0, 1.0, 1.0], [32.0, 70.0, 1.0, 1.0], [16.0, 32.0, 1.0, 1.0]])
    assert torch.allclose(cosine_window(at, 64), torch.tensor([1.0, 0.0, 0.0, 0.5]), atol=1e-6)
