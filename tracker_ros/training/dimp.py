"""DiMP's offline training (section 3.6): classifier, model predictor and IoU-Net on pairs of sets.

The backbone comes from the `distill` recipe. Its stem and first stages stay fixed; stage 3 may be tuned at a low
rate while the teacher's features hold it in place.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracker_ros import registry, weights
from tracker_ros.geometry.boxes import pairwise_iou
from tracker_ros.networks.dimp import BackboneFeatures, DiMPNet
from tracker_ros.networks.filter_optimizer import apply_filter
from tracker_ros.networks.iou_net import BoxRefiner, IoUFeatures, Modulation
from tracker_ros.networks.resnet import BasicBlock
from tracker_ros.training.ahead import Ahead, choose_workers
from tracker_ros.training.data import Image, ImagePool, add_flights
from tracker_ros.training.device import HostImages, Renderer, choose_renderer, proposals, send
from tracker_ros.training.distill import (
    TEACHER_CHANNELS,
    Heads,
    regression_loss,
    relation_loss,
    standardise,
)
from tracker_ros.training.inputs import (
    FIRST_SEED,
    chosen_network,
    read_distilled,
    read_pools,
    read_teacher,
    require,
    take_backbone,
)
from tracker_ros.training.losses import classification_loss, gaussian_labels, iou_loss
from tracker_ros.training.pictures import GREEN, RED, YELLOW, crop_picture, draw_box, map_picture, sheet
from tracker_ros.training.pseudo import TEACHER_MEAN
from tracker_ros.training.run import Run, RunOptions, channels_last, with_settings
from tracker_ros.training.sets import SetOptions, SetPlan, SetSampler


@dataclass(frozen=True)
class DiMPOptions(RunOptions):
    """Options of the `dimp18` recipe.

    Attributes:
        sets: pairs of sets a step for the classifier, with the tracker's search region; 0 trains the IoU-Net alone.
        train_frames, test_frames: frames of such a set.
        box_sets: sets a step for the IoU-Net, with a smaller region around the target: it never looks further.
        box_frames: frames of such a set; the first two are references of the others and of each other.
        box_crop: side of such a crop in pixels; the target is as large as in the classifier's.
        iterations: steps of the filter optimizer, N_iter.
        beta: weight of the classification loss.
        box_count: proposals a frame.
        workers: processes that draw the sets of the next steps; 0 draws them in between, -1 chooses (`choose_workers`).
        backbone_rate: learning rate of stage 3 relative to `rate`; 0 keeps the backbone fixed.
        backbone_from: share of the run after which stage 3 is tuned.
        hold: weight of the teacher's features while stage 3 is tuned.
        feature_rate: learning rate of the classification features relative to `rate`. They start as the distilled
            projection, which knows real videos; a few stills with synthetic motion would only spoil it.
        initializer_rate: learning rate of the filter initializer relative to `rate`.
        predictor_rate: learning rate of the filter optimizer's own parameters relative to `rate`.
        validation: number of held-out sets.
    """

    rate: float = 1e-3
    warm_up: float = 0.05
    sets: int = 4
    train_frames: int = 2
    test_frames: int = 1
    box_sets: int = 8
    box_frames: int = 4
    box_crop: int = 192
    iterations: int = 5
    beta: float = 100.0
    box_count: int = 24
    workers: int = -1
    backbone_rate: float = 0.05
    backbone_from: float = 0.65
    hold: float = 0.3
    feature_rate: float = 0.02
    initializer_rate: float = 0.2
    predictor_rate: float = 0.5
    validation: int = 64


#: Sets in a picture.
SHOWN = 6


@dataclass
class Batch:
    """Sets stacked for the network.

    Attributes:
        images: (BxN)x3xSxS float RGB 0..255, frames of a set in order.
        boxes: BxNx4, crop pixels.
        present: BxN bool.
        candidates: (BxN)xPx4.
        overlaps: (BxN)xP, IoU of the candidates.
    """

    images: Tensor
    boxes: Tensor
    present: Tensor
    candidates: Tensor
    overlaps: Tensor


class Draft(NamedTuple):
    """Sets of which `images.prepare` has made what it could without the device; boxes and presence as in `Batch`."""

    pixels: Any
    boxes: NDArray[np.float32]
    present: NDArray[np.bool_]


class Drafts(NamedTuple):
    """What a step shows: sets for the classifier, if it is trained, and for the IoU-Net; and a seed for proposals."""

    wide: Draft | None
    near: Draft
    seed: int


def prepare(plans: list[SetPlan], images: Renderer, size: int) -> Draft:
    """Stack sets, with crops of `size` pixels a side."""
    pixels = images.prepare([frame for plan in plans for frame in plan.frames], size)
    return Draft(pixels, np.stack([plan.boxes for plan in plans]), np.stack([plan.present for plan in plans]))


def finish(draft: Draft, images: Renderer, box_count: int, seed: int) -> Batch:
    """Make the pixels, and draw proposals for all frames; on the device of `images`."""
    boxes, present = send(draft.boxes, images.device), send(draft.present, images.device)
    generator = torch.Generator(images.device).manual_seed(seed)
    candidates = proposals(boxes.flatten(0, 1), box_count, generator)
    return Batch(images.finish(draft.pixels), boxes, present, *candidates)


def warm_start(net: DiMPNet, backbone: dict[str, Tensor], heads: Heads | None) -> None:
    """Begin from a distilled backbone.

    The classification features start as the distillation's projection with the mean feature removed, the initial
    filter as the target's own features, so that the untrained network already is a correlation tracker on the
    teacher's features.
    """
    net.backbone.load_state_dict(backbone)
    for block in net.classifier.features:
        if isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)
    conv = net.classifier.features[-2]
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        if heads is not None:
            projection = heads.projected.weight[:, :, 0, 0]
            bias = heads.projected.bias
            assert bias is not None
            centred = projection
            if not net.backbone.standardised:
                # Heads predict standardised features, W x + b with mean zero: the mean x solves W x = -b. Remove it.
                mean = torch.linalg.lstsq(projection, -bias[:, None]).solution[:, 0]
                centred = projection - projection @ torch.outer(mean, mean) / mean.square().sum()
            conv.weight.normal_(0, 0.02 * float(centred.std()))
            conv.weight[:, :, 1, 1] += centred
        initial = net.classifier.initializer.conv
        initial.weight.normal_(0, 1e-3)
        initial.weight[:, :, 1, 1] += 0.7 * torch.eye(initial.weight.shape[0])
        assert initial.bias is not None
        initial.bias.zero_()


class DiMPTraining(Run):
    """Trains `net` on sets from `pool`; validates on sets from `held_out`, which no step ever sees.

    Args:
        pool, held_out: see there.
        out: folder of the run.
        options: see `DiMPOptions`.
        distilled: checkpoint of the run that distilled the backbone; without one it begins with random weights.
        teacher: holds a backbone that is tuned.
        layout: how sets are drawn.
        images: makes crops of `pool`; by default what suits the device.
        network: name of the network.
        shares: the backbone lies in a file of its own, so that the weights name it if it stays as it is.
    """

    name = "dimp18"

    def __init__(
        self,
        pool: ImagePool,
        held_out: ImagePool,
        out: Path,
        options: DiMPOptions,
        distilled: dict[str, Any] | None = None,
        teacher: nn.Module | None = None,
        layout: SetOptions | None = None,
        images: Renderer | None = None,
        network: str = "dimp18",
        shares: bool = False,
    ) -> None:
        super().__init__(out, options)
        self.name, self.options = network, options
        self.images = images or choose_renderer(pool, self.device)
        self.ahead = Ahead(self.plan, choose_workers(options.workers, self.device))
        layout = replace(layout or SetOptions(), train_frames=options.train_frames, test_frames=options.test_frames)
        # The same zoom on a smaller region, with the target never far from its middle.
        near = replace(
            layout,
            size=options.box_crop,
            area=layout.area * options.box_crop / layout.size,
            train_frames=min(2, options.box_frames),
            test_frames=options.box_frames - min(2, options.box_frames),
            train_shift=0.6,
            test_shift=0.6,
            absent=0.0,
            transplant=0.0,  # a pasted ellipse would teach the wrong outline
        )
        self.sampler, self.box_sampler = SetSampler(pool, layout), SetSampler(pool, near, tight=True)
        self.validation: list[tuple[Batch, Batch]] = []
        if options.validation and len(held_out):
            self._make_validation(held_out, SetSampler(held_out, layout), SetSampler(held_out, near, tight=True))
        net = registry.networks()[network].create()
        assert isinstance(net, DiMPNet)
        self.net = net
        #: The backbone that the weights name instead of holding it.
        self.shared = net.config.backbone.shared if shares and options.backbone_rate == 0 else None
        self.heads: Heads | None = None
        self.statistics: list[tuple[Tensor, Tensor]] = []
        if distilled is not None:
            self.heads = Heads(net.config.backbone.maps, TEACHER_CHANNELS)
            self.heads.load_state_dict(distilled["heads"])
            self.heads.requires_grad_(False)
            self.statistics = [(mean.to(self.device), d.to(self.device)) for mean, d in distilled["statistics"]]
            warm_start(self.net, distilled["average"], self.heads)
            self.heads.to(self.device)
        self.teacher = None if teacher is None else teacher.eval().to(self.device)
        channels_last(self.net.to(self.device))
        self.net.backbone.requires_grad_(False)
        classifier = self.net.classifier
        groups: list[tuple[float, list[nn.Parameter]]] = [
            (options.feature_rate, list(classifier.features.parameters())),
            (options.initializer_rate, list(classifier.initializer.parameters())),
            (options.predictor_rate, list(classifier.optimizer.parameters())),
            (1.0, list(self.net.iou_net.parameters())),
        ]
        if options.backbone_rate > 0:
            groups.append((options.backbone_rate, list(self.net.backbone.last.parameters())))
        self.optimizer = torch.optim.AdamW(
            [{"params": params, "base": options.rate * share} for share, params in groups], weight_decay=1e-4
        )
        self.modules = {"net": self.net}
        self.start_average()

    def close(self) -> None:
        """Let the processes go that draw ahead."""
        self.ahead.close()

    @property
    def averaged(self) -> nn.Module:
        """The whole network."""
        return self.net

    def _make_validation(self, pool: ImagePool, sampler: SetSampler, box_sampler: SetSampler) -> None:
        images = HostImages(pool, self.device)
        for start in range(0, self.options.validation, 8):
            generators = [
                np.random.default_rng([9999, i]) for i in range(start, min(start + 8, self.options.validation))
            ]
            first, second = ([s.plan(rng) for rng in generators] for s in (sampler, box_sampler))
            wide = finish(prepare(first, images, sampler.options.size), images, 0, start)
            near = prepare(second, images, box_sampler.options.size)
            self.validation.append((wide, finish(near, images, self.options.box_count, start)))

    def plan(self, step: int) -> Drafts:
        """What a step shows: a function of `generator(step)`."""
        rng = self.generator(step)
        wide = [self.sampler.plan(rng) for _ in range(self.options.sets)]
        near = [self.box_sampler.plan(rng) for _ in range(self.options.box_sets)]
        return Drafts(
            prepare(wide, self.images, self.sampler.options.size) if wide else None,
            prepare(near, self.images, self.box_sampler.options.size),
            int(rng.integers(2**62)),
        )

    def batches(self, drafts: Drafts) -> tuple[Batch | None, Batch]:
        """The classifier's sets (if it is trained) and the IoU-Net's, on the device."""
        wide = None if drafts.wide is None else finish(drafts.wide, self.images, 0, drafts.seed)
        return wide, finish(drafts.near, self.images, self.options.box_count, drafts.seed)

    @property
    def tuning(self) -> bool:
        """Whether stage 3 of the backbone learns at present."""
        return self.options.backbone_rate > 0 and self.progress() >= self.options.backbone_from

    def _backbone(self, net: DiMPNet, images: Tensor, tuning: bool) -> BackboneFeatures:
        """Stride-8 and stride-16 features; gradients reach the backbone's last part alone, while that is tuned."""
        with self.autocast(), torch.set_grad_enabled(tuning):
            return net.extract(net.backbone.preprocess(images), last_only=True)

    def classify(self, net: DiMPNet, batch: Batch, seen: BackboneFeatures) -> list[Tensor]:
        """Scores of every iterate on the test frames, B x test frames x H x W each."""
        n = self.options.train_frames
        with self.autocast():
            features = net.classification_features(seen).unflatten(0, batch.boxes.shape[:2])
        initial = net.classifier.initializer(features[:, :n], batch.boxes[:, :n])
        iterates = net.classifier.optimizer(initial, features[:, :n], batch.boxes[:, :n], self.options.iterations)
        return [apply_filter(features[:, n:], f) for f in iterates]

    def modulate(self, net: DiMPNet, batch: Batch, seen: BackboneFeatures) -> tuple[Modulation, IoUFeatures]:
        """Modulation and test maps of every frame; the first is the reference of all others, the second the first's."""
        count, frames = batch.boxes.shape[:2]
        with self.autocast():
            maps = net.iou_net.features(*seen)
        firsts = min(2, frames)
        reference = torch.tensor([firsts - 1] + [0] * (frames - 1))
        pair2, pair3 = (x.unflatten(0, (count, frames))[:, :firsts].flatten(0, 1).float() for x in seen)
        vectors = net.iou_net.modulation(pair2, pair3, batch.boxes[:, :firsts].flatten(0, 1))
        return Modulation(*(v.unflatten(0, (count, firsts))[:, reference].flatten(0, 1) for v in vectors)), maps

    def labels(self, batch: Batch, size: int) -> Tensor:
        """Label maps of the test frames, B x test frames x size x size; zero where the target is absent."""
        n = self.options.train_frames
        boxes = batch.boxes[:, n:]
        centres = (boxes[..., :2] + boxes[..., 2:] / 2) / self.net.classifier.optimizer.stride
        centres = torch.where(batch.present[:, n:, None], centres, torch.nan)
        return gaussian_labels(centres.flatten(0, 1), size).unflatten(0, boxes.shape[:2])

    def losses(self, step: int) -> dict[str, Tensor]:
        """Beta L_cls + L_bb, and the teacher's hold on stage 3 while that is tuned."""
        self.net.train()
        self.net.backbone.eval()
        wide, near = self.batches(self.ahead(step))
        tuning = self.tuning
        self.net.backbone.last.requires_grad_(tuning)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        if wide is not None:
            seen = self._backbone(self.net, wide.images, tuning)
            terms = self._classification_terms(self.classify(self.net, wide, seen), wide)
            total = self.options.beta * terms["classify"]
            if tuning and self.teacher is not None and self.heads is not None and self.options.hold > 0:
                terms["hold"] = self._hold(wide, seen)
                total = total + self.options.hold * terms["hold"]
        modulation, maps = self.modulate(self.net, near, self._backbone(self.net, near.images, tuning))
        predicted = self.net.iou_net.rate_fixed(modulation, maps, near.candidates)
        terms["iou"] = iou_loss(predicted, near.overlaps, near.present.flatten())
        terms["total"] = total + terms["iou"]
        return terms

    def _classification_terms(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        labels = self.labels(batch, scores[0].shape[-1])
        return {
            "classify": classification_loss(scores, labels),
            "first": classification_loss(scores[:1], labels).detach(),
            "last": classification_loss(scores[-1:], labels).detach(),
        }

    def _hold(self, batch: Batch, seen: BackboneFeatures) -> Tensor:
        """Distillation loss on the first and the last frame of every second set."""
        frames = batch.boxes.shape[1]
        starts = torch.arange(0, len(batch.images), 2 * frames)
        index = torch.stack([starts, starts + frames - 1], 1).flatten()
        assert self.teacher is not None
        assert self.heads is not None
        mean = torch.tensor(TEACHER_MEAN, device=self.device).reshape(1, 3, 1, 1)
        with torch.no_grad(), self.autocast():
            taught = [map_.float() for map_ in self.teacher(batch.images[index] - mean)]
        targets = standardise(taught, self.statistics)
        layer3 = seen.layer3[index].float()
        _, stride16, projected = self.heads(seen.layer2[index].float(), layer3)
        loss = regression_loss(stride16, targets[1]) + regression_loss(projected, targets[2])
        return loss + 10 * relation_loss(layer3, targets[2])

    @torch.no_grad()
    def validate(self, net: DiMPNet | None = None) -> dict[str, float]:
        """Means over the held-out sets, on the moving average by default.

        Returns:
            `v_classify`, `v_first`, `v_last`, `v_iou` (losses), `v_peak` (share of frames whose score peak lies
            within a cell and a half of the target's centre), `v_box` (mean IoU after refinement from disturbed
            boxes) and `v_start` (before it).
        """
        net = net or self.average  # type: ignore[assignment]
        assert isinstance(net, DiMPNet)
        net.eval()
        n = self.options.train_frames
        sums: dict[str, list[float]] = {}
        for number, (wide, near) in enumerate(self.validation):
            scores = self.classify(net, wide, self._backbone(net, wide.images, False))
            for name, value in self._classification_terms(scores, wide).items():
                sums.setdefault(f"v_{name}", []).append(float(value))
            last = scores[-1].flatten(0, 1)
            peak = last.flatten(1).argmax(1).cpu().numpy()
            at = np.stack([peak % last.shape[-1], peak // last.shape[-1]], 1)
            centres = (wide.boxes[:, n:, :2] + wide.boxes[:, n:, 2:] / 2).flatten(0, 1).cpu().numpy()
            away = np.abs(at - centres / net.classifier.optimizer.stride).max(1)
            shown = wide.present[:, n:].flatten().cpu().numpy()
            sums.setdefault("v_peak", []).extend((away < 1.5)[shown].astype(float).tolist())

            start, refined, predicted = self._refine(net, near, number)
            boxes, seen = near.boxes.flatten(0, 1).cpu().numpy(), near.present.flatten().cpu().numpy()
            loss = iou_loss(predicted, near.overlaps, near.present.flatten())
            sums.setdefault("v_iou", []).append(float(loss))
            sums.setdefault("v_start", []).extend(_overlap(start, boxes)[seen].tolist())
            sums.setdefault("v_box", []).extend(_overlap(refined, boxes)[seen].tolist())
        return {name: float(np.mean(values)) for name, values in sums.items()}

    def _refine(self, net: DiMPNet, near: Batch, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32], Tensor]:
        """Disturbed boxes of all frames, what refinement makes of them (Nx4 both), and the candidates' overlaps."""
        modulation, maps = self.modulate(net, near, self._backbone(net, near.images, False))
        predicted = net.iou_net.rate_fixed(modulation, maps, near.candidates)
        rng = np.random.default_rng(seed)
        start = _disturb(near.boxes.flatten(0, 1).cpu().numpy(), rng)
        full = IoUFeatures(*(x.float() for x in maps))
        return start, refine(net, modulation, full, torch.from_numpy(start).to(self.device), rng), predicted

    @torch.no_grad()
    def pictures(self) -> dict[str, Image]:
        """What the moving average makes of the first held-out sets, or of a step's where none are held out.

        Returns:
            `classifier`: a row a set with the training frames, the test frames, the label map of the first of these and
            its scores by the first and the last iterate; `boxes`: a row a set, the true box green, before refinement
            red, after it yellow.
        """
        wide, near = self.validation[0] if self.validation else self.batches(self.plan(0))
        net = self.average
        assert isinstance(net, DiMPNet)
        result: dict[str, Image] = {}
        if wide is not None:
            scores = self.classify(net, wide, self._backbone(net, wide.images, False))
            labels = self.labels(wide, scores[0].shape[-1])
            rows = []
            for number, row in enumerate(_framed(wide)[:SHOWN]):
                size = row[0].shape[1], row[0].shape[0]
                maps = (labels[number, 0], scores[0][number, 0], scores[-1][number, 0])
                rows.append([*row, *(map_picture(map_, size, (-0.2, 1.0)) for map_ in maps)])
            result["classifier"] = sheet(rows)
        start, refined, _ = self._refine(net, near, 0)
        rows = _framed(near)[:SHOWN]
        for number, picture in enumerate(picture for row in rows for picture in row):
            draw_box(picture, start[number].tolist(), RED)
            draw_box(picture, refined[number].tolist(), YELLOW)
        result["boxes"] = sheet(rows)
        return result

    def on_save(self) -> None:
        """Validate, and write weights: always the newest, and the best by the held-out sets."""
        result = self.validate() if self.validation else {}
        if result:
            self.report(result)
        origin = (
            f"trained from scratch by tracker_ros: step {self.step}, {self.elapsed / 60:.0f} min, "
            f"held-out peak {result.get('v_peak', 0):.3f}, box IoU {result.get('v_box', 0):.3f}"
        )
        weights.save(self.out / f"{self.name}.safetensors", self.average, self.name, origin, backbone=self.shared)


def _framed(batch: Batch) -> list[list[Image]]:
    """The frames of each set with the true box, where the target is present."""
    rows = []
    for crops, boxes, present in zip(
        batch.images.unflatten(0, batch.boxes.shape[:2]), batch.boxes.tolist(), batch.present.tolist(), strict=True
    ):
        rows.append([crop_picture(crop) for crop in crops])
        for picture, box, shown in zip(rows[-1], boxes, present, strict=True):
            if shown:
                draw_box(picture, box, GREEN)
    return rows


def _disturb(boxes: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Boxes as a tracker has them before refinement: centre from the score map, size of the previous frame."""
    size = boxes[:, 2:] * np.exp(rng.normal(0, 0.12, (len(boxes), 2)))
    middle = boxes[:, :2] + boxes[:, 2:] / 2 + rng.normal(0, 5.0, (len(boxes), 2))
    return np.hstack([middle - size / 2, size]).astype(np.float32)


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    return pairwise_iou(a.astype(np.float64), b.astype(np.float64))


def refine(
    net: DiMPNet, modulation: Modulation, maps: IoUFeatures, boxes: Tensor, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Refine one box a frame as the tracker does: ten starts, five steps of gradient ascent, mean of the best three.

    Args:
        net: the network.
        modulation, maps: of N frames.
        boxes: Nx4.
        rng: for the starts.

    Returns:
        Nx4.
    """
    size = boxes[:, 2:].prod(1).sqrt().reshape(-1, 1, 1)
    noise = torch.from_numpy(rng.uniform(-0.5, 0.5, (len(boxes), 9, 4)).astype(np.float32)).to(boxes.device)
    middle = boxes[:, None, :2] + boxes[:, None, 2:] / 2 + noise[..., :2] * 0.1 * size
    sides = torch.maximum(boxes[:, None, 2:] + noise[..., 2:] * 0.5 * size, boxes[:, None, 2:].amin(-1, True) / 3)
    current = torch.cat([boxes[:, None], torch.cat([middle - sides / 2, sides], -1)], 1)
    refiner = BoxRefiner(net.iou_net)
    for _ in range(5):
        overlap, gradient = refiner(modulation, maps, current)
        current = current + gradient * current[..., 2:].repeat(1, 1, 2)
        current[..., 2:].clamp_(min=1.0)
    best = overlap.topk(3, 1).indices
    return current.gather(1, best[..., None].expand(-1, -1, 4)).mean(1).cpu().numpy().astype(np.float32)


def build(args: argparse.Namespace) -> DiMPTraining:
    """The recipe `dimp18`."""
    require(args, "--images")
    options = with_settings(DiMPOptions(), args.set)
    network = chosen_network(args)
    shares = args.backbone is not None and options.backbone_rate == 0
    if shares:
        net = network.create()
        assert isinstance(net, DiMPNet)
        take_backbone(args, net.backbone)  # writes it beside the weights
    pool, held_out = read_pools(args)
    distilled, teacher = read_distilled(args), read_teacher(args)
    return DiMPTraining(pool, held_out, args.out, options, distilled, teacher, network=network.name, shares=shares)


def build_smoke(args: argparse.Namespace) -> DiMPTraining:
    """The recipe `smoke`: simulated flights alone, and the whole network from random weights."""
    options = with_settings(
        DiMPOptions(minutes=2.0, sets=2, box_sets=2, backbone_rate=0.0, validation=4, log_every=5), args.set
    )
    pool, held_out = ImagePool(), ImagePool()
    add_flights(pool, range(FIRST_SEED, FIRST_SEED + 2), 12)
    add_flights(held_out, range(FIRST_SEED + 2, FIRST_SEED + 3), 12)
    return DiMPTraining(pool, held_out, args.out, options)
