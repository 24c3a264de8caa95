"""Pictures of batches and of what a network makes of them; HxWx3 uint8 BGR, as everywhere in the package."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

from tracker_ros.training.data import Image

#: BGR.
GREEN, YELLOW, RED = (60, 220, 60), (40, 220, 250), (60, 60, 240)


def crop_picture(crop: Tensor) -> Image:
    """A crop, 3xHxW RGB in [0, 255]."""
    pixels = crop.detach().float().clamp(0, 255).round().byte().cpu().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels[..., ::-1])


def draw_box(picture: Image, box: Sequence[float], colour: tuple[int, int, int] = GREEN) -> None:
    """Draw (x, y, w, h), pixels of `picture`, into it."""
    x, y, w, h = box
    corners = [(round(float(a) * 16 - 8), round(float(b) * 16 - 8)) for a, b in ((x, y), (x + w, y + h))]
    cv2.rectangle(picture, corners[0], corners[1], colour, 1, cv2.LINE_AA, shift=4)


def map_picture(values: Tensor, size: tuple[int, int], limits: tuple[float, float] = (0.0, 1.0)) -> Image:
    """A map, HxW, as colours from blue (the lower of `limits`) to red; every cell a rectangle.

    Args:
        values: the map.
        size: width and height of the picture.
        limits: values of the first and the last colour.
    """
    low, high = limits
    shares = ((values.detach().float().cpu() - low) / (high - low)).clamp(0, 1)
    colours = cv2.applyColorMap((shares * 255).round().byte().numpy(), cv2.COLORMAP_TURBO)
    return cv2.resize(colours, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8, copy=False)


def sheet(rows: Sequence[Sequence[Image]], gap: int = 2) -> Image:
    """Pictures side by side and row below row, each at its own size, on white."""
    height = sum(max(p.shape[0] for p in row) + gap for row in rows) - gap
    width = max(sum(p.shape[1] + gap for p in row) for row in rows) - gap
    result = np.full((height, width, 3), 255, np.uint8)
    y = 0
    for row in rows:
        x = 0
        for picture in row:
            result[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            x += picture.shape[1] + gap
        y += max(p.shape[0] for p in row) + gap
    return result
