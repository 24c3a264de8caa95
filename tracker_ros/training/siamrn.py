"""Training of SiamRN's relation detector and refinement module (Cheng et al., CVPR 2021, sections 3.3 to 3.5).

The network starts as a trained SiamBAN, whose convolutions stay as they are: what it makes of a scene is computed once
and kept. What learns are the relation detector and the layers that turn correlation features into class scores.

Two-way one-shot: of every search crop some proposals are compared with the target's template (label 1 where they show
the target, 0 elsewhere in the crop) and some with another object's (always 0), in the ratio 1:2:1. A proposal's
matching score scales its own correlation features and no other's, so both the matching and the refined class loss need
the scores of the sampled proposals only.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracker_ros import registry, weights
from tracker_ros.geometry.anchors import decode_points, overlap, points
from tracker_ros.geometry.crops import template_side
from tracker_ros.networks.backbones import SharedBackbone
from tracker_ros.networks.roi_pooling import precise_roi_pool
from tracker_ros.networks.siamban import SiamBANNet
from tracker_ros.networks.siamese import STRIDE, Kernels
from tracker_ros.networks.siamrn import FusedRelation, RelationParts, RelationTemplate, SiamRNNet
from tracker_ros.training.augment import View, cut, map_box
from tracker_ros.training.data import ImagePool, image_groups
from tracker_ros.training.inputs import chosen_network, read_pools, require
from tracker_ros.training.losses import average_precision, balanced_cross_entropy, ellipse_labels
from tracker_ros.training.pairs import CONTEXT, SEARCH_SIZE, TEMPLATE_SIZE, PairOptions, PairSampler
from tracker_ros.training.replay import Window
from tracker_ros.training.run import Run, RunOptions, with_settings
from tracker_ros.training.siamese import RESPONSE_CELLS, centred


@dataclass(frozen=True)
class SiamRNOptions(RunOptions):
    """Options of the `siamrn` recipe.

    Attributes:
        searches: search crops a step.
        frames: search crops of a scene.
        scenes: scenes kept in memory, about 0.8 MB a search crop.
        fresh: new scenes a step.
        distractors: share of the scenes with look-alikes.
        videos: share of the scenes whose frames are of a video or of photographs from several sides, where the target
            really changes.
        angle: standard deviation of a search crop's rotation in radians, on half of them. The template is upright, so
            positive pairs show a target that has turned.
        photometric: strength of each crop's own changes of light and colour, see `SetOptions`.
        positives, negatives: samples of a search crop for the class loss (section 3.6). Pairs for the matching loss:
            the positives, twice as many of the negatives, and as many of both with another object's template.
        mined: how many of the negatives are those with the highest class scores, once online mining has begun.
        same, other: proposals that overlap the target by at least `same` show it; below `other` they do not.
        online_from, offline_from: share of the run after which negative proposals, and other objects, are hard ones.
        objects: other objects to draw from; the index of nearest neighbours is over these.
        neighbours: nearest objects that a hard one is drawn from.
        contrastive: compare proposals with other objects' templates too (off: the paper's naive one-way training).
        matching, first: weight of the matching loss and of the class loss without refinement, which keeps the scores
            that choose the proposals when only the best are compared. The refined class loss has weight 1.
        class_rate: learning rate of the layers that compute class scores, relative to `rate`; 0 leaves them, and with
            them the first pass, as the base has them.
        least_match: matching scores below it count as it where they refine, as in the tracker.
        global_detector, local_detector, patch_detector, self_attention: parts of the relation detector that are used.
        validation: held-out scenes.
    """

    minutes: float = 25.0
    rate: float = 1e-3
    warm_up: float = 0.05
    save_minutes: float = 5.0
    searches: int = 8
    frames: int = 3
    scenes: int = 400
    fresh: int = 1
    distractors: float = 0.65
    videos: float = 0.35
    angle: float = 0.5
    photometric: float = 0.6
    positives: int = 16
    negatives: int = 48
    mined: int = 24
    same: float = 0.5
    other: float = 0.2
    online_from: float = 0.25
    offline_from: float = 0.5
    objects: int = 2500
    neighbours: int = 8
    contrastive: bool = True
    matching: float = 1.0
    first: float = 0.5
    class_rate: float = 0.3
    least_match: float = 0.0
    global_detector: bool = True
    local_detector: bool = True
    patch_detector: bool = True
    self_attention: bool = True
    validation: int = 32


class Sight(NamedTuple):
    """What the fixed base makes of a scene with F search crops, or, stacked, of F search crops of several scenes.

    Attributes:
        target: FxLxCxPxP, the pooled target of the template.
        levels: FxLxCxHxW, search features behind the neck.
        correlations: FxLxC'xN, the classification branch's correlation features.
        proposals: FxNx4 (cx, cy, w, h), crop pixels relative to the crop's centre.
        scores: FxN, the base's class scores.
        truth: Fx4, the target's box, like `proposals`.
        present: F bool.
        nearest: FxK, indices of the objects most like the target, none of them in the scene's images.
        others: FxK, indices of random objects, none of them in the scene's images.
    """

    target: Tensor
    levels: Tensor
    correlations: Tensor
    proposals: Tensor
    scores: Tensor
    truth: Tensor
    present: Tensor
    nearest: Tensor
    others: Tensor


class Samples(NamedTuple):
    """Sampled proposals of B search crops, P positive ones before Q negative ones, the mined ones of these first.

    Attributes:
        chosen: Bx(P+Q), which proposals.
        labels: Bx(P+Q) class labels, 1 or 0; -1 for a place that could not be filled.
    """

    chosen: Tensor
    labels: Tensor


class Pairs(NamedTuple):
    """Which samples are compared with what, and what the matching score ought to be.

    Attributes:
        own: BxS labels of all samples with the target's template: 1 or 0; -1 for no pair.
        other: BxM, columns of the samples that are compared with another object's template.
        valid: BxM bool, whether these are pairs; their label is 0.
    """

    own: Tensor
    other: Tensor
    valid: Tensor


def draw_samples(
    labels: Tensor,
    overlaps: Tensor,
    scores: Tensor,
    options: SiamRNOptions,
    rng: np.random.Generator,
    mining: bool,
) -> Samples:
    """Sample proposals of B search crops (section 3.3 and 3.6).

    Args:
        labels: BxN class labels of the points, 1, 0 and -1.
        overlaps: BxN, IoU of the proposals with the target.
        scores: BxN class scores.
        options: how many, and which proposals can be negative.
        rng: draws them.
        mining: take the negative proposals with the highest class scores first (online hard negative mining).
    """
    draw = torch.from_numpy(rng.random(labels.shape, np.float32)).to(labels.device)
    parts, filled = [], []

    def take(candidates: Tensor, rank: Tensor, count: int) -> Tensor:
        best = rank.masked_fill(~candidates, -torch.inf).topk(count, 1).indices
        parts.append(best)
        filled.append(candidates.gather(1, best))
        return candidates.scatter(1, best, False)

    take(labels == 1, draw, options.positives)
    negative = (labels == 0) & (overlaps < options.other)
    mined = min(options.mined, options.negatives) if mining else 0
    negative = take(negative, scores, mined)
    take(negative, draw, options.negatives - mined)
    index, valid = torch.cat(parts, 1), torch.cat(filled, 1)
    kind = torch.arange(index.shape[1], device=index.device) < options.positives
    return Samples(index, torch.where(valid, kind.long(), -1))


def form_pairs(samples: Samples, overlaps: Tensor, options: SiamRNOptions) -> Pairs:
    """Pairs of proposals and templates in the ratio 1:2:1 (section 3.3).

    Args:
        samples: of B search crops.
        overlaps: BxN, IoU of the proposals with the target.
        options: see there.
    """
    count = options.positives
    own = samples.labels.clone()
    found = overlaps.gather(1, samples.chosen)
    own[:, :count][found[:, :count] < options.same] = -1  # a point on the target, but its box is elsewhere
    own[:, 3 * count :] = -1
    # As many of either; where there is no positive one, a negative one in its place.
    half = count // 2
    at = torch.arange(count, device=own.device)
    columns = torch.where(at < half, at, count + at - half).expand(len(own), -1)
    spare = (count + count - half + at).clamp_max(samples.chosen.shape[1] - 1)
    lacking = samples.labels.gather(1, columns) < 0
    columns = torch.where(lacking & (at < half), spare, columns)
    return Pairs(own, columns, samples.labels.gather(1, columns) >= 0)


def matching_loss(own: Tensor, other: Tensor, pairs: Pairs, contrastive: bool = True) -> Tensor:
    """Mean squared error (eq. 6) with the three kinds of pairs weighted 1:2:1, also where some are fewer.

    Args:
        own: BxS matching scores of the samples with the target's template.
        other: BxM, of the samples in ``pairs.other`` with another object's template.
        pairs: labels.
        contrastive: count the pairs with another object's template.
    """
    same = _mean((own - 1).square(), pairs.own == 1)
    apart = _mean(own.square(), pairs.own == 0)
    if not contrastive:
        return (same + 2 * apart) / 3
    return (same + 2 * apart + _mean(other.square(), pairs.valid)) / 4


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp_min(1)


class ObjectIndex:
    """Nearest neighbours among objects, for offline hard negative mining (section 3.3); exact, by cosine.

    Args:
        vectors: NxD embeddings; their mean is taken off.
        groups: N, objects of one group may be the same one.
    """

    def __init__(self, vectors: Tensor, groups: NDArray[np.int64]) -> None:
        self.mean = vectors.mean(0)
        self.vectors = nn.functional.normalize(vectors - self.mean, dim=1)
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def nearest(self, vector: Tensor, count: int, excluded: Sequence[int] = ()) -> NDArray[np.int64]:
        """Indices of the `count` objects most like `vector` (D), the most alike first, without `excluded` groups.

        Raises:
            ValueError: nothing is left.
        """
        likeness = (self.vectors @ nn.functional.normalize(vector - self.mean, dim=0)).cpu().numpy()
        allowed = self._allowed(excluded)
        return np.resize(allowed[np.argsort(-likeness[allowed], kind="stable")[:count]], count)

    def random(self, count: int, rng: np.random.Generator, excluded: Sequence[int] = ()) -> NDArray[np.int64]:
        """`count` random indices, without `excluded` groups; raises like `nearest`."""
        return rng.choice(self._allowed(excluded), count)

    def _allowed(self, excluded: Sequence[int]) -> NDArray[np.int64]:
        allowed = np.flatnonzero(~np.isin(self.groups, list(excluded)))
        if not len(allowed):
            raise ValueError("there are too few images to tell the target from objects of other ones; give more")
        return allowed


def list_objects(sampler: PairSampler, count: int, rng: np.random.Generator) -> list[tuple[int, NDArray[np.float32]]]:
    """At most `count` objects to train on: image and box; of a video, the first and the middle frame."""
    found = [(target.image, box) for target in sampler.targets for box in target.boxes]
    for video in sampler.videos:
        found += [
            (image, sampler.pool.images[image].boxes[0]) for image in dict.fromkeys((video[0], video[len(video) // 2]))
        ]
    return [found[i] for i in sorted(rng.permutation(len(found))[:count])]


class SiamRNTraining(Run):
    """Trains the relation detector and the class layers of `net`, a SiamRN whose other weights are a trained SiamBAN's.

    Attributes:
        net: the network.
        base: a copy of it as it was at the start: what proposals and first class scores come from.
        index: objects to be told from the target.
        supports: NxLxCxPxP, the pooled targets of these objects.
    """

    def __init__(
        self,
        net: SiamRNNet,
        pool: ImagePool,
        held_out: ImagePool,
        out: Path,
        options: SiamRNOptions,
        name: str = "siamrn18",
    ) -> None:
        super().__init__(out, options)
        self.name, self.options = name, options
        if not isinstance(net.backbone, SharedBackbone):
            raise ValueError("this recipe trains on the shared backbone; the network has one of its own")
        self.shared = net.backbone.config.shared or None
        self.net = net.to(self.device).eval().requires_grad_(False)
        self.net.parts = RelationParts(
            options.global_detector, options.local_detector, options.patch_detector, options.self_attention
        )
        self.base = copy.deepcopy(self.net)
        self.backbone = copy.deepcopy(net.backbone).to(self.storage)
        self.grid = torch.from_numpy(points(RESPONSE_CELLS)).to(self.device)
        self.layout = PairOptions(
            templates=1,
            searches=options.frames,
            distractors=options.distractors,
            videos=options.videos,
            angle=options.angle,
            photometric=options.photometric,
        )
        self._make_objects(PairSampler(pool, self.layout), image_groups(pool))
        draw = partial(self.sight, PairSampler(pool, self.layout), image_groups(pool))
        self.replay: Window[Sight] = Window(draw, options.scenes, (options.seed, *self.ranks))
        self.held_out: list[Sight] = []
        if options.validation and len(held_out):
            # Every held-out scene has look-alikes: these are what the relation detector is for.
            sampler = PairSampler(held_out, PairOptions(templates=1, searches=options.frames, distractors=1.0))
            for i in range(options.validation):
                self.held_out.append(self.sight(sampler, None, np.random.default_rng([9999, i])))
        parts = [(part, share) for part, share in zip(self.learned(), (1.0, options.class_rate), strict=True) if share]
        for part, _ in parts:
            for parameter in part:
                parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            [{"params": part, "base": options.rate * share} for part, share in parts], weight_decay=1e-4
        )
        self.modules = {"net": self.net}
        self.start_average()

    @property
    def storage(self) -> torch.dtype:
        """Element type of what is kept of scenes, and of the backbone's arithmetic."""
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def averaged(self) -> nn.Module:
        """The whole network."""
        return self.net

    def learned(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What is trained: the parts of the relation detector that are used, and the layers that give class scores."""
        parts = self.net.parts
        used = {
            "global_detector": parts.global_detector,
            "local_detector": parts.local_detector,
            "patch_detector": parts.patch_detector,
            "non_local": parts.self_attention,
        }
        relation = [
            p
            for level in self.net.detectors
            for part in used
            if used[part]
            for p in level.get_submodule(part).parameters()
        ]
        relation.append(self.net.relation_fusion)
        classes = [
            p for head in self.net.levels for part in (head.cls.hidden, head.cls.output) for p in part.parameters()
        ]
        return relation, [*classes, self.net.cls_fusion]

    # --- what the fixed base makes of the data -------------------------------------------------------------------

    @torch.no_grad()
    def _features(self, crops: NDArray[np.uint8]) -> tuple[list[Tensor], list[Tensor]]:
        """Crops NxSxSx3 to the backbone's aligned maps and these behind the neck, float32, one a level each."""
        image = torch.from_numpy(np.ascontiguousarray(crops)).to(self.device).permute(0, 3, 1, 2).to(self.storage)
        maps = self.backbone(image)
        with self.autocast():
            necks = self.base.reduce(maps)
        return [m.float() for m in maps], [neck.float() for neck in necks]

    def _make_objects(self, sampler: PairSampler, groups: NDArray[np.int64]) -> None:
        """Embed the objects of the pool, and pool them like targets."""
        objects = list_objects(sampler, self.options.objects, np.random.default_rng([self.options.seed, 7]))
        vectors, supports = [], []
        for start in range(0, len(objects), 32):
            crops, boxes = [], []
            for image, box in objects[start : start + 32]:
                side = template_side(box[2:].astype(np.float64), CONTEXT)
                view = View((float(box[0] + box[2] / 2), float(box[1] + box[3] / 2)), side)
                crops.append(cut(sampler.pool.images[image], view, TEMPLATE_SIZE))
                boxes.append(map_box(box, view, TEMPLATE_SIZE))
            at = torch.from_numpy(np.stack(boxes)).to(self.device)
            maps, necks = self._features(np.stack(crops))
            vectors.append(embedding(maps, at))
            supports.append(torch.stack(self.base.pool_target(necks, at), 1).to(self.storage))
        self.index = ObjectIndex(torch.cat(vectors), groups[[image for image, _ in objects]])
        self.supports = torch.cat(supports)

    @torch.no_grad()
    def sight(self, sampler: PairSampler, groups: NDArray[np.int64] | None, rng: np.random.Generator) -> Sight:
        """Draw a scene. Without `groups` (the pool is not the one that the objects come from) any object is another."""
        scene = sampler.scene(rng)
        box = torch.from_numpy(scene.template_boxes).to(self.device)
        maps, necks = self._features(scene.templates)
        excluded = [] if groups is None else sorted(set(groups[list(scene.images)].tolist()))
        count = self.options.neighbours
        nearest = self.index.nearest(embedding(maps, box)[0], count, excluded)
        others = self.index.random(count, rng, excluded)
        # The first search crop is the template's own frame.
        crops, frames = scene.searches[1:], len(scene.searches) - 1
        _, levels = self._features(crops)
        kernels = Kernels(*(part.expand(frames, -1, -1, -1, -1) for part in self.base.kernels(necks)))
        with self.autocast():
            correlations = self.base.correlate(levels, kernels)
            located = self.base.correlate_location(levels, kernels)
        logits = self.base.classify(correlations)
        target = torch.stack(self.base.pool_target(necks, box), 1)
        return Sight(
            target.to(self.storage).expand(frames, *target.shape[1:]),
            torch.stack(levels, 1).to(self.storage),
            torch.stack(correlations, 1).flatten(3).to(self.storage),
            decode_points(self.base.distances(located), self.grid),
            logits.softmax(1)[:, 1],
            centred(torch.from_numpy(scene.boxes[1:])).to(self.device),
            torch.from_numpy(scene.present[1:]).to(self.device),
            torch.from_numpy(nearest).expand(frames, -1),
            torch.from_numpy(others).expand(frames, -1),
        )

    def crops(self, step: int, rng: np.random.Generator) -> Sight:
        """The search crops of a step, after its fresh scenes were drawn; of as many scenes as there are."""
        o = self.options
        self.replay.advance(4 * o.searches + o.fresh * step)
        order = rng.permutation(len(self.replay))[np.arange(o.searches) % len(self.replay)]
        frames = rng.integers(0, o.frames, o.searches)
        rows = [[part[f : f + 1] for part in self.replay[int(slot)]] for slot, f in zip(order, frames, strict=True)]
        return Sight(*(torch.cat(parts) for parts in zip(*rows, strict=True)))

    # --- losses --------------------------------------------------------------------------------------------------

    def losses(self, step: int) -> dict[str, Tensor]:
        """The class loss with refinement, that of the first pass, and the matching loss (eq. 7)."""
        rng, o = self.generator(step), self.options
        done = self.progress()
        batch = self.crops(step, rng)
        overlaps, labels = label(batch, self.grid)
        samples = draw_samples(labels, overlaps, batch.scores, o, rng, done >= o.online_from)
        pairs = form_pairs(samples, overlaps, o)
        rivals = batch.nearest if done >= o.offline_from else batch.others
        strangers = self.supports[
            rivals[torch.arange(len(rivals)), torch.from_numpy(rng.integers(0, o.neighbours, len(rivals)))]
        ]

        relation = FusedRelation(self.net)
        boxes = clipped(batch.proposals).gather(1, samples.chosen[..., None].expand(-1, -1, 4))
        seen = batch.correlations.gather(
            3, samples.chosen[:, None, None].expand(-1, *batch.correlations.shape[1:3], -1)
        ).float()
        supports = [(template(relation, batch.target), boxes)]
        if o.contrastive:
            supports.append((template(relation, strangers), boxes.gather(1, pairs.other[..., None].expand(-1, -1, 4))))
        scores = relation.match_each([level.float() for level in batch.levels.unbind(1)], supports)
        refined = refine(self.net, seen, scores[0].clamp_min(o.least_match))
        terms = {
            "classify": balanced_cross_entropy(refined, samples.labels),
            "first": balanced_cross_entropy(refine(self.net, seen), samples.labels),
            "matching": matching_loss(scores[0], scores[-1], pairs, o.contrastive),
        }
        terms["total"] = terms["classify"] + o.first * terms["first"] + o.matching * terms["matching"]
        return terms

    # --- validation ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Compare the base with the network (moving average) on held-out scenes with look-alikes.

        Returns:
            For the base (``v_base_*``), the first pass (``v_first_*``), the matching scores alone (``v_match_*``) and
            the refined scores (``v_*``): `iou`, mean IoU of the proposal with the highest score; `peak`, share of the
            crops where it is at least `same`; `ap`, mean average precision of the scores, proposals that overlap the
            target by `same` against those below `other`; `absent`, mean of the highest score in crops without the
            target.
        """
        net = self.average
        assert isinstance(net, SiamRNNet)
        relation = FusedRelation(net)
        sums: dict[str, list[float]] = {}
        for scene in self.held_out:
            overlaps, _ = label(scene, self.grid)
            levels = [level.float() for level in scene.levels.unbind(1)]
            match = relation.match(levels, template(relation, scene.target), clipped(scene.proposals))
            maps = scene.correlations.float()
            kinds = {
                "base_": scene.scores,
                "first_": refine(net, maps).softmax(1)[:, 1],
                "match_": match,
                "": refine(net, maps, match.clamp_min(self.options.least_match)).softmax(1)[:, 1],
            }
            for kind, scores in kinds.items():
                for row, found, shown in zip(scores, overlaps, scene.present.tolist(), strict=True):
                    if not shown:
                        sums.setdefault(f"v_{kind}absent", []).append(float(row.max()))
                        continue
                    chosen = float(found[row.argmax()])
                    sums.setdefault(f"v_{kind}iou", []).append(chosen)
                    sums.setdefault(f"v_{kind}peak", []).append(float(chosen >= self.options.same))
                    sure = torch.where(found < self.options.other, 0, -1)
                    ranked = torch.where(found >= self.options.same, 1, sure)
                    sums.setdefault(f"v_{kind}ap", []).append(float(average_precision(row[None], ranked[None])))
        return {name: float(np.nanmean(values)) for name, values in sums.items() if not np.isnan(values).all()}

    def on_save(self) -> None:
        """Validate and write weights."""
        figures = self.validate() if self.held_out else {}
        if figures:
            self.report(figures)
        origin = (
            f"trained by tracker_ros: step {self.step}, held-out AP {figures.get('v_ap', 0):.3f} "
            f"(base {figures.get('v_base_ap', 0):.3f})"
        )
        weights.save(self.out / f"{self.name}.safetensors", self.average, self.name, origin, backbone=self.shared)


def embedding(maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Means of the backbone's maps (BxCxHxW a level) over boxes Bx4 (x, y, w, h), each of unit length: BxD."""
    parts = [precise_roi_pool(level.float(), boxes[:, None], 1, STRIDE).flatten(1) for level in maps]
    return torch.cat([nn.functional.normalize(part, dim=1) for part in parts], 1)


def label(batch: Sight, grid: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of each proposal with the target and class labels of the points, BxN; no overlap and 0 where it is absent."""
    overlaps = overlap(batch.proposals, batch.truth[:, None]) * batch.present[:, None]
    return overlaps, ellipse_labels(batch.truth, grid) * batch.present[:, None].long()


def clipped(proposals: Tensor) -> Tensor:
    """Proposals (cx, cy, w, h relative to the crop's centre) to their parts inside the crop, x, y, w, h of it."""
    low = (proposals[..., :2] - proposals[..., 2:] / 2 + SEARCH_SIZE / 2).clamp(0, SEARCH_SIZE)
    high = (proposals[..., :2] + proposals[..., 2:] / 2 + SEARCH_SIZE / 2).clamp(0, SEARCH_SIZE)
    return torch.cat([low, high - low], -1)


def template(relation: FusedRelation, targets: Tensor) -> RelationTemplate:
    """What pooled targets BxLxCxPxP contribute; without correlation kernels, which are not needed here."""
    none = targets.new_zeros(len(targets))
    return relation.template(Kernels(none, none), list(targets.float().unbind(1)))


def refine(net: SiamBANNet, correlations: Tensor, scores: Tensor | None = None) -> Tensor:
    """Class logits Bx2xN of correlation features BxLxCxN, scaled by matching scores BxN (section 3.4)."""
    if scores is not None:
        correlations = correlations * scores[:, None, None]
    return net.classify([level[..., None] for level in correlations.unbind(1)])


def start(base: Path, name: str = "siamrn18") -> SiamRNNet:
    """The SiamRN called `name` with the weights of a trained SiamBAN, and an undecided relation detector.

    Raises:
        WeightsMissing, WeightsError: `base` is not such a file.
    """
    under = base_of(name)
    trained, net = (registry.networks()[each].create() for each in (under, name))
    assert isinstance(net, SiamRNNet)
    weights.load(base, trained, under)
    net.load_state_dict(trained.state_dict(), strict=False)
    for level in net.detectors:
        for detector in (level.global_detector, level.local_detector, level.patch_detector):
            nn.init.normal_(detector.output.weight, std=0.01)
            nn.init.zeros_(detector.output.bias)
    return net


def base_of(name: str) -> str:
    """The SiamBAN that a SiamRN extends."""
    return name.replace("siamrn", "siamban")


def build(args: argparse.Namespace) -> SiamRNTraining:
    """The recipe `siamrn`: on the SiamBAN that ``--base`` names, else the shipped one."""
    require(args)
    options = with_settings(SiamRNOptions(), args.set)
    torch.manual_seed(options.seed)
    name = chosen_network(args).name
    net = start(args.base or weights.shipped(base_of(name)), name)
    pool, held_out = read_pools(args)
    return SiamRNTraining(net, pool, held_out, args.out, options, name)
