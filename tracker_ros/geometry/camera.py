"""From pixels to the world: the direction of a pixel through a calibrated lens, and the distance from a depth image.

Rays are unit vectors in the camera's optical frame (REP 103: x to the right, y down, z ahead). Pixels are those of
`tracker_ros.geometry.boxes`, in which pixel (i, j) covers ``[j, j + 1) x [i, i + 1)``: its centre is at ``j + 0.5,
i + 0.5``. ``sensor_msgs/CameraInfo`` and OpenCV count from the centres, and the half pixel between the two is taken
into account here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import Box

Array = NDArray[np.float64]

#: Distortion models of ``sensor_msgs/distortion_models.hpp`` -> how many coefficients they have (no coefficients at
#: all mean no distortion).
MODELS: dict[str, tuple[int, ...]] = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8, 12, 14),
    "equidistant": (4,),
}
#: Part of the box, along each side, that depth is taken from: what is farther out is often background.
INNER = 0.5
#: Smallest part of its pixels that must have a depth.
ENOUGH = 0.3
#: Pixels by which an undistorted pixel may miss the one that it came from when it is distorted again.
_MISS = 0.1


class InvalidCalibration(ValueError):
    """A calibration that no direction can be computed with; the message says what is wrong with it."""


class NoDirection(ValueError):
    """A pixel that the lens model does not reach: it has no direction."""


class NoRange(ValueError):
    """A depth image that gives no distance; the message says why."""


@dataclass(frozen=True)
class Camera:
    """A calibrated camera. Made by `from_calibration`, which checks everything.

    Attributes:
        matrix: 3x3, in pixels counted from the centre of the first one, as OpenCV does.
        distortion: the model's coefficients, empty for none.
        fisheye: whether the model is ``equidistant``.
        width, height: size of its images, pixels.
    """

    matrix: Array
    distortion: Array
    fisheye: bool
    width: int
    height: int

    @classmethod
    def from_calibration(
        cls,
        width: int,
        height: int,
        k: Sequence[float],
        d: Sequence[float] = (),
        model: str = "plumb_bob",
        *,
        binning: tuple[int, int] = (1, 1),
        offset: tuple[int, int] = (0, 0),
    ) -> Camera:
        """The camera of the fields of ``sensor_msgs/CameraInfo``, for its raw (not rectified) images.

        Args:
            width, height: of the full image, pixels.
            k: 3x3 camera matrix, row by row.
            d: distortion coefficients.
            model: one of `MODELS`; empty where there is no distortion.
            binning: full-size pixels for each one of the image, along x and y; 0 means 1.
            offset: where the image begins in the full one (``roi.x_offset``, ``roi.y_offset``), full-size pixels.

        Raises:
            InvalidCalibration: an uncalibrated camera (a matrix of zeros), values that are no numbers, an unknown model
                or a wrong number of coefficients.
        """
        matrix = np.asarray(k, np.float64)
        coefficients = np.asarray(d, np.float64).ravel()
        if matrix.size != 9 or not (np.isfinite(matrix).all() and np.isfinite(coefficients).all()):
            raise InvalidCalibration("the camera matrix must have nine finite numbers, and all coefficients be finite")
        matrix = matrix.reshape(3, 3).copy()
        if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            raise InvalidCalibration("the camera is not calibrated: the focal lengths in its matrix are not positive")
        if not np.array_equal(matrix[2], (0, 0, 1)) or matrix[1, 0] != 0:
            raise InvalidCalibration("the camera matrix must be upper triangular with a last row of 0, 0, 1")
        if width <= 0 or height <= 0:
            raise InvalidCalibration(f"the calibration is for an image of {width}x{height} pixels")
        if coefficients.any() or (model and model not in MODELS):
            counts = MODELS.get(model)
            if counts is None:
                raise InvalidCalibration(f"distortion model '{model}' is not known; known are: {', '.join(MODELS)}")
            if coefficients.size not in (counts if coefficients.any() else (0, *counts)):
                wanted = " or ".join(map(str, counts))
                raise InvalidCalibration(f"model {model} has {wanted} coefficients, got {coefficients.size}")
        if not coefficients.any() and model != "equidistant":
            coefficients = np.zeros(0)
        elif not coefficients.any():
            coefficients = np.zeros(4)  # A fisheye lens without coefficients is still none with a flat image.
        step_x, step_y = (max(1, int(step)) for step in binning)
        if (step_x, step_y) != (1, 1) or offset != (0, 0):
            # Edges of pixels scale, centres don't: half a pixel forth and back.
            matrix[0, 2] = (matrix[0, 2] + 0.5 - offset[0]) / step_x - 0.5
            matrix[1, 2] = (matrix[1, 2] + 0.5 - offset[1]) / step_y - 0.5
            matrix[0, :2] /= step_x
            matrix[1, 1] /= step_y
            width, height = width // step_x, height // step_y
        return cls(matrix, coefficients, model == "equidistant", int(width), int(height))

    def ray(self, x: float, y: float) -> Array:
        """The direction of a pixel: unit vector (3) in the optical frame.

        Raises:
            NoDirection: the lens model does not reach that far from the centre.
        """
        pixel = np.array([[[x - 0.5, y - 0.5]]])
        if not np.isfinite(pixel).all():
            raise NoDirection("the pixel is no number")
        ray = self._fisheye_ray(pixel) if self.fisheye else self._pinhole_ray(pixel)
        again = self._project(ray)
        # Beyond a lens model's reach the iteration stops anywhere.
        if not np.abs(again - pixel.ravel()).max() < _MISS:
            raise NoDirection(f"the lens model has no direction for pixel {x:.1f}, {y:.1f}")
        return ray

    def _pinhole_ray(self, pixel: Array) -> Array:
        # OpenCV stops after five steps unless told otherwise, and how to tell it differs from version to version:
        # go on from there with Newton's method.
        wanted = pixel.ravel()
        point = cv2.undistortPoints(pixel, self.matrix, self.distortion).ravel().astype(np.float64)
        for _ in range(20 if self.distortion.size else 0):
            here = self._project(np.array([*point, 1.0]))
            miss = here - wanted
            if not np.isfinite(miss).all() or np.abs(miss).max() < 1e-9:
                break
            h = 1e-6
            columns = [(self._project(np.array([*(point + d), 1.0])) - here) / h for d in (np.array([h, 0]), [0, h])]
            try:
                point = point - np.linalg.solve(np.stack(columns, 1), miss)
            except np.linalg.LinAlgError:
                break
        ray = np.array([*point, 1.0])
        return np.asarray(ray / np.linalg.norm(ray))

    def _fisheye_ray(self, pixel: Array) -> Array:
        # Not with fisheye.undistortPoints: its plane has no place for rays from 90 degrees on. Kannala and Brandt,
        # 2006: the distance from the centre is theta + k1 theta^3 + k2 theta^5 + k3 theta^7 + k4 theta^9.
        fx, skew, cx = self.matrix[0]
        fy, cy = self.matrix[1, 1:]
        b = (pixel[0, 0, 1] - cy) / fy
        a = (pixel[0, 0, 0] - cx - skew * b) / fx
        distance = math.hypot(a, b)
        if distance < 1e-12:
            return np.array([0.0, 0.0, 1.0])
        theta = min(distance, math.pi)
        for _ in range(50):
            value, slope = _equidistant(theta, self.distortion)
            if slope <= 0:
                break
            step = (value - distance) / slope
            theta = min(max(theta - step, 0.0), math.pi)
            if abs(step) < 1e-12:
                break
        sine = math.sin(theta)
        return np.array([a / distance * sine, b / distance * sine, math.cos(theta)])

    def _project(self, ray: Array) -> Array:
        """Where a ray meets the image, in pixels counted from the centre of the first one (2)."""
        if self.fisheye:
            side = math.hypot(ray[0], ray[1])
            theta = math.atan2(side, ray[2])
            value, slope = _equidistant(theta, self.distortion)
            if slope <= 0:
                return np.full(2, np.nan)
            scale = value / side if side > 1e-12 else 0.0
            a, b = ray[0] * scale, ray[1] * scale
            return np.asarray((self.matrix @ (a, b, 1.0))[:2])
        projected, _ = cv2.projectPoints(ray.reshape(1, 1, 3), np.zeros(3), np.zeros(3), self.matrix, self.distortion)
        return np.asarray(projected.ravel())


def _equidistant(theta: float, k: Array) -> tuple[float, float]:
    """The model's value at an angle, and its slope there."""
    t = theta * theta
    value = theta * (1 + t * (k[0] + t * (k[1] + t * (k[2] + t * k[3]))))
    slope = 1 + t * (3 * k[0] + t * (5 * k[1] + t * (7 * k[2] + t * 9 * k[3])))
    return float(value), float(slope)


def azimuth_elevation(ray: Array) -> tuple[float, float]:
    """Angles of a ray in the optical frame, radians: to the right of straight ahead, and above it.

    >>> right, up = azimuth_elevation(np.array([1.0, 0.0, 1.0]))
    >>> round(math.degrees(right)), round(math.degrees(up))
    (45, 0)
    """
    x, y, z = (float(value) for value in ray)
    return math.atan2(x, z), math.atan2(-y, math.hypot(x, z))


def depth_in_box(depth: NDArray[Any], box: Box, *, inner: float = INNER, enough: float = ENOUGH) -> float:
    """The median depth of a box's inner part, metres along the optical axis (as depth images have it).

    Args:
        depth: HxW, aligned with the image: uint16 in millimetres (0: none) or float32 in metres (NaN, infinite or not
            positive: none), as REP 118 has it.
        box: x, y, w, h in pixels of that image.
        inner: part of the box along each side that is looked at.
        enough: smallest part of the pixels there that must have a depth.

    Raises:
        NoRange: too few pixels have a depth, the box lies outside, or the image is of another type.
    """
    if depth.ndim != 2 or depth.dtype not in (np.uint16, np.float32):
        raise NoRange(f"a depth image is of uint16 (mm) or float32 (m), HxW; got {depth.dtype} {depth.shape}")
    if not all(map(math.isfinite, box)):
        raise NoRange("the box is no box of numbers")
    height, width = depth.shape
    part = Box.from_center(*box.center, box.w * inner, box.h * inner)
    # Whole pixels, at least one; those outside the image count as pixels without a depth.
    x1, y1 = math.floor(part.x), math.floor(part.y)
    x2, y2 = max(math.ceil(part.x + part.w), x1 + 1), max(math.ceil(part.y + part.h), y1 + 1)
    inside = depth[max(y1, 0) : max(min(y2, height), 0), max(x1, 0) : max(min(x2, width), 0)]
    values = inside[(inside > 0) & np.isfinite(inside)] if depth.dtype == np.float32 else inside[inside > 0]
    total = (x2 - x1) * (y2 - y1)
    if values.size == 0 or values.size < enough * total:
        raise NoRange(f"{values.size} of {total} pixels have a depth, {enough:.0%} are needed")
    median = float(np.median(values))
    return median / 1000 if depth.dtype == np.uint16 else median


def position(ray: Array, depth: float) -> Array:
    """The point (3), metres in the optical frame, on a ray at a depth along the optical axis.

    Raises:
        NoRange: the ray does not point ahead, where depth images look.
    """
    if not ray[2] > 1e-6:
        raise NoRange("the target is not in front of the camera")
    return np.asarray(ray * (depth / ray[2]))
