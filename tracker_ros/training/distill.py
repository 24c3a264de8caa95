"""Feature distillation: a backbone learns the features of a teacher network on unlabelled crops.

The student's stride-8 and stride-16 features regress the teacher's through 1x1 convolutions that are thrown away
afterwards; a relational term asks the student's own stride-16 features to be similar where the teacher's are, between
two different crops of one image or of two frames of one video, because that similarity is what a tracker correlates.

A ResNet begins with random weights, an EfficientNet with those of ImageNet, from which it learns the teacher many
times faster.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tracker_ros import weights
from tracker_ros.networks.backbones import BACKBONE18, BACKBONES, build_backbone
from tracker_ros.networks.efficientnet import EfficientNet
from tracker_ros.networks.resnet import ResNet
from tracker_ros.training.ahead import Ahead, choose_workers
from tracker_ros.training.augment import FramePlan, Layer, View, draw_photometric
from tracker_ros.training.data import Image, ImagePool, split
from tracker_ros.training.device import HostImages, Renderer, choose_renderer
from tracker_ros.training.imagenet import convert_lite, lite0_file, read_lite0
from tracker_ros.training.inputs import read_pool, read_teacher, require
from tracker_ros.training.pictures import crop_picture, sheet
from tracker_ros.training.pseudo import TEACHER_MEAN
from tracker_ros.training.run import Run, RunOptions, channels_last, with_settings

#: Channels of the teacher's three feature maps.
TEACHER_CHANNELS = (32, 112, 256)


#: Share of the pairs in a video that show two of its frames.
TWO_FRAMES = 0.7
#: Frames of a video that are this far apart at most are paired.
FARTHEST = 8
#: Crops in a picture.
SHOWN = 8


@dataclass(frozen=True)
class DistillOptions(RunOptions):
    """Options of the `distill` recipe.

    Attributes:
        backbone: what to train, one of `BACKBONES`.
        pairs: pairs of crops a step.
        crop: side of a crop in pixels.
        weight_decay: of weights; biases and batch norms have none.
        relation: weight of the relational term.
        validation: batches of held-out stills, and as many of held-out videos, after each checkpoint.
        workers: processes that draw the next steps' crops; 0 draws them in between, -1 chooses (`choose_workers`).
    """

    minutes: float = 55.0
    rate: float = 1.5e-3
    backbone: str = BACKBONE18
    pairs: int = 8
    crop: int = 192
    weight_decay: float = 0.05
    relation: float = 10.0
    validation: int = 8
    workers: int = -1


def plan_pair(
    pool: ImagePool, size: int, rng: np.random.Generator, videos: Mapping[int, Sequence[int]] | None = None
) -> list[FramePlan]:
    """Two crops around almost the same place, at the zooms that a tracker sees.

    They are of one image or, where `videos` says which frames (indices, in order) the image is among, of two of them;
    around the target where both show it.
    """
    index = int(rng.integers(len(pool)))
    image = pool.images[index]
    width, height = image.size
    extent = math.sqrt(width * height)
    target = -1
    if len(image.boxes) and rng.random() < 0.6:
        target = int(rng.integers(len(image.boxes)))
        x, y, w, h = image.boxes[target].tolist()
        side = math.sqrt(max(w * h, 64.0)) * 5.0 * math.exp(rng.normal(0.0, 0.5))
        centre = (x + w / 2, y + h / 2)
    else:
        side = extent * math.exp(rng.uniform(math.log(0.25), math.log(1.3)))
        centre = (rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height)
    places = [(index, centre, side)] * 2
    frames = (videos or {}).get(index, ())
    if len(frames) > 1 and rng.random() < TWO_FRAMES:
        number = frames.index(index)
        near = frames[max(number - FARTHEST, 0) : number + FARTHEST + 1]
        other = near[int(rng.integers(len(near)))]
        boxes = pool.images[other].boxes
        if target >= 0 and len(boxes) == len(image.boxes):
            x, y, w, h = boxes[target].tolist()
            grown = math.sqrt(max(w * h, 64.0) / max(float(image.boxes[target, 2:].prod()), 64.0))
            places[1] = other, (x + w / 2, y + h / 2), side * grown
        else:
            places[1] = other, centre, side
    inside = bool(rng.random() < 0.8)
    plans = []
    flip = bool(rng.random() < 0.5)
    for index, centre, side in places:
        side = float(np.clip(side, size / 2.5, 1.35 * extent))
        shown = float(np.clip(side * math.exp(rng.normal(0.0, 0.3)), size / 2.5, 1.35 * extent))
        x, y = (c + rng.normal(0.0, 0.15) * shown for c in centre)
        if inside:  # most crops show little of the border, where there is nothing to learn
            x, y = (
                float(np.clip(c, min(0.45 * shown, length / 2), max(length - 0.45 * shown, length / 2)))
                for c, length in zip((x, y), image.size, strict=True)
            )
        view = View(
            centre=(x, y),
            side=shown,
            aspect=math.exp(rng.normal(0.0, 0.12)),
            angle=rng.normal(0.0, 0.15) if rng.random() < 0.6 else 0.0,
            flip=flip != bool(rng.random() < 0.15),
        )
        plans.append(FramePlan((Layer.whole(index, view, size),), look=draw_photometric(rng)))
    return plans


def videos_of(pool: ImagePool) -> dict[int, list[int]]:
    """The frames of its video, for every image of a pool that is in one."""
    return {index: sequence for sequence in pool.sequences for index in sequence}


class Heads(nn.Module):
    """1x1 projections from the student's features to the teacher's."""

    def __init__(self, student: tuple[int, int], teacher: tuple[int, int, int]) -> None:
        super().__init__()
        self.stride8 = nn.Conv2d(student[0], teacher[0], 1)
        self.stride16 = nn.Conv2d(student[1], teacher[1], 1)
        self.projected = nn.Conv2d(student[1], teacher[2], 1)

    def forward(self, stride8: Tensor, stride16: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Student features to predictions of the teacher's standardised features."""
        return self.stride8(stride8), self.stride16(stride16), self.projected(stride16)


def regression_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 plus one minus the cosine over channels, BxCxHxW against BxCxHxW."""
    cosine = functional.cosine_similarity(prediction, target, dim=1).mean()
    return functional.smooth_l1_loss(prediction, target) + (1 - cosine)


def relation(features: Tensor) -> Tensor:
    """Cosine similarities between all cells of crops 2i and all cells of crops 2i + 1: Bx(HW)x(HW)."""
    centred = features - features.mean(dim=(0, 2, 3), keepdim=True)
    cells = functional.normalize(centred.flatten(2), dim=1)
    return cells[0::2].transpose(1, 2) @ cells[1::2]


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the similarities within pairs; strong similarities count more."""
    target = relation(teacher)
    weight = 0.2 + target.abs()
    return (weight * (relation(student) - target).square()).mean() / weight.mean()


def standardise(maps: Sequence[Tensor], statistics: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Feature maps with their channels' mean removed and deviation set to one, clipped to six deviations."""
    return [((x - mean) / deviation).clamp(-6, 6) for x, (mean, deviation) in zip(maps, statistics, strict=True)]


class Distillation(Run):
    """Student, projection heads and teacher of one run.

    Args:
        pool: images to train on.
        teacher: the network whose three feature maps are learnt.
        out: folder for the checkpoint, the log and the weights.
        options: see `DistillOptions`.
        images: makes crops of `pool`; by default what suits the device.
        start: state of the backbone to begin with, instead of random weights.
        held_out: images to validate on; none are validated on where it is not given.

    Raises:
        ValueError: a backbone that there is not.
    """

    name = "distill"

    def __init__(
        self,
        pool: ImagePool,
        teacher: nn.Module,
        out: Path,
        options: DistillOptions,
        images: Renderer | None = None,
        start: Mapping[str, Tensor] | None = None,
        held_out: ImagePool | None = None,
    ) -> None:
        super().__init__(out, options)
        self.pool, self.options = pool, options
        self.videos = videos_of(pool)
        self.held_out = parts_of(held_out) if held_out is not None else {}
        self.images = images or choose_renderer(pool, self.device)
        self.ahead = Ahead(self.plan, choose_workers(options.workers, self.device))
        self.teacher = teacher.eval().to(self.device)
        student = new_backbone(options.backbone)
        if start is not None:
            student.load_state_dict(start)
        self.student = channels_last(student.to(self.device)).train()
        self.heads = Heads(BACKBONES[options.backbone].maps, TEACHER_CHANNELS).to(self.device)
        parameters = [*self.student.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=options.rate,
        )
        for group in self.optimizer.param_groups:
            group["base"] = options.rate
        self.modules = {"student": self.student, "heads": self.heads}
        self.statistics: list[tuple[Tensor, Tensor]] = []
        self.start_average()

    def close(self) -> None:
        """Let the processes go that draw ahead."""
        self.ahead.close()

    @property
    def averaged(self) -> nn.Module:
        """The student."""
        return self.student

    def plan(self, step: int, common: bool = False) -> tuple[Any, float]:
        """Prepared crops, 2i and 2i + 1 of the same place, and the share of another scene to blend in."""
        rng = self.generator(step, common)
        crop, count = self.options.crop, self.options.pairs
        plans = [plan for _ in range(count) for plan in plan_pair(self.pool, crop, rng, self.videos)]
        # Blends of two scenes are more inputs on which to agree with the teacher.
        share = float(rng.uniform(0.1, 0.5)) if rng.random() < 0.2 else 0.0
        return self.images.prepare(plans, self.options.crop), share

    def batch(self, prepared: Any, share: float) -> Tensor:
        """(2 x pairs)x3xSxS float RGB 0..255 on the device: what `plan` returns."""
        batch = self.images.finish(prepared)
        return torch.lerp(batch, batch.roll(2, 0), share) if share else batch

    @torch.no_grad()
    def teach(self, batch: Tensor) -> list[Tensor]:
        """The teacher's three feature maps, fp32, for RGB 0..255."""
        mean = torch.tensor(TEACHER_MEAN, device=self.device).reshape(1, 3, 1, 1)
        with self.autocast():
            return [x.float() for x in self.teacher(batch - mean)]

    def measure(self, batches: int = 12) -> None:
        """Per-channel mean and deviation of the teacher's features over a few batches."""
        taught = [self.teach(self.batch(*self.plan(10**6 + index, common=True))) for index in range(batches)]
        self.statistics = []
        for maps in zip(*taught, strict=True):
            joined = torch.cat([x.transpose(0, 1).flatten(1) for x in maps], 1)
            mean, deviation = joined.mean(1).reshape(1, -1, 1, 1), joined.std(1).reshape(1, -1, 1, 1)
            self.statistics.append((mean, deviation.clamp(min=1e-3)))

    def losses(self, step: int) -> dict[str, Tensor]:
        """Regression of the three feature maps and the relational term."""
        if not self.statistics:
            self.measure()
        batch = self.batch(*self.ahead(step))
        targets = standardise(self.teach(batch), self.statistics)
        with self.autocast():
            maps = self.student(self.student.preprocess(batch))
        terms = self.compare(maps, targets)
        terms["total"] = (
            0.5 * terms["stride8"] + terms["stride16"] + terms["projected"] + self.options.relation * terms["relation"]
        )
        return terms

    def compare(self, maps: tuple[Tensor, Tensor], targets: Sequence[Tensor]) -> dict[str, Tensor]:
        """The loss terms of a student's maps, without their total."""
        stride8, stride16 = (x.float() for x in maps)
        names = ("stride8", "stride16", "projected")
        terms = {
            name: regression_loss(prediction, target)
            for name, prediction, target in zip(names, self.heads(stride8, stride16), targets, strict=True)
        }
        terms["relation"] = relation_loss(stride16, targets[2])
        return terms

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss terms of the averaged student on held-out stills and videos, the same crops each time."""
        figures: dict[str, float] = {}
        for kind, pool in self.held_out.items():
            images, videos = HostImages(pool, self.device), videos_of(pool)
            sums: dict[str, float] = {}
            for number in range(self.options.validation):
                rng = np.random.default_rng([0, number])
                pairs = [plan_pair(pool, self.options.crop, rng, videos) for _ in range(self.options.pairs)]
                batch = images.render([plan for pair in pairs for plan in pair], self.options.crop)
                targets = standardise(self.teach(batch), self.statistics)
                with self.autocast():
                    maps = self.average(self.student.preprocess(batch))
                for name, value in self.compare(maps, targets).items():
                    sums[name] = sums.get(name, 0.0) + value.item() / self.options.validation
            figures |= {f"{name}_{kind}": value for name, value in sums.items()}
        return figures

    @torch.no_grad()
    def pictures(self) -> dict[str, Image]:
        """`features`: crops, three channels of the teacher's projected features as colours, and the student's."""
        batch = self.batch(*self.plan(0))[:SHOWN]
        taught = standardise(self.teach(batch), self.statistics)[2]
        with self.autocast():
            stride16 = self.average(self.student.preprocess(batch))[1].float()
        learnt = self.heads.projected(stride16)
        rows = []
        for number, crop in enumerate(batch):
            picture = crop_picture(crop)
            colours = [crop_picture(128 + 40 * features[number, :3]) for features in (taught, learnt)]
            size = picture.shape[1], picture.shape[0]
            rows.append([picture, *(cv2.resize(c, size, interpolation=cv2.INTER_NEAREST) for c in colours)])
        return {"features": sheet(rows)}

    def on_save(self) -> None:
        """Write the student as the backbone that the compact trackers share, and say how well it knows its teacher."""
        origin = f"distilled by tracker_ros: step {self.step}, {self.elapsed / 60:.0f} min"
        name = self.options.backbone
        weights.save(self.out / f"{name}.safetensors", self.average, name, origin)
        if self.held_out and self.statistics:
            self.report({**self.validate(), "minutes": self.elapsed / 60})

    def extra_state(self) -> dict[str, Any]:
        """The statistics of the teacher's features."""
        return {"statistics": self.statistics}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """The statistics of the teacher's features."""
        self.statistics = [(mean.to(self.device), d.to(self.device)) for mean, d in state["statistics"]]


def parts_of(held_out: ImagePool) -> dict[str, ImagePool]:
    """The stills and the videos of a pool, as far as it has them."""
    videos = videos_of(held_out)
    stills = ImagePool([image for index, image in enumerate(held_out.images) if index not in videos])
    moving, frames = ImagePool(), {}
    for sequence in held_out.sequences:
        for index in sequence:
            frames[index] = len(moving.images)
            moving.images.append(held_out.images[index])
        moving.sequences.append([frames[index] for index in sequence])
    return {kind: pool for kind, pool in (("stills", stills), ("videos", moving)) if len(pool)}


def new_backbone(name: str) -> ResNet | EfficientNet:
    """The backbone of this name in `BACKBONES`, with random weights.

    Raises:
        ValueError: there is none.
    """
    if name not in BACKBONES:
        raise ValueError(f"--set backbone={name}: expected one of {', '.join(BACKBONES)}")
    return build_backbone(BACKBONES[name])


def starting_state(name: str, base: Path | None) -> dict[str, Tensor] | None:
    """What a run begins with: weights of this backbone, else ImageNet's of an EfficientNet, else None.

    Raises:
        ValueError, FileNotFoundError: `base` is not of this backbone; ImageNet's weights are not installed.
    """
    net = new_backbone(name)
    if base is not None:
        weights.load(base, net, name)
    elif isinstance(net, EfficientNet):
        return convert_lite(read_lite0(lite0_file()), net)
    else:
        return None
    state: dict[str, Tensor] = net.state_dict()
    return state


def build(args: argparse.Namespace) -> Distillation:
    """The recipe `distill`."""
    require(args, "--images", "--teacher")
    options = with_settings(DistillOptions(), args.set)
    start = None if args.resume else starting_state(options.backbone, args.base)
    teacher = read_teacher(args)
    assert teacher is not None
    pool, held_out = split(read_pool(args))
    return Distillation(pool, teacher, args.out, options, start=start, held_out=held_out)
