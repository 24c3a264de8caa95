"""Training of SiamRPN, SiamRPN++ and SiamBAN on the shared, frozen backbone.

SiamRPN section 3.3 and SiamBAN (SiamRN, section 3.5): classification by cross entropy over a few sampled anchors or
points a pair, location by smooth L1 or IoU loss at the positive ones. A search crop is compared with a template of its
own scene and, for a share of them, with one of another scene, which is all negative; the search branch's convolutions
are shared by both comparisons.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tracker_ros import registry, weights
from tracker_ros.geometry.anchors import anchor_shapes, anchors, decode_anchors, decode_points, overlap, points
from tracker_ros.networks.backbones import SharedBackbone
from tracker_ros.networks.correlation import Pairs, UpChannelBranch
from tracker_ros.networks.siamban import SiamBANNet
from tracker_ros.networks.siamese import STRIDE, Kernels, Maps, SiameseNet
from tracker_ros.networks.siamrpn import SiamRPNNet
from tracker_ros.training import replay
from tracker_ros.training.data import ImagePool
from tracker_ros.training.inputs import chosen_network, read_pools, require, take_backbone
from tracker_ros.training.losses import (
    anchor_labels,
    anchor_offsets,
    balanced_cross_entropy,
    distance_loss,
    ellipse_labels,
    offset_loss,
    sample_labels,
)
from tracker_ros.training.pairs import SEARCH_SIZE, PairOptions, PairSampler
from tracker_ros.training.run import Run, RunOptions, channels_last, with_settings

#: Cells a side of a search map behind the backbone, and of the response for a template of 127 pixels.
SEARCH_CELLS = (SEARCH_SIZE + 1) // STRIDE - 1
RESPONSE_CELLS = SEARCH_CELLS - 6


@dataclass(frozen=True)
class SiameseOptions(RunOptions):
    """Options of the recipes of the Siamese trackers.

    Attributes:
        searches: search crops a step.
        strangers: share of them that are also compared with the template of another scene.
        scenes: scenes kept in memory, about 1.7 MB each.
        fresh: new scenes a step.
        positives, negatives: samples of a comparison.
        hard: share of the negative samples that are the ones with the highest scores.
        location: weight of the location loss.
        angle: standard deviation of a search crop's rotation in radians, on half of them.
        validation: held-out scenes.
    """

    minutes: float = 35.0
    rate: float = 1e-3
    warm_up: float = 0.04
    clip: float = 10.0
    searches: int = 24
    strangers: float = 0.5
    scenes: int = 1200
    fresh: int = 2
    positives: int = 16
    negatives: int = 48
    hard: float = 0.5
    location: float = 1.2
    angle: float = 0.12
    validation: int = 64


class Comparison(NamedTuple):
    """P comparisons of B search crops with templates, drawn from a batch of scenes.

    Attributes:
        template, search: B, the rows of the scenes' maps that are used.
        pairs: P, which of these templates are compared with which of these search crops; the first B are of search
            crops with a template of their own scene, one each.
        boxes: Px4 (cx, cy, w, h), crop pixels relative to the crop's centre.
        present: P bool: the crop shows the template's object.
    """

    template: Tensor
    search: Tensor
    pairs: Pairs
    boxes: Tensor
    present: Tensor

    @property
    def own(self) -> int:
        """B."""
        return self.pairs.own


def centred(boxes: Tensor) -> Tensor:
    """(x, y, w, h) in pixels of a search crop to (cx, cy, w, h) relative to where its middle cell looks.

    Cell 15 of 31 looks at the centre of pixel 127, which is at 127.5.
    """
    return torch.cat([boxes[..., :2] + boxes[..., 2:] / 2 - SEARCH_SIZE / 2, boxes[..., 2:]], -1)


class SiameseTraining(Run):
    """Trains the neck and heads of `net`, a SiamRPNNet or a SiamBANNet on the shared backbone.

    Attributes:
        net: the network; its backbone is not trained.
        backbone: the same in the arithmetic that scenes are embedded in.
        replay: scenes to learn from.
        held_out: scenes that no step sees.
        grid: anchors Nx4 (cx, cy, w, h) or points Nx2 of the response, pixels relative to the crop's centre.
    """

    net: SiamRPNNet | SiamBANNet

    def __init__(
        self,
        name: str,
        net: SiamRPNNet | SiamBANNet,
        pool: ImagePool,
        held_out: ImagePool,
        out: Path,
        options: SiameseOptions,
    ) -> None:
        super().__init__(out, options)
        self.name, self.options = name, options
        if not isinstance(net.backbone, SharedBackbone):
            raise ValueError(f"'{name}' has a backbone of its own; this recipe trains heads on the shared one")
        self.shared = net.backbone.config.shared or None
        self.net = channels_last(net.to(self.device))
        net.backbone.requires_grad_(False)
        self.backbone = copy.deepcopy(net.backbone).eval().to(torch.bfloat16 if self.bf16 else torch.float32)
        layout = self.layout()
        self.replay = replay.Replay(
            PairSampler(pool, layout), self.backbone, options.scenes, (options.seed, *self.ranks)
        )
        self.held_out: list[replay.SceneFeatures] = []
        if options.validation and len(held_out):
            sampler = PairSampler(held_out, layout)
            rngs = [np.random.default_rng([9999, i]) for i in range(options.validation)]
            scenes = [replay.embed(sampler, self.backbone, rng) for rng in rngs]
            self.held_out = [replay.stack(scenes[i : i + 8]) for i in range(0, len(scenes), 8)]
        anchored = isinstance(net, SiamRPNNet)
        grid = anchors(anchor_shapes(), RESPONSE_CELLS) if anchored else points(RESPONSE_CELLS)
        self.grid = torch.from_numpy(grid).to(self.device)
        learned = self.learned()
        self.optimizer = torch.optim.AdamW([{"params": learned, "base": options.rate}], weight_decay=1e-4)
        self.modules = {"net": self.net}
        self.start_average()

    def layout(self) -> PairOptions:
        """How scenes are drawn."""
        return PairOptions(angle=self.options.angle)

    def learned(self) -> list[nn.Parameter]:
        """What is trained: all but the backbone."""
        return [p for name, p in self.net.named_parameters() if not name.startswith("backbone.")]

    @property
    def averaged(self) -> nn.Module:
        """The whole network."""
        return self.net

    # --- what a step compares ------------------------------------------------------------------------------------

    def scenes(self, step: int, rng: np.random.Generator) -> replay.SceneFeatures:
        """As many scenes as a step has search crops, after the fresh ones of this step were drawn."""
        o = self.options
        self.replay.advance(max(2 * o.searches, 8) + o.fresh * step)
        return self.replay.take(rng.permutation(len(self.replay))[: o.searches])

    def comparison(self, scenes: replay.SceneFeatures, rng: np.random.Generator) -> Comparison:
        """One search crop a scene with a template of it, then some search crops with templates of the next scenes."""
        count, templates = scenes.template_boxes.shape[:2]
        searches = scenes.boxes.shape[1]
        rows = torch.arange(count)
        template = rows * templates + torch.from_numpy(rng.integers(0, templates, count))
        search = rows * searches + torch.from_numpy(rng.integers(0, searches, count))
        strangers = round(self.options.strangers * count) if count > 1 else 0
        other = (rows[:strangers] + 1) % count
        boxes = centred(scenes.boxes.flatten(0, 1)[search])
        present = scenes.present.flatten()[search]
        return Comparison(
            template.to(self.device),
            search.to(self.device),
            Pairs(torch.cat([rows, other]).to(self.device), torch.cat([rows, rows[:strangers]]).to(self.device), count),
            torch.cat([boxes, boxes[:strangers]]),
            torch.cat([present, torch.zeros_like(present[:strangers])]),
        )

    # --- network -------------------------------------------------------------------------------------------------

    def levels(self, net: SiameseNet, maps: replay.Maps, rows: Tensor) -> list[Tensor]:
        """Maps behind the neck of some rows, one a level."""
        with self.autocast():
            return net.reduce(self.backbone.align(maps.stage2[rows], maps.stage3[rows]))

    def compare(self, net: SiamRPNNet | SiamBANNet, scenes: replay.SceneFeatures, drawn: Comparison) -> Maps:
        """Class logits of all comparisons, Px2xN, and location of those with a template of their own, Bx4xN."""
        templates = self.levels(net, scenes.templates, drawn.template)
        searches = self.levels(net, scenes.searches, drawn.search)
        with self.autocast():
            kernels = Kernels(*(part.float() for part in net.kernels(templates)))
            return net.compare(searches, kernels, drawn.pairs)

    # --- losses --------------------------------------------------------------------------------------------------

    def labels(self, pairs: Comparison) -> Tensor:
        """1, 0 or -1 of every anchor or point, PxN."""
        if isinstance(self.net, SiamRPNNet):
            found = anchor_labels(overlap(self.grid[None], pairs.boxes[:, None]))
        else:
            found = ellipse_labels(pairs.boxes, self.grid)
        return torch.where(pairs.present[:, None], found, torch.zeros_like(found))

    def terms(self, maps: Maps, pairs: Comparison, rng: np.random.Generator) -> dict[str, Tensor]:
        """Classification and location loss of a batch of comparisons."""
        o = self.options
        every = self.labels(pairs)
        labels = sample_labels(every, maps.scores.detach(), o.positives, o.negatives, rng, o.hard)
        boxes, at = pairs.boxes[: pairs.own], labels[: pairs.own]
        if isinstance(self.net, SiamRPNNet):
            location = offset_loss(maps.loc, anchor_offsets(boxes, self.grid), at)
        else:
            location = distance_loss(maps.loc, boxes, self.grid, at)
        return {"classify": balanced_cross_entropy(maps.cls, labels), "locate": location}

    def losses(self, step: int) -> dict[str, Tensor]:
        """Classification loss and `location` times the location loss."""
        self.net.train()
        self.net.backbone.eval()
        rng = self.generator(step)
        scenes = self.scenes(step, rng)
        pairs = self.comparison(scenes, rng)
        maps = self.compare(self.net, scenes, pairs)
        terms = self.terms(maps, pairs, rng)
        terms["total"] = terms["classify"] + self.options.location * terms["locate"]
        return terms

    # --- validation ----------------------------------------------------------------------------------------------

    def proposals(self, net: SiamRPNNet | SiamBANNet, maps: Maps) -> Tensor:
        """Boxes of location maps Bx4xN: BxNx4 (cx, cy, w, h), relative to the crop's centre."""
        decode = decode_anchors if isinstance(net, SiamRPNNet) else decode_points
        return decode(maps.loc, self.grid)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means over the held-out scenes, on the moving average.

        Returns:
            `v_classify`, `v_locate` (losses), `v_iou` (mean IoU of the proposal with the highest score where the
            target is present), `v_best` (mean IoU of the best proposal), `v_shown` and `v_absent` (mean of the
            highest score where the target is and is not in the crop, templates of other scenes included).
        """
        net = self.average
        assert isinstance(net, SiamRPNNet | SiamBANNet)
        sums: dict[str, list[float]] = {}
        for number, scenes in enumerate(self.held_out):
            rng = np.random.default_rng(number)
            pairs = self.comparison(scenes, rng)
            maps = self.compare(net, scenes, pairs)
            for name, value in self.terms(maps, pairs, rng).items():
                sums.setdefault(f"v_{name}", []).append(float(value))
            found = overlap(self.proposals(net, maps), pairs.boxes[: pairs.own, None])
            shown = pairs.present[: pairs.own]
            scores = maps.scores
            best = scores[: pairs.own].argmax(1, keepdim=True)
            sums.setdefault("v_iou", []).extend(found.gather(1, best)[shown, 0].tolist())
            sums.setdefault("v_best", []).extend(found.amax(1)[shown].tolist())
            sums.setdefault("v_shown", []).extend(scores.amax(1)[pairs.present].tolist())
            sums.setdefault("v_absent", []).extend(scores.amax(1)[~pairs.present].tolist())
        return {name: float(np.mean(values)) for name, values in sums.items()}

    def on_save(self) -> None:
        """Validate and write weights."""
        figures = self.validate() if self.held_out else {}
        self.report(figures)
        origin = f"trained by tracker_ros: step {self.step}, held-out IoU {figures.get('v_iou', 0):.3f}"
        weights.save(self.out / f"{self.name}.safetensors", self.average, self.name, origin, backbone=self.shared)


def build(args: argparse.Namespace) -> SiameseTraining:
    """The recipes `siamrpn`, `siamrpnpp` and `siamban`: heads on a shared backbone.

    ``--base`` goes on from weights of the same network; see `take_level` for others.
    """
    require(args, "--images")
    options = with_settings(SiameseOptions(), args.set)
    pool, held_out = read_pools(args)
    network = chosen_network(args)
    name = network.name
    torch.manual_seed(options.seed)
    net = network.create()
    assert isinstance(net, SiamRPNNet | SiamBANNet)
    if not isinstance(net.backbone, SharedBackbone):
        raise ValueError(f"'{name}' has a backbone of its own; this recipe trains heads on a shared one")
    take_backbone(args, net.backbone)
    start_heads(net)
    if args.base is not None:
        if weights.network_of(args.base) == name:
            weights.load(args.base, net, name)
        else:
            take_level(net, args.base)
    return SiameseTraining(name, net, pool, held_out, args.out, options)


def take_level(net: SiamRPNNet | SiamBANNet, file: Path) -> None:
    """Start a network of one level as the last level, of the same shape, of a trained SiamRPN++.

    Args:
        net: SiamRPN with depth-wise correlation on stage 3.
        file: weights of `siamrpnpp18`, or of that on another backbone.

    Raises:
        WeightsError: the file is of no such network, or `net` has levels or channels of its own.
    """
    name = weights.network_of(file)
    if not name.startswith("siamrpnpp"):
        name = "siamrpnpp18"
    base = registry.networks()[name].create()
    weights.load(file, base, name)
    assert isinstance(base, SiamRPNNet)
    own = net.state_dict()
    last = len(base.levels) - 1
    taken = {
        key.replace(f"{part}.{last}.", f"{part}.0."): value
        for part in ("neck", "heads")
        for key, value in base.state_dict().items()
        if key.startswith(f"{part}.{last}.")
    }
    rest = {key for key in own if not key.startswith("backbone.")} - taken.keys()
    if rest or any(own[key].shape != value.shape for key, value in taken.items()):
        raise weights.WeightsError(f"{file} cannot start this network: it has no level of the same shape")
    net.load_state_dict(taken, strict=False)


def start_heads(net: SiamRPNNet | SiamBANNet) -> None:
    """Let untrained heads say about what they will: small logits, small offsets or sides of a target's usual size."""
    side = 0.0 if isinstance(net, SiamRPNNet) else math.log(SEARCH_SIZE / 8)
    for head in net.levels:
        for part in (head.cls, head.loc):
            if isinstance(part, UpChannelBranch):  # a response sums thousands of products
                nn.init.normal_(part.template.weight, std=0.05 / math.sqrt(part.template.weight[0].numel()))
        layer = head.loc.adjust if isinstance(head.loc, UpChannelBranch) else head.loc.output
        assert isinstance(layer, nn.Conv2d)
        with torch.no_grad():
            layer.weight.mul_(0.1)
            if layer.bias is not None:
                layer.bias.fill_(side)
