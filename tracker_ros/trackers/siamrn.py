"""SiamRN: SiamBAN whose proposals are compared with the target (Cheng et al., CVPR 2021).

The network is `tracker_ros.networks.siamrn`. The boxes of all 25 x 25 locations are scored by the relation detector,
and the scores refine the classification (section 3.4). ``top_k`` limits both to the proposals with the highest class
scores of a first pass, which is SiamBAN's; the rest count as background. It costs what the first pass misjudges: a
target that is not among its K best proposals is not found. ``least_match`` is ours: where the target has changed so
much that every proposal is called unlike it, what is left of the matching scores is noise, and the class scores shall
decide.

For ablations, ``scores`` says what is made of the matching scores, and each part of the relation detector can be left
out. With ``scores=class`` the tracker is SiamBAN with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from tracker_ros.networks.siamese import Kernels, SiameseNet
from tracker_ros.networks.siamrn import FusedRelation, RelationParts, RelationTemplate, SiamRNNet
from tracker_ros.trackers.base import InvalidOption, again, option
from tracker_ros.trackers.siamban import PointTracker
from tracker_ros.trackers.siamese import Response, SiameseDesign, SiameseOptions


@dataclass(frozen=True, kw_only=True)
class SiamRNDesign(SiameseDesign):
    """Design of SiamRN: the published settings, and its ablations."""

    network: str = option("siamrn18", "architecture of the network", choices=("siamrn18", "siamrn_lite0", "siamrn_r50"))
    top_k: int = option(
        0,
        "proposals with the highest class scores that the relation detector sees, the rest are background; 0: all",
        low=0,
        high=100000,
    )
    scores: str = option(
        "refined",
        "refined: class scores of the scaled features, as in the paper; blend: geometric mean of the odds before and "
        "after refinement. For ablation: product: class times matching score, without the refinement module; "
        "matching: the relation detector alone; class: without the relation detector",
        choices=("refined", "blend", "product", "matching", "class"),
    )
    least_match: float = option(
        0.0,
        "matching scores below it count as it, so where nothing is like the target any more, class scores decide",
        low=0.0,
        high=1.0,
    )
    global_detector: bool = option(True, "use the relation detector's global detector")
    local_detector: bool = option(True, "use the relation detector's local detector")
    patch_detector: bool = option(True, "use the relation detector's patch detector")
    self_attention: bool = option(True, "align pairs by self-attention before they are compared")

    def __post_init__(self) -> None:
        """See `Settings`.

        Raises:
            InvalidOption: also where no detector is left.
        """
        super().__post_init__()
        if not (self.global_detector or self.local_detector or self.patch_detector):
            raise InvalidOption(
                "one of the options 'global_detector', 'local_detector' and 'patch_detector' must be true; "
                "without a relation detector it is scores=class"
            )


@dataclass(frozen=True, kw_only=True)
class SiamRNOptions(SiameseOptions):
    """Options of SiamRN. The defaults are the published settings."""

    penalty: float = again(SiameseOptions, "penalty", 0.07556044641459468)
    window_influence: float = again(SiameseOptions, "window_influence", 0.44906151090793267)
    size_rate: float = again(SiameseOptions, "size_rate", 0.4452151389448233)
    design: SiamRNDesign = SiamRNDesign()


#: The compact network's settings, and the published ones.
PRESETS: dict[str, SiamRNOptions] = {
    "siamrn": SiamRNOptions(
        design=SiamRNDesign(scores="blend", score_scale=0.6, score_shift=-0.4, top_k=64, least_match=0.3)
    ),
    "siamrn_r50": SiamRNOptions(design=SiamRNDesign(network="siamrn_r50")),
}


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

    options: SiamRNOptions
    network: SiamRNNet

    def build(self, network: SiameseNet) -> None:
        """See `SiameseTracker.build`."""
        design = self.options.design
        self.network = cast(SiamRNNet, network)
        self.network.parts = RelationParts(
            design.global_detector, design.local_detector, design.patch_detector, design.self_attention
        )
        self.relation = None if design.plain else FusedRelation(self.network)

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
        count, design = boxes.shape[1], self.options.design
        kind = design.scores
        few = 0 < design.top_k < count
        first: Tensor | None = None
        if few or kind in ("blend", "product", "class"):
            with self.timer.stage("head"):
                first = net.classify([maps[..., None] for maps in correlations]).softmax(1)[:, 1]
        if kind == "class":
            assert first is not None
            return Response(first, boxes), cells
        chosen, index = boxes, None
        if few:
            assert first is not None
            with self.timer.stage("head"):
                first, index = first.topk(design.top_k, 1)
                chosen = boxes.gather(1, index[..., None].expand(-1, -1, 4))
                correlations = [maps.gather(2, index[:, None].expand(-1, maps.shape[1], -1)) for maps in correlations]
        with self.timer.stage("relation"):
            if self.relation is None:
                matching = net.match(
                    features, list(cast(PlainTemplate, template).targets.unbind(1)), self._clip(chosen)
                )
            else:
                matching = self.relation.match(features, cast(RelationTemplate, template), self._clip(chosen))
            if kind != "matching":
                matching = matching.clamp_min(design.least_match)
        with self.timer.stage("head"):
            if kind in ("refined", "blend"):
                logits = net.classify([(maps * matching[:, None])[..., None] for maps in correlations])
                scores = logits.softmax(1)[:, 1]
                if kind == "blend":
                    assert first is not None
                    odds = torch.logit(scores, eps=1e-7) + torch.logit(first, eps=1e-7)
                    scores = torch.sigmoid(odds / 2)
            elif kind == "product":
                assert first is not None
                scores = first * matching
            else:
                scores = matching
            if index is not None:
                scores = torch.zeros_like(boxes[..., 0]).scatter(1, index, scores)
        return Response(scores, boxes), cells

    def _clip(self, boxes: Tensor) -> Tensor:
        """Proposals (cx, cy, w, h relative to the crop's centre) to the parts inside the crop, x, y, w, h of it."""
        size = self.options.search_size
        middle = self.crops.middle(size)
        low = (boxes[..., :2] - boxes[..., 2:] / 2 + middle).clamp(0, size)
        high = (boxes[..., :2] + boxes[..., 2:] / 2 + middle).clamp(0, size)
        return torch.cat([low, high - low], -1)
