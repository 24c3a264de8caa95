"""Random crops and photometric changes. Every function draws only from the generator that it is given.

What a crop shows is drawn first, as a `FramePlan`, and made into pixels later: by `render` with OpenCV, or on a GPU by
`tracker_ros.training.device`. Both make the same picture of the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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


def cut(
    image: TrainingImage,
    view: View,
    size: int,
    border: int = cv2.BORDER_REPLICATE,
    fill: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Image:
    """Cut `view` from `image` as a `size` x `size` crop, from the pyramid level that needs no more than halving.

    `border` is OpenCV's rule for what lies beyond the image, `fill` the BGR colour of cv2.BORDER_CONSTANT.
    """
    return warp(image, view.matrix(size), size, size, border, fill)


def level_of(matrix: Matrix, levels: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """The coarsest of `levels` pyramid levels that a matrix from image to crop need not magnify.

    Args:
        matrix: ...x2x3.
        levels: their number, one or as many as there are matrices.
    """
    size = np.abs(matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0])
    halvings = np.floor(-0.5 * np.log2(np.minimum(size, 1.0)) + 1e-9)
    return np.minimum(halvings.astype(np.int64), levels - 1)


def warp(
    image: TrainingImage,
    matrix: Matrix,
    width: int,
    height: int,
    border: int = cv2.BORDER_REPLICATE,
    fill: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Image:
    """`image` through the 2x3 `matrix` (image pixels to crop pixels), a `height` x `width` crop; rest as in `cut`."""
    source = image.levels[int(level_of(matrix, len(image.levels)))]
    factor_x, factor_y = image.size[0] / source.shape[1], image.size[1] / source.shape[0]
    linear = matrix[:, :2] @ np.diag([factor_x, factor_y])
    # Box coordinates put a pixel's area at [i, i + 1]; OpenCV puts its centre at i.
    shift = matrix[:, 2] + linear @ np.array([0.5, 0.5]) - 0.5
    full = np.hstack([linear, shift[:, None]])
    crop = cv2.warpAffine(source, full, (width, height), flags=cv2.INTER_LINEAR, borderMode=border, borderValue=fill)
    return crop.astype(np.uint8, copy=False)


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


@dataclass(frozen=True)
class Photometric:
    """Changes of a crop's pixels, in this order.

    Attributes:
        colour: 3x4 matrix on BGR, as `colour_matrix` draws it; none leaves the colours.
        sigma: standard deviation of a Gaussian blur in pixels, 0 for none.
        motion: KxK kernel of a motion blur, K odd and at most `LONGEST_MOTION`.
        noise: standard deviation of white noise in grey levels, 0 for none.
        noise_seed: of the noise.
        quality: JPEG quality to encode with, 0 for none.
    """

    colour: Matrix | None = None
    sigma: float = 0.0
    motion: NDArray[np.float32] | None = None
    noise: float = 0.0
    noise_seed: int = 0
    quality: int = 0

    def apply(self, image: Image) -> Image:
        """The changed image, HxWx3 uint8 BGR."""
        result = image
        if self.colour is not None:
            result = cv2.transform(result, self.colour).astype(np.uint8, copy=False)
        if self.sigma > 0:
            result = cv2.GaussianBlur(result, (0, 0), self.sigma).astype(np.uint8, copy=False)
        if self.motion is not None:
            result = cv2.filter2D(result, -1, self.motion).astype(np.uint8, copy=False)
        if self.noise > 0:
            noise = np.random.default_rng(self.noise_seed).standard_normal(result.shape, np.float32)
            result = np.clip(np.rint(result + noise * np.float32(self.noise)), 0, 255).astype(np.uint8)
        if self.quality > 0:
            encoded = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, self.quality])[1]
            result = cv2.imdecode(encoded, cv2.IMREAD_COLOR).astype(np.uint8, copy=False)
        return result


#: Largest side of a motion blur's kernel, and largest deviation of a Gaussian blur, in pixels.
LONGEST_MOTION, WIDEST_BLUR = 13, 2.0


def draw_photometric(rng: np.random.Generator, strength: float = 1.0) -> Photometric:
    """Contrast, brightness, colour, blur, noise and JPEG artefacts, each at random."""
    colour = colour_matrix(rng, strength) if rng.random() < 0.85 else None
    sigma, motion = 0.0, None
    if rng.random() < 0.2:
        if rng.random() < 0.5:
            sigma = float(rng.uniform(0.5, WIDEST_BLUR))
        else:
            motion = motion_kernel(int(rng.integers(3, LONGEST_MOTION + 1)) | 1, float(rng.uniform(0, np.pi)))
    noise, seed = 0.0, 0
    if rng.random() < 0.1:
        noise, seed = float(rng.uniform(2, 12)), int(rng.integers(2**31))
    quality = int(rng.integers(20, 70)) if rng.random() < 0.1 else 0
    return Photometric(colour, sigma, motion, noise, seed, quality)


def photometric(image: Image, rng: np.random.Generator, strength: float = 1.0) -> Image:
    """`image` changed as `draw_photometric` says."""
    return draw_photometric(rng, strength).apply(image)


def motion_kernel(length: int, angle: float) -> NDArray[np.float32]:
    """`length` x `length` kernel (odd) of a straight motion over that many pixels in direction `angle` (radians)."""
    kernel = np.zeros((length, length), np.float32)
    middle = length // 2
    dx, dy = np.cos(angle) * middle, np.sin(angle) * middle
    start = (round(middle - dx), round(middle - dy))
    cv2.line(kernel, start, (round(middle + dx), round(middle + dy)), 1.0)
    return kernel / kernel.sum()


@dataclass(frozen=True)
class Layer:
    """A view of one image that is laid over a rectangle of a crop.

    Attributes:
        image: index of the image in the pool.
        matrix: 2x3, pixels of the image to pixels of the crop.
        region: (x, y, w, h) of the rectangle, whole pixels of the crop; it may reach beyond the crop.
        ellipse: lay it over as `soft_ellipse` weighs, not wholly.
    """

    image: int
    matrix: Matrix
    region: tuple[int, int, int, int]
    ellipse: bool = False

    @classmethod
    def whole(cls, image: int, view: View, size: int) -> Layer:
        """A layer that fills a crop."""
        return cls(image, view.matrix(size), (0, 0, size, size))

    @classmethod
    def piece(cls, image: int, view: View, region: tuple[int, int, int, int], ellipse: bool) -> Layer:
        """`view`, stretched to fill `region`."""
        x, y, w, h = region
        matrix = np.array([[w], [h]]) * view.matrix(1) + np.array([[0, 0, x], [0, 0, y]])
        return cls(image, matrix, region, ellipse)


@dataclass(frozen=True)
class FramePlan:
    """What one crop shows.

    Attributes:
        layers: from the ground, which fills the crop, to the top.
        illumination: 3x4 matrix on BGR that all frames of a set share.
        look: changes of the finished crop.
    """

    layers: tuple[Layer, ...]
    illumination: Matrix | None = None
    look: Photometric = field(default_factory=Photometric)


def render(images: Sequence[TrainingImage], plan: FramePlan, size: int) -> Image:
    """The `size` x `size` crop that `plan` describes, HxWx3 uint8 BGR."""
    ground = plan.layers[0]
    crop = warp(images[ground.image], ground.matrix, size, size)
    for layer in plan.layers[1:]:
        x, y, w, h = layer.region
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, size), min(y + h, size)
        if right <= left or bottom <= top:
            continue
        matrix = layer.matrix - np.array([[0, 0, left], [0, 0, top]])
        patch = warp(images[layer.image], matrix, right - left, bottom - top)
        mask = soft_ellipse(w, h) if layer.ellipse else np.ones((h, w), np.float32)
        paste(crop, patch, left, top, mask[top - y : bottom - y, left - x : right - x])
    if plan.illumination is not None:
        crop = cv2.transform(crop, plan.illumination).astype(np.uint8, copy=False)
    return plan.look.apply(crop)
