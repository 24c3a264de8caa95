from __future__ import annotations

import numpy as np
import pytest

from tracker_ros.geometry.crops import cut, window


@pytest.fixture
def ramp() -> np.ndarray:
    """100x160 image whose value is its column, and its row in the second channel."""
    rows, columns = np.mgrid[0:100, 0:160]
    return np.stack([columns, rows, np.zeros_like(rows)], 2).astype(np.uint8)


def test_an_inner_window_is_a_view(ramp: np.ndarray) -> None:
    w = window(50, 40, 20, 20)
    patch = cut(ramp, w)
    assert patch.shape == (20, 20, 3)
    assert np.shares_memory(patch, ramp)
    assert w.box == (40, 30, 20, 20)
    assert patch[0, 0, 0] == 40
    assert patch[0, 0, 1] == 30


@pytest.mark.parametrize("center", [(3.2, 4.9), (157.1, 96.0), (-500.0, 40.0), (900.0, 900.0), (80.0, 50.0)])
@pytest.mark.parametrize("side", [7.3, 40.0, 333.3, 900.0])
def test_every_window_has_its_size_and_replicates_the_border(
    ramp: np.ndarray, center: tuple[float, float], side: float
) -> None:
    w = window(*center, side, 64)
    patch = cut(ramp, w)
    assert patch.shape == (w.size, w.size, 3)
    columns = np.clip((w.left + np.arange(w.size)) * w.step + w.offset_x, 0, 159)
    # With decimation the last pixel of the grid stands for the border.
    allowed = w.step - 1
    assert np.abs(patch[0, :, 0].astype(int) - columns).max() <= allowed
    assert abs(w.center[0] - center[0]) <= w.step
    assert abs(w.side - side) <= w.step


def test_decimated_pixels_stand_for_the_area_around_them(ramp: np.ndarray) -> None:
    w = window(80.5, 50.5, 90, 30)
    assert w.step == 2
    patch = cut(ramp, w)
    # The crop's pixel k covers [x + k * step, x + (k + 1) * step); its centre is the centre of the sampled pixel.
    k = np.arange(w.size)
    assert np.allclose(w.x + (k + 0.5) * w.step, patch[5, :, 0] + 0.5)


def test_scale_and_centre_describe_the_crop() -> None:
    w = window(123.4, 56.7, 200.0, 288)
    assert w.scale == pytest.approx(w.side / 288)
    assert w.center == pytest.approx((w.x + w.side / 2, w.y + w.side / 2))


def test_beyond_the_image_a_crop_shows_the_fill_colour() -> None:
    image = np.random.RandomState(0).randint(0, 255, (20, 30, 3)).astype(np.uint8)
    fill = (1, 2, 3)
    for cx, cy in ((0, 0), (30, 20), (15, 10), (-40, 10), (15, 90), (28, -2)):
        w = window(cx, cy, 16, 16)
        expected = np.empty((16, 16, 3), np.uint8)
        expected[:] = fill
        for y in range(16):
            for x in range(16):
                if 0 <= w.top + y < 20 and 0 <= w.left + x < 30:
                    expected[y, x] = image[w.top + y, w.left + x]
        assert np.array_equal(cut(image, w, fill), expected)
