"""Boxes of object detectors: anchors, their coding, labels and non-maximum suppression. Pure functions of tensors.

Boxes are (cx, cy, w, h) in pixels of the crop, whose top-left corner is the origin: pixel ``j`` covers ``[j, j + 1)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Offsets of centres and log sizes are divided by these (SSD; the same as weights 10, 10, 5, 5 of Faster R-CNN).
VARIANCES = (0.1, 0.2)
#: Largest log ratio of a decoded size to its anchor's, which keeps `exp` finite.
_LARGEST_LOG_RATIO = math.log(1000 / 16)
#: Rounds of non-maximum suppression, an odd number; see `nms`.
_NMS_ROUNDS = 31


def corners(boxes: Tensor) -> Tensor:
    """... x 4 (cx, cy, w, h) to ... x 4 (x1, y1, x2, y2).

    >>> corners(torch.tensor([10.0, 20.0, 4.0, 6.0])).tolist()
    [8.0, 17.0, 12.0, 23.0]
    """
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def centers(boxes: Tensor) -> Tensor:
    """... x 4 (x1, y1, x2, y2) to ... x 4 (cx, cy, w, h)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def clip(boxes: Tensor, size: float) -> Tensor:
    """The parts of boxes inside a crop of `size` pixels a side: ... x 4 to ... x 4 (sides may become zero)."""
    return centers(corners(boxes).clamp(0, size))


def grid(cells: int, stride: float, offset: float, shapes: Sequence[tuple[float, float]]) -> Tensor:
    """Anchors of a map of `cells` x `cells`, row by row, then column by column, then shape by shape.

    Args:
        cells: cells a side.
        stride, offset: cell ``i`` looks at pixel coordinate ``offset + stride * i``.
        shapes: width and height of the A anchors of a cell.

    Returns:
        (cells^2 A)x4 (cx, cy, w, h).
    """
    axis = offset + stride * torch.arange(cells, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x, y], -1).reshape(-1, 1, 2)
    sizes = torch.tensor(shapes, dtype=torch.float32).reshape(1, -1, 2)
    count = len(shapes)
    return torch.cat([points.expand(-1, count, -1), sizes.expand(len(points), -1, -1)], -1).reshape(-1, 4)


def shape(size: float, ratio: float) -> tuple[float, float]:
    """Width and height of a box of area ``size^2`` with ``w / h = ratio``."""
    return size * math.sqrt(ratio), size / math.sqrt(ratio)


def encode(targets: Tensor, anchors: Tensor) -> Tensor:
    """Regression target of anchors (SSD, eq. 2): offsets of the centre over the anchor's size, log size ratios.

    ... x 4 each, shapes that broadcast, to ... x 4. Sides of the targets below a hundredth of a pixel count as that.
    """
    center = (targets[..., :2] - anchors[..., :2]) / anchors[..., 2:] / VARIANCES[0]
    size = (targets[..., 2:].clamp_min(0.01) / anchors[..., 2:]).log() / VARIANCES[1]
    return torch.cat([center, size], -1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Boxes of regression outputs, the inverse of `encode`: ... x 4 each, shapes that broadcast, to ... x 4."""
    center = offsets[..., :2] * VARIANCES[0] * anchors[..., 2:] + anchors[..., :2]
    size = (offsets[..., 2:] * VARIANCES[1]).clamp_max(_LARGEST_LOG_RATIO).exp() * anchors[..., 2:]
    return torch.cat([center, size], -1)


def overlap_matrix(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of a with every box of b: ... x N x 4 and ... x M x 4 to ... x N x M; 0 without area."""
    first, second = corners(a).unsqueeze(-2), corners(b).unsqueeze(-3)
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    union = a[..., 2:].prod(-1).unsqueeze(-1) + b[..., 2:].prod(-1).unsqueeze(-2) - shared
    return torch.where(union > 0, shared / union.clamp_min(1e-12), torch.zeros_like(union))


def label(overlaps: Tensor, positive: float, negative: float) -> Tensor:
    """Labels of boxes by their IoU with the target.

    Args:
        overlaps: BxN.
        positive, negative: at least the one is 1, below the other is 0, anything between is -1 (ignored).

    Returns:
        BxN int64. The box with the highest IoU is positive in any case, unless it is 0.
    """
    labels = torch.full_like(overlaps, -1, dtype=torch.int64).masked_fill(overlaps < negative, 0)
    best = overlaps.amax(-1, keepdim=True)
    return labels.masked_fill((overlaps >= positive) | ((overlaps == best) & (best > 0)), 1)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression: by falling score, a box goes if its IoU with a kept one is above `threshold`.

    Equal scores keep their order. Whether a box is kept depends on those before it only; so setting all at once from
    the last guess settles at least one more box a round, and in practice all of them in a few. The rounds are counted
    beforehand, as asking whether all are settled would wait for a GPU. A box that hangs on a longer chain, in which
    each suppresses the next, goes: guesses alternate between too many and too few, and the last is of the latter kind.

    Args:
        boxes: BxNx4 (cx, cy, w, h).
        scores: BxN.
        threshold: IoU.

    Returns:
        BxN bool, in the order of `boxes`: which ones are kept.

    >>> boxes = torch.tensor([[[5.0, 5.0, 10.0, 10.0], [6.0, 5.0, 10.0, 10.0], [50.0, 5.0, 10.0, 10.0]]])
    >>> nms(boxes, torch.tensor([[0.5, 0.9, 0.1]]), 0.5).tolist()
    [[False, True, True]]
    """
    order = scores.argsort(stable=True, dim=-1, descending=True)
    ranked = boxes.gather(-2, order.unsqueeze(-1).expand_as(boxes))
    suppresses = (overlap_matrix(ranked, ranked) > threshold).triu(1).to(ranked.dtype)
    keep = torch.ones_like(ranked[..., :1])
    for _ in range(_NMS_ROUNDS):
        keep = (suppresses.mT @ keep == 0).to(ranked.dtype)
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, keep[..., 0] > 0)


def cosine_window(boxes: Tensor, size: float) -> Tensor:
    """Product of two Hanning windows over a crop of `size` pixels at the boxes' centres: ... x 4 to ....

    One at the crop's centre, zero at its border and beyond.
    """
    away = ((boxes[..., :2] - size / 2).abs() / size).clamp_max(0.5)
    return (0.5 + 0.5 * (2 * math.pi * away).cos()).prod(-1)
