"""Training of the guided detectors (Huang et al., ICCV 2019, sections 3.3 and 4.1).

Triplets of an exemplar, support frames and query frames in temporal order, from videos or from single images by
synthetic motion. A first phase trains the detector conventionally, which warms its head up; then the head takes the
inner steps on the support frames of each triplet and what is minimised is its loss on the query frames (MAML).

Alongside, a second head goes on learning conventionally on the same guided maps, which both heads shape: what MAML is
compared with, and the "brute-force gradient descent" of the paper's table 1.

The compact detectors stand on a frozen backbone, so its maps are kept and used more than once.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracker_ros import weights
from tracker_ros.geometry.anchors import overlap
from tracker_ros.networks.adaptation import Parameters, call, head_parameters
from tracker_ros.networks.detection import Candidates, Detections, GuidedDetector
from tracker_ros.networks.detection_loss import (
    Samples,
    around,
    concatenate,
    detection_loss,
    drawn_around,
    first_stage_loss,
    make_samples,
    support_loss,
)
from tracker_ros.networks.vgg import VGG16, VGGConfig
from tracker_ros.trackers.guided import INIT_SCALE, INIT_SHIFT
from tracker_ros.training.augment import FramePlan, View
from tracker_ros.training.data import ImagePool, apart
from tracker_ros.training.device import HostImages, Renderer
from tracker_ros.training.inputs import chosen_network, read_pools, require, take_backbone
from tracker_ros.training.maml import InnerLoop, Triplet, adapted, outcome
from tracker_ros.training.replay import Window
from tracker_ros.training.run import Run, RunOptions, channels_last, with_settings
from tracker_ros.training.sets import SetOptions, SetSampler

T = TypeVar("T")


@dataclass(frozen=True)
class GuidedOptions(RunOptions):
    """Options of the recipes of the guided detectors.

    The paper trains end to end by SGD, with 32 triplets in a batch and the rate falling from 0.01 to 0.0005 over 50,000
    iterations. A frozen backbone and half an hour on a CPU want AdamW and smaller batches.

    Attributes:
        targets: "all" the images; or "maps", two thirds of them, for a run that makes guided maps, and then "head", the
            others, for one that leaves these as they are (`maps_rate`). Guided maps know the images that they learned
            from: a head that learns on the same ones sees other features than those of new targets.
        conventional: share of the run that trains without inner steps.
        triplets: triplets in a batch.
        supports, queries: frames of each (paper: one and one). A single support crop has a shift and zoom of its own,
            and five steps on it learn these; the tracker learns from many crops of the first frame too.
        first_frame: share of the triplets whose support crops are what the tracker makes of its first frame: the
            exemplar's frame, shifted, zoomed and mirrored. Those of the others are later frames, as in its updates.
            Crops of one frame say less of what the target will look like, and want shorter steps.
        convention: deviation of how the boxes of a triplet differ from the annotation, see `SetOptions`. Where every
            target is boxed in the same way, a head can know all in advance and has nothing to learn from the support
            frames; this is the remedy of Rajendran et al., "Meta-learning requires meta-augmentation", NeurIPS 2020.
        fresh: new triplets a step, where the backbone is frozen and its maps are kept.
        first: triplets in memory before the first step, lest the first few be learned by heart.
        memory: triplets that are kept; about 0.4 MB a search crop.
        inner_rate: alpha of eq. 1, for all parameters (paper: 0.05); 0: a rate a parameter, which is learned.
        rate_rate: learning rate of those rates' logarithms, relative to `rate`.
        inner_steps: N.
        inner_limit: longest gradient of an inner step.
        second_order: outer gradients flow through the inner gradients; false is first-order MAML.
        head_rate: learning rate of the head that takes the inner steps, relative to `rate`. In the first phase the two
            heads are one, which learns at `rate`.
        maps_rate: learning rate of the layers that make the guided maps, relative to `rate`. 0 leaves them,
            and a backbone that is not frozen, as they are: no gradient is computed for them, and on a frozen backbone
            triplets are kept as the head sees them, so that no map is made twice.
        harm: weight of how much, plus `harm_margin`, the inner steps raise the loss of each query frame. The mean alone
            rewards a few large gains over a lower loss on nearly every frame.
        harm_margin: see `harm`.
        headroom: the gradient of `harm` reaches the loss before the steps too, so a head may learn to leave something
            for the steps to do. The tracker never uses the head without them.
        plain: weight of the head's loss without inner steps, on all frames of a triplet, in the second phase. It is
            what the conventional head learns by: where steps change little, a head that learns behind them alone falls
            behind that one. (It is the first term of the multi-step loss of Antoniou et al., "How to train your MAML",
            ICLR 2019.)
        backbone_rate: learning rate of a backbone that is not frozen, relative to `rate`.
        extra_boxes: boxes around the target that are added to a two-stage detector's proposals.
        validation: held-out triplets.
    """

    minutes: float = 33.0
    save_minutes: float = 8.0
    rate: float = 1e-3
    warm_up: float = 0.05
    targets: str = "all"
    conventional: float = 0.5
    triplets: int = 8
    supports: int = 4
    queries: int = 1
    first_frame: float = 0.0
    convention: float = 0.12
    fresh: int = 4
    first: int = 200
    memory: int = 1000
    inner_rate: float = 0.0
    rate_rate: float = 5.0
    inner_steps: int = 5
    inner_limit: float = 10.0
    second_order: bool = True
    head_rate: float = 1.0
    maps_rate: float = 1.0
    harm: float = 0.0
    harm_margin: float = 0.05
    headroom: bool = False
    plain: float = 0.0
    backbone_rate: float = 0.1
    extra_boxes: int = 16
    validation: int = 96

    def __post_init__(self) -> None:
        """Check the choice of images.

        Raises:
            ValueError: says what there is.
        """
        if self.targets not in ("all", "maps", "head"):
            raise ValueError(f"targets={self.targets}: expected all, maps or head")


#: How frames are drawn.
TRIPLETS = SetOptions(videos=0.3)


class TripletPlan(NamedTuple):
    """One triplet before its pixels are made.

    Attributes:
        exemplar: plan of the exemplar crop.
        exemplar_box: 4 (cx, cy, w, h), its pixels.
        frames: plans of the support frames, then of the query frames.
        boxes: Fx4 (cx, cy, w, h), pixels of the search crops; zero where the target is not in view.
    """

    exemplar: FramePlan
    exemplar_box: NDArray[np.float32]
    frames: list[FramePlan]
    boxes: NDArray[np.float32]


class TripletSampler(SetSampler):
    """Draws triplets from a pool; `triplet` is a function of the generator alone.

    The frames are those of DiMP's sets: look-alikes, occluders and motion are drawn alike. The first is the exemplar,
    seen as a user's box shows it; the others follow it in time.

    Args:
        pool: the images.
        network: says how large crops are and what they show.
        supports, queries: frames of each.
        first_frame: see `GuidedOptions`.
        layout: how frames are drawn; sizes and counts follow from the other arguments.
        tight: leave out what has loose boxes.
    """

    def __init__(
        self,
        pool: ImagePool,
        network: GuidedDetector,
        supports: int = 1,
        queries: int = 1,
        layout: SetOptions | None = None,
        tight: bool = False,
        first_frame: float = 0.0,
    ) -> None:
        self.config = network.config
        self.supports = supports
        self.first_frame = first_frame
        layout = replace(
            layout or TRIPLETS,
            size=self.config.search,
            area=self.config.search_context,
            train_frames=1,
            test_frames=supports + queries,
            test_shift=1.5,
        )
        super().__init__(pool, layout, tight)

    def triplet(self, rng: np.random.Generator) -> TripletPlan:
        """One random triplet."""
        config = self.config
        drawn = self.plan(rng)
        boxes = np.concatenate([drawn.boxes[:, :2] + drawn.boxes[:, 2:] / 2, drawn.boxes[:, 2:]], 1)
        zoom = (config.exemplar / config.exemplar_context) / (config.search / config.search_context)
        shift = config.exemplar / 2 - zoom * config.search / 2
        exemplar_box = boxes[0] * zoom + np.array([shift, shift, 0, 0], np.float32)
        exemplar = _moved(drawn.frames[0], (zoom, zoom), (shift, shift))
        boxes *= drawn.present[:, None]
        frames = drawn.frames[1:]
        if self.first_frame and rng.random() < self.first_frame:
            for number in range(self.supports):
                frames[number], boxes[1 + number] = self._seen_anew(drawn.frames[0], boxes[0], number > 0, rng)
        return TripletPlan(exemplar, exemplar_box, frames, boxes[1:])

    def _seen_anew(
        self, plan: FramePlan, box: NDArray[np.float32], change: bool, rng: np.random.Generator
    ) -> tuple[FramePlan, NDArray[np.float32]]:
        """The exemplar's frame as the tracker cuts it at its start, and the target there (cx, cy, w, h).

        The first of a triplet is the search crop as it is (`change` is False), the others are drawn like the tracker's.
        """
        side = self.config.search
        centre, zoom, mirror = box[:2].astype(np.float64), 1.0, 1.0
        if change:
            zoom = math.exp(-float(rng.normal(0.0, INIT_SCALE)))
            centre = centre + rng.uniform(-INIT_SHIFT, INIT_SHIFT, 2) * math.sqrt(float(box[2] * box[3]))
            mirror = 1.0 if rng.random() < 0.5 else -1.0
        scale = np.array([mirror * zoom, zoom])
        shift = side / 2 - scale * centre
        moved = np.concatenate([scale * box[:2] + shift, zoom * box[2:]]).astype(np.float32)
        return _moved(plan, (scale[0], scale[1]), (shift[0], shift[1])), moved

    def _from_video(self, rng: np.random.Generator) -> list[tuple[int, NDArray[np.float32]]]:
        """Frames of a random segment, in temporal order."""
        video = self.videos[int(rng.integers(len(self.videos)))]
        length = min(self.options.segment, len(video))
        start = int(rng.integers(len(video) - length + 1))
        chosen = np.sort(rng.integers(start, start + length, 1 + self.options.test_frames))
        return [(video[int(i)], self.pool.images[video[int(i)]].boxes[0]) for i in chosen]

    def _view(self, box: NDArray[np.float32], test: bool, flip: bool, rng: np.random.Generator) -> View:
        if test:
            return super()._view(box, test, flip, rng)
        # The exemplar: the target in the middle, as well as a person's box says.
        x, y, w, h = (float(value) for value in box)
        size = math.sqrt(w * h)
        shift = rng.normal(0.0, 0.03, 2) * size
        return View(
            centre=(x + w / 2 + float(shift[0]), y + h / 2 + float(shift[1])),
            side=self.options.area * size * math.exp(float(rng.normal(0.0, 0.04))),
            aspect=math.exp(float(rng.normal(0.0, 0.3 * self.options.aspect))),
            flip=flip,
        )


def _moved(plan: FramePlan, scale: tuple[float, float], shift: tuple[float, float]) -> FramePlan:
    """A plan for a crop whose pixels lie at ``scale * p + shift``, in x and in y; a negative scale of x mirrors."""
    factor, offset = np.array(scale)[:, None], np.array([[0, 0, shift[0]], [0, 0, shift[1]]])
    layers = []
    for layer in plan.layers:
        x, y, w, h = layer.region
        left = x if scale[0] > 0 else x + w
        region = (
            round(scale[0] * left + shift[0]),
            round(scale[1] * y + shift[1]),
            max(round(abs(scale[0]) * w), 1),
            max(round(scale[1] * h), 1),
        )
        layers.append(replace(layer, matrix=factor * layer.matrix + offset, region=region))
    return replace(plan, layers=tuple(layers))


class TripletMaps(NamedTuple):
    """T triplets as the backbone sees them.

    Attributes:
        exemplars: `GuidedDetector.exemplar_maps`, T rows.
        exemplar_boxes: Tx4 (cx, cy, w, h).
        searches: `GuidedDetector.backbone_maps` of all search crops, T F rows, triplet by triplet.
        boxes: (T F)x4 (cx, cy, w, h); zero where the target is not in view.
        extra: (T F)xMx4, boxes around the targets.
    """

    exemplars: tuple[Tensor, ...]
    exemplar_boxes: Tensor
    searches: tuple[Tensor, ...]
    boxes: Tensor
    extra: Tensor


def stack(parts: Sequence[TripletMaps]) -> TripletMaps:
    """Several triplets as one batch."""
    return TripletMaps(
        tuple(torch.cat(maps) for maps in zip(*(part.exemplars for part in parts), strict=True)),
        torch.cat([part.exemplar_boxes for part in parts]),
        tuple(torch.cat(maps) for maps in zip(*(part.searches for part in parts), strict=True)),
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.extra for part in parts]),
    )


class GuidedTraining(Run):
    """Trains a guided detector by MAML; validates on triplets from `held_out`, which no step ever sees.

    Args:
        network: its name.
        detector: the network, with a pretrained backbone.
        pool, held_out: images to train on, and for validation.
        out: folder of the run.
        options: see `GuidedOptions`.
        layout: how frames are drawn.
        images, held_out_images: where the pixels of the two pools are made; by default on the host.
        conventional: where the conventional head starts; by default as the detector's own.
    """

    def __init__(
        self,
        network: str,
        detector: GuidedDetector,
        pool: ImagePool,
        held_out: ImagePool,
        out: Path,
        options: GuidedOptions,
        layout: SetOptions | None = None,
        images: Renderer | None = None,
        held_out_images: Renderer | None = None,
        conventional: nn.Module | None = None,
    ) -> None:
        super().__init__(out, options)
        self.name = network
        self.options = options
        self.net = channels_last(detector).to(self.device).train()
        self.frozen = self.net.config.frozen
        #: The head that never takes inner steps in training.
        self.conventional = copy.deepcopy(self.net.head)
        if conventional is not None:
            self.conventional.load_state_dict(conventional.state_dict())
        drawn = replace(layout or TRIPLETS, convention=options.convention)
        self.sampler = TripletSampler(
            pool, self.net, options.supports, options.queries, drawn, tight=True, first_frame=options.first_frame
        )
        self.images = images or HostImages(pool, self.device)
        key = (options.seed, *self.ranks, 7)
        self.memory = Window(self._kept, options.memory, key)
        #: The same triplets as the head sees them, where the maps stay as they are.
        self.seen = Window(self._kept_samples, options.memory, key)
        self.validation: list[TripletMaps] = []
        self._validation_plans: list[list[TripletPlan]] = []
        if options.validation and len(held_out):
            sampler = TripletSampler(held_out, self.net, options.supports, options.queries, layout, tight=True)
            self._held_out_images = held_out_images or HostImages(held_out, self.device)
            self._make_validation(sampler)
        backbone, rates = list(self.net.backbone.parameters()), list(self.net.log_rates.parameters())
        head = list(self.net.head.parameters())
        apart = {id(p) for p in [*backbone, *rates, *head]}
        groups = [
            {
                "params": [p for p in self.net.outer_parameters() if id(p) not in apart],
                "base": options.rate * options.maps_rate,
            },
            {"params": list(self.conventional.parameters()), "base": options.rate},
            {"params": head, "base": options.rate * options.head_rate},
            {"params": rates, "base": options.rate * options.rate_rate, "weight_decay": 0.0},
        ]
        if not self.frozen:
            groups.append({"params": backbone, "base": options.rate * options.backbone_rate})
        self.optimizer = torch.optim.AdamW(groups, lr=options.rate, weight_decay=5e-4)
        self.modules = {"net": self.net, "conventional": self.conventional}
        self._both = nn.ModuleDict(self.modules)
        self.start_average()

    @property
    def averaged(self) -> nn.Module:
        """The detector and the conventional head."""
        return self._both

    # --- data ----------------------------------------------------------------------------------------------------

    def _see(
        self, net: GuidedDetector, plans: Sequence[TripletPlan], images: Renderer, rng: np.random.Generator
    ) -> TripletMaps:
        """Pixels and backbone maps of triplets; maps of a frozen backbone are kept in half precision."""
        config = net.config
        # The renderer's crops are RGB, the networks take BGR.
        exemplars = images.render([plan.exemplar for plan in plans], config.exemplar).flip(1)
        searches = images.render([frame for plan in plans for frame in plan.frames], config.search).flip(1)
        boxes = torch.from_numpy(np.concatenate([plan.boxes for plan in plans]).astype(np.float32)).to(self.device)
        count = self.options.extra_boxes if net.two_stage else 0
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**31)))
        extra = (
            around(boxes, drawn_around(len(boxes), count, generator)) if count else boxes.new_zeros(len(boxes), 0, 4)
        )
        with self.autocast():
            seen = net.exemplar_maps(exemplars), net.backbone_maps(searches)
        if self.frozen:
            keep = torch.bfloat16 if self.bf16 else torch.float32
            seen = tuple(m.to(keep) for m in seen[0]), tuple(m.to(keep) for m in seen[1])
        return TripletMaps(
            seen[0],
            torch.from_numpy(np.stack([plan.exemplar_box for plan in plans]).astype(np.float32)).to(self.device),
            seen[1],
            boxes,
            extra,
        )

    def _make_validation(self, sampler: TripletSampler) -> None:
        for start in range(0, self.options.validation, 8):
            numbers = range(start, min(start + 8, self.options.validation))
            self._validation_plans.append([sampler.triplet(np.random.default_rng([9999, i])) for i in numbers])

    def _validation_maps(self, index: int, net: GuidedDetector) -> TripletMaps:
        """A batch of held-out triplets; those of a frozen backbone are made once."""
        if self.frozen and index < len(self.validation):
            return self.validation[index]
        seen = self._see(net, self._validation_plans[index], self._held_out_images, np.random.default_rng(index))
        if self.frozen:
            self.validation.append(seen)
        return seen

    def batch(self, step: int) -> TripletMaps:
        """The triplets of a step: new ones, or some of those kept, which are a function of seed and step too."""
        o = self.options
        rng = self.generator(step)
        if not self.frozen:
            return self._see(self.net, [self.sampler.triplet(rng) for _ in range(o.triplets)], self.images, rng)
        return stack(self._some(self.memory, step, rng))

    def _some(self, memory: Window[T], step: int, rng: np.random.Generator) -> list[T]:
        """Fill a memory with what is new in a step, and draw the step's triplets from it."""
        o = self.options
        memory.advance((step + 1) * o.fresh + max(o.first, o.triplets))
        return [memory[int(slot)] for slot in rng.choice(len(memory), o.triplets, replace=False)]

    def _kept(self, rng: np.random.Generator) -> TripletMaps:
        """One triplet for the memory."""
        return self._see(self.net, [self.sampler.triplet(rng)], self.images, rng)

    @torch.no_grad()
    def _kept_samples(self, rng: np.random.Generator) -> Samples:
        """The search crops of one triplet, for the memory of a run that leaves the maps as they are."""
        seen = self._kept(rng)
        samples = make_samples(self.net, self.detect(self.net, seen), seen.boxes)
        keep = torch.bfloat16 if self.bf16 else torch.float32
        return replace(samples, inputs=tuple(part.to(keep) for part in samples.inputs))

    def inner(self, net: GuidedDetector) -> InnerLoop:
        """The inner loop of a detector."""
        o = self.options
        return InnerLoop(o.inner_rate or net.inner_rates(), o.inner_steps, o.second_order, o.inner_limit)

    # --- losses --------------------------------------------------------------------------------------------------

    def detect(self, net: GuidedDetector, batch: TripletMaps) -> Candidates:
        """Candidates of all search crops of a batch, with boxes around the targets, their head inputs float32."""
        frames = len(batch.boxes) // len(batch.exemplar_boxes)
        with self.autocast():
            guidance = net.modulators(batch.exemplars, batch.exemplar_boxes)
            maps = net.guided(net.level_maps(batch.searches), guidance.repeat_interleave(frames, 0))
        return net.candidates([m.float() for m in maps], batch.extra if net.two_stage else None)

    def triplets(self, samples: Samples) -> list[Triplet]:
        """Samples of all search crops of a batch, by triplet."""
        supports, frames = self.options.supports, self.options.supports + self.options.queries
        return [
            Triplet(samples.select(slice(i, i + supports)), samples.select(slice(i + supports, i + frames)))
            for i in range(0, len(samples), frames)
        ]

    @property
    def adapting(self) -> bool:
        """Whether the run is in its second phase, in which heads take inner steps."""
        return self.progress() >= self.options.conventional

    def losses(self, step: int) -> dict[str, Tensor]:
        """The detector's loss, on the query frames after the inner steps once the first phase is over."""
        terms: dict[str, Tensor] = {}
        if self.frozen and not self.options.maps_rate:
            samples = concatenate(self._some(self.seen, step, self.generator(step)))
            samples = replace(samples, inputs=tuple(part.float() for part in samples.inputs))
        else:
            batch = self.batch(step)
            with torch.set_grad_enabled(self.options.maps_rate > 0):
                candidates = self.detect(self.net, batch)
                if candidates.rpn is not None:
                    terms["proposals"] = first_stage_loss(self.net, candidates.rpn, batch.boxes).mean()
            samples = make_samples(self.net, candidates, batch.boxes)
        if self.adapting:
            o = self.options
            found = outcome(self.net.head, self.triplets(samples), self.inner(self.net), o.harm > 0 and o.headroom)
            terms["before"], terms["after"] = found.before.mean(), found.after.mean()
            terms["total"] = terms["after"]
            if o.harm:
                # Without `headroom` a higher loss before the steps is not rewarded.
                worse = (found.after - found.before + o.harm_margin).relu()
                terms["total"] = terms["total"] + o.harm * worse.mean()
            if o.plain:
                terms["plain"] = detection_loss(self.net.head(*samples.inputs), samples).mean()
                terms["total"] = terms["total"] + o.plain * terms["plain"]
        # This head shapes the guided maps in both phases. From the query frames after the inner steps alone, the maps
        # learned those frames by heart: training losses fell, and the held-out ones of both heads rose.
        plain = self.conventional(*samples.inputs)
        terms["conventional"] = detection_loss(plain, samples).mean()
        # In the first phase this head and the detector's own are one and the same.
        terms["total"] = terms.get("total", torch.zeros((), device=self.device)) + terms["conventional"]
        if "proposals" in terms:
            terms["total"] = terms["total"] + terms["proposals"]
        return terms

    def train_step(self) -> dict[str, float]:
        """One optimizer step; the detector's own head takes over when the first phase is over."""
        if not self.adapting:
            result = super().train_step()
            self.net.head.load_state_dict(self.conventional.state_dict())
            both = self.average
            assert isinstance(both, nn.ModuleDict)
            both["net"].get_submodule("head").load_state_dict(both["conventional"].state_dict())
            return result
        return super().train_step()

    # --- validation ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means over the held-out triplets, on the moving average.

        Returns:
            `before` and `after` the inner steps: query losses of the detector's head; `improved`: share of the triplets
            whose loss the steps made lower; `iou_before` and `iou_after`: overlap of the box of highest score with the
            target. `conventional_...`: the same of the conventional head. `better`: share of the triplets whose loss
            is lower than after the same steps from the conventional head.
        """
        both = self.average
        assert isinstance(both, nn.ModuleDict)
        net, plain = both["net"], both["conventional"]
        assert isinstance(net, GuidedDetector)
        # Second order changes gradients through the steps, not where they lead.
        inner = replace(self.inner(net), second_order=False)
        heads = {"": net.head, "conventional_": plain}
        sums: dict[str, list[float]] = {}
        for index in range(len(self._validation_plans)):
            batch = self._validation_maps(index, net)
            candidates = self.detect(net, batch)
            proposed = candidates.boxes.shape[1] - (batch.extra.shape[1] if net.two_stage else 0)
            for number, triplet in enumerate(self.triplets(make_samples(net, candidates, batch.boxes))):
                last = (number + 1) * (self.options.supports + self.options.queries)
                rows = slice(last - self.options.queries, last)
                figures: dict[str, float] = {}
                for prefix, head in heads.items():
                    query = support_loss(head, triplet.query)
                    for when, theta in (("before", head_parameters(head)), ("after", adapted(head, triplet, inner))):
                        figures[prefix + when] = float(query(theta))
                        boxes = _best(net, head, theta, triplet.query, candidates.boxes[rows], proposed)
                        shown = (batch.boxes[rows, 2:] > 0).all(1)
                        found = overlap(boxes, batch.boxes[rows])[shown]
                        sums.setdefault(f"{prefix}iou_{when}", []).extend(found.tolist())
                    figures[f"{prefix}improved"] = float(figures[f"{prefix}after"] < figures[f"{prefix}before"])
                figures["better"] = float(figures["after"] < figures["conventional_after"])
                for name, value in figures.items():
                    sums.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in sums.items()}

    def on_save(self) -> None:
        """Validate, and write the weights of the detector, with its own and with the conventional head."""
        figures = self.validate() if self._validation_plans else {}
        if figures:
            self.report(figures)
        both = self.average
        assert isinstance(both, nn.ModuleDict)
        net = both["net"]
        assert isinstance(net, GuidedDetector)
        origin = (
            f"trained by tracker_ros: step {self.step}, {self.elapsed / 60:.0f} min, "
            f"held-out query loss {figures.get('before', 0):.3f} before and {figures.get('after', 0):.3f} after "
            f"{self.options.inner_steps} inner steps"
        )
        config = net.config.backbone
        shared = config.shared or None if self.frozen and not isinstance(config, VGGConfig) else None
        path = self.out / f"{self.name}.safetensors"
        weights.save(path, net, self.name, origin, backbone=shared)
        ablated = copy.deepcopy(net)
        ablated.head.load_state_dict(both["conventional"].state_dict())
        origin = f"{origin}; conventionally trained head"
        weights.save(_conventional(path), ablated, self.name, origin, backbone=shared)


def _best(
    net: GuidedDetector, head: nn.Module, theta: Parameters, samples: Samples, boxes: Tensor, proposed: int
) -> Tensor:
    """The boxes of highest score of a head with parameters `theta`, among the first `proposed` candidates: Bx4."""
    found = call(head, theta, *samples.inputs)
    assert isinstance(found, Detections)
    best = found.scores[:, :proposed].argmax(1)
    at = torch.arange(len(best), device=best.device)
    return net.decode(found.loc[at, best], boxes[at, best])


def _conventional(path: Path) -> Path:
    """Where a run leaves the conventional head of the weights in `path`."""
    return path.with_name(f"{path.stem}_conventional.safetensors")


def build(args: argparse.Namespace) -> GuidedTraining:
    """The recipe of the tracker that ``args.recipe`` names.

    ``--base`` starts from other weights of the network, and the conventional head from those that the base's run left
    beside them, where it did. A full-size network starts with a random backbone otherwise.

    Raises:
        ValueError, FileNotFoundError: something that it needs is not given or not there.
        WeightsMissing: the shared backbone is not there.
    """
    require(args, "--images")
    options = with_settings(GuidedOptions(), args.set)
    network = chosen_network(args)
    detector = network.create()
    assert isinstance(detector, GuidedDetector)
    if detector.config.frozen and not isinstance(detector.backbone, VGG16):
        take_backbone(args, detector.backbone)
    conventional: nn.Module | None = None
    if args.base is not None:
        weights.load(args.base, detector, network.name)
        beside = _conventional(args.base)
        if beside.is_file():
            other = copy.deepcopy(detector)
            weights.load(beside, other, network.name)
            conventional = other.head
    pool, held_out = read_pools(args)
    if options.targets != "all":
        pool = dict(zip(("maps", "head"), apart(pool), strict=True))[options.targets]
    return GuidedTraining(network.name, detector, pool, held_out, args.out, options, conventional=conventional)
