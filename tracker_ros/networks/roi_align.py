"""RoI align (He et al., "Mask R-CNN", ICCV 2017, section 3) in plain torch, with the semantics of torchvision's.

Every bin is the mean of bilinear samples on a regular grid in it. Bilinear sampling is separable, and so is its border
rule, so pooling is ``Wy F Wx^T`` as in `roi_pooling`, with samples in place of integrals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracker_ros.networks.roi_pooling import apply_bins


def sample_weights(start: Tensor, length: Tensor, bins: int, cells: int, sampling_ratio: int) -> Tensor:
    """Weight of every cell in the mean of the samples in every bin, along one axis.

    Args:
        start, length: of the boxes, S each, in cells; cell ``i`` lies at coordinate ``i``.
        bins: bins a box, P.
        cells: cells of the map along this axis, L. Samples up to one cell outside read the border, those further 0.
        sampling_ratio: samples a bin; 0 or less for one a cell, rounded up, which differs from box to box.

    Returns:
        S x P x L.
    """
    device, dtype = start.device, start.dtype
    bin_length = length / bins
    if sampling_ratio > 0:
        counts, most = torch.full_like(start, sampling_ratio), sampling_ratio
    else:
        counts = bin_length.ceil().clamp_min(0)
        most = max(int(counts.max()), 1) if len(counts) else 1
    index = torch.arange(most, device=device, dtype=dtype)
    within = (index + 0.5) / counts.clamp_min(1).unsqueeze(-1)  # S G, in bins
    at = torch.arange(bins, device=device, dtype=dtype).unsqueeze(-1) + within.unsqueeze(-2)  # S P G
    at = start[:, None, None] + at * bin_length[:, None, None]
    used = (index < counts.unsqueeze(-1)).unsqueeze(-2) & (at >= -1) & (at <= cells)
    at = at.clamp(0, cells - 1).unsqueeze(-1)
    hats = (1 - (at - torch.arange(cells, device=device, dtype=dtype)).abs()).clamp_min(0)  # S P G L
    return (hats * used.unsqueeze(-1)).sum(-2) / counts.clamp_min(1)[:, None, None]


def roi_align(
    features: Tensor, boxes: Tensor, size: int, scale: float, sampling_ratio: int = -1, aligned: bool = True
) -> Tensor:
    """Pool boxes of a feature map to `size` x `size` bins; differentiable in the features.

    Args:
        features: BxCxHxW.
        boxes: BxNx4 (x1, y1, x2, y2 in pixels of the image that the features come from).
        size: bins along each side, P.
        scale: cells a pixel.
        sampling_ratio: samples a bin and side; 0 or less for as many as a bin has cells, rounded up.
        aligned: cell ``i`` lies at pixel ``(i + 0.5) / scale``; otherwise at ``i / scale``, and boxes are at least a
            cell wide and high.

    Returns:
        BxNxCxPxP.
    """
    batch, count = boxes.shape[:2]
    flat = boxes.to(torch.promote_types(boxes.dtype, torch.float32)).reshape(-1, 4)
    scaled = flat * scale - (0.5 if aligned else 0.0)
    start, length = scaled[:, :2], scaled[:, 2:] - scaled[:, :2]
    if not aligned:
        length = length.clamp_min(1)
    weights = [
        sample_weights(start[:, axis], length[:, axis], size, cells, sampling_ratio).reshape(batch, count, size, cells)
        for axis, cells in ((1, features.shape[2]), (0, features.shape[3]))
    ]
    return apply_bins(features, *weights)
