"""An anchor-free third detector on the target guidance, after FCOS (Tian et al., ICCV 2019).

It shows that the guidance and the adaptation of a head need nothing of SSD and Faster R-CNN; no tracker uses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tracker_ros.geometry import detection as boxes_of
from tracker_ros.networks.detection import (
    Candidates,
    Detections,
    DetectorConfig,
    GuidedDetector,
    LevelConfig,
    cell_count,
    flat_predictions,
    start_small,
)
from tracker_ros.networks.resnet import RESNET18

#: A point is the target's within this share of its half sides, and background beyond the larger one.
_INNER, _OUTER = 0.5, 1.0

GUIDED_FCOS18 = DetectorConfig(
    backbone=RESNET18,
    frozen=True,
    search=256,
    levels=(LevelConfig(8, 102, channels=96, bins=6, tower=1), LevelConfig(16, 102, channels=96, bins=6, tower=1)),
)


class FCOSHead(nn.Module):
    """One 3x3 convolution for classes and one for boxes, shared by all levels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cls = nn.Conv2d(channels, 2, 3, padding=1)
        self.loc = nn.Conv2d(channels, 4, 3, padding=1)
        start_small([self.cls, self.loc])

    def forward(self, *maps: Tensor) -> Detections:
        """Guided maps, one BxCxHxW a level, to detections over all levels' points."""
        cls = torch.cat([flat_predictions(self.cls(x), 2) for x in maps], 1)
        return Detections(cls, torch.cat([flat_predictions(self.loc(x), 4) for x in maps], 1))


class FCOS(GuidedDetector):
    """Guided FCOS. Candidates are points, given as squares of the size that a target has in the search crop.

    `Detections.loc` holds the logarithms of the distances to the target's left, top, right and bottom side, over half
    the side of the square.
    """

    points: Tensor

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(config)
        size = config.search / config.search_context
        grids = [
            boxes_of.grid(cell_count(config.search, int(level.cells.stride)), *level.cells, [(size, size)])
            for level in self.guided_levels
        ]
        self.register_buffer("points", torch.cat(grids), persistent=False)
        self.head = FCOSHead(self.guided_levels[0].outputs)
        self.start_rates(0.02, 0.002)

    def candidates(self, maps: Sequence[Tensor], extra: Tensor | None = None) -> Candidates:
        """All points; the head reads the guided maps themselves. `extra` is of no use here."""
        boxes = self.points.expand(len(maps[0]), -1, -1)
        return Candidates(tuple(maps), boxes, torch.ones_like(boxes[..., 0], dtype=torch.bool))

    def decode(self, loc: Tensor, boxes: Tensor) -> Tensor:
        """Boxes ...xNx4 of log distances ...xNx4 from the squares' centres."""
        distances = loc.clamp(-4, 4).exp() * boxes[..., 2:].tile(2) / 2
        low, high = boxes[..., :2] - distances[..., :2], boxes[..., :2] + distances[..., 2:]
        return boxes_of.centers(torch.cat([low, high], -1))

    def encode(self, targets: Tensor, boxes: Tensor) -> Tensor:
        """Log distances from the squares' centres to the targets' sides; sides on the wrong side count as close."""
        sides = boxes_of.corners(targets)
        distances = torch.cat([boxes[..., :2] - sides[..., :2], sides[..., 2:] - boxes[..., :2]], -1)
        return (distances / (boxes[..., 2:].tile(2) / 2)).log().nan_to_num(-4.0).clamp(-4, 4)

    def match(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Labels of points by how far inside the target they lie: BxN, 1 target, 0 background, -1 neither."""
        half = targets[:, None, 2:].clamp_min(0.01) / 2
        away = ((boxes[..., :2] - targets[:, None, :2]).abs() / half).amax(-1)
        labels = torch.full_like(away, -1, dtype=torch.int64)
        labels[away > _OUTER] = 0
        # However small the target, the closest point is its own.
        labels[(away <= _INNER) | (away == away.amin(-1, keepdim=True))] = 1
        return labels
