"""The ResNet-50 of the deep Siamese trackers: total stride 8, stages 3 and 4 dilated instead of strided.

It differs from the common one (He et al., CVPR 2016) in more than that: the first convolution and the strided block of
stage 2 are not padded, so that template and search maps are aligned at their centres, and the shortcuts of stages 2
to 4 are 3x3 convolutions, dilated in stages 3 and 4. The first block of a dilated stage has half of its dilation.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tracker_ros.networks.resnet import Bottleneck


@dataclass(frozen=True)
class DilatedResNetConfig:
    """Shape of a dilated ResNet of bottleneck blocks.

    Attributes:
        blocks: number of residual blocks of stages 1 to 4.
        width: channels of the stem; stage ``i`` has ``width * 2^(i + 1)``.
    """

    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps that it returns: stages 2, 3 and 4."""
        return 8 * self.width, 16 * self.width, 32 * self.width


DILATED_RESNET50 = DilatedResNetConfig()


class DilatedBottleneck(Bottleneck):
    """A bottleneck whose 3x3 convolution is dilated and, where it is strided, not padded."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, shortcut: nn.Module | None) -> None:
        super().__init__(inputs, outputs, stride, shortcut)
        padding = dilation if dilation > 1 else 2 - stride
        self.conv2 = nn.Conv2d(outputs // 4, outputs // 4, 3, stride, padding, dilation, bias=False)


class DilatedResNet(nn.Module):
    """ResNet of total stride 8.

    Input: Bx3xHxW, BGR in [0, 255], as it is. Cell ``i`` is centred on pixel ``7 + 8 i``.
    """

    def __init__(self, config: DilatedResNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv1 = nn.Conv2d(3, width, 7, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(width, 4 * width, config.blocks[0], 1, 1)
        self.layer2 = _stage(4 * width, 8 * width, config.blocks[1], 2, 1)
        self.layer3 = _stage(8 * width, 16 * width, config.blocks[2], 1, 2)
        self.layer4 = _stage(16 * width, 32 * width, config.blocks[3], 1, 4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Bx3xHxW to the maps of stages 2, 3 and 4, BxCxH'xW' each: 15x15 of 127 pixels, 31x31 of 255."""
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(image)))))
        layer2 = self.layer2(x)
        layer3 = self.layer3(layer2)
        return layer2, layer3, self.layer4(layer3)


def _stage(inputs: int, outputs: int, count: int, stride: int, dilation: int) -> nn.Sequential:
    half = max(dilation // 2, 1)
    if stride == 1 and dilation == 1:
        projection = nn.Conv2d(inputs, outputs, 1, bias=False)
    else:
        # Padded like the 3x3 convolution that it bypasses: by the dilation, or not at all where it is strided.
        padding = half if dilation > 1 else 0
        projection = nn.Conv2d(inputs, outputs, 3, stride, padding, half, bias=False)
    shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))
    first = DilatedBottleneck(inputs, outputs, stride, half, shortcut)
    return nn.Sequential(first, *(DilatedBottleneck(outputs, outputs, 1, dilation, None) for _ in range(count - 1)))
