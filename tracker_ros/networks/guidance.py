"""Target guidance for object detectors (Huang et al., "Bridging the Gap Between Detection and Tracking", ICCV 2019).

The module (section 3.2) sits between the feature maps of any detector and what follows them. It pools the target's
features in the exemplar, turns them into a modulator of one value a channel, and merges the search features, the
search features re-weighted by the modulator, and the modulator itself, spread over the map, by a 1x1 convolution.

Merging is linear, and all but the search features is the same for a whole track. So the concatenation is never built:
``W [x; m x; m] + b = (W1 + W2 diag(m)) x + (W3 m + b)`` is a 1x1 convolution of the plain search features.

One thing is ours: each channel is normalised over its crop first, in exemplar and search image alike. What then stands
out in either is what the crop's other parts do not have, and the product ``m x`` compares that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tracker_ros.geometry.detection import corners
from tracker_ros.networks.roi_align import roi_align

#: Samples a bin and side of the target's pooling.
SAMPLING = 2
#: Added to a channel's variance over a crop.
_EPSILON = 1e-3


class Cells(NamedTuple):
    """Where the cells of a map look: cell ``i`` is centred on pixel coordinate ``offset + stride * i`` of the crop."""

    stride: float
    offset: float


def pool(features: Tensor, boxes: Tensor, cells: Cells, bins: int) -> Tensor:
    """RoI align of boxes on a map whose cells look at `cells`.

    Args:
        features: BxCxHxW.
        boxes: BxNx4 (cx, cy, w, h in crop pixels).
        cells: of the map.
        bins: bins a side, P.

    Returns:
        BxNxCxPxP.
    """
    at = corners(boxes) - cells.offset
    return roi_align(features, at, bins, 1 / cells.stride, SAMPLING, aligned=False)


class TargetGuidance(nn.Module):
    """Target-guidance module of one feature map.

    Args:
        channels: of the map, C.
        outputs: channels of the guided map, O (the paper's O = C leaves the detector as it is).
        bins: bins a side that the target is pooled to.
    """

    def __init__(self, channels: int, outputs: int, bins: int) -> None:
        super().__init__()
        self.channels = channels
        self.bins = bins
        self.modulator = nn.Conv2d(channels, channels, bins)
        self.merge = nn.Conv2d(3 * channels, outputs, 1)
        # The modulator starts close to the target's mean features, and a quarter of the outputs as sums of m x over
        # half of the channels, which is their correlation: so target and search image are compared from the first
        # step of training on.
        with torch.no_grad():
            mean = torch.eye(channels)[:, :, None, None] / bins**2
            self.modulator.weight.mul_(0.1).add_(mean)
            nn.init.zeros_(self.modulator.bias)  # type: ignore[arg-type]
            nn.init.kaiming_normal_(self.merge.weight, nonlinearity="relu")
            nn.init.zeros_(self.merge.bias)  # type: ignore[arg-type]
            correlating = self.merge.weight[: outputs // 4]
            half = torch.rand(len(correlating), channels, 1, 1) < 0.5
            correlating.mul_(0.2)[:, channels : 2 * channels].add_(half * (2 / channels) ** 0.5)

    def embed(self, features: Tensor, boxes: Tensor, cells: Cells) -> Tensor:
        """Modulators of targets: exemplar features TxCxHxW and boxes Tx4 (cx, cy, w, h, exemplar pixels) to TxC."""
        mean, scale = _statistics(features)
        normalised = (features - mean[..., None, None]) * scale[..., None, None]
        pooled = pool(normalised, boxes[:, None], cells, self.bins)[:, 0]
        return self.modulator(pooled).flatten(1)

    def forward(self, features: Tensor, modulator: Tensor) -> Tensor:
        """Search features BxCxHxW and the modulators of their targets BxC to guided features BxOxHxW, channels last."""
        plain, modulated, spread = self.merge.weight.flatten(1).split(self.channels, 1)
        mean, scale = _statistics(features)
        kernels = (plain + modulated * modulator[:, None]) * scale[:, None]  # B O C
        bias = modulator @ spread.mT - (kernels @ mean[..., None])[..., 0]  # B O
        if self.merge.bias is not None:
            bias = bias + self.merge.bias
        guided = torch.baddbmm(bias[:, None], features.flatten(2).mT, kernels.mT)  # B HW O
        return guided.mT.unflatten(2, features.shape[2:])


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of every channel over a map BxCxHxW, and one over its standard deviation: BxC each."""
    var, mean = torch.var_mean(features, (2, 3), correction=0)
    return mean, (var + _EPSILON).rsqrt()
