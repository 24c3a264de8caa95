"""The backbones that the compact networks share: trained once by `distill`, and then fixed.

The weights of a backbone lie in a file of their own (`shared` of its configuration); the file of each tracker adds its
head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from tracker_ros.networks.efficientnet import EFFICIENTNET_LITE0, EfficientNet, EfficientNetConfig
from tracker_ros.networks.resnet import RESNET18, ResNet, ResNetConfig

BackboneConfig = ResNetConfig | EfficientNetConfig

#: What may be shared, by the name of its weights.
BACKBONES: dict[str, BackboneConfig] = {config.shared: config for config in (RESNET18, EFFICIENTNET_LITE0)}
BACKBONE18 = RESNET18.shared


def build_backbone(config: BackboneConfig) -> ResNet | EfficientNet:
    """A backbone with random weights: RGB through `preprocess` to the maps of stride 8 and 16, `config.maps` wide."""
    return EfficientNet(config) if isinstance(config, EfficientNetConfig) else ResNet(config)


@dataclass(frozen=True)
class SharedBackboneConfig:
    """Which maps of a shared backbone a network reads.

    Attributes:
        net: the backbone.
        stages: the maps that are returned, 2 for that of stride 8 and 3 for that of stride 16.
    """

    net: BackboneConfig = RESNET18
    stages: tuple[int, ...] = (2, 3)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps."""
        return tuple(self.net.maps[stage - 2] for stage in self.stages)


class SharedBackbone(nn.Module):
    """A shared backbone as the Siamese networks see theirs: total stride 8, maps aligned at their centres.

    Input: Bx3xHxW, BGR in [0, 255], H and W one less than a multiple of 16. One row and one column are added before
    the first, so that cells fall on the same pixels as those of a `DilatedResNet`: cell ``i`` is centred on pixel
    ``7 + 8 i``. The map of stage 3 has stride 16 and is interpolated in between.

    Derived classes are backbones too, see `shared_backbone`: the names of their parameters are those of the backbone.
    """

    config: BackboneConfig
    #: The backbone's own.
    preprocess: Callable[[Tensor], Tensor]

    def __init__(self, shared: SharedBackboneConfig) -> None:
        super().__init__(shared.net)
        self.stages_read = shared.stages

    def see(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of stride 8 and 16 of a normalised image: what the backbone's own `forward` gives."""
        raise NotImplementedError

    def maps(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of stages 2 and 3 as the backbone gives them: (W + 1) / 8 and (W + 1) / 16 cells a side."""
        image = self.preprocess(crops.flip(1)).to(crops.dtype)
        return self.see(F.pad(image, (1, 0, 1, 0), mode="replicate"))

    def align(self, stage2: Tensor, stage3: Tensor) -> tuple[Tensor, ...]:
        """The output of `maps` on the common grid of (W + 1) / 8 - 1 cells a side: the maps of `stages_read`."""
        cells = stage2.shape[-1]
        aligned = []
        for stage in self.stages_read:
            if stage == 2:
                aligned.append(stage2[..., 1:, 1:])
            else:
                # The corners of the padded map are 16 pixels apart a cell; twice as many less one are 8 apart.
                padded = F.pad(stage3, (0, 1, 0, 1), mode="replicate")
                fine = F.interpolate(padded, size=cells + 1, mode="bilinear", align_corners=True)
                aligned.append(fine[..., 1:cells, 1:cells])
        return tuple(aligned)

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        """Crops to the maps of `stages_read`, BxCxSxS each: 15x15 of 127 pixels, 31x31 of 255."""
        return self.align(*self.maps(crops))


class _SharedResNet(SharedBackbone, ResNet):  # type: ignore[misc]
    see = ResNet.forward


class _SharedEfficientNet(SharedBackbone, EfficientNet):  # type: ignore[misc]
    see = EfficientNet.forward


def shared_backbone(config: SharedBackboneConfig) -> SharedBackbone:
    """A shared backbone with random weights."""
    efficient = isinstance(config.net, EfficientNetConfig)
    return _SharedEfficientNet(config) if efficient else _SharedResNet(config)
