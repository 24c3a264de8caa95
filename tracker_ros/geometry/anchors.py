"""Anchors and points of the Siamese trackers, their boxes, and what re-ranks and labels them. Pure functions.

Coordinates are pixels of the search crop relative to its centre, x to the right and y down; boxes are (cx, cy, w, h).
Maps are flattened anchor by anchor, then row by row, then column by column: N = A * S * S.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Anchor aspect ratios, height over width (SiamRPN, section 3.3).
RATIOS = (0.33, 0.5, 1.0, 2.0, 3.0)


def anchor_shapes(ratios: Sequence[float] = RATIOS, stride: int = 8, scale: int = 8) -> NDArray[np.float32]:
    """Width and height of one anchor a ratio: Ax2, whole multiples of `scale`, of about (stride * scale)^2 area.

    >>> anchor_shapes((0.5, 1.0)).tolist()
    [[88.0, 40.0], [64.0, 64.0]]
    """
    widths = [int(math.sqrt(stride * stride / ratio)) for ratio in ratios]
    shapes = [(w * scale, int(w * ratio) * scale) for w, ratio in zip(widths, ratios, strict=True)]
    return np.array(shapes, np.float32)


def points(size: int, stride: int = 8) -> NDArray[np.float32]:
    """Where the cells of a map of `size` x `size` look: S^2 x 2 (x, y), row by row.

    >>> points(3)[:4].tolist()
    [[-8.0, -8.0], [0.0, -8.0], [8.0, -8.0], [-8.0, 0.0]]
    """
    axis = (np.arange(size, dtype=np.float32) - size // 2) * stride
    x, y = np.meshgrid(axis, axis)
    return np.stack([x.ravel(), y.ravel()], 1)


def anchors(shapes: NDArray[np.float32], size: int, stride: int = 8) -> NDArray[np.float32]:
    """All anchors of a map of `size` x `size`: N x 4 (cx, cy, w, h)."""
    centers = np.tile(points(size, stride), (len(shapes), 1))
    return np.concatenate([centers, np.repeat(shapes, size * size, 0)], 1)


def cosine_window(size: int) -> NDArray[np.float32]:
    """Outer product of two Hanning windows, `size` x `size`: one at the centre, zero along the border."""
    window = np.hanning(size)
    return np.outer(window, window).astype(np.float32)


def decode_anchors(offsets: Tensor, anchor_boxes: Tensor) -> Tensor:
    """Boxes from normalised offsets (SiamRPN, eq. 12).

    Args:
        offsets: Bx4xN (dx, dy, dw, dh).
        anchor_boxes: Nx4 (cx, cy, w, h).

    Returns:
        BxNx4 (cx, cy, w, h).
    """
    offsets = offsets.mT
    center = offsets[..., :2] * anchor_boxes[:, 2:] + anchor_boxes[:, :2]
    return torch.cat([center, offsets[..., 2:].exp() * anchor_boxes[:, 2:]], -1)


def decode_points(distances: Tensor, at: Tensor) -> Tensor:
    """Boxes from the distances of their sides to a point (SiamBAN; SiamRN, eq. 3 and 4).

    Args:
        distances: Bx4xN (left, top, right, bottom).
        at: Nx2 (x, y).

    Returns:
        BxNx4 (cx, cy, w, h).

    >>> decode_points(torch.tensor([[[2.0], [3.0], [4.0], [5.0]]]), torch.tensor([[10.0, 20.0]])).tolist()
    [[[11.0, 21.0, 6.0, 8.0]]]
    """
    low, high = at - distances[:, :2].mT, at + distances[:, 2:].mT
    return torch.cat([(low + high) / 2, high - low], -1)


def overall_size(sizes: Tensor) -> Tensor:
    """Size of a target with its context: ``sqrt((w + p)(h + p))``, ``p = (w + h) / 2`` (SiamRPN, eq. 14).

    ... x 2 (w, h) to ....
    """
    padding = sizes.sum(-1) / 2
    return ((sizes[..., 0] + padding) * (sizes[..., 1] + padding)).sqrt()


def change_penalty(boxes: Tensor, sizes: Tensor, strength: float) -> Tensor:
    """Penalty of a sudden change of size and ratio, 1 for none (SiamRPN, eq. 13).

    Written as ``exp(-k (r s - 1))``: what the equation means, as its penalty would grow with the change.

    Args:
        boxes: BxNx4 (cx, cy, w, h) proposals.
        sizes: Bx2 (w, h), the target's size in the last frame.
        strength: k.

    Returns:
        BxN in (0, 1].
    """
    scale = overall_size(boxes[..., 2:]) / overall_size(sizes)[:, None]
    ratio = (boxes[..., 2] / boxes[..., 3]) / (sizes[:, 0] / sizes[:, 1])[:, None]
    change = torch.maximum(scale, 1 / scale) * torch.maximum(ratio, 1 / ratio)
    return torch.exp(-strength * (change - 1))


def overlap(boxes: Tensor, other: Tensor) -> Tensor:
    """IoU of boxes (cx, cy, w, h) of shapes that broadcast, ``... x 4``: ``...``; 0 where either has no area."""
    half, half_other = boxes[..., 2:] / 2, other[..., 2:] / 2
    high = torch.minimum(boxes[..., :2] + half, other[..., :2] + half_other)
    low = torch.maximum(boxes[..., :2] - half, other[..., :2] - half_other)
    shared = (high - low).clamp_min(0).prod(-1)
    union = boxes[..., 2:].prod(-1) + other[..., 2:].prod(-1) - shared
    return torch.where(union > 0, shared / union.clamp_min(1e-12), torch.zeros_like(union))


def label_anchors(
    overlaps: NDArray[np.float32],
    random: np.random.RandomState,
    positive: float = 0.6,
    negative: float = 0.3,
    positives: int = 16,
    total: int = 64,
) -> NDArray[np.int8]:
    """Draw the samples of one image pair (SiamRPN, section 3.3).

    Args:
        overlaps: IoU of every anchor with the target, any shape.
        random: draws where there are more anchors than samples.
        positive, negative: an anchor above the one can be a positive sample, one below the other a negative one.
        positives: at most this many positive samples.
        total: at most `total` - `positives` negative ones.

    Returns:
        Of the shape of `overlaps`: 1 positive, 0 negative, -1 not drawn.
    """
    labels = np.full(overlaps.size, -1, np.int8)
    for label, candidates, count in (
        (1, np.flatnonzero(overlaps > positive), positives),
        (0, np.flatnonzero(overlaps < negative), total - positives),
    ):
        if len(candidates) > count:
            order = np.arange(len(candidates))
            random.shuffle(order)
            candidates = candidates[order[:count]]
        labels[candidates] = label
    return labels.reshape(overlaps.shape)
