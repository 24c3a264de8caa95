"""VGG-16 (Simonyan and Zisserman, ICLR 2015) as SSD uses it (Liu et al., ECCV 2016, section 3): fully convolutional.

`features` has the layers, and so the parameter names, of the published ImageNet network; the third pooling rounds up.
The two fully connected layers become a dilated 3x3 and a 1x1 convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tracker_ros.networks.inputs import Normalising

#: Convolutions of the five stages.
_STAGES = (2, 2, 3, 3, 3)
#: Index in `features` of the ReLU after conv4_3.
_CONV4_3 = 22


@dataclass(frozen=True)
class VGGConfig:
    """Shape of a VGG-16.

    Attributes:
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many, the last layers 16 times.
    """

    width: int = 64


VGG16_CONFIG = VGGConfig()


class VGG16(Normalising):
    """VGG-16 up to SSD's second detection layer.

    Input: what `preprocess` makes of RGB. Cell ``i`` of a map of stride ``s`` is centred on pixel coordinate
    ``s (i + 0.5)``.
    """

    def __init__(self, config: VGGConfig = VGG16_CONFIG) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        inputs = 3
        for i, count in enumerate(_STAGES):
            outputs = config.width * min(2**i, 8)
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = outputs
            # SSD: conv5's pooling keeps the stride, and the following convolution is dilated in its place.
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=i == 2) if i < 4 else nn.MaxPool2d(3, 1, 1))
        self.features = nn.Sequential(*layers)
        last = 2 * inputs
        self.conv6 = nn.Conv2d(inputs, last, 3, padding=6, dilation=6)
        self.conv7 = nn.Conv2d(last, last, 1)
        self.relu = nn.ReLU(inplace=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the two maps."""
        return 8 * self.config.width, 16 * self.config.width

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Bx3xHxW to conv4_3 (BxCxH/8xW/8) and conv7 (Bx2CxH/16xW/16), rounded up for sides divisible by 4."""
        conv4_3 = self.features[: _CONV4_3 + 1](image)
        x = self.features[_CONV4_3 + 1 :](conv4_3)
        return conv4_3, self.relu(self.conv7(self.relu(self.conv6(x))))
