"""SiamBAN (Chen et al., CVPR 2020; SiamRN, sections 3.1 and 3.5): SiamRPN++ without anchors.

Every cell predicts whether it lies on the target and how far the target's four sides are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tracker_ros.networks.backbones import SharedBackboneConfig
from tracker_ros.networks.correlation import DepthwiseBranch, Pairs
from tracker_ros.networks.efficientnet import EFFICIENTNET_LITE0
from tracker_ros.networks.resnet_dilated import DILATED_RESNET50
from tracker_ros.networks.siamese import BackboneConfig, Kernels, Maps, SiameseNet, central, mix


@dataclass(frozen=True)
class SiamBANConfig:
    """Shape of a SiamBAN network.

    Attributes:
        backbone: AlexNet, dilated ResNet or the shared one.
        neck: channels behind the neck; 0: none.
        hidden: channels inside the head.
    """

    backbone: BackboneConfig
    neck: int = 256
    hidden: int = 256


SIAMBAN_R50 = SiamBANConfig(DILATED_RESNET50)
#: Longest logarithm of a side while training, e^7 pixels: beyond it an untrained head has infinite losses.
LONGEST = 7.0
#: Compact presets on the shared backbones.
SIAMBAN18 = SiamBANConfig(SharedBackboneConfig(), neck=128, hidden=128)
SIAMBAN_LITE0 = SiamBANConfig(SharedBackboneConfig(EFFICIENTNET_LITE0), neck=128, hidden=128)


class BoxHead(nn.Module):
    """Head of one level: 2 class and 4 location channels a cell."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.cls = DepthwiseBranch(channels, 2, hidden)
        self.loc = DepthwiseBranch(channels, 4, hidden)


class SiamBANNet(SiameseNet):
    """SiamBAN: everything that is trained."""

    def __init__(self, config: SiamBANConfig) -> None:
        super().__init__(config.backbone, config.neck)
        self.config = config
        self.heads = nn.ModuleList(BoxHead(channels, config.hidden) for channels in self.channels)
        self.cls_fusion = nn.Parameter(torch.zeros(len(self.heads)))
        self.loc_fusion = nn.Parameter(torch.zeros(len(self.heads)))
        #: Factor of each level's location outputs before the exponential.
        self.loc_scales = nn.Parameter(torch.ones(len(self.heads)))

    @property
    def levels(self) -> list[BoxHead]:
        """The heads, one a level."""
        return cast("list[BoxHead]", list(self.heads))

    def convolutions(self) -> list[nn.Module]:
        """The parts that run on every frame's whole crop, for which half precision suffices."""
        return [*super().convolutions(), *(branch.search for head in self.levels for branch in (head.cls, head.loc))]

    def template(self, crops: Tensor) -> Kernels:
        """Kernels of targets from their template crops, Tx3x127x127."""
        return self.kernels(self.features(crops))

    def kernels(self, features: list[Tensor]) -> Kernels:
        """Kernels of targets from the features of their template crops, one map a level."""
        inner = [central(level).float() for level in features]
        cls = [head.cls.kernel(level) for head, level in zip(self.levels, inner, strict=True)]
        loc = [head.loc.kernel(level) for head, level in zip(self.levels, inner, strict=True)]
        return Kernels(torch.stack(cls, 1), torch.stack(loc, 1))

    def forward(self, crops: Tensor, kernels: Kernels) -> Maps:
        """Search crops Bx3xHxW and the kernels of B targets to their maps, N = S * S."""
        return self.compare(self.features(crops), kernels)

    def compare(self, features: list[Tensor], kernels: Kernels, pairs: Pairs | None = None) -> Maps:
        """Search features, one map a level, and the kernels of B targets to their maps.

        With `pairs`: class logits of all of them, Px2xN, and the location of those with a target of their own.
        """
        located = None if pairs is None else pairs.located
        return Maps(self.classify(self.correlate(features, kernels, pairs)), self.locate(features, kernels, located))

    def correlate(self, features: list[Tensor], kernels: Kernels, pairs: Pairs | None = None) -> list[Tensor]:
        """Correlation features of the classification branch, one BxCxSxS (with `pairs`: Px...) a level."""
        return [
            head.cls.correlate(level, kernels.cls[:, i], pairs)
            for i, (head, level) in enumerate(zip(self.levels, features, strict=True))
        ]

    def classify(self, correlations: list[Tensor]) -> Tensor:
        """Class logits from the correlation features (one BxCxSxS a level): Bx2xN."""
        outputs = [head.cls.finish(maps) for head, maps in zip(self.levels, correlations, strict=True)]
        return mix(outputs, self.cls_fusion).flatten(2)

    def correlate_location(self, features: list[Tensor], kernels: Kernels, pairs: Pairs | None = None) -> list[Tensor]:
        """Correlation features of the location branch, as `correlate`."""
        return [
            head.loc.correlate(level, kernels.loc[:, i], pairs)
            for i, (head, level) in enumerate(zip(self.levels, features, strict=True))
        ]

    def distances(self, correlations: list[Tensor]) -> Tensor:
        """What `locate` returns, from `correlate_location`."""
        sides = []
        for head, maps, scale in zip(self.levels, correlations, self.loc_scales, strict=True):
            logarithm = head.loc.finish(maps) * scale
            sides.append(torch.exp(logarithm.clamp(max=LONGEST) if self.training else logarithm))
        return mix(sides, self.loc_fusion).flatten(2)

    def locate(self, features: list[Tensor], kernels: Kernels, pairs: Pairs | None = None) -> Tensor:
        """Distances of the target's sides from every point in crop pixels, Bx4xN; averaged after the exponential."""
        return self.distances(self.correlate_location(features, kernels, pairs))
