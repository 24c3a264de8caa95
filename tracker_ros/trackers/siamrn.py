"""SiamRN: SiamBAN whose proposals are compared with the target (Cheng et al., CVPR 2021).

The network is `tracker_ros.networks.siamrn`. The boxes of all 25 x 25 locations are scored by the relation detector,
and the scores refine the classification (section 3.4); ``top_k`` limits both to the proposals with the highest class
scores of the first pass, and the rest count as background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from tracker_ros.networks.siamese import Kernels, SiameseNet
from tracker_ros.networks.siamrn import FusedRelation, RelationTemplate, SiamRNNet
from tracker_ros.trackers.base import TrackerOptions, option
from tracker_ros.trackers.siamban import PointTracker
from tracker_ros.trackers.siamese import Response, SiameseOptions


@dataclass(frozen=True, kw_only=True)
class SiamRNOptions(SiameseOptions):
    """Options of SiamRN. The defaults are the published settings."""

    network: str = option("siamrn_r50", "architecture of the network", choices=("siamrn_r50",))
    penalty: float = option(0.07556044641459468, "penalty of a sudden change of size or ratio", low=0.0, high=2.0)
    window_influence: float = option(
        0.44906151090793267, "share of the cosine window in the ranking", low=0.0, high=1.0
    )
    size_rate: float = option(0.4452151389448233, "how fast the size follows", low=0.0, high=1.0)
    top_k: int = option(
        0, "proposals with the highest class scores that the relation detector sees; 0: all", low=0, high=100000
    )


PRESETS: dict[str, SiamRNOptions] = {"siamrn": SiamRNOptions()}


class PlainTemplate(NamedTuple):
    """What is kept of T targets over L levels where the relation detector runs as it is drawn.

    Attributes:
        cls, loc: correlation kernels, TxLxCxKxK.
        targets: pooled targets, TxLxCxPxP.
    """

    cls: Tensor
    loc: Tensor
    targets: Tensor


class SiamRN(PointTracker):
    """SiamRN tracker."""

    options_class: ClassVar[type[TrackerOptions]] = SiamRNOptions
    options: SiamRNOptions
    network: SiamRNNet

    def build(self, network: SiameseNet) -> None:
        """See `SiameseTracker.build`."""
        self.network = cast(SiamRNNet, network)
        self.relation = None if self.options.plain else FusedRelation(self.network)

    def embed(self, crops: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        """See `SiameseTracker.embed`."""
        features = self.network.features(crops)
        kernels, targets = self.network.kernels(features), self.network.pool_target(features, boxes)
        if self.relation is None:
            return PlainTemplate(kernels.cls, kernels.loc, torch.stack(targets, 1))
        return self.relation.template(kernels, targets)

    def respond(self, crops: Tensor, template: tuple[Tensor, ...]) -> tuple[Response, int]:
        """See `SiameseTracker.respond`."""
        net = self.network
        kernels = Kernels(*template[:2])
        with self.timer.stage("backbone"):
            features = net.features(crops)
        with self.timer.stage("head"):
            boxes, cells = self.locate(features, kernels)
            correlations = [maps.flatten(2) for maps in net.correlate(features, kernels)]
        count = boxes.shape[1]
        few = 0 < self.options.top_k < count
        chosen, seen = boxes, correlations
        if few:
            with self.timer.stage("head"):
                first = net.classify([maps[..., None] for maps in correlations])
                index = (first[:, 1] - first[:, 0]).topk(self.options.top_k, 1).indices
                chosen = boxes.gather(1, index[..., None].expand(-1, -1, 4))
                seen = [maps.gather(2, index[:, None].expand(-1, maps.shape[1], -1)) for maps in correlations]
        with self.timer.stage("relation"):
            if self.relation is None:
                matching = net.match(
                    features, list(cast(PlainTemplate, template).targets.unbind(1)), self._clip(chosen)
                )
            else:
                matching = self.relation.match(features, cast(RelationTemplate, template), self._clip(chosen))
        with self.timer.stage("head"):
            logits = net.classify([(maps * matching[:, None])[..., None] for maps in seen])
            scores = logits.softmax(1)[:, 1]
            if few:
                scores = torch.zeros_like(boxes[..., 0]).scatter(1, index, scores)
        return Response(scores, boxes), cells

    def _clip(self, boxes: Tensor) -> Tensor:
        """Proposals (cx, cy, w, h relative to the crop's centre) to the parts inside the crop, x, y, w, h of it."""
        size = self.options.search_size
        # The published tracker counts from the centre of a pixel, but clips at the crop's border.
        middle = size / 2 if self.options.compat == "off" else size // 2
        low = (boxes[..., :2] - boxes[..., 2:] / 2 + middle).clamp(0, size)
        high = (boxes[..., :2] + boxes[..., 2:] / 2 + middle).clamp(0, size)
        return torch.cat([low, high - low], -1)
