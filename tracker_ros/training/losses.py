"""Losses and label maps of DiMP's offline training (Bhat et al., ICCV 2019, section 3.6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
