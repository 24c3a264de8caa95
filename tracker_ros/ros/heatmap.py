"""A tracker's response map laid over the whole image."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import Box


def align(
    heatmap: NDArray[np.float32] | None, region: Box, width: int, height: int, stride: int
) -> NDArray[np.float32]:
    """Sample `heatmap`, stretched over `region`, at the centres of the image's cells of `stride` x `stride` pixels.

    Args:
        heatmap: rows x columns of responses, or None for none.
        region: x, y, w, h in pixels of the image; may reach beyond it.
        width, height: size of the image in pixels.
        stride: pixels a cell.

    Returns:
        ``ceil(height / stride) x ceil(width / stride)`` float32; cell (i, j) belongs to the pixels from
        ``(j, i) * stride`` on. Bilinear between the map's cells; 0 where a cell's centre lies outside `region`.
    """
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    out = np.zeros((rows, columns), np.float32)
    if heatmap is None or heatmap.size == 0 or region.w <= 0 or region.h <= 0:
        return out
    # Cells whose centre, (j + 0.5) * stride, lies in the region.
    j0, j1 = (_cells(start, stride, columns) for start in (region.x, region.x + region.w))
    i0, i1 = (_cells(start, stride, rows) for start in (region.y, region.y + region.h))
    if j0 >= j1 or i0 >= i1:
        return out
    # Pixel coordinates to the map's, whose cell (0, 0) has its centre at (0, 0).
    map_rows, map_columns = heatmap.shape
    x = ((np.arange(j0, j1) + 0.5) * stride - region.x) / region.w * map_columns - 0.5
    y = ((np.arange(i0, i1) + 0.5) * stride - region.y) / region.h * map_rows - 0.5
    grid_x, grid_y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    source = np.ascontiguousarray(heatmap, np.float32)
    out[i0:i1, j0:j1] = cv2.remap(source, grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return out


def _cells(position: float, stride: int, count: int) -> int:
    return min(max(math.ceil(position / stride - 0.5), 0), count)
