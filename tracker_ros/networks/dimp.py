"""The DiMP network: backbone, target classifier with its model predictor, IoU-Net (Bhat et al., ICCV 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tracker_ros.networks.backbones import BackboneConfig, build_backbone
from tracker_ros.networks.efficientnet import EFFICIENTNET_LITE0
from tracker_ros.networks.filter_optimizer import FilterInitializer, FilterOptimizer
from tracker_ros.networks.iou_net import IoUNet
from tracker_ros.networks.resnet import RESNET18, RESNET50, BasicBlock

#: Pixels a cell of the classification features and of the score map.
STRIDE = 16


@dataclass(frozen=True)
class DiMPConfig:
    """Shape of a DiMP network.

    Attributes:
        backbone: a ResNet or an EfficientNet.
        feature_blocks: residual blocks in front of the last convolution of the classification features.
        feature_channels: channels of the classification features and of the filter.
        filter_size: side of the filter in cells.
    """

    backbone: BackboneConfig
    feature_blocks: int
    feature_channels: int
    filter_size: int = 4


DIMP18 = DiMPConfig(RESNET18, feature_blocks=1, feature_channels=256)
DIMP50 = DiMPConfig(RESNET50, feature_blocks=0, feature_channels=512)
#: Without a residual block, which would end in a ReLU and cut half of the signed map off.
DIMP_LITE0 = DiMPConfig(EFFICIENTNET_LITE0, feature_blocks=0, feature_channels=256)


class BackboneFeatures(NamedTuple):
    """Backbone maps: BxC2xHxW at stride 8 and BxC3xHxW at stride 16."""

    layer2: Tensor
    layer3: Tensor


class InstanceL2Norm(nn.Module):
    """Scale every sample to a mean square of `scale`^2: ``x * scale * sqrt(CHW / (sum x^2 + 1e-5))``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """BxCxHxW of any float type to BxCxHxW float32; the sum over a map needs the precision."""
        x = x.float()
        count = x.shape[1] * x.shape[2] * x.shape[3]
        return x * (self.scale * torch.sqrt(count / (x.square().sum((1, 2, 3), keepdim=True) + 1e-5)))


class TargetClassifier(nn.Module):
    """Classification features and the model predictor D (section 3.2, 3.3)."""

    def __init__(self, inputs: int, config: DiMPConfig) -> None:
        super().__init__()
        channels = config.feature_channels
        blocks: list[nn.Module] = [BasicBlock(inputs, inputs) for _ in range(config.feature_blocks)]
        # The scale lets scores start near one: a filter sees C K^2 values of this magnitude.
        norm = InstanceL2Norm(math.sqrt(1 / (channels * config.filter_size**2)))
        self.features = nn.Sequential(*blocks, nn.Conv2d(inputs, channels, 3, padding=1, bias=False), norm)
        self.initializer = FilterInitializer(channels, config.filter_size, STRIDE)
        self.optimizer = FilterOptimizer(STRIDE)


class DiMPNet(nn.Module):
    """DiMP: everything that is trained.

    Images are RGB as `backbone.preprocess` returns them.
    """

    def __init__(self, config: DiMPConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        layer2, layer3 = config.backbone.maps
        self.classifier = TargetClassifier(layer3, config)
        # The reference branch is 128 and 256 channels wide for every backbone.
        self.iou_net = IoUNet((layer2, layer3))

    def extract(self, image: Tensor, last_only: bool = False) -> BackboneFeatures:
        """Backbone maps of normalised crops Bx3xHxW; gradients reach the backbone's `last` part alone if so wished."""
        return BackboneFeatures(*self.backbone(image, last_only))

    def convolutions(self) -> list[nn.Module]:
        """The parts that run on every frame's whole crop, for which half precision suffices."""
        return [self.backbone, self.classifier.features, self.iou_net.test8, self.iou_net.test16]

    def classification_features(self, features: BackboneFeatures) -> Tensor:
        """Features that the filter works on: BxCxHxW at stride 16."""
        return self.classifier.features(features.layer3)
