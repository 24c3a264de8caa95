"""The backbone that the compact networks share: a ResNet that is trained once and then stays fixed.

Its weights lie in a file of their own (`BACKBONE18`); the file of each tracker adds its head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tracker_ros.networks.efficientnet import EFFICIENTNET_LITE0, EfficientNet, EfficientNetConfig
from tracker_ros.networks.resnet import IMAGENET_MEAN, IMAGENET_STD, RESNET18, ResNet, ResNetConfig

#: Name of the shared weights, `models/backbone18.safetensors`.
BACKBONE18 = "backbone18"

#: What may be shared, by the name of its weights.
BACKBONES: dict[str, ResNetConfig | EfficientNetConfig] = {
    BACKBONE18: RESNET18,
    "backbone_lite0": EFFICIENTNET_LITE0,
}


def build_backbone(config: ResNetConfig | EfficientNetConfig) -> ResNet | EfficientNet:
    """A backbone with random weights: RGB through `preprocess` to the maps of stride 8 and 16, `config.maps` wide."""
    return EfficientNet(config) if isinstance(config, EfficientNetConfig) else ResNet(config)


@dataclass(frozen=True)
class SharedBackboneConfig:
    """Which maps of the shared ResNet a network reads.

    Attributes:
        resnet: its shape.
        stages: the stages whose maps are returned, of 2 and 3.
    """

    resnet: ResNetConfig = RESNET18
    stages: tuple[int, ...] = (2, 3)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps."""
        return tuple(self.resnet.channels[stage - 1] for stage in self.stages)


class SharedBackbone(ResNet):
    """The shared ResNet as the Siamese networks see theirs: total stride 8, maps aligned at their centres.

    Input: Bx3xHxW, BGR in [0, 255], H and W one less than a multiple of 16. One row and one column are added before
    the first, so that cells fall on the same pixels as those of a `DilatedResNet`: cell ``i`` is centred on pixel
    ``7 + 8 i``. The map of stage 3 has stride 16 and is interpolated in between.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shared: SharedBackboneConfig) -> None:
        super().__init__(shared.resnet)
        self.stages = shared.stages
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)

    def maps(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of stages 2 and 3 as the ResNet gives them: (W + 1) / 8 and (W + 1) / 16 cells a side."""
        image = (crops.flip(1) - self.mean) / self.std
        return super().forward(F.pad(image, (1, 0, 1, 0), mode="replicate"))

    def align(self, stage2: Tensor, stage3: Tensor) -> tuple[Tensor, ...]:
        """The output of `maps` on the common grid of (W + 1) / 8 - 1 cells a side: the maps of `stages`."""
        cells = stage2.shape[-1]
        aligned = []
        for stage in self.stages:
            if stage == 2:
                aligned.append(stage2[..., 1:, 1:])
            else:
                # The corners of the padded map are 16 pixels apart a cell; twice as many less one are 8 apart.
                padded = F.pad(stage3, (0, 1, 0, 1), mode="replicate")
                fine = F.interpolate(padded, size=cells + 1, mode="bilinear", align_corners=True)
                aligned.append(fine[..., 1:cells, 1:cells])
        return tuple(aligned)

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Crops to the maps of `stages`, BxCxSxS each: 15x15 of 127 pixels, 31x31 of 255."""
        return self.align(*self.maps(crops))
