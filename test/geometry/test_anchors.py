from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tracker_ros.geometry.anchors import (
    anchor_shapes,
    anchors,
    change_penalty,
    cosine_window,
    decode_anchors,
    decode_points,
    label_anchors,
    overall_size,
    overlap,
    points,
)
from tracker_ros.geometry.boxes import Box, iou


def test_anchor_shapes_have_one_area_and_the_ratios() -> None:
    assert anchor_shapes().tolist() == [[104, 32], [88, 40], [64, 64], [40, 80], [32, 96]]


def test_anchors_go_plane_by_plane_then_row_by_row() -> None:
    grid = anchors(np.array([[10, 20], [30, 40]], np.float32), 3)
    assert grid.shape == (18, 4)
    assert grid[0].tolist() == [-8, -8, 10, 20]
    assert grid[1].tolist() == [0, -8, 10, 20]
    assert grid[3].tolist() == [-8, 0, 10, 20]
    assert grid[9].tolist() == [-8, -8, 30, 40]
    assert np.array_equal(grid[9:, :2], points(3))


def test_the_window_is_one_at_the_centre_and_zero_at_the_border() -> None:
    window = cosine_window(17)
    assert window[8, 8] == 1
    assert not window[0].any()
    assert not window[:, -1].any()
    assert np.array_equal(window, window.T)


def test_anchors_decode_to_what_was_encoded() -> None:
    grid = torch.from_numpy(anchors(anchor_shapes(), 3)).double()
    truth = torch.tensor([5.0, -3.0, 50.0, 70.0]).double()
    encoded = torch.cat([(truth[:2] - grid[:, :2]) / grid[:, 2:], (truth[2:] / grid[:, 2:]).log()], 1)
    torch.testing.assert_close(decode_anchors(encoded.mT[None], grid)[0], truth.expand(45, 4))


def test_points_decode_to_what_was_encoded() -> None:
    grid = torch.from_numpy(points(5)).double()
    low, high = torch.tensor([-20.0, -38.0]).double(), torch.tensor([30.0, 32.0]).double()
    distances = torch.cat([grid - low, high - grid], 1)
    expected = torch.tensor([5.0, -3.0, 50.0, 70.0]).double().expand(25, 4)
    torch.testing.assert_close(decode_points(distances.mT[None], grid)[0], expected)


def test_penalty_is_one_without_change_and_the_same_for_growth_and_shrinkage() -> None:
    sizes = torch.tensor([[40.0, 60.0]])
    boxes = torch.tensor([[[0, 0, 40, 60], [9, 9, 80, 120], [0, 0, 20, 30], [0, 0, 60, 40]]]).float()
    same, grown, shrunk, turned = change_penalty(boxes, sizes, 0.1)[0].tolist()
    assert same == pytest.approx(1)
    assert grown == pytest.approx(math.exp(-0.1 * (2 - 1)))
    assert shrunk == pytest.approx(grown)
    assert turned == pytest.approx(math.exp(-0.1 * (1.5**2 - 1)))
    assert overall_size(torch.tensor([30.0, 30.0])) == pytest.approx(60)


def test_overlap_is_that_of_boxes() -> None:
    r = np.random.RandomState(0)
    centers, sizes = r.uniform(-20, 20, (30, 2)), r.uniform(0, 30, (30, 2))
    boxes = torch.from_numpy(np.concatenate([centers, sizes], 1))
    expected = [iou(Box.from_center(*boxes[0].tolist()), Box.from_center(*b.tolist())) for b in boxes]
    np.testing.assert_allclose(overlap(boxes, boxes[0]), expected, atol=1e-12)
    assert overlap(torch.zeros(4), torch.zeros(4)) == 0


def test_samples_are_drawn_by_overlap_up_to_their_numbers() -> None:
    overlaps = np.linspace(0, 1, 1000).reshape(10, 100)
    labels = label_anchors(overlaps, np.random.RandomState(0))
    assert (labels == 1).sum() == 16
    assert (labels == 0).sum() == 48
    assert overlaps[labels == 1].min() > 0.6
    assert overlaps[labels == 0].max() < 0.3
    again = label_anchors(overlaps, np.random.RandomState(0))
    assert np.array_equal(labels, again)
    few = label_anchors(np.array([0.9, 0.5, 0.1]), np.random.RandomState(0))
    assert few.tolist() == [1, -1, 0]
