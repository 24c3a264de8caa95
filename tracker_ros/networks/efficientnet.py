"""EfficientNet-Lite up to stride 16 (Tan and Le, "EfficientNet", ICML 2019; the Lite variants have no squeeze-and-
excitation and ReLU6 for swish).

The stages beyond stride 16 and the classifier are never evaluated by a tracker and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tracker_ros.networks.inputs import Normalising

#: Of all batch norms but the last two (the published networks' value; torch's default is 1e-5).
EPSILON = 1e-3


class Stage(NamedTuple):
    """Blocks of one width: the first has the stride, the others a shortcut."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    blocks: int


@dataclass(frozen=True)
class EfficientNetConfig:
    """Shape of an EfficientNet-Lite up to stride 16.

    Attributes:
        stem: channels of the first convolution.
        stages: what follows.
        outputs: the stages, counted from 0, whose results are the maps of stride 8 and of stride 16, the last.
        shared: name of the weights that several networks share, ``models/<shared>.safetensors``; "" if there are none.
    """

    stem: int
    stages: tuple[Stage, ...]
    outputs: tuple[int, int]
    shared: str = ""

    @property
    def maps(self) -> tuple[int, int]:
        """Channels of the maps of stride 8 and of stride 16."""
        eight, sixteen = (self.stages[index].channels for index in self.outputs)
        return eight, sixteen


EFFICIENTNET_LITE0 = EfficientNetConfig(
    stem=32,
    stages=(
        Stage(1, 3, 1, 16, 1),
        Stage(6, 3, 2, 24, 2),
        Stage(6, 5, 2, 40, 2),
        Stage(6, 3, 2, 80, 3),
        Stage(6, 5, 1, 112, 3),
    ),
    outputs=(2, 4),
    shared="backbone_lite0",
)


class InvertedBottleneck(nn.Module):
    """1x1 to `expansion` times the channels, depthwise `kernel` x `kernel`, linear 1x1: BxCxHxW to BxC'xH/sxW/s."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = nn.Sequential() if expansion == 1 else convolution(inputs, width, 1)
        self.depthwise = convolution(width, width, kernel, stride, groups=width)
        self.project = convolution(width, outputs, 1, active=False)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """BxCxHxW to BxC'xH'xW'; signed, since nothing follows the last convolution."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class EfficientNet(Normalising):
    """Stem and stages up to stride 16.

    Input: what `preprocess` makes of RGB. `forward` returns the maps of stride 8 and of stride 16, which the trackers'
    heads read. They come from linear bottlenecks, signed and 5 to 7 wide; a last batch norm without parameters gives
    every channel mean 0 and deviation 1, as heads expect. What follows must not begin with a ReLU.

    Convolutions are padded by half their kernel on every side. (TensorFlow pads an even map at its end only, which
    would move the cells by 7 and 15 pixels against those of the other backbones.)
    """

    #: The channels of the maps have mean 0 and deviation 1.
    standardised = True

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = convolution(3, config.stem, 3, 2)
        inputs, stages = config.stem, []
        for stage in config.stages:
            blocks = []
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(InvertedBottleneck(inputs, stage.channels, stage.expansion, stage.kernel, stride))
                inputs = stage.channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.standard8, self.standard16 = (nn.BatchNorm2d(channels, affine=False) for channels in config.maps)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def input_statistics() -> tuple[Tensor, Tensor]:
        """Mean and deviation of RGB in [0, 255] that `preprocess` removes, 1x3x1x1 each."""
        return torch.full((1, 3, 1, 1), 127.0), torch.full((1, 3, 1, 1), 128.0)

    def forward(self, image: Tensor, last_only: bool = False) -> tuple[Tensor, Tensor]:
        """Bx3xHxW to (BxC8xH/8xW/8, BxC16xH/16xW/16), rounded up; gradients reach `last` alone if so wished."""
        first = self.config.outputs[0] + 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and not last_only):
            x = self.stem(image)
            for stage in self.stages[:first]:
                x = stage(x)
        stride16 = x
        for stage in self.stages[first:]:
            stride16 = stage(stride16)
        return self.standard8(x), self.standard16(stride16)

    @property
    def last(self) -> nn.Module:
        """What lies between the map of stride 8 and that of stride 16."""
        return self.stages[self.config.outputs[0] + 1 :]


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    """Convolution padded by half its kernel, batch norm and, where `active`, ReLU6."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=EPSILON),
    ]
    return nn.Sequential(*layers, *([nn.ReLU6(inplace=True)] if active else []))
