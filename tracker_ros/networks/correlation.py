"""Cross-correlation of search features with a template's, and the head branches that are built on it.

A template is seen once: `kernel` turns its features into correlation kernels, after which the template branch is no
longer needed ("pruned", SiamRPN section 4.2). A batch holds one target a row; each row has kernels of its own, which
grouped convolutions apply in one call.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def correlate_up_channel(search: Tensor, kernels: Tensor) -> Tensor:
    """Correlation in which every output channel has a kernel over all channels (SiamRPN, eq. 2).

    Args:
        search: BxCxHxW.
        kernels: Bx(OC)xKxK, the C channels of output 0 first.

    Returns:
        BxOxH'xW' with ``H' = H - K + 1``.
    """
    batch, channels, height, width = search.shape
    k = kernels.shape[-1]
    outputs = kernels.shape[1] // channels
    weight = kernels.reshape(batch * outputs, channels, k, k)
    found = F.conv2d(search.reshape(1, batch * channels, height, width), weight, groups=batch)
    return found.reshape(batch, outputs, *found.shape[-2:])


def correlate_depthwise(search: Tensor, kernels: Tensor) -> Tensor:
    """Correlation channel by channel (SiamRPN++; CLNet, eq. 2).

    Args:
        search: BxCxHxW.
        kernels: BxCxKxK.

    Returns:
        BxCxH'xW' with ``H' = H - K + 1``.
    """
    batch, channels, height, width = search.shape
    weight = kernels.reshape(batch * channels, 1, *kernels.shape[-2:])
    found = F.conv2d(search.reshape(1, batch * channels, height, width), weight, groups=batch * channels)
    return found.reshape(batch, channels, *found.shape[-2:])


class UpChannelBranch(nn.Module):
    """A branch of SiamRPN's head (section 3.2): the template's convolution multiplies the channels.

    Args:
        channels: of the features.
        outputs: of the branch.
        adjust: end in a 1x1 convolution, as the regression branch does.
    """

    def __init__(self, channels: int, outputs: int, adjust: bool) -> None:
        super().__init__()
        self.template = nn.Conv2d(channels, channels * outputs, 3)
        self.search = nn.Conv2d(channels, channels, 3)
        self.adjust = nn.Conv2d(outputs, outputs, 1) if adjust else nn.Identity()

    def kernel(self, template: Tensor) -> Tensor:
        """Template features TxCxHxW to kernels Tx(OC)x(H-2)x(W-2)."""
        return self.template(template)

    def forward(self, search: Tensor, kernels: Tensor) -> Tensor:
        """Search features BxCxHxW and kernels to the branch's output BxOxH'xW'."""
        return self.adjust(correlate_up_channel(self.search(search).float(), kernels))


class DepthwiseBranch(nn.Module):
    """A branch of SiamRPN++'s head: asymmetric convolutions, depth-wise correlation, two 1x1 convolutions.

    The steps are separate because CLNet replaces the last layer and SiamRN changes the correlation in between.

    Args:
        channels: of the features.
        outputs: of the branch.
        hidden: channels of its inner maps.
    """

    def __init__(self, channels: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.template = _conv_bn_relu(channels, hidden, 3)
        self.search = _conv_bn_relu(channels, hidden, 3)
        self.hidden = _conv_bn_relu(hidden, hidden, 1)
        self.output = nn.Conv2d(hidden, outputs, 1)

    def kernel(self, template: Tensor) -> Tensor:
        """Template features TxCxHxW to kernels TxC'x(H-2)x(W-2)."""
        return self.template(template)

    def correlate(self, search: Tensor, kernels: Tensor) -> Tensor:
        """Search features BxCxHxW and kernels to correlation features BxC'xH'xW', float32."""
        return correlate_depthwise(self.search(search).float(), kernels)

    def forward(self, search: Tensor, kernels: Tensor) -> Tensor:
        """Search features BxCxHxW and kernels to the branch's output BxOxH'xW'."""
        return self.output(self.hidden(self.correlate(search, kernels)))


def _conv_bn_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
