"""SiamRPN (Li et al., CVPR 2018) and SiamRPN++ (Li et al., CVPR 2019; CLNet, section 3.1).

SiamRPN: AlexNet, one level, up-channel or depth-wise correlation. SiamRPN++: dilated ResNet-50, a neck, three levels
with depth-wise correlation, fused by learned weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tracker_ros.networks.alexnet import ALEXNET, ALEXNET_BIG
from tracker_ros.networks.backbones import SharedBackboneConfig
from tracker_ros.networks.correlation import DepthwiseBranch, Pairs, UpChannelBranch
from tracker_ros.networks.efficientnet import EFFICIENTNET_LITE0
from tracker_ros.networks.resnet_dilated import DILATED_RESNET50
from tracker_ros.networks.siamese import BackboneConfig, Kernels, Maps, SiameseNet, central, mix


@dataclass(frozen=True)
class SiamRPNConfig:
    """Shape of a SiamRPN or SiamRPN++ network.

    Attributes:
        backbone: AlexNet, dilated ResNet or the shared one.
        neck: channels behind the neck; 0: none.
        hidden: channels inside the depth-wise head; 0: up-channel correlation.
        anchors: anchors a cell.
    """

    backbone: BackboneConfig
    neck: int = 0
    hidden: int = 0
    anchors: int = 5


SIAMRPN_ALEX_UP = SiamRPNConfig(ALEXNET)
SIAMRPN_BIG_UP = SiamRPNConfig(ALEXNET_BIG)
SIAMRPN_ALEX_DW = SiamRPNConfig(ALEXNET, hidden=256)
SIAMRPNPP_R50 = SiamRPNConfig(DILATED_RESNET50, neck=256, hidden=256)
#: Compact presets on the shared backbones.
SIAMRPN18 = SiamRPNConfig(SharedBackboneConfig(stages=(3,)), neck=128, hidden=128)
SIAMRPNPP18 = SiamRPNConfig(SharedBackboneConfig(), neck=128, hidden=128)
SIAMRPN_LITE0 = SiamRPNConfig(SharedBackboneConfig(EFFICIENTNET_LITE0, stages=(3,)), neck=128, hidden=128)
SIAMRPNPP_LITE0 = SiamRPNConfig(SharedBackboneConfig(EFFICIENTNET_LITE0), neck=128, hidden=128)


class RPNHead(nn.Module):
    """Region proposal head of one level: 2A class and 4A location channels a cell, A anchors."""

    def __init__(self, channels: int, config: SiamRPNConfig) -> None:
        super().__init__()
        self.cls: DepthwiseBranch | UpChannelBranch
        self.loc: DepthwiseBranch | UpChannelBranch
        if config.hidden:
            self.cls = DepthwiseBranch(channels, 2 * config.anchors, config.hidden)
            self.loc = DepthwiseBranch(channels, 4 * config.anchors, config.hidden)
        else:
            self.cls = UpChannelBranch(channels, 2 * config.anchors, adjust=False)
            self.loc = UpChannelBranch(channels, 4 * config.anchors, adjust=True)


class SiamRPNNet(SiameseNet):
    """SiamRPN and SiamRPN++: everything that is trained."""

    def __init__(self, config: SiamRPNConfig) -> None:
        super().__init__(config.backbone, config.neck)
        self.config = config
        self.heads = nn.ModuleList(RPNHead(channels, config) for channels in self.channels)
        if len(self.heads) > 1:
            self.cls_fusion = nn.Parameter(torch.zeros(len(self.heads)))
            self.loc_fusion = nn.Parameter(torch.zeros(len(self.heads)))

    @property
    def levels(self) -> list[RPNHead]:
        """The heads, one a level."""
        return cast("list[RPNHead]", list(self.heads))

    def convolutions(self) -> list[nn.Module]:
        """The parts that run on every frame's whole crop, for which half precision suffices."""
        return [*super().convolutions(), *(branch.search for head in self.levels for branch in (head.cls, head.loc))]

    def template(self, crops: Tensor) -> Kernels:
        """Kernels of targets from their template crops, Tx3x127x127: all that is needed of them later."""
        return self.kernels(self.features(crops))

    def kernels(self, features: list[Tensor]) -> Kernels:
        """Kernels of targets from the features of their template crops."""
        maps = [central(level).float() for level in features]
        cls = [head.cls.kernel(level) for head, level in zip(self.levels, maps, strict=True)]
        loc = [head.loc.kernel(level) for head, level in zip(self.levels, maps, strict=True)]
        return Kernels(torch.stack(cls, 1), torch.stack(loc, 1))

    def forward(self, crops: Tensor, kernels: Kernels) -> Maps:
        """Search crops Bx3xHxW and the kernels of B targets to their maps."""
        return self.respond(self.features(crops), kernels)

    def respond(self, features: list[Tensor], kernels: Kernels) -> Maps:
        """Search features, one map a level, and the kernels of B targets to their maps."""
        return self.compare(features, kernels)

    def compare(self, features: list[Tensor], kernels: Kernels, pairs: Pairs | None = None) -> Maps:
        """`respond`, or class logits of all `pairs`, Px2xN, and the location of those with a target of their own."""
        located = None if pairs is None else pairs.located
        triples = list(zip(self.levels, features, range(len(features)), strict=True))
        cls = [head.cls(level, kernels.cls[:, i], pairs) for head, level, i in triples]
        loc = [head.loc(level, kernels.loc[:, i], located) for head, level, i in triples]
        if len(features) == 1:
            return self.flatten(cls[0], loc[0])
        return self.flatten(mix(cls, self.cls_fusion), mix(loc, self.loc_fusion))

    @staticmethod
    def flatten(cls: Tensor, loc: Tensor) -> Maps:
        """Head outputs Bx2AxSxS and Bx4AxSxS to Bx2xN and Bx4xN: channels hold all anchors of one quantity together."""
        return Maps(cls.reshape(cls.shape[0], 2, -1), loc.reshape(loc.shape[0], 4, -1))
