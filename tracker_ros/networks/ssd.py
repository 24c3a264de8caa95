"""Target-guided SSD (Huang et al., ICCV 2019, section 3.5 and figure 3; Liu et al., "SSD", ECCV 2016).

The first three detection layers of SSD. With the search crop at five times the target's size, the target has the base
size of the middle one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    with_one_exemplar,
)
from tracker_ros.networks.efficientnet import EFFICIENTNET_LITE0
from tracker_ros.networks.resnet import RESNET18
from tracker_ros.networks.vgg import VGG16_CONFIG, VGGConfig

#: Aspect ratios of the finest level's anchors, and of the others'. One more square anchor lies between two levels.
_FINE_RATIOS = (1.0, 2.0, 0.5)
_RATIOS = (1.0, 2.0, 0.5, 3.0, 1 / 3)


@dataclass(frozen=True)
class SSDConfig(DetectorConfig):
    """Shape of a guided SSD.

    Attributes:
        bases: base sizes of the anchors, over the side of the search crop: one a level, and the next larger one.
    """

    bases: tuple[float, ...] = (0.1, 0.2, 0.37, 0.54)


GUIDED_SSD_VGG16 = SSDConfig(
    backbone=VGG16_CONFIG,
    frozen=False,
    search=300,
    levels=(LevelConfig(8, 60), LevelConfig(16, 120), LevelConfig(32, 222)),
)
GUIDED_SSD18 = SSDConfig(
    backbone=RESNET18,
    frozen=True,
    search=256,
    levels=(
        LevelConfig(8, 52, channels=96, tower=1),
        LevelConfig(16, 102, channels=96, tower=1),
        LevelConfig(32, 190, channels=96, tower=1),
    ),
)
GUIDED_SSD18_SINGLE = with_one_exemplar(GUIDED_SSD18, 102)
GUIDED_SSD_LITE0 = replace(GUIDED_SSD18, backbone=EFFICIENTNET_LITE0)


class SSDHead(nn.Module):
    """One 3x3 convolution for classes and one for boxes, a level: the detector's head layers (section 3.5).

    Args:
        channels: of each level's guided map.
        anchors: anchors a cell of each level.
    """

    def __init__(self, channels: Sequence[int], anchors: Sequence[int]) -> None:
        super().__init__()
        pairs = list(zip(channels, anchors, strict=True))
        self.cls = nn.ModuleList(nn.Conv2d(c, 2 * a, 3, padding=1) for c, a in pairs)
        self.loc = nn.ModuleList(nn.Conv2d(c, 4 * a, 3, padding=1) for c, a in pairs)
        start_small([*self.cls, *self.loc])

    def forward(self, *maps: Tensor) -> Detections:
        """Guided maps, one BxCxHxW a level, to detections over all levels' anchors."""
        cls = [flat_predictions(layer(x), 2) for layer, x in zip(self.cls, maps, strict=True)]
        loc = [flat_predictions(layer(x), 4) for layer, x in zip(self.loc, maps, strict=True)]
        return Detections(torch.cat(cls, 1), torch.cat(loc, 1))


class SSD(GuidedDetector):
    """Guided SSD: everything that is trained."""

    anchors: Tensor

    def __init__(self, config: SSDConfig) -> None:
        super().__init__(config)
        levels = self.guided_levels
        shapes = anchor_shapes(config)
        self.head = SSDHead([level.outputs for level in levels], [len(s) for s in shapes])
        self.start_rates(0.02, 0.002)
        grids = [
            boxes_of.grid(cell_count(config.search, int(level.cells.stride)), *level.cells, s)
            for level, s in zip(levels, shapes, strict=True)
        ]
        self.register_buffer("anchors", torch.cat(grids), persistent=False)

    def _extra_level(self, channels: int) -> tuple[nn.Module, int]:
        if not isinstance(self.backbone.config, VGGConfig):
            return super()._extra_level(channels)
        # conv8_1 and conv8_2 of SSD.
        layers = [nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels // 2, 3, 2, 1)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        return nn.Sequential(layers[0], nn.ReLU(inplace=True), layers[1], nn.ReLU(inplace=True)), channels // 2

    def candidates(self, maps: Sequence[Tensor], extra: Tensor | None = None) -> Candidates:
        """All anchors; the head reads the guided maps themselves. `extra` is of no use here."""
        boxes = self.anchors.expand(len(maps[0]), -1, -1)
        return Candidates(tuple(maps), boxes, torch.ones_like(boxes[..., 0], dtype=torch.bool))


def anchor_shapes(config: SSDConfig) -> list[list[tuple[float, float]]]:
    """Width and height in pixels of the anchors of a cell, for each level (SSD, section 2.2)."""
    sizes = [config.search * base for base in config.bases]
    shapes = []
    for i in range(len(config.levels)):
        ratios = _FINE_RATIOS if i == 0 else _RATIOS
        between = math.sqrt(sizes[i] * sizes[i + 1])
        shapes.append([*(boxes_of.shape(sizes[i], ratio) for ratio in ratios), (between, between)])
    return shapes
