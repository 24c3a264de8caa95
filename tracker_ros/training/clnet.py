"""CLNet's training (Dong et al., ECCV 2020, section 3.4): networks that adjust a trained SiamRPN++ to a sequence.

The base tracker stays as it is, so what is in front of its last layers is computed once for every crop and kept: a
sequence is the base's hidden maps of a few frames. A step adjusts several sequences, each alone by its own first frame
as in tracking, and asks the adjusted layers to find the target in the later frames.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tracker_ros import registry, weights
from tracker_ros.geometry.anchors import anchor_shapes, anchors, decode_anchors, overlap
from tracker_ros.networks.backbones import SharedBackbone
from tracker_ros.networks.clnet import BRANCHES, AdjustedKernels, Adjustment, CLNet
from tracker_ros.networks.inference import prepare
from tracker_ros.networks.siamese import Kernels, Maps
from tracker_ros.networks.siamrpn import SiamRPNNet
from tracker_ros.trackers.clnet import NEGATIVE_ABOVE
from tracker_ros.training import replay
from tracker_ros.training.data import ImagePool
from tracker_ros.training.inputs import chosen_network, read_pools, require
from tracker_ros.training.losses import (
    anchor_labels,
    anchor_offsets,
    average_precision,
    balanced_cross_entropy,
    offset_loss,
    sample_labels,
)
from tracker_ros.training.pairs import PairOptions, PairSampler
from tracker_ros.training.run import Run, RunOptions, with_settings
from tracker_ros.training.siamese import centred


@dataclass(frozen=True)
class CLNetOptions(RunOptions):
    """Options of the `clnet` recipe.

    Attributes:
        sequences: sequences a step.
        frames: frames of a sequence behind the first.
        memory: sequences kept, about 0.65 MB a frame.
        start: sequences drawn before the first step.
        fresh: new sequences a step. The adjusting networks soon know by heart what they see too often.
        positives, negatives: samples drawn of a frame, at most.
        diverse: negative samples that are added because the base takes them for the target; 0: no mining.
        location: weight of the location loss, lambda of eq. 8.
        weight_decay: of weights.
        validation: held-out sequences.
    """

    minutes: float = 20.0
    rate: float = 1e-4
    warm_up: float = 0.05
    sequences: int = 16
    frames: int = 2
    memory: int = 1000
    start: int = 128
    fresh: int = 4
    positives: int = 16
    negatives: int = 48
    diverse: int = 16
    location: float = 1.2
    weight_decay: float = 5e-4
    validation: int = 64


class Sequences(NamedTuple):
    """N sequences of F frames as the base sees them; the first frame is the template's.

    Attributes:
        kernels: correlation kernels of the N targets.
        cls, loc: hidden maps of either branch, NxFxLxCxSxS, in half precision while they are kept.
        boxes: NxFx4 (cx, cy, w, h), pixels of the search crop relative to its centre.
        present: NxF bool; False where the crop does not show the target.
    """

    kernels: Kernels
    cls: Tensor
    loc: Tensor
    boxes: Tensor
    present: Tensor

    @property
    def first(self) -> tuple[list[Tensor], list[Tensor]]:
        """The hidden maps of the first frames, as `CLNet.hidden` gives them."""
        return list(self.cls[:, 0].unbind(1)), list(self.loc[:, 0].unbind(1))

    @property
    def later(self) -> Sequences:
        """The frames behind the first."""
        return Sequences(self.kernels, self.cls[:, 1:], self.loc[:, 1:], self.boxes[:, 1:], self.present[:, 1:])


def gather(sequences: list[Sequences]) -> Sequences:
    """Several sequences as one batch, in single precision."""
    cls, loc = (torch.cat([getattr(s, name) for s in sequences]).float() for name in BRANCHES)
    kernels = Kernels(*(torch.cat(parts).float() for parts in zip(*(s.kernels for s in sequences), strict=True)))
    boxes = torch.cat([s.boxes for s in sequences])
    return Sequences(kernels, cls, loc, boxes, torch.cat([s.present for s in sequences]))


def respond(net: CLNet, sequences: Sequences, layers: AdjustedKernels) -> Maps:
    """The maps of all frames, (N F) rows sequence by sequence, by each sequence's last layers."""
    frames = sequences.cls.shape[1]
    repeated = AdjustedKernels(*(part.repeat_interleave(frames, 0) for part in layers))
    cls, loc = (list(maps.flatten(0, 1).unbind(1)) for maps in (sequences.cls, sequences.loc))
    return net.finish((cls, loc), repeated)


def adjustment_sets(
    overlaps: Tensor,
    scores: Tensor,
    cells: int,
    rng: np.random.Generator,
    positives: int = 16,
    negatives: int = 48,
    diverse: int = 16,
) -> tuple[Tensor, Tensor]:
    """The positive and the negative set of first frames (section 3.3), drawn by the rule of the tracker.

    Args:
        overlaps: TxN, IoU of every anchor with the annotated box.
        scores: TxN, the base's probabilities.
        cells: cells of the map; N is a multiple.
        rng: draws the samples.
        positives, negatives, diverse: see `CLNetOptions`.

    Returns:
        Two T x `cells` bool: a cell is positive if one of its anchors is, else negative if one of them is.
    """
    total = negatives + diverse
    labels = sample_labels(anchor_labels(overlaps), scores, positives, total, rng, diverse / max(total, 1))
    labels[(overlaps >= NEGATIVE_ABOVE) & (labels < 1)] = 0
    planes = labels.unflatten(1, (-1, cells))
    positive, negative = ((planes == value).any(1) for value in (1, 0))
    return positive, negative & ~positive


def adopt(net: CLNet, base: SiamRPNNet) -> None:
    """Build on a trained base: take its weights, and begin with adjustments that change nothing."""
    fitting = net.load_state_dict(base.state_dict(), strict=False)
    assert not fitting.unexpected_keys
    assert all(key.startswith("adjustments.") for key in fitting.missing_keys)
    for part in net.adjustments.modules():
        if isinstance(part, Adjustment):
            last = [layer for layer in part.predictor if isinstance(layer, nn.Linear)][-1]
            nn.init.zeros_(last.weight)


class CLNetTraining(Run):
    """Trains the adjusting networks of `net`; everything else of it is fixed.

    Attributes:
        net: the network.
        frozen: the base in the arithmetic of tracking.
        window: sequences to learn from.
        held_out: sequences that no step sees.
        grid: anchors of the response, Nx4 (cx, cy, w, h), pixels relative to the crop's centre.
    """

    def __init__(
        self,
        net: CLNet,
        pool: ImagePool,
        held_out: ImagePool,
        out: Path,
        options: CLNetOptions,
        name: str = "clnet18",
    ) -> None:
        super().__init__(out, options)
        self.name, self.options = name, options
        if not isinstance(net.backbone, SharedBackbone):
            raise ValueError("this network has a backbone of its own; the recipe adjusts trackers on the shared one")
        self.shared = net.backbone.config.shared or None
        self.net = net.to(self.device).eval().requires_grad_(False)
        self.net.adjustments.requires_grad_(True)
        self.frozen = prepare(copy.deepcopy(self.net), self.device)
        if self.bf16:
            for module in self.frozen.convolutions():
                module.to(torch.bfloat16)
        layout = PairOptions(templates=1, searches=options.frames)
        sampler = PairSampler(pool, layout)
        self.window = replay.Window(lambda rng: self.watch(sampler, rng), options.memory, (options.seed, *self.ranks))
        self.held_out: list[Sequences] = []
        if options.validation and len(held_out):
            unseen = PairSampler(held_out, layout)
            self.held_out = [self.watch(unseen, np.random.default_rng([9999, i])) for i in range(options.validation)]
        self.grid = torch.empty(0)
        parameters = list(self.net.adjustments.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=options.rate,
        )
        for group in self.optimizer.param_groups:
            group["base"] = options.rate
        self.modules = {"net": self.net}
        self.start_average()

    @property
    def averaged(self) -> nn.Module:
        """The whole network, of which only the adjusting networks change."""
        return self.net

    # --- data ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def watch(self, sampler: PairSampler, rng: np.random.Generator) -> Sequences:
        """Draw one sequence and compute the base's hidden maps of its frames."""
        backbone = self.frozen.backbone
        assert isinstance(backbone, SharedBackbone)
        scene = replay.embed(sampler, backbone, rng)
        template, searches = (self.frozen.reduce(backbone.align(*maps)) for maps in (scene.templates, scene.searches))
        kernels = self.frozen.kernels(template)
        frames = len(searches[0])
        repeated = Kernels(*(part.repeat_interleave(frames, 0) for part in kernels))
        cls, loc = (torch.stack(maps, 1)[None].half() for maps in self.frozen.hidden(searches, repeated))
        return Sequences(kernels, cls, loc, centred(scene.boxes), scene.present)

    def batch(self, step: int, rng: np.random.Generator) -> Sequences:
        """The sequences of a step, after its fresh ones were drawn."""
        o = self.options
        self.window.advance(max(o.start, o.sequences) + o.fresh * step)
        return gather([self.window[int(slot)] for slot in rng.permutation(len(self.window))[: o.sequences]])

    def anchors(self, maps: Maps) -> Tensor:
        """Anchors of maps, Nx4."""
        if len(self.grid) != maps.cls.shape[-1]:
            shapes = anchor_shapes()
            cells = round((maps.cls.shape[-1] / len(shapes)) ** 0.5)
            self.grid = torch.from_numpy(anchors(shapes, cells)).to(self.device)
        return self.grid

    # --- losses ----------------------------------------------------------------------------------------------------

    def overlaps(self, sequences: Sequences, maps: Maps) -> Tensor:
        """IoU of every anchor with the target of every frame, NxFxA; 0 where it is absent."""
        found = overlap(self.anchors(maps), sequences.boxes[:, :, None])
        return found * sequences.present[..., None]

    def adjust(
        self,
        net: CLNet,
        sequences: Sequences,
        overlaps: Tensor,
        scores: Tensor,
        rng: np.random.Generator,
        branches: Collection[str] = BRANCHES,
    ) -> AdjustedKernels:
        """The last layers of each sequence, adjusted by its first frame alone.

        Args:
            net: with the adjusting networks.
            sequences: N.
            overlaps, scores: NxFxA of all frames, by the base.
            rng: draws the samples of the first frames.
            branches: which branches are adjusted.
        """
        o = self.options
        positive, negative = adjustment_sets(
            overlaps[:, 0],
            scores[:, 0],
            sequences.cls.shape[-1] ** 2,
            rng,
            o.positives,
            o.negatives,
            o.diverse,
        )
        return net.adjust(sequences.kernels, sequences.first, positive, negative, branches)

    def terms(self, maps: Maps, sequences: Sequences, labels: Tensor) -> dict[str, Tensor]:
        """The losses (eq. 8) of the later frames of N sequences: maps and BxA labels, B = N (F - 1)."""
        offsets = anchor_offsets(sequences.later.boxes.flatten(0, 1), self.anchors(maps))
        terms = {
            "classify": balanced_cross_entropy(maps.cls, labels),
            "locate": offset_loss(maps.loc, offsets, labels),
        }
        terms["total"] = terms["classify"] + self.options.location * terms["locate"]
        return terms

    def losses(self, step: int) -> dict[str, Tensor]:
        """Loss of the adjusted layers on the later frames; `base` is that of the base on the same samples."""
        rng = self.generator(step)
        sequences = self.batch(step, rng)
        with torch.no_grad():
            base = respond(self.net, sequences, self.net.unadjusted(sequences.kernels))
            scores = base.scores.unflatten(0, sequences.present.shape)
            overlaps = self.overlaps(sequences, base)
        labels = self.samples(overlaps, scores, rng)
        layers = self.adjust(self.net, sequences, overlaps, scores, rng)
        terms = self.terms(respond(self.net, sequences.later, layers), sequences, labels)
        with torch.no_grad():
            plain = Maps(*(part.unflatten(0, sequences.present.shape)[:, 1:].flatten(0, 1) for part in base))
            terms["base"] = self.terms(plain, sequences, labels)["total"]
        return terms

    def samples(self, overlaps: Tensor, scores: Tensor, rng: np.random.Generator) -> Tensor:
        """Labels of the later frames, (N (F - 1))xA: drawn samples and the diverse ones (section 3.4).

        Args:
            overlaps, scores: NxFxA.
            rng: draws.
        """
        o = self.options
        total = o.negatives + o.diverse
        found, hardness = overlaps[:, 1:].flatten(0, 1), scores[:, 1:].flatten(0, 1)
        return sample_labels(anchor_labels(found), hardness, o.positives, total, rng, o.diverse / max(total, 1))

    # --- validation ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, net: CLNet | None = None) -> dict[str, float]:
        """Means over the later frames of the held-out sequences, on the moving average by default.

        Returns:
            `v_loss`; `v_iou`, the mean IoU of the proposal with the highest score, and `v_ap`, the average precision
            of the scores of anchors with an IoU above 0.6 against those below 0.3, where the target is present; each
            also with `_base` for the base without adjustment, and `_cls` and `_loc` for one branch's alone.
        """
        net = net or self.average  # type: ignore[assignment]
        assert isinstance(net, CLNet)
        variants: dict[str, Collection[str]] = {"": BRANCHES, "_cls": ("cls",), "_loc": ("loc",), "_base": ()}
        sums: dict[str, list[float]] = {}
        for start in range(0, len(self.held_out), 8):
            sequences = gather(self.held_out[start : start + 8])
            base = respond(net, sequences, net.unadjusted(sequences.kernels))
            scores = base.scores.unflatten(0, sequences.present.shape)
            overlaps = self.overlaps(sequences, base)
            labels = self.samples(overlaps, scores, np.random.default_rng(start))
            shown = sequences.later.present.flatten()
            truth = sequences.later.boxes.flatten(0, 1)[:, None]
            ranked = anchor_labels(overlaps[:, 1:].flatten(0, 1))
            able = (ranked == 1).any(1)
            for suffix, branches in variants.items():
                rng = np.random.default_rng(start)
                maps = respond(net, sequences.later, self.adjust(net, sequences, overlaps, scores, rng, branches))
                found = overlap(decode_anchors(maps.loc, self.anchors(maps)), truth)
                best = maps.scores.argmax(1, keepdim=True)
                measured = {
                    "loss": [float(self.terms(maps, sequences, labels)["total"])],
                    "iou": found.gather(1, best)[shown, 0].tolist(),
                    "ap": average_precision(maps.scores, ranked)[able].tolist(),
                }
                for name, values in measured.items():
                    sums.setdefault(f"v_{name}{suffix}", []).extend(values)
        return {name: float(np.mean(values)) for name, values in sums.items() if values}

    def on_save(self) -> None:
        """Validate and write weights."""
        figures = self.validate()
        if figures:
            self.report(figures)
        origin = (
            f"adjusting networks trained by tracker_ros: step {self.step}, {self.elapsed / 60:.0f} min, held-out IoU "
            f"{figures.get('v_iou', 0):.3f}, without adjustment {figures.get('v_iou_base', 0):.3f}"
        )
        weights.save(self.out / f"{self.name}.safetensors", self.average, self.name, origin, backbone=self.shared)


def build(args: argparse.Namespace) -> CLNetTraining:
    """The recipe `clnet`: on the base that ``--base`` names, else the shipped one."""
    require(args)
    options = with_settings(CLNetOptions(), args.set)
    torch.manual_seed(options.seed)
    name = chosen_network(args).name
    under = name.replace("clnet", "siamrpnpp")
    net, base = (registry.networks()[each].create() for each in (name, under))
    assert isinstance(net, CLNet)
    assert isinstance(base, SiamRPNNet)
    weights.load(args.base or weights.shipped(under), base, under)
    adopt(net, base)
    pool, held_out = read_pools(args)
    return CLNetTraining(net, pool, held_out, args.out, options, name)
