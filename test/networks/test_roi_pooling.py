from __future__ import annotations

import numpy as np
import torch

from tracker_ros.networks.roi_pooling import bin_weights, pool_fixed_boxes, pool_taps, precise_roi_pool, roi_taps


def _dense_mean(channel: np.ndarray, x1: float, y1: float, x2: float, y2: float, points: int = 400) -> float:
    """Mean of the bilinear interpolation of `channel` (zero outside) over a rectangle, by midpoint sums."""
    height, width = channel.shape
    xs = x1 + (np.arange(points) + 0.5) / points * (x2 - x1)
    ys = y1 + (np.arange(points) + 0.5) / points * (y2 - y1)
    hat_x = np.clip(1 - np.abs(xs[:, None] - np.arange(width)), 0, None)
    hat_y = np.clip(1 - np.abs(ys[:, None] - np.arange(height)), 0, None)
    return float((hat_y @ channel @ hat_x.T).mean())


def test_bins_are_the_mean_of_the_interpolated_map() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 3, 9, 11, dtype=torch.double)
    boxes = torch.tensor(
        [[[8.0, 12.0, 40.0, 30.0], [-20.0, 3.0, 33.0, 90.0]], [[70.0, 60.0, 50.0, 30.0], [1.0, 2.0, 3.0, 4.0]]]
    ).double()
    pooled = precise_roi_pool(features, boxes, 2, 8)
    assert pooled.shape == (2, 2, 3, 2, 2)
    for b in range(2):
        for n in range(2):
            x, y, w, h = (boxes[b, n] / 8).tolist()
            for i in range(2):
                for j in range(2):
                    rect = (x + j * w / 2, y + i * h / 2, x + (j + 1) * w / 2, y + (i + 1) * h / 2)
                    expected = _dense_mean(features[b, 1].numpy(), *rect)
                    assert abs(float(pooled[b, n, 1, i, j]) - expected) < 1e-4


def test_a_box_without_area_gives_zeros() -> None:
    pooled = precise_roi_pool(torch.ones(1, 2, 5, 5), torch.tensor([[[10.0, 10.0, 0.0, 8.0]]]), 3, 8)
    assert torch.equal(pooled, torch.zeros(1, 1, 2, 3, 3))


def test_weights_inside_the_map_sum_to_one() -> None:
    weights = bin_weights(torch.tensor([[2.3, 4.0, 7.9]]), 12)
    assert torch.allclose(weights.sum(-1), torch.ones(1, 2))


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(1)
    features = torch.randn(1, 2, 6, 7, dtype=torch.double, requires_grad=True)
    boxes = torch.tensor([[[5.3, 7.1, 21.7, 19.2]]], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, b: precise_roi_pool(f, b, 3, 8), (features, boxes))


def test_pooling_by_taps_is_the_dense_product() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 3, 9, 11)
    boxes = torch.tensor(
        [
            [0, 0, 88, 72],
            [8.0, 12.0, 40.0, 30.0],
            [-20.0, 3.0, 33.0, 90.0],
            [5, 5, 0, 20],
            [200, 9, 30, 30],
            [1, 2, 3, 4],
        ]
    )
    dense = precise_roi_pool(features, boxes[None].float(), 7, 8)[0].flatten(2).mT
    taps = roi_taps(boxes.float(), 7, 8, 9, 11)
    table = features[0].flatten(1).mT.contiguous()
    torch.testing.assert_close(pool_taps(table, taps, 0, 6), dense, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pool_taps(table, taps, 2, 5), dense[2:5], atol=1e-6, rtol=1e-5)
    assert not dense[3].any()


def test_pooling_of_fixed_boxes_is_precise_roi_pooling() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 9, 11, generator=generator)
    boxes = torch.tensor(
        [[[3.0, 5.0, 30.0, 41.0], [-9.0, 2.0, 20.0, 8.0]], [[40.0, 40.0, 60.0, 60.0], [1.0, 1.0, 2.0, 3.0]]]
    )
    expected = precise_roi_pool(features, boxes, 3, 8)
    torch.testing.assert_close(pool_fixed_boxes(features, boxes, 3, 8), expected)
