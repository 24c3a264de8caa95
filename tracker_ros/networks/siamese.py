"""What the networks of the Siamese trackers share: features of template and search crops, and targets in batches.

Crops are BGR in [0, 255] as they are: the published networks were never trained on normalised images, and the shared
backbone of the compact ones normalises its input itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from tracker_ros.networks.alexnet import AlexNet, AlexNetConfig
from tracker_ros.networks.backbones import SharedBackbone, SharedBackboneConfig, shared_backbone
from tracker_ros.networks.resnet_dilated import DilatedResNet, DilatedResNetConfig

#: Pixels a cell of every map.
STRIDE = 8
#: Cells a side that are left of a template's map behind the neck.
TEMPLATE_CELLS = 7

BackboneConfig = AlexNetConfig | DilatedResNetConfig | SharedBackboneConfig
TemplateT = TypeVar("TemplateT", bound=tuple[Tensor, ...])


class Kernels(NamedTuple):
    """Correlation kernels of T targets over L levels, TxLxCxKxK each, for classification and location."""

    cls: Tensor
    loc: Tensor


class Maps(NamedTuple):
    """Head outputs for B targets.

    Attributes:
        cls: Bx2xN logits (background, target).
        loc: Bx4xN location: offsets of anchors, or distances from points.
    """

    cls: Tensor
    loc: Tensor

    @property
    def scores(self) -> Tensor:
        """Probability of being the target, BxN."""
        return self.cls.softmax(1)[:, 1]


def gather(templates: Sequence[TemplateT]) -> TemplateT:
    """Put single targets' templates (a named tuple of tensors) into a batch with a leading axis T."""
    first: Any = templates[0]
    if len(templates) == 1:
        return type(first)(*(part[None] for part in first))
    return type(first)(*(torch.stack(parts) for parts in zip(*templates, strict=True)))


def split(batch: TemplateT) -> list[TemplateT]:
    """The single targets' templates of a batch."""
    kind: Any = type(batch)
    return [kind(*parts) for parts in zip(*batch, strict=True)]


class SiameseNet(nn.Module):
    """Backbone and neck, with one map a level.

    Args:
        backbone: its shape.
        neck: channels of every level behind the neck (a 1x1 convolution and batch norm, no ReLU); 0 for no neck.
    """

    def __init__(self, backbone: BackboneConfig, neck: int) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)
        self.neck = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, neck, 1, bias=False), nn.BatchNorm2d(neck))
            for channels in (backbone.channels if neck else ())
        )
        #: Channels of each level's map.
        self.channels = (neck,) * len(backbone.channels) if neck else backbone.channels

    def features(self, crops: Tensor) -> list[Tensor]:
        """Maps of crops Bx3xHxW, one a level, each BxCxH'xW'."""
        return self.reduce(self.backbone(crops))

    def reduce(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps behind the neck."""
        if not self.neck:
            return list(levels)
        return [layer(level) for layer, level in zip(self.neck, levels, strict=True)]

    def convolutions(self) -> list[nn.Module]:
        """The parts that run on every frame's whole crop, for which half precision suffices."""
        return [self.backbone, self.neck]


def build_backbone(config: BackboneConfig) -> AlexNet | DilatedResNet | SharedBackbone:
    """The backbone of a configuration, with random weights."""
    if isinstance(config, AlexNetConfig):
        return AlexNet(config)
    return shared_backbone(config) if isinstance(config, SharedBackboneConfig) else DilatedResNet(config)


def central(maps: Tensor) -> Tensor:
    """The central `TEMPLATE_CELLS` of a template's map, BxCxHxW; a smaller map as it is.

    The border of a map of padded convolutions knows more of the padding than of the target.
    """
    size = maps.shape[-1]
    if size <= TEMPLATE_CELLS:
        return maps
    start = (size - TEMPLATE_CELLS) // 2
    return maps[..., start : start + TEMPLATE_CELLS, start : start + TEMPLATE_CELLS]


def mix(levels: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Sum of the levels' maps, weighted by the softmax of learned `weights` (one a level)."""
    shares = weights.softmax(0)
    mixed = levels[0] * shares[0]
    for level, share in zip(levels[1:], shares[1:], strict=True):
        mixed = mixed + level * share
    return mixed
