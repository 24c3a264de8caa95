from __future__ import annotations

import math

import numpy as np
import pytest

from tracker_ros.geometry.boxes import Box, InvalidBox, around_point, iou, pairwise_iou, validate_init_box


def test_centre_round_trip_is_exact() -> None:
    for box in (Box(0.1, 0.2, 33.3, 47.7), Box(-5, 1e3, 4, 4.000001)):
        back = Box.from_center(*box.center, box.w, box.h)
        assert max(abs(a - b) for a, b in zip(back, box, strict=True)) < 1e-9


def test_iou_of_known_pairs() -> None:
    assert iou(Box(0, 0, 10, 10), Box(0, 0, 10, 10)) == 1
    assert iou(Box(0, 0, 10, 10), Box(5, 0, 10, 10)) == pytest.approx(1 / 3)
    assert iou(Box(0, 0, 10, 10), Box(10, 0, 10, 10)) == 0


def test_pairwise_iou_keeps_nan_rows() -> None:
    a = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10.0]])
    b = np.array([[5, 0, 10, 10], [np.nan] * 4, [20, 20, 5, 5.0]])
    values = pairwise_iou(a, b)
    assert values[0] == pytest.approx(1 / 3)
    assert math.isnan(values[1])
    assert values[2] == 0


def test_clip() -> None:
    assert Box(-5, -5, 20, 10).clip(100, 100) == (0, 0, 15, 5)
    assert Box(200, 0, 20, 10).clip(100, 100).area == 0


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((math.nan, 0, 10, 10), "NaN"),
        ((0, 0, math.inf, 10), "NaN or infinite"),
        ((10, 10, 0, 10), "zero"),
        ((10, 10, -5, 10), "negative"),
        ((10, 10, 3.9, 10), "too small"),
        ((0, 0, 705, 10), "larger than the image"),
        ((-200, 10, 1000, 10), "larger than the image"),
        ((-75, 10, 100, 50), "mostly outside the image .25% is inside"),
        ((600, 450, 100, 100), "mostly outside the image .12% is inside"),
        ((0, -3, 20, 4), "mostly outside"),
        ((700, 10, 50, 50), "outside the image"),
        ((-100, 10, 50, 50), "outside the image"),
        ((1, 2, 3), "four numbers"),
    ],
)
def test_refusals_say_what_is_wrong(box: tuple[float, ...], reason: str) -> None:
    with pytest.raises(InvalidBox, match=reason):
        validate_init_box(box, 640, 480)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((-0.3, 60, 640.6, 80), (0, 60, 640, 80)),
        ((-20, -10, 680, 500), (0, 0, 640, 480)),
        ((5, 470.5, 645, 8), (5, 470.5, 635, 8)),
        ((10, 0, 20, 480.001), (10, 0, 20, 480)),
        ((-3, -2, 40, 500), (-3, 0, 40, 480)),
        ((0, 0, 640, 480), (0, 0, 640, 480)),
    ],
)
def test_a_box_a_little_larger_than_the_image_is_clipped(box: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert validate_init_box(box, 640, 480) == pytest.approx(expected)


def test_a_box_half_outside_is_accepted() -> None:
    assert validate_init_box((-10, -10, 30, 30), 640, 480) == (-10, -10, 30, 30)


def test_a_point_stands_for_a_share_of_the_shorter_side() -> None:
    assert around_point(100, 50, 640, 480) == Box(76.0, 26.0, 48.0, 48.0)
    assert around_point(100, 50, 480, 640, share=0.5) == Box(-20.0, -70.0, 240.0, 240.0)
    assert around_point(9, 9, 20, 20) == Box(7.0, 7.0, 4.0, 4.0)  # No smaller than what a track can start on.
