"""Siamese Relation Network (Cheng et al., CVPR 2021): SiamBAN with a relation detector and a refinement module.

Every location's box is pooled and compared with the target (relation detector, section 3.2); the matching scores scale
the classification branch's correlation features, on which the class scores are computed anew (section 3.4).

`SiamRNNet.match` is the relation detector as it is drawn in figure 3. `FusedRelation`, which trackers and training use,
computes the same with a sixteenth of the multiplications: pooling and 1x1 convolutions commute, as both are linear and
act on other axes, so the convolutions run on the 31x31 map and not on 625 pooled 7x7 boxes; and the target's part of a
layer on ``concat(target, box)`` is the same for all boxes and frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracker_ros.networks import inference
from tracker_ros.networks.roi_pooling import bin_edges, bin_weights, pool_taps, precise_roi_pool, roi_taps
from tracker_ros.networks.siamban import SIAMBAN18, SIAMBAN_LITE0, SIAMBAN_R50, SiamBANConfig, SiamBANNet
from tracker_ros.networks.siamese import STRIDE, Kernels

#: Bins a side that target and boxes are pooled to.
BINS = 7
#: Channels of the patch detector's inner maps.
PATCH_CHANNELS = 64
#: Boxes that `FusedRelation` compares at a time on a CPU, so that what it pools stays in the cache.
CHUNK = 64


@dataclass(frozen=True)
class SiamRNConfig:
    """Shape of a SiamRN network.

    Attributes:
        base: the SiamBAN that it extends.
    """

    base: SiamBANConfig


@dataclass(frozen=True)
class RelationParts:
    """Which parts of the relation detector count (ablations as in table 3).

    Raises:
        ValueError: none of the three detectors is left.
    """

    global_detector: bool = True
    local_detector: bool = True
    patch_detector: bool = True
    self_attention: bool = True

    def __post_init__(self) -> None:
        if not any(self.detectors):
            raise ValueError("the relation detector needs at least one of its global, local and patch detectors")

    @property
    def detectors(self) -> tuple[bool, bool, bool]:
        """Whether the global, the local and the patch detector count."""
        return self.global_detector, self.local_detector, self.patch_detector


#: The relation detector as the paper has it.
ALL_PARTS = RelationParts()

SIAMRN_R50 = SiamRNConfig(SIAMBAN_R50)
#: Compact presets on the shared backbones.
SIAMRN18 = SiamRNConfig(SIAMBAN18)
SIAMRN_LITE0 = SiamRNConfig(SIAMBAN_LITE0)


class NonLocal(nn.Module):
    """Self-attention over a pair's 7x7 cells (embedded Gaussian; keys and values pooled 2x2), with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.project = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels))
        # The block starts as the identity.
        norm = self.project[1]
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        """MxCxHxW to MxCxHxW."""
        query = self.theta(x).flatten(2)
        key = F.max_pool2d(self.phi(x), 2).flatten(2)
        value = F.max_pool2d(self.g(x), 2).flatten(2)
        attended = value @ (query.mT @ key).softmax(-1).mT
        return self.project(attended.reshape(*attended.shape[:2], *x.shape[2:])) + x


class GlobalDetector(nn.Module):
    """Compares the means of a pair's features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels)
        )
        self.output = nn.Linear(channels, 2)

    def forward(self, pair: Tensor) -> Tensor:
        """Mx2CxHxW to logits Mx2."""
        return self.finish(self.mlp[0](pair.mean((2, 3))))

    def finish(self, hidden: Tensor) -> Tensor:
        """The first layer's outputs MxC to logits Mx2."""
        return self.output(self.mlp[2](hidden.relu()).relu())


class LocalDetector(nn.Module):
    """Compares cell by cell and channel by channel: one 1x1 convolution for both, depth-wise correlation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.output = nn.Linear(channels, 2)

    def forward(self, target: Tensor, boxes: Tensor) -> Tensor:
        """MxCxHxW each to logits Mx2."""
        return self.finish((self.conv(target) * self.conv(boxes)).sum((2, 3)))

    def finish(self, correlation: Tensor) -> Tensor:
        """Correlations MxC to logits Mx2."""
        return self.output(correlation.relu())


class PatchDetector(nn.Module):
    """Compares patches of a pair's features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(2 * channels, PATCH_CHANNELS, 1, bias=False)
        self.conv = nn.Conv2d(PATCH_CHANNELS, PATCH_CHANNELS, 3, bias=False)
        self.expand = nn.Conv2d(PATCH_CHANNELS, channels, 1, bias=False)
        self.output = nn.Linear(channels, 2)

    def forward(self, pair: Tensor) -> Tensor:
        """Mx2CxHxW to logits Mx2."""
        return self.finish(self.reduce(pair))

    def finish(self, reduced: Tensor) -> Tensor:
        """The first layer's outputs Mx64xHxW to logits Mx2."""
        x = F.avg_pool2d(reduced.relu(), 3, 1)
        x = self.expand(self.conv(x).relu()).relu()
        return self.output(x.mean((2, 3)))


class RelationLevel(nn.Module):
    """Relation detector of one level (section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.non_local = NonLocal(2 * channels)
        self.global_detector = GlobalDetector(channels)
        self.local_detector = LocalDetector(channels)
        self.patch_detector = PatchDetector(channels)

    def logits(self, target: Tensor, boxes: Tensor, self_attention: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled target 1xCxPxP and boxes NxCxPxP to the logits Nx2 of the global, local and patch detectors."""
        target = target.expand_as(boxes)
        pair = torch.cat([target, boxes], 1)
        if self_attention:
            pair = self.non_local(pair)
        return self.global_detector(pair), self.local_detector(target, boxes), self.patch_detector(pair)


class RelationTemplate(NamedTuple):
    """What is kept of T targets over L levels.

    Attributes:
        cls, loc: correlation kernels, TxLxCxKxK.
        terms: the target's part of the relation detector's first layers, TxLxP^2xD; see `FusedRelation`.
        mean_term: the same of the global detector, TxLxC.
    """

    cls: Tensor
    loc: Tensor
    terms: Tensor
    mean_term: Tensor


class SiamRNNet(SiamBANNet):
    """SiamRN: everything that is trained.

    Attributes:
        parts: which parts of the relation detector count.
    """

    def __init__(self, config: SiamRNConfig) -> None:
        super().__init__(config.base)
        self.parts = ALL_PARTS
        self.relations = nn.ModuleList(RelationLevel(channels) for channels in self.channels)
        self.relation_fusion = nn.Parameter(torch.zeros(len(self.channels)))

    @property
    def detectors(self) -> list[RelationLevel]:
        """The relation detectors, one a level."""
        return cast("list[RelationLevel]", list(self.relations))

    def pool_target(self, features: list[Tensor], boxes: Tensor) -> list[Tensor]:
        """Pooled targets, one TxCxPxP a level, from the maps of their template crops (not cut to their centres).

        Args:
            features: template features, one TxCxHxW a level.
            boxes: Tx4 (x, y, w, h in crop pixels). Cell ``i`` is read at pixel ``8 i``, here as for the proposals;
                this is half a cell less than where it is centred, and what the published weights were trained with.
        """
        return [precise_roi_pool(level.float(), boxes[:, None], BINS, STRIDE)[:, 0] for level in features]

    def match(self, features: list[Tensor], targets: list[Tensor], boxes: Tensor) -> Tensor:
        """Probability that boxes show the target, computed box by box as it is drawn in figure 3.

        Args:
            features: search features, one BxCxHxW a level.
            targets: pooled targets, one BxCxPxP a level.
            boxes: BxNx4 (x, y, w, h in crop pixels).

        Returns:
            BxN.
        """
        logits: Tensor | float = 0.0
        for relation, level, pooled, share in zip(
            self.detectors, features, targets, self.relation_fusion.softmax(0), strict=True
        ):
            found = precise_roi_pool(level.float(), boxes, BINS, STRIDE)
            rows = []
            for target, of_target in zip(pooled, found, strict=True):
                each = relation.logits(target[None], of_target, self.parts.self_attention)
                rows.append(torch.stack([x for x, on in zip(each, self.parts.detectors, strict=True) if on]).sum(0))
            logits = logits + share * torch.stack(rows)
        assert isinstance(logits, Tensor)
        return logits.softmax(-1)[..., 1]


class _FusedLevel:
    """One level's relation detector with linear layers joined, weights as matrices."""

    def __init__(self, level: RelationLevel, parts: RelationParts) -> None:
        block, channels = level.non_local, level.local_detector.conv.in_channels
        self.level, self.parts = level, parts
        self.channels = channels
        weight, bias = _affine(block.project)
        if not parts.self_attention:  # what attention adds is linear in these
            weight, bias = torch.zeros_like(weight), torch.zeros_like(bias)
        first = level.global_detector.mlp[0]
        assert isinstance(first, nn.Linear)
        reduce = level.patch_detector.reduce.weight.flatten(1)
        # Layers that read the pair of target and box: queries, keys, values, and the patch detector's first.
        pair = [conv.weight.flatten(1) for conv in (block.theta, block.phi, block.g)]
        local = level.local_detector.conv.weight.flatten(1)
        self.box_layers = torch.cat([*(w[:, channels:] for w in pair), local, reduce[:, channels:]]).mT
        self.target_layers = torch.cat([*(w[:, :channels] for w in pair), local, reduce[:, :channels]]).mT
        biases = [conv.bias for conv in (block.theta, block.phi, block.g) if conv.bias is not None]
        self.target_bias = torch.cat([*biases, local.new_zeros(channels), reduce @ bias])
        # What attention adds to a pair reaches the detectors through linear layers only, so these are applied to the
        # nine values before they are attended to, or to their mean.
        self.value_to_patch = (reduce @ weight).mT
        self.value_to_global = (first.weight @ weight).mT
        self.box_to_global = first.weight[:, channels:].mT
        self.target_to_global = first.weight[:, :channels].mT
        self.global_bias = first.bias + first.weight @ bias

    def compare(self, pooled: Tensor, means: Tensor, terms: Tensor) -> Tensor:
        """Logits of boxes.

        Args:
            pooled: NxP^2xD, boxes pooled from the map of `box_layers`.
            means: NxC, first layer of the global detector for the boxes' means, with the target's part.
            terms: P^2xD, the target's part.
        """
        count = len(pooled)
        c = self.channels
        level, parts = self.level, self.parts
        patch = pooled[..., 4 * c :] + terms[:, 4 * c :]
        if parts.self_attention:
            query = pooled[..., :c] + terms[:, :c]
            keys_values = (pooled[..., c : 3 * c] + terms[:, c : 3 * c]).reshape(count, BINS, BINS, 2 * c)
            grid = keys_values[:, : BINS - 1, : BINS - 1].reshape(count, BINS // 2, 2, BINS // 2, 2, 2 * c)
            # Four maxima: a reduction over two strided axes is many times slower.
            upper, lower = (_maximum(grid[:, :, i, :, 0], grid[:, :, i, :, 1]) for i in range(2))
            best = _maximum(upper, lower).flatten(1, 2)  # N 9 2C
            key, value = best[..., :c], best[..., c:]
            attention = torch.bmm(query, key.mT).softmax(-1)
            patch = torch.baddbmm(patch, attention, value @ self.value_to_patch)
            mean = torch.bmm(attention.mean(1, keepdim=True), value)[:, 0]
            means = torch.addmm(means, mean, self.value_to_global)
        logits = []
        if parts.global_detector:
            logits.append(level.global_detector.finish(means))
        if parts.local_detector:
            local = (pooled[..., 3 * c : 4 * c] * terms[:, 3 * c : 4 * c]).sum(1)
            logits.append(level.local_detector.finish(local))
        if parts.patch_detector:
            logits.append(level.patch_detector.finish(patch.mT.reshape(count, PATCH_CHANNELS, BINS, BINS)))
        return torch.stack(logits).sum(0)


class FusedRelation:
    """The relation detector, rearranged: the results of `SiamRNNet.match` up to rounding.

    Gradients reach the network's weights as they do there.

    Args:
        network: its batch norms in evaluation, on its device; later changes of its weights are not seen.
    """

    def __init__(self, network: SiamRNNet) -> None:
        assert not network.training
        self._levels = [_FusedLevel(level, network.parts) for level in network.detectors]
        self._shares = network.relation_fusion.softmax(0)

    def template(self, kernels: Kernels, targets: list[Tensor]) -> RelationTemplate:
        """What is kept of T targets: their kernels, and all that pooled targets (TxCxPxP a level) contribute."""
        terms, means = [], []
        for level, target in zip(self._levels, targets, strict=True):
            cells = target.flatten(2).mT
            terms.append(cells @ level.target_layers + level.target_bias)
            means.append(cells.mean(1) @ level.target_to_global + level.global_bias)
        return RelationTemplate(kernels.cls, kernels.loc, torch.stack(terms, 1), torch.stack(means, 1))

    def match(self, levels: list[Tensor], template: RelationTemplate, boxes: Tensor) -> Tensor:
        """Probability that boxes show the target.

        Args:
            levels: search features, one BxCxHxW a level.
            template: of B targets.
            boxes: BxNx4 (x, y, w, h in crop pixels).

        Returns:
            BxN.
        """
        return self.match_each(levels, [(template, boxes)])[0]

    def match_each(self, levels: list[Tensor], supports: Sequence[tuple[RelationTemplate, Tensor]]) -> list[Tensor]:
        """`match` of the same search features for several templates, each with boxes of its own.

        Args:
            levels: search features, one BxCxHxW a level.
            supports: templates of B targets and boxes BxNx4, N their own.

        Returns:
            BxN for each of `supports`.
        """
        rows = []
        for b in range(len(levels[0])):
            own = [(template.terms[b], template.mean_term[b], boxes[b]) for template, boxes in supports]
            rows.append(self._match([level[b] for level in levels], own))
        return [torch.stack(scores) for scores in zip(*rows, strict=True)]

    def _match(self, levels: list[Tensor], supports: Sequence[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
        """One crop: search features CxHxW and (LxP^2xD, LxC, boxes Nx4) a support to N each."""
        height, width = levels[0].shape[-2:]
        sparse = inference.asking_is_free(levels[0].device)
        logits: list[Tensor | float] = [0.0] * len(supports)
        read = [
            (_box_weights(boxes, height, width), roi_taps(boxes, BINS, STRIDE, height, width) if sparse else None)
            for _, _, boxes in supports
        ]
        for i, (level, maps) in enumerate(zip(self._levels, levels, strict=True)):
            cells = maps.float().flatten(1).mT  # HW C
            mean_table, table = cells @ level.box_to_global, cells @ level.box_layers
            for k, ((terms, mean_terms, boxes), (whole, taps)) in enumerate(zip(supports, read, strict=True)):
                means = whole @ mean_table + mean_terms[i]
                count = len(boxes)
                parts = []
                chunk = CHUNK if taps is not None else count
                for start in range(0, count, chunk):
                    stop = min(start + chunk, count)
                    if taps is not None:
                        pooled = pool_taps(table, taps, start, stop)
                    else:
                        grid = table.mT.reshape(1, -1, height, width)
                        pooled = precise_roi_pool(grid, boxes[None], BINS, STRIDE)[0].flatten(2).mT
                    parts.append(level.compare(pooled, means[start:stop], terms[i]))
                logits[k] = logits[k] + self._shares[i] * torch.cat(parts)
        return [cast(Tensor, value).softmax(-1)[:, 1] for value in logits]


def _maximum(a: Tensor, b: Tensor) -> Tensor:
    """The larger one of each pair; where gradients are wanted, in a form whose backward pass is three times faster."""
    return b + (a - b).relu() if a.requires_grad else torch.maximum(a, b)


def _box_weights(boxes: Tensor, height: int, width: int) -> Tensor:
    """Weight of every cell in the mean over a whole box: Nx4 to N x (H W)."""
    scaled = boxes / STRIDE
    y = bin_weights(bin_edges(scaled[:, 1], scaled[:, 3], 1), height)
    x = bin_weights(bin_edges(scaled[:, 0], scaled[:, 2], 1), width)
    return (y.mT * x).flatten(1)


def _affine(project: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weight (OxI) and bias (O) of a 1x1 convolution with its batch norm (running statistics), folded or not."""
    conv, norm = project
    assert isinstance(conv, nn.Conv2d)
    weight, bias = conv.weight.flatten(1), conv.bias
    assert bias is not None
    if isinstance(norm, nn.Identity):
        return weight, bias
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return weight * scale[:, None], (bias - norm.running_mean) * scale + norm.bias
