"""Target-guided Faster R-CNN (Huang et al., ICCV 2019, section 3.5 and figure 4; Ren et al., NIPS 2015).

A guided map feeds the region proposal network (RPN); the proposals are pooled from it by RoI align and classified and
refined. What is adapted to a target are the last, linear layers for classes and boxes: the "classification and
regression heads" of section 3.3, the RoI head layers of section 3.5. The RPN and the layers in front of the head learn
in the outer loop only.
"""

from __future__ import annotations

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
)
from tracker_ros.networks.efficientnet import EFFICIENTNET_LITE0
from tracker_ros.networks.guidance import pool
from tracker_ros.networks.resnet import RESNET18, RESNET50, Bottleneck, stage

#: Proposals with a side below this many pixels of the crop are dropped.
_SMALLEST = 4.0


@dataclass(frozen=True)
class FasterRCNNConfig(DetectorConfig):
    """Shape of a guided Faster R-CNN.

    Attributes:
        scales: sizes of the RPN's anchors, over the target's size in the search crop.
        ratios: their aspect ratios, width over height.
        considered: boxes of highest score that enter non-maximum suppression.
        proposals: boxes that leave it, K.
        suppression: IoU above which a box suppresses another.
        bins: bins a side that proposals are pooled to.
        hidden: features of a pooled proposal behind one linear layer; 0 for the fourth stage of a ResNet-50, as in the
            original detector.
        rpn_positive_weight: weight of a positive over a negative in the RPN's classification loss (section 3.2).
    """

    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    considered: int = 256
    proposals: int = 32
    suppression: float = 0.7
    bins: int = 5
    hidden: int = 256
    rpn_positive_weight: float = 3.0


GUIDED_FRCNN_R50 = FasterRCNNConfig(
    backbone=RESNET50,
    frozen=False,
    search=480,
    levels=(LevelConfig(16, 192, bins=6),),
    considered=1000,
    proposals=100,
    bins=14,
    hidden=0,
)
GUIDED_FRCNN18 = FasterRCNNConfig(
    backbone=RESNET18,
    frozen=True,
    search=320,
    levels=(LevelConfig(8, 128, channels=64), LevelConfig(16, 128, channels=128, tower=1)),
)
GUIDED_FRCNN_LITE0 = replace(GUIDED_FRCNN18, backbone=EFFICIENTNET_LITE0)


class RegionProposals(nn.Module):
    """RPN: a 3x3 convolution, then class and box of every anchor."""

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, min(channels, 512), 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.cls = nn.Conv2d(self.conv.out_channels, 2 * anchors, 1)
        self.loc = nn.Conv2d(self.conv.out_channels, 4 * anchors, 1)
        start_small([self.conv, self.cls, self.loc])

    def forward(self, guided: Tensor) -> Detections:
        """BxCxHxW to detections over all anchors."""
        x = self.relu(self.conv(guided))
        return Detections(flat_predictions(self.cls(x), 2), flat_predictions(self.loc(x), 4))


class RoIHead(nn.Module):
    """Class and box of a proposal, linear in its features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.cls = nn.Linear(features, 2)
        self.loc = nn.Linear(features, 4)
        start_small([self.cls, self.loc])

    def forward(self, rois: Tensor) -> Detections:
        """BxKxF to detections over K proposals."""
        return Detections(self.cls(rois), self.loc(rois))


class FasterRCNN(GuidedDetector):
    """Guided Faster R-CNN: everything that is trained."""

    two_stage = True
    positive, negative = 0.5, 0.5
    #: The same for the RPN's anchors.
    rpn_positive, rpn_negative = 0.7, 0.3

    config: FasterRCNNConfig
    rpn_anchors: Tensor

    def __init__(self, config: FasterRCNNConfig) -> None:
        super().__init__(config)
        levels = self.guided_levels
        size = config.search / config.search_context
        shapes = [boxes_of.shape(size * scale, ratio) for scale in config.scales for ratio in config.ratios]
        coarse = levels[-1]
        cells = cell_count(config.search, int(coarse.cells.stride))
        self.register_buffer("rpn_anchors", boxes_of.grid(cells, *coarse.cells, shapes), persistent=False)
        self.rpn = RegionProposals(coarse.outputs, len(shapes))
        channels = sum(level.outputs for level in levels)
        features = config.hidden
        if features:
            self.trunk = nn.Sequential(
                nn.Flatten(2), nn.Linear(channels * config.bins**2, features), nn.LayerNorm(features), nn.ReLU()
            )
        else:
            features = 2 * channels
            self.layer4 = stage(Bottleneck, channels, features, 3, stride=2)
        self.head = RoIHead(features)
        self.rpn_positive_weight = config.rpn_positive_weight
        self.start_rates(0.05, 0.005)

    def rpn_boxes(self, device: torch.device | None = None) -> Tensor:
        """Nx4 anchors of the RPN."""
        return self.rpn_anchors if device is None else self.rpn_anchors.to(device)

    def match_rpn(self, targets: Tensor) -> Tensor:
        """Labels of the RPN's anchors for targets Bx4: BxN as in `match`."""
        overlaps = boxes_of.overlap_matrix(self.rpn_anchors, targets).mT
        return boxes_of.label(overlaps, self.rpn_positive, self.rpn_negative)

    def propose(self, found: Detections) -> tuple[Tensor, Tensor]:
        """The K best boxes of the RPN after non-maximum suppression, inside the crop, and which of them exist.

        Where fewer than K are left, suppressed ones fill up, and are marked. No gradient flows through the choice.

        Returns:
            BxKx4 and BxK bool.
        """
        config = self.config
        with torch.no_grad():
            margin = (found.cls[..., 1] - found.cls[..., 0]).detach()
            scores, index = margin.topk(min(config.considered, margin.shape[1]), 1)
            offsets = found.loc.detach().gather(1, index[..., None].expand(-1, -1, 4))
            boxes = boxes_of.clip(boxes_of.decode(offsets, self.rpn_anchors[index]), config.search)
            usable = (boxes[..., 2:] >= _SMALLEST).all(-1)
            scores = scores.masked_fill(~usable, -torch.inf)
            keep = boxes_of.nms(boxes, scores, config.suppression) & usable
            # Kept ones first, each group by falling score, which is the order that they are in.
            order = keep.int().argsort(stable=True, dim=1, descending=True)[:, : config.proposals]
            return boxes.gather(1, order[..., None].expand(-1, -1, 4)), keep.gather(1, order)

    def candidates(self, maps: Sequence[Tensor], extra: Tensor | None = None) -> Candidates:
        """Proposals, then `extra` boxes BxMx4; the head reads their pooled features BxNxF."""
        found = self.rpn(maps[-1])
        boxes, valid = self.propose(found)
        if extra is not None:
            boxes = torch.cat([boxes, extra.to(boxes.dtype)], 1)
            valid = torch.cat([valid, valid.new_ones(extra.shape[:2])], 1)
        return Candidates((self.roi_features(maps, boxes),), boxes, valid, found)

    def roi_features(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """What the head reads of boxes BxNx4: BxNxF."""
        bins = self.config.bins
        pooled = [pool(x, boxes, level.cells, bins) for x, level in zip(maps, self.guided_levels, strict=True)]
        rois = torch.cat(pooled, 2)
        if self.config.hidden:
            return self.trunk(rois)
        return self.layer4(rois.flatten(0, 1)).mean((2, 3)).unflatten(0, rois.shape[:2])
