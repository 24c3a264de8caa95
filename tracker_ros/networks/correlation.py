"""Cross-correlation of search features with a template's, and the head branches that are built on it.

A template is seen once: `kernel` turns its features into correlation kernels, after which the template branch is no
longer needed ("pruned", SiamRPN section 4.2). A batch holds one target a row; each row has kernels of its own, which
grouped convolutions apply in one call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pairs(NamedTuple):
    """P comparisons of kernels and search crops where each of either takes part in several, as in training.

    Attributes:
        kernel, search: P each, which kernels are compared with which search crops.
        own: the first so many are of search crops with kernels of their own target, which alone have a location.
    """

    kernel: Tensor
    search: Tensor
    own: int

    @property
    def located(self) -> Pairs:
        """The first `own` of them."""
        return Pairs(self.kernel[: self.own], self.search[: self.own], self.own)


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
    with torch.autocast(search.device.type, enabled=False):
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
    if torch.is_grad_enabled() and (search.requires_grad or kernels.requires_grad):
        return _Depthwise.apply(search, kernels)
    return _depthwise(search, kernels)


def _depthwise(search: Tensor, kernels: Tensor) -> Tensor:
    batch, channels, height, width = search.shape
    weight = kernels.reshape(batch * channels, 1, *kernels.shape[-2:])
    with torch.autocast(search.device.type, enabled=False):
        found = F.conv2d(search.reshape(1, batch * channels, height, width), weight, groups=batch * channels)
    return found.reshape(batch, channels, *found.shape[-2:])


class _Depthwise(torch.autograd.Function):
    """`_depthwise` with gradients that are depth-wise correlations too, which CPUs do several times faster."""

    @staticmethod
    def forward(ctx: Any, search: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(search, kernels)
        return _depthwise(search, kernels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        search, kernels = ctx.saved_tensors
        gradient = gradient.contiguous()
        margin = kernels.shape[-1] - 1
        padded = F.pad(gradient, (margin, margin, margin, margin))
        return _depthwise(padded, kernels.flip(2, 3)), _depthwise(search, gradient)


def _paired(search: Tensor, kernels: Tensor, pairs: Pairs | None) -> tuple[Tensor, Tensor]:
    """Search features, in float32, and kernels of each comparison; row by row where there are no `pairs`."""
    search = search.float()
    return (search, kernels) if pairs is None else (search[pairs.search], kernels[pairs.kernel])


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

    def forward(self, search: Tensor, kernels: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Search features BxCxHxW and kernels to the branch's output BxOxH'xW', or Px...; float32."""
        correlation = correlate_up_channel(*_paired(self.search(search), kernels, pairs))
        with torch.autocast(search.device.type, enabled=False):
            return self.adjust(correlation)


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

    def correlate(self, search: Tensor, kernels: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Search features BxCxHxW and kernels to correlation features BxC'xH'xW', or Px...; float32."""
        return correlate_depthwise(*_paired(self.search(search), kernels, pairs))

    def finish(self, correlation: Tensor) -> Tensor:
        """Correlation features BxC'xH'xW' to the branch's output BxOxH'xW', float32."""
        return self.output(self.hidden(correlation)).float()

    def forward(self, search: Tensor, kernels: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Search features BxCxHxW and kernels to the branch's output BxOxH'xW', or Px...; float32."""
        return self.finish(self.correlate(search, kernels, pairs))


def _conv_bn_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
