"""A response map laid over the image."""

import numpy as np
import pytest

from tracker_ros.geometry.boxes import Box
from tracker_ros.ros.heatmap import align


def gauss(side: int, cx: float, cy: float) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side]
    return np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 8).astype(np.float32)


@pytest.mark.parametrize(("width", "height", "stride"), [(640, 480, 8), (641, 479, 8), (128, 96, 1), (3, 3, 64)])
def test_size_is_that_of_the_image_in_cells(width, height, stride):
    out = align(gauss(19, 9, 9), Box(0, 0, width, height), width, height, stride)
    assert out.shape == (-(-height // stride), -(-width // stride))
    assert out.dtype == np.float32


def test_same_grid_is_the_same_map():
    heat = np.random.RandomState(0).rand(12, 16).astype(np.float32)
    assert np.allclose(align(heat, Box(0, 0, 128, 96), 128, 96, 8), heat, atol=1e-6)


@pytest.mark.parametrize(("cx", "cy"), [(4, 9), (9, 9), (14, 3)])
@pytest.mark.parametrize("region", [Box(100, 50, 190, 190), Box(300.5, 200.25, 333, 250), Box(-40, -60, 300, 400)])
def test_the_peak_lands_where_the_map_says(cx, cy, region):
    stride = 4
    out = align(gauss(19, cx, cy), region, 640, 480, stride)
    row, column = np.unravel_index(out.argmax(), out.shape)
    x, y = region.x + (cx + 0.5) / 19 * region.w, region.y + (cy + 0.5) / 19 * region.h
    if 0 <= x < 640 and 0 <= y < 480:
        assert abs((column + 0.5) * stride - x) <= stride / 2 + 1e-6
        assert abs((row + 0.5) * stride - y) <= stride / 2 + 1e-6


def test_zero_outside_the_region_and_nowhere_inside():
    out = align(np.ones((5, 5), np.float32), Box(80, 40, 160, 80), 320, 240, 8)
    expected = np.zeros((30, 40), np.float32)
    expected[5:15, 10:30] = 1
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("region", [Box(700, 10, 50, 50), Box(-60, -60, 50, 50), Box(10, 10, 0, 5), Box(10, 10, 1, 1)])
def test_regions_without_a_cell_of_the_image_give_zeros(region):
    assert not align(np.ones((5, 5), np.float32), region, 640, 480, 8).any()


def test_no_map_gives_zeros():
    assert not align(None, Box(0, 0, 640, 480), 640, 480, 8).any()
