"""AlexNet without padding and without groups, the backbone of SiamRPN (Li et al., CVPR 2018, section 3.1).

Nothing is padded, so a feature depends on what it sees alone and not on where it lies (eq. 1). Each convolution is
followed by batch norm, pooling where there is any, and ReLU, in this order; the last one has no ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class AlexNetConfig:
    """Shape of an AlexNet.

    Attributes:
        widths: output channels of its five convolutions.
    """

    widths: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps that it returns: one."""
        return (self.widths[-1],)


ALEXNET = AlexNetConfig()
#: The wider one of SiamRPN's first release.
ALEXNET_BIG = AlexNetConfig((192, 512, 768, 768, 512))


class AlexNet(nn.Module):
    """AlexNet of total stride 8 and a receptive field of 87 pixels.

    Input: Bx3xHxW, BGR in [0, 255], as it is. Cell ``i`` is centred on pixel ``43 + 8 i``, so maps of crops of 127 and
    of 127 + 8 n pixels are aligned at their centres.
    """

    def __init__(self, config: AlexNetConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c, d, e = config.widths
        self.features = nn.Sequential(
            *(nn.Conv2d(3, a, 11, 2), nn.BatchNorm2d(a), nn.MaxPool2d(3, 2), nn.ReLU(inplace=True)),
            *(nn.Conv2d(a, b, 5), nn.BatchNorm2d(b), nn.MaxPool2d(3, 2), nn.ReLU(inplace=True)),
            *(nn.Conv2d(b, c, 3), nn.BatchNorm2d(c), nn.ReLU(inplace=True)),
            *(nn.Conv2d(c, d, 3), nn.BatchNorm2d(d), nn.ReLU(inplace=True)),
            *(nn.Conv2d(d, e, 3), nn.BatchNorm2d(e)),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Bx3xHxW to one map, BxCxH'xW' with ``H' = (H - 87) // 8 + 1``."""
        return (self.features(image),)
