from __future__ import annotations

import math

import numpy as np
import pytest

from tracker_ros.geometry.boxes import Box, InvalidBox, iou, pairwise_iou, validate_init_box


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
        ((0, 0, 641, 10), "larger than the image"),
        ((700, 10, 50, 50), "outside the image"),
        ((-100, 10, 50, 50), "outside the image"),
        ((1, 2, 3), "four numbers"),
    ],
)
def test_refusals_say_what_is_wrong(box: tuple[float, ...], reason: str) -> None:
    with pytest.raises(InvalidBox, match=reason):
        validate_init_box(box, 640, 480)


def test_a_box_half_outside_is_accepted() -> None:
    assert validate_init_box((-10, -10, 30, 30), 640, 480) == (-10, -10, 30, 30)
