from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tracker_ros.networks.roi_align import roi_align


def _bilinear(channel: Tensor, y: float, x: float) -> float:
    height, width = channel.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    low_y, low_x = int(y), int(x)
    if low_y >= height - 1:
        low_y, high_y, y = height - 1, height - 1, float(height - 1)
    else:
        high_y = low_y + 1
    if low_x >= width - 1:
        low_x, high_x, x = width - 1, width - 1, float(width - 1)
    else:
        high_x = low_x + 1
    ly, lx = y - low_y, x - low_x
    return float(
        (1 - ly) * (1 - lx) * channel[low_y, low_x]
        + (1 - ly) * lx * channel[low_y, high_x]
        + ly * (1 - lx) * channel[high_y, low_x]
        + ly * lx * channel[high_y, high_x]
    )


def _one_by_one(channel: Tensor, box: list[float], bins: int, scale: float, ratio: int, aligned: bool) -> Tensor:
    """RoI align of one box on one channel, sample by sample, as torchvision documents it."""
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (v * scale - shift for v in box)
    w, h = x2 - x1, y2 - y1
    if not aligned:
        w, h = max(w, 1.0), max(h, 1.0)
    samples_y = ratio if ratio > 0 else math.ceil(h / bins)
    samples_x = ratio if ratio > 0 else math.ceil(w / bins)
    out = torch.zeros(bins, bins, dtype=channel.dtype)
    for i in range(bins):
        for j in range(bins):
            values = [
                _bilinear(
                    channel,
                    y1 + i * h / bins + (iy + 0.5) * h / bins / samples_y,
                    x1 + j * w / bins + (ix + 0.5) * w / bins / samples_x,
                )
                for iy in range(samples_y)
                for ix in range(samples_x)
            ]
            out[i, j] = sum(values) / max(len(values), 1)
    return out


BOXES = [
    [8.0, 12.0, 40.0, 30.0],
    [-20.0, 3.0, 33.0, 90.0],  # reaches beyond the map on three sides
    [70.0, 60.0, 120.0, 90.0],
    [200.0, 200.0, 240.0, 230.0],  # outside
    [21.0, 22.0, 23.0, 25.0],  # smaller than a cell
    [30.0, 30.0, 30.0, 30.0],  # without area
]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [-1, 1, 2, 3])
def test_bins_agree_with_sample_by_sample(ratio: int, aligned: bool) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 2, 9, 11, dtype=torch.double)
    boxes = torch.tensor([BOXES, BOXES[::-1]], dtype=torch.double)
    pooled = roi_align(features, boxes, 3, 1 / 8, ratio, aligned)
    assert pooled.shape == (2, 6, 2, 3, 3)
    for b in range(2):
        for n in range(6):
            expected = _one_by_one(features[b, 1], boxes[b, n].tolist(), 3, 1 / 8, ratio, aligned)
            assert torch.allclose(pooled[b, n, 1], expected, atol=1e-9)


def test_no_boxes_and_the_number_of_samples_of_each_box_apart() -> None:
    features = torch.rand(1, 1, 12, 12)
    assert roi_align(features, torch.zeros(1, 0, 4), 2, 1.0).shape == (1, 0, 1, 2, 2)
    small, large = [2.0, 2.0, 4.0, 4.0], [1.0, 1.0, 11.0, 9.0]
    both = roi_align(features, torch.tensor([[small, large]]), 2, 1.0)
    alone = roi_align(features, torch.tensor([[small]]), 2, 1.0)
    assert torch.allclose(both[:, :1], alone)


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(1)
    features = torch.randn(1, 1, 5, 6, dtype=torch.double, requires_grad=True)
    boxes = torch.tensor([[[3.0, 4.0, 31.0, 33.0]]], dtype=torch.double)
    assert torch.autograd.gradcheck(lambda f: roi_align(f, boxes, 2, 1 / 8), (features,))
