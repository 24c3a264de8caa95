"""SiamBAN: one-shot detection without anchors (Chen et al., CVPR 2020), the base of SiamRN.

The network is `tracker_ros.networks.siamban`; what all Siamese trackers share is `tracker_ros.trackers.siamese`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tracker_ros.geometry.anchors import decode_points, points
from tracker_ros.networks.siamban import SiamBANNet
from tracker_ros.networks.siamese import STRIDE, Kernels, SiameseNet
from tracker_ros.trackers.base import again, option
from tracker_ros.trackers.siamese import Response, SiameseDesign, SiameseOptions, SiameseTracker


@dataclass(frozen=True, kw_only=True)
class SiamBANDesign(SiameseDesign):
    """Design of SiamBAN."""

    network: str = option(
        "siamban18", "architecture of the network", choices=("siamban18", "siamban_lite0", "siamban_r50")
    )


@dataclass(frozen=True, kw_only=True)
class SiamBANOptions(SiameseOptions):
    """Options of SiamBAN. The defaults are the published settings."""

    penalty: float = again(SiameseOptions, "penalty", 0.08513642556896711)
    window_influence: float = again(SiameseOptions, "window_influence", 0.4632532824922313)
    size_rate: float = again(SiameseOptions, "size_rate", 0.44418184746462425)
    design: SiamBANDesign = SiamBANDesign()


#: The compact network's settings, and the published ones.
PRESETS: dict[str, SiamBANOptions] = {
    "siamban": SiamBANOptions(design=SiamBANDesign(score_scale=0.6, score_shift=-0.6)),
    "siamban_r50": SiamBANOptions(design=SiamBANDesign(network="siamban_r50")),
}


class PointTracker(SiameseTracker):
    """A Siamese tracker whose network predicts the sides of a box around every point."""

    network: SiamBANNet

    def build(self, network: SiameseNet) -> None:
        """See `SiameseTracker.build`."""
        self.network = cast(SiamBANNet, network)

    def embed(self, crops: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        """See `SiameseTracker.embed`."""
        return self.network.template(crops)

    def grid(self, cells: int) -> NDArray[np.float32]:
        """Points, Nx2."""
        return points(cells, STRIDE)

    def respond(self, crops: Tensor, template: tuple[Tensor, ...]) -> tuple[Response, int]:
        """See `SiameseTracker.respond`."""
        with self.timer.stage("backbone"):
            features = self.network.features(crops)
        with self.timer.stage("head"):
            kernels = cast(Kernels, template)
            logits = self.network.classify(self.network.correlate(features, kernels))
            boxes, cells = self.locate(features, kernels)
        return Response(logits.softmax(1)[:, 1], boxes), cells

    def locate(self, features: list[Tensor], kernels: Kernels) -> tuple[Tensor, int]:
        """Proposals BxNx4 (cx, cy, w, h relative to the crop's centre) and the map's side."""
        distances = self.network.locate(features, kernels)
        cells = math.isqrt(distances.shape[-1])
        return decode_points(distances, self._grid(cells)), cells


class SiamBAN(PointTracker):
    """SiamBAN tracker."""

    options: SiamBANOptions
