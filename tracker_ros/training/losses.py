"""Losses and labels: of DiMP's offline training (Bhat et al., ICCV 2019, section 3.6) and of the Siamese trackers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

#: Standard deviation of the label in cells: 1/4 of the base target size, which is 18 cells / 5.
LABEL_SIGMA = 18 / 5 / 4


def gaussian_labels(centres: Tensor, size: int, sigma: float = LABEL_SIGMA) -> Tensor:
    """Label maps z_c.

    Args:
        centres: Nx2 (x, y) in cells; cell (row i, column j) of the map stands at (j, i).
        size: rows and columns of the map.
        sigma: standard deviation in cells.

    Returns:
        N x `size` x `size` in (0, 1]; a centre that is not finite gives a map of zeros (no target in view).
    """
    grid = torch.arange(size, dtype=centres.dtype, device=centres.device)
    x = torch.exp(-0.5 * ((grid[None] - centres[:, :1]) / sigma) ** 2)
    y = torch.exp(-0.5 * ((grid[None] - centres[:, 1:]) / sigma) ** 2)
    return torch.nan_to_num(y[:, :, None] * x[:, None, :], nan=0.0)


def hinge_residual(scores: Tensor, labels: Tensor, threshold: float = 0.05) -> Tensor:
    """Equation 8: s - z where the label exceeds `threshold`, max(0, s) elsewhere. Any shape, both alike."""
    return torch.where(labels > threshold, scores - labels, scores.clamp(min=0))


def classification_loss(scores: Sequence[Tensor], labels: Tensor, threshold: float = 0.05) -> Tensor:
    """Equation 9: mean of the squared residual over iterates, samples and cells.

    Args:
        scores: one tensor an iterate f(0)..f(n), each shaped like `labels`.
        labels: label maps, any shape.
        threshold: T of equation 8.
    """
    return torch.stack([hinge_residual(s, labels, threshold).square().mean() for s in scores]).mean()


def iou_loss(predicted: Tensor, overlaps: Tensor, present: Tensor) -> Tensor:
    """Mean squared error of IoU predictions in [-1, 1] (target 2 IoU - 1) over images that show the target.

    Args:
        predicted: NxP.
        overlaps: NxP IoUs in [0, 1].
        present: N bool.
    """
    error = (predicted - (2 * overlaps - 1)).square().mean(1)
    weight = present.to(error.dtype)
    return (error * weight).sum() / weight.sum().clamp(min=1)


# --- Siamese trackers -------------------------------------------------------------------------------------------------


def ellipse_labels(boxes: Tensor, at: Tensor) -> Tensor:
    """Labels of points (SiamBAN; SiamRN, section 3.5).

    Args:
        boxes: Bx4 (cx, cy, w, h).
        at: Nx2 (x, y).

    Returns:
        BxN int: 1 in the ellipse of half the box's axes, 0 outside of the ellipse that fills the box, -1 between them.
    """
    offset = (at - boxes[:, None, :2]) / boxes[:, None, 2:].clamp_min(1e-6)
    distance = offset.square().sum(-1)  # 1/4 on the ellipse that fills the box
    labels = torch.full_like(distance, -1.0)
    labels[distance > 0.25] = 0.0
    labels[distance < 0.0625] = 1.0
    return labels.long()


def anchor_labels(overlaps: Tensor, positive: float = 0.6, negative: float = 0.3) -> Tensor:
    """Labels of anchors by their IoU with the target, BxN (SiamRPN, section 3.3): 1 above, 0 below, -1 between."""
    labels = torch.full_like(overlaps, -1.0)
    labels[overlaps < negative] = 0.0
    labels[overlaps > positive] = 1.0
    return labels.long()


def sample_labels(
    labels: Tensor, hardness: Tensor, positives: int, negatives: int, rng: np.random.Generator, hard: float = 0.5
) -> Tensor:
    """Keep a few labels of every image; the others become -1.

    Args:
        labels: BxN of 1, 0 and -1.
        hardness: BxN, large where a negative looks like the target (its score).
        positives, negatives: most samples of each kind an image.
        rng: draws them.
        hard: share of the negatives that are the hardest ones (online hard negative mining) and not drawn.

    Returns:
        BxN of 1, 0 and -1.
    """
    draw = torch.from_numpy(rng.random(labels.shape, np.float32)).to(labels.device)
    mined = round(hard * negatives)
    kept = torch.full_like(labels, -1)
    for label, rank, count in ((1, draw, positives), (0, hardness, mined), (0, draw, negatives - mined)):
        candidates = (labels == label) & (kept == -1)
        order = rank.masked_fill(~candidates, -torch.inf)
        best = order.topk(min(count, order.shape[1]), 1).indices
        chosen = torch.zeros_like(candidates).scatter_(1, best, True) & candidates
        kept[chosen] = label
    return kept


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the two classes of their mean cross entropy; a class without samples counts nothing.

    Args:
        logits: Bx2xN (background, target).
        labels: BxN of 1, 0 and -1 (not counted).
    """
    loss = functional.cross_entropy(logits, labels.clamp_min(0), reduction="none")
    parts = [(loss * (labels == k)).sum() / (labels == k).sum().clamp_min(1) for k in (0, 1)]
    return (parts[0] + parts[1]) / 2


def anchor_offsets(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Normalised offsets of boxes Bx4 from anchors Nx4, all (cx, cy, w, h): Bx4xN (SiamRPN, eq. 3)."""
    center = (boxes[:, None, :2] - anchors[:, :2]) / anchors[:, 2:]
    size = (boxes[:, None, 2:] / anchors[:, 2:]).clamp_min(1e-6).log()
    return torch.cat([center, size], -1).mT


def offset_loss(offsets: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Smooth L1 (SiamRPN, eq. 4 to 6) of Bx4xN offsets, summed over the four: mean over the positive samples."""
    positive = (labels == 1).to(offsets.dtype)
    loss = functional.smooth_l1_loss(offsets, targets, beta=1 / 9, reduction="none").sum(1)
    return (loss * positive).sum() / positive.sum().clamp_min(1)


def distance_loss(distances: Tensor, boxes: Tensor, at: Tensor, labels: Tensor) -> Tensor:
    """One minus the IoU of boxes given by their sides' distances from points, at the positive samples (SiamBAN).

    Args:
        distances: Bx4xN positive (left, top, right, bottom).
        boxes: Bx4 (cx, cy, w, h) of the targets.
        at: Nx2 (x, y).
        labels: BxN; points labelled 1 lie in their target.
    """
    low = (at - (boxes[:, None, :2] - boxes[:, None, 2:] / 2)).mT
    high = ((boxes[:, None, :2] + boxes[:, None, 2:] / 2) - at).mT
    truth = torch.cat([low, high], 1).clamp_min(0)  # Bx4xN
    shared = torch.minimum(distances, truth)
    inner = (shared[:, 0] + shared[:, 2]) * (shared[:, 1] + shared[:, 3])
    own = (distances[:, 0] + distances[:, 2]) * (distances[:, 1] + distances[:, 3])
    union = own + (boxes[:, 2] * boxes[:, 3])[:, None] - inner
    positive = (labels == 1).to(distances.dtype)
    return ((1 - inner / union.clamp_min(1e-6)) * positive).sum() / positive.sum().clamp_min(1)


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision of a ranking of samples: mean over the positive ones of the precision down to each.

    Args:
        scores: BxN.
        labels: BxN of 1, 0 and -1 (not ranked).

    Returns:
        B float64; nan for a row without positive samples.
    """
    order = scores.masked_fill(labels < 0, -torch.inf).argsort(dim=1, descending=True, stable=True)
    positive = (labels.gather(1, order) == 1).double()
    precision = positive.cumsum(1) / torch.arange(1, labels.shape[1] + 1, device=labels.device)
    return (precision * positive).sum(1) / positive.sum(1)
