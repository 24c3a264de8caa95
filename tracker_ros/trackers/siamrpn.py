"""SiamRPN and SiamRPN++: one-shot detection with anchors.

Li et al., "High Performance Visual Tracking with Siamese Region Proposal Network", CVPR 2018, and its successor with
a deep backbone, CVPR 2019. The networks are `tracker_ros.networks.siamrpn`; what all Siamese
trackers share is `tracker_ros.trackers.siamese`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tracker_ros.geometry.anchors import anchor_shapes, anchors, decode_anchors
from tracker_ros.networks.siamese import STRIDE, Kernels, Maps, SiameseNet
from tracker_ros.networks.siamrpn import SiamRPNNet
from tracker_ros.trackers.base import option
from tracker_ros.trackers.siamese import Response, SiameseDesign, SiameseOptions, SiameseTracker

#: Networks of both.
_NETWORKS = (
    *("siamrpn18", "siamrpn_lite0", "siamrpn_alex_dw", "siamrpn_alex_up", "siamrpn_big_up"),
    *("siamrpnpp18", "siamrpnpp_lite0", "siamrpnpp_r50"),
)


@dataclass(frozen=True, kw_only=True)
class SiamRPNDesign(SiameseDesign):
    """Design of SiamRPN and SiamRPN++."""

    network: str = option("siamrpn18", "architecture of the network", choices=_NETWORKS)


@dataclass(frozen=True, kw_only=True)
class SiamRPNOptions(SiameseOptions):
    """Options of SiamRPN and SiamRPN++."""

    design: SiamRPNDesign = SiamRPNDesign()


#: Settings of the compact networks with anchors, chosen on clips of held-out stills and a simulated flight.
COMPACT: dict[str, Any] = {"penalty": 0.3, "window_influence": 0.2, "size_rate": 0.38}
CALIBRATION: dict[str, Any] = {"score_scale": 0.6, "score_shift": 0.2}


def _published(network: str) -> SiamRPNOptions:
    """What the published SiamRPN tracks with. Only its paper discards proposals far from the centre (section 4.3)."""
    design = SiamRPNDesign(network=network, center_radius=7, top_k=100)
    return SiamRPNOptions(search_size=287, penalty=0.16, window_influence=0.4, size_rate=0.3, design=design)


#: The compact networks' settings, and the published ones'.
PRESETS: dict[str, SiamRPNOptions] = {
    "siamrpn": SiamRPNOptions(**COMPACT, design=SiamRPNDesign(**CALIBRATION)),
    "siamrpnpp": SiamRPNOptions(**COMPACT, design=SiamRPNDesign(network="siamrpnpp18", **CALIBRATION)),
    "siamrpn_alex_dw": _published("siamrpn_alex_dw"),
    "siamrpn_alex_up": _published("siamrpn_alex_up"),
    "siamrpn_big_up": _published("siamrpn_big_up"),
    "siamrpnpp_r50": SiamRPNOptions(
        penalty=0.05, window_influence=0.42, size_rate=0.38, design=SiamRPNDesign(network="siamrpnpp_r50")
    ),
}


class AnchorTracker(SiameseTracker):
    """A Siamese tracker whose network refines anchors."""

    network: SiamRPNNet

    def build(self, network: SiameseNet) -> None:
        """See `SiameseTracker.build`."""
        self.network = cast(SiamRPNNet, network)

    def embed(self, crops: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        """See `SiameseTracker.embed`."""
        return self.network.template(crops)

    def grid(self, cells: int) -> NDArray[np.float32]:
        """Anchors, Nx4."""
        return anchors(anchor_shapes(), cells, STRIDE)

    def respond(self, crops: Tensor, template: tuple[Tensor, ...]) -> tuple[Response, int]:
        """See `SiameseTracker.respond`."""
        with self.timer.stage("backbone"):
            features = self.network.features(crops)
        with self.timer.stage("head"):
            maps = self.network.respond(features, cast(Kernels, template))
            return self.decode(maps)

    def decode(self, maps: Maps) -> tuple[Response, int]:
        """Scores and proposals of a network's maps, and the maps' side."""
        cells = math.isqrt(maps.loc.shape[-1] // self.network.config.anchors)
        return Response(maps.scores, decode_anchors(maps.loc, self._grid(cells))), cells


class SiamRPN(AnchorTracker):
    """SiamRPN and SiamRPN++ tracker."""

    options: SiamRPNOptions
