"""Directions and distances against scenes of known geometry."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from tracker_ros.geometry.boxes import Box
from tracker_ros.geometry.camera import (
    Camera,
    InvalidCalibration,
    NoDirection,
    NoRange,
    azimuth_elevation,
    depth_in_box,
    position,
)

WIDTH, HEIGHT = 640, 480
K = (500.0, 0.0, 322.3, 0.0, 505.0, 238.1, 0.0, 0.0, 1.0)
MATRIX = np.reshape(K, (3, 3))
LENSES = {
    "plumb_bob": (-0.28, 0.07, 0.001, -0.0007, 0.01),
    "rational_polynomial": (0.9, 0.2, 0.0004, -0.0002, 0.01, 1.2, 0.4, 0.05),
    "equidistant": (-0.02, 0.005, -0.003, 0.0006),
}


def project(point: np.ndarray, model: str) -> np.ndarray:
    """Where OpenCV sees a point of the optical frame: pixels as boxes count them (edges, not centres)."""
    points, none = np.reshape(point, (1, 1, 3)).astype(float), np.zeros(3)
    if model == "equidistant":
        pixel, _ = cv2.fisheye.projectPoints(points, none, none, MATRIX, np.array(LENSES[model]))
    else:
        pixel, _ = cv2.projectPoints(points, none, none, MATRIX, np.array(LENSES.get(model, ())))
    return pixel.ravel() + 0.5


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return math.degrees(math.atan2(np.linalg.norm(np.cross(a, b)), np.dot(a, b)))


@pytest.mark.parametrize("model", ["", *LENSES])
def test_rays_lead_back_to_the_points_that_were_seen(model: str):
    camera = Camera.from_calibration(WIDTH, HEIGHT, K, LENSES.get(model, ()), model)
    rng = np.random.RandomState(0)
    seen = 0
    while seen < 200:
        point = rng.uniform((-3, -2, 2), (3, 2, 6))
        x, y = project(point, model)
        if not (0 <= x <= WIDTH and 0 <= y <= HEIGHT):
            continue
        ray = camera.ray(x, y)
        assert np.linalg.norm(ray) == pytest.approx(1)
        assert degrees(ray, point) < 0.001
        seen += 1


@pytest.mark.parametrize("model", ["", *LENSES])
def test_a_rendered_target_is_found_in_its_direction_and_at_its_distance(model: str):
    """A bright disc in space, drawn pixel by pixel through the lens; its box is measured in the picture."""
    camera = Camera.from_calibration(WIDTH, HEIGHT, K, LENSES.get(model, ()), model)
    centre, radius = np.array([0.7, -0.45, 3.0]), 0.12
    angles = np.linspace(0, 2 * math.pi, 400, endpoint=False)
    rim = centre + radius * np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
    outline = np.array([project(point, model) for point in rim])
    picture = np.zeros((HEIGHT, WIDTH), np.uint8)
    # Pixels whose centre lies inside the outline.
    scale = 16
    fixed = np.round((outline - 0.5) * scale).astype(np.int32)
    cv2.fillPoly(picture, [fixed.reshape(-1, 1, 2)], 255, shift=4)
    depth = np.where(picture > 0, 3000, 8000).astype(np.uint16)
    rows, columns = np.nonzero(picture)
    box = Box(columns.min(), rows.min(), np.ptp(columns) + 1.0, np.ptp(rows) + 1.0)

    ray = camera.ray(*box.center)
    assert degrees(ray, centre) < 0.1
    measured = depth_in_box(depth, box)
    assert measured == pytest.approx(3.0, abs=0.001)
    assert np.linalg.norm(position(ray, measured) - centre) < 3.2 * math.radians(0.1)


def test_the_half_pixel_between_boxes_and_calibrations():
    """The principal point is the centre of a pixel to a calibration, half a pixel further to a box."""
    camera = Camera.from_calibration(WIDTH, HEIGHT, K)
    assert degrees(camera.ray(322.8, 238.6), np.array([0.0, 0, 1])) < 1e-6
    assert degrees(camera.ray(322.8 + 500, 238.6), np.array([1.0, 0, 1])) < 1e-6


def test_azimuth_is_to_the_right_and_elevation_up():
    assert azimuth_elevation(np.array([0.0, 0.0, 1.0])) == (0.0, 0.0)
    azimuth, elevation = azimuth_elevation(np.array([1.0, -math.sqrt(2), 1.0]) / 2)
    assert (math.degrees(azimuth), math.degrees(elevation)) == pytest.approx((45, 45))


def test_a_fisheye_sees_to_its_side_and_a_little_behind():
    k = (150.0, 0.0, 319.5, 0.0, 150.0, 239.5, 0.0, 0.0, 1.0)
    camera = Camera.from_calibration(WIDTH, HEIGHT, k, (0, 0, 0, 0), "equidistant")
    for angle in (0, 30, 89, 90, 100, 120):
        ray = camera.ray(320 + 150 * math.radians(angle), 240)
        assert degrees(ray, np.array([math.sin(math.radians(angle)), 0, math.cos(math.radians(angle))])) < 1e-4


def test_binning_and_a_region_of_interest():
    full = Camera.from_calibration(WIDTH, HEIGHT, K, LENSES["plumb_bob"])
    part = Camera.from_calibration(WIDTH, HEIGHT, K, LENSES["plumb_bob"], binning=(2, 2), offset=(100, 60))
    assert (part.width, part.height) == (320, 240)
    for x, y in ((0, 0), (40.5, 90.25), (200, 100)):
        assert degrees(part.ray(x, y), full.ray(100 + 2 * x, 60 + 2 * y)) < 1e-6
    same = Camera.from_calibration(WIDTH, HEIGHT, K, LENSES["plumb_bob"], binning=(0, 0))
    assert np.array_equal(same.matrix, full.matrix)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k": [0.0] * 9}, "not calibrated"),
        ({"k": [-500.0, *K[1:]]}, "not calibrated"),
        ({"k": K[:8]}, "nine finite numbers"),
        ({"k": [math.nan, *K[1:]]}, "nine finite numbers"),
        ({"k": [*K[:8], 2.0]}, "upper triangular"),
        ({"d": [math.inf, 0, 0, 0]}, "finite"),
        ({"d": [0.1, 0.2]}, "4 or 5 coefficients, got 2"),
        ({"d": [0.1] * 5, "model": "equidistant"}, "4 coefficients, got 5"),
        ({"d": [0.1] * 5, "model": "rational_polynomial"}, "8 or 12 or 14"),
        ({"d": [0.1] * 5, "model": "fov"}, "'fov' is not known"),
        ({"d": [0.1] * 5, "model": ""}, "'' is not known"),
        ({"width": 0}, "0x480"),
    ],
)
def test_calibrations_that_are_none(changes: dict, said: str):
    values = {"width": WIDTH, "height": HEIGHT, "k": K, **changes}
    with pytest.raises(InvalidCalibration, match=said):
        Camera.from_calibration(**values)


def test_pixels_beyond_the_reach_of_the_lens_have_no_direction():
    """A barrel distortion that turns back: no ray reaches the corner."""
    camera = Camera.from_calibration(WIDTH, HEIGHT, (300.0, 0, 320, 0, 300, 240, 0, 0, 1), (-0.4, 0, 0, 0))
    assert degrees(camera.ray(320.5, 240.5), np.array([0.0, 0, 1])) < 1e-6
    with pytest.raises(NoDirection, match="no direction"):
        camera.ray(0, 0)
    fisheye = Camera.from_calibration(WIDTH, HEIGHT, K, (-0.3, 0, 0, 0), "equidistant")
    with pytest.raises(NoDirection, match="no direction"):
        fisheye.ray(2000, 240)
    with pytest.raises(NoDirection, match="no number"):
        camera.ray(math.nan, 5)


def test_depth_is_that_of_the_target_and_not_of_the_ground_around_it():
    depth = np.full((HEIGHT, WIDTH), 9.0, np.float32)
    depth[100:140, 200:260] = 2.5
    assert depth_in_box(depth, Box(195, 95, 70, 50)) == 2.5
    assert depth_in_box((depth * 1000).astype(np.uint16), Box(195, 95, 70, 50)) == 2.5
    depth[100:140, 200:230] = np.nan  # Half of it is not known.
    assert depth_in_box(depth, Box(200, 100, 60, 40)) == 2.5
    depth[115:120, 240:245] = np.inf
    assert depth_in_box(depth, Box(200, 100, 60, 40)) == 2.5


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_too_few_depths_are_no_range(dtype: type):
    depth = np.zeros((HEIGHT, WIDTH), dtype)
    box = Box(200, 100, 60, 40)
    with pytest.raises(NoRange, match="0 of 600 pixels"):
        depth_in_box(depth, box)
    depth[110:130, 215:223] = 2  # 160 of 600
    with pytest.raises(NoRange, match="160 of 600 pixels have a depth, 30% are needed"):
        depth_in_box(depth, box)
    assert depth_in_box(depth, box, enough=0.25) == (0.002 if dtype is np.uint16 else 2.0)


@pytest.mark.parametrize(
    "box", [Box(900, 900, 50, 50), Box(-300, 10, 50, 50), Box(math.nan, 0, 5, 5), Box(0, 0, 1e9, 9)]
)
def test_a_box_outside_the_depth_image_has_no_range(box: Box):
    with pytest.raises(NoRange):
        depth_in_box(np.full((HEIGHT, WIDTH), 2.0, np.float32), box)


def test_a_tiny_box_still_has_a_pixel_and_one_at_the_edge_its_visible_part():
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    assert depth_in_box(depth, Box(10.2, 10.2, 0.1, 0.1)) == 2.0
    assert depth_in_box(depth, Box(-20, 100, 60, 40)) == 2.0


@pytest.mark.parametrize("depth", [np.zeros((4, 4)), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_images_that_are_no_depth_images(depth: np.ndarray):
    with pytest.raises(NoRange, match="uint16"):
        depth_in_box(depth, Box(0, 0, 4, 4))


def test_positions_lie_at_their_depth_along_the_optical_axis():
    camera = Camera.from_calibration(WIDTH, HEIGHT, K, LENSES["plumb_bob"])
    point = np.array([0.8, 0.3, 2.0])
    assert position(camera.ray(*project(point, "plumb_bob")), 2.0) == pytest.approx(point, abs=1e-6)
    with pytest.raises(NoRange, match="in front"):
        position(np.array([1.0, 0.0, 0.0]), 2.0)
