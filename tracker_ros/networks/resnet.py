"""ResNet backbones up to their third stage (He et al., "Deep Residual Learning", CVPR 2016), as DiMP uses them.

The fourth stage and the classifier of the published networks are never evaluated by a tracker and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tracker_ros.networks.inputs import Normalising


@dataclass(frozen=True)
class ResNetConfig:
    """Shape of a ResNet.

    Attributes:
        blocks: number of residual blocks of stages 1, 2 and 3.
        bottleneck: 1x1 - 3x3 - 1x1 blocks with four times the channels (ResNet-50) or two 3x3 convolutions (ResNet-18).
        shared: name of the weights that several networks share, ``models/<shared>.safetensors``; "" if there are none.
    """

    blocks: tuple[int, int, int]
    bottleneck: bool
    shared: str = ""

    @property
    def channels(self) -> tuple[int, int, int]:
        """Output channels of stages 1, 2 and 3 (strides 4, 8 and 16)."""
        factor = 4 if self.bottleneck else 1
        return 64 * factor, 128 * factor, 256 * factor

    @property
    def maps(self) -> tuple[int, int]:
        """Channels of the maps of stride 8 and of stride 16."""
        return self.channels[1:]


RESNET18 = ResNetConfig(blocks=(2, 2, 2), bottleneck=False, shared="backbone18")
RESNET50 = ResNetConfig(blocks=(3, 4, 6), bottleneck=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: Bx`inputs`xHxW to Bx`outputs`xH/`stride`xW/`stride`."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """BxCxHxW to BxC'xH'xW'."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x.add_(shortcut) if not self.training else x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the stride sits on the 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """BxCxHxW to BxC'xH'xW'."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x.add_(shortcut) if not self.training else x + shortcut)


class ResNet(Normalising):
    """ResNet stem and stages 1 to 3.

    Input: what `preprocess` makes of RGB. `forward` returns the outputs of stage 2 (stride 8) and stage 3 (stride 16),
    which the tracker's heads read.
    """

    #: The channels of the maps have mean 0 and deviation 1.
    standardised = False

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        block = Bottleneck if config.bottleneck else BasicBlock
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for index, (count, outputs) in enumerate(zip(config.blocks, config.channels, strict=True), start=1):
            stride = 1 if index == 1 else 2
            self.add_module(f"layer{index}", stage(block, inputs, outputs, count, stride))
            inputs = outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor, last_only: bool = False) -> tuple[Tensor, Tensor]:
        """Bx3xHxW to (BxC2xH/8xW/8, BxC3xH/16xW/16), rounded up; gradients reach `last` alone if so wished."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not last_only):
            x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
            x = self.get_submodule("layer1")(x)
            layer2 = self.get_submodule("layer2")(x)
        return layer2, self.get_submodule("layer3")(layer2)

    @property
    def last(self) -> nn.Module:
        """What lies between the map of stride 8 and that of stride 16."""
        return self.get_submodule("layer3")


def stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, outputs: int, count: int, stride: int
) -> nn.Sequential:
    """`count` residual blocks, Bx`inputs`xHxW to Bx`outputs`xH/`stride`xW/`stride`; the first one has the stride."""
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first: Sequence[nn.Module] = [block(inputs, outputs, stride, shortcut)]
    return nn.Sequential(*first, *(block(outputs, outputs) for _ in range(count - 1)))
