"""CLNet: SiamRPN++ whose last layers are adjusted to the first frame (Dong et al., ECCV 2020).

The network is `tracker_ros.networks.clnet`; this file draws the samples that it adjusts by. Nothing is added to later
frames: the adjusted layers are part of the target's template.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracker_ros.geometry.anchors import label_anchors, overlap
from tracker_ros.networks.clnet import BRANCHES
from tracker_ros.networks.clnet import CLNet as CLNetNetwork
from tracker_ros.networks.siamese import Kernels, SiameseNet
from tracker_ros.trackers.base import Frame, again, option
from tracker_ros.trackers.siamese import SiameseDesign, SiameseOptions
from tracker_ros.trackers.siamrpn import CALIBRATION, COMPACT, AnchorTracker

#: Anchors with a larger overlap that were not drawn as positive samples count as negative ones.
NEGATIVE_ABOVE = 0.3


@dataclass(frozen=True, kw_only=True)
class CLNetDesign(SiameseDesign):
    """Design of CLNet: the published settings, and its ablation."""

    network: str = option("clnet18", "architecture of the network", choices=("clnet18", "clnet_lite0", "clnet_r50"))
    adjust: str = option(
        "both",
        "whose last layer is adjusted to the first frame: both branches', the classification's (cls), the location's "
        "(loc) or none's",
        choices=("both", "cls", "loc", "none"),
    )
    hard_negatives: int = option(16, "samples that the unadjusted network takes for the target", low=0, high=512)


@dataclass(frozen=True, kw_only=True)
class CLNetOptions(SiameseOptions):
    """Options of CLNet. The defaults are the published settings."""

    penalty: float = again(SiameseOptions, "penalty", 0.032)
    window_influence: float = again(SiameseOptions, "window_influence", 0.353)
    size_rate: float = again(SiameseOptions, "size_rate", 0.543)
    seed: int = option(233, "seed of the first frame's samples", low=0)
    design: CLNetDesign = CLNetDesign()


#: The compact network's settings, and the published ones.
PRESETS: dict[str, CLNetOptions] = {
    "clnet": CLNetOptions(**COMPACT, design=CLNetDesign(**CALIBRATION)),
    "clnet_r50": CLNetOptions(design=CLNetDesign(network="clnet_r50")),
}


class CLNet(AnchorTracker):
    """CLNet tracker."""

    options: CLNetOptions
    network: CLNetNetwork

    def build(self, network: SiameseNet) -> None:
        """See `SiameseTracker.build`."""
        self.network = cast(CLNetNetwork, network)

    def adapt(
        self,
        frame: Frame,
        position: NDArray[np.float64],
        size: NDArray[np.float64],
        fill: NDArray[np.uint8],
        templates: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """Adjust the last layers by a search crop of the first frame (section 3.3)."""
        kernels = cast(Kernels, templates)
        base = self.network.unadjusted(kernels)
        adjust = self.options.design.adjust
        branches = {"both": BRANCHES, "none": ()}.get(adjust, (adjust,))
        if not branches:
            return base
        with self.timer.stage("crop"):
            w, patch = self.search_crop(frame, position, size, fill)
            crop = self.upload([patch])
        with self.timer.stage("backbone"):
            features = self.network.features(crop)
        with self.timer.stage("adjust"):
            hidden = self.network.hidden(features, kernels)
            maps = self.network.finish(hidden, base)
            cells = hidden[0][0].shape[-1]
            scale = self.pixel(w, size)
            box = np.concatenate([(position - self.crops.origin(w, position)) / scale, size / scale])
            label = self.label(box, self.link.download(maps.cls.log_softmax(1))[0], cells)
            positive, negative = (self.link.upload(cell[None]) for cell in self.sets(label))
            return self.network.adjust(kernels, hidden, positive, negative, branches)

    def label(self, box: NDArray[np.float64], logits: NDArray[np.float64], cells: int) -> NDArray[np.int8]:
        """Samples of one first frame.

        Args:
            box: the target (cx, cy, w, h in crop pixels, relative to the crop's centre).
            logits: 2xN logarithms of the unadjusted class probabilities.
            cells: side S of the map.

        Returns:
            AxSxS: 1 positive, 0 negative, -1 unused.
        """
        grid = torch.from_numpy(self.grid(cells)).double()
        overlaps = overlap(grid, torch.from_numpy(box)).numpy()
        labels = label_anchors(overlaps, np.random.RandomState(self.options.seed))
        # Section 3.4 leaves anchors between the thresholds out; the published adjustment counts them as negative, and
        # weights that know no other sets need it under either compat.
        labels[(overlaps >= NEGATIVE_ABOVE) & (labels < 1)] = 0
        # The diverse samples of section 3.4: unused ones with the highest scores.
        unused = np.flatnonzero(labels < 0)
        hardness = logits[0, unused] / (logits[0, unused] + logits[1, unused])
        order = np.argsort(-hardness, kind="stable")[: self.options.design.hard_negatives]
        labels[unused[order]] = 0
        return labels.reshape(-1, cells, cells)

    def sets(self, labels: NDArray[np.int8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The positive and the negative set of cells (N bool each) from samples AxSxS.

        A cell is positive if one of its anchors is, else negative if one of them is. The published tracker looks for
        them among the rows where it means the anchors, and takes the cells of the map's first A rows.
        """
        axis = self.crops.anchor_axis
        positive, negative = ((labels == value).any(axis).ravel() for value in (1, 0))
        if axis == 1:
            rest = np.zeros(labels[0].size - positive.size, bool)
            positive, negative = np.concatenate([positive, rest]), np.concatenate([negative, rest])
        return positive, negative & ~positive
