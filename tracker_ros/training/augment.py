"""Random crops and photometric changes. Every function draws only from the generator that it is given."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.training.data import Image, TrainingImage

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """Where a crop looks.

    Attributes:
        centre: point of the image that lands on the middle of the crop, pixels.
        side: width of the square of the image that the crop shows, pixels (before `aspect`).
        aspect: factor by which the shown width grows and the shown height shrinks, 1 keeps the shape.
        angle: rotation in radians.
        flip: mirror left and right.
    """

    centre: tuple[float, float]
    side: float
    aspect: float = 1.0
    angle: float = 0.0
    flip: bool = False

    def matrix(self, size: int) -> Matrix:
        """2x3 affine matrix from image pixels to pixels of a `size` x `size` crop."""
        scale_x, scale_y = size / (self.side * self.aspect), size / (self.side / self.aspect)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        linear = np.array([[scale_x, 0.0], [0.0, scale_y]]) @ np.array([[cos, -sin], [sin, cos]])
        if self.flip:
            linear = np.array([[-1.0, 0.0], [0.0, 1.0]]) @ linear
        shift = np.array([size / 2, size / 2]) - linear @ np.array(self.centre)
        return np.hstack([linear, shift[:, None]])


def cut(image: TrainingImage, view: View, size: int, border: int = cv2.BORDER_REPLICATE) -> Image:
    """Cut `view` from `image` as a `size` x `size` crop, from the pyramid level that needs no more than halving."""
    matrix = view.matrix(size)
    shrink = view.side / size
    level = int(np.clip(np.floor(np.log2(max(shrink, 1.0))), 0, len(image.levels) - 1))
    source = image.levels[level]
    factor_x, factor_y = image.size[0] / source.shape[1], image.size[1] / source.shape[0]
    linear = matrix[:, :2] @ np.diag([factor_x, factor_y])
    # Box coordinates put a pixel's area at [i, i + 1]; OpenCV puts its centre at i.
    shift = matrix[:, 2] + linear @ np.array([0.5, 0.5]) - 0.5
    full = np.hstack([linear, shift[:, None]])
    return cv2.warpAffine(source, full, (size, size), flags=cv2.INTER_LINEAR, borderMode=border).astype(
        np.uint8, copy=False
    )


def map_box(box: NDArray[np.float32], view: View, size: int) -> NDArray[np.float32]:
    """Box (x, y, w, h) of the object in `box` as `view` shows it, pixels of the crop.

    The object is taken for the ellipse that fills its box, so that a rotation does not loosen the result as the
    rotated corners would.
    """
    matrix = view.matrix(size)
    half = np.asarray(box[2:], np.float64) / 2
    centre = matrix[:, :2] @ (np.asarray(box[:2], np.float64) + half) + matrix[:, 2]
    extent = np.sqrt((matrix[:, :2] * half[None]) ** 2 @ np.ones(2))
    return np.asarray([*(centre - extent), *(2 * extent)], np.float32)


def soft_ellipse(width: int, height: int, power: float = 2.5, edge: float = 0.15) -> NDArray[np.float32]:
    """HxW weights in [0, 1]: 1 inside a super-ellipse that fills the box, falling to 0 over `edge` of its radius."""
    x = np.abs((np.arange(width) + 0.5) / width * 2 - 1)
    y = np.abs((np.arange(height) + 0.5) / height * 2 - 1)
    radius = (x[None] ** power + y[:, None] ** power) ** (1 / power)
    return np.clip((1 - radius) / edge, 0, 1).astype(np.float32)


def paste(crop: Image, patch: Image, x: int, y: int, mask: NDArray[np.float32]) -> None:
    """Blend `patch` (HxWx3) with weights `mask` (HxW) into `crop`, top-left corner at x, y; parts outside are cut."""
    x1, y1 = max(x, 0), max(y, 0)
    x2, y2 = min(x + patch.shape[1], crop.shape[1]), min(y + patch.shape[0], crop.shape[0])
    if x2 <= x1 or y2 <= y1:
        return
    weight = mask[y1 - y : y2 - y, x1 - x : x2 - x, None]
    under = crop[y1:y2, x1:x2]
    over = patch[y1 - y : y2 - y, x1 - x : x2 - x]
    crop[y1:y2, x1:x2] = (under + weight * (over.astype(np.float32) - under)).astype(np.uint8)


def colour_matrix(rng: np.random.Generator, strength: float = 1.0) -> Matrix:
    """3x4 matrix for `cv2.transform`: random contrast, brightness, colour cast and saturation around mid-grey."""
    gain = np.exp(rng.normal(0.0, 0.25 * strength)) * np.exp(rng.normal(0.0, 0.06 * strength, 3))
    offset = rng.normal(0.0, 20.0 * strength)
    saturation = np.exp(rng.normal(0.0, 0.4 * strength)) if rng.random() < 0.6 else 1.0
    if rng.random() < 0.1 * strength:
        saturation = 0.0
    luma = np.tile([0.114, 0.587, 0.299], (3, 1))
    mix = gain[:, None] * (luma + saturation * (np.eye(3) - luma))
    return np.hstack([mix, (110 * (1 - gain) + offset)[:, None]])


def photometric(image: Image, rng: np.random.Generator, strength: float = 1.0) -> Image:
    """Contrast, brightness, colour, blur, noise and JPEG artefacts, each at random."""
    result = image
    if rng.random() < 0.85:
        result = cv2.transform(result, colour_matrix(rng, strength)).astype(np.uint8, copy=False)
    if rng.random() < 0.2:
        result = blur(result, rng)
    if rng.random() < 0.1:
        noise = rng.standard_normal(result.shape, np.float32) * np.float32(rng.uniform(2, 12))
        result = np.clip(result + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.1:
        encoded = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 70))])[1]
        result = cv2.imdecode(encoded, cv2.IMREAD_COLOR).astype(np.uint8, copy=False)
    return result


def blur(image: Image, rng: np.random.Generator) -> Image:
    """Gaussian blur, or the blur of a straight motion of 3 to 13 pixels."""
    if rng.random() < 0.5:
        return cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.5, 2.0))).astype(np.uint8, copy=False)
    length = int(rng.integers(3, 14)) | 1
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, np.pi)
    middle = length // 2
    dx, dy = np.cos(angle) * middle, np.sin(angle) * middle
    start = (round(middle - dx), round(middle - dy))
    cv2.line(kernel, start, (round(middle + dx), round(middle + dy)), 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum()).astype(np.uint8, copy=False)
