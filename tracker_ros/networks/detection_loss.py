"""Losses of guided detectors: cross entropy with online hard negative mining, and smooth L1.

As in the base detectors (Liu et al., SSD, ECCV 2016, section 2.2; Girshick, Fast R-CNN, ICCV 2015), as Huang et al.
(ICCV 2019, sections 3.2 and 3.3) use them offline and online. Every shape is fixed by those of the input, so the
losses work under `torch.func.grad` and `vmap`. Boxes are (cx, cy, w, h) in crop pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracker_ros.networks.adaptation import Parameters, SupportLoss, call
from tracker_ros.networks.detection import Candidates, Detections, GuidedDetector

#: Most negatives that mining keeps of one crop.
_MOST_NEGATIVES = 512


@dataclass(frozen=True)
class Samples:
    """Crops with what a head should answer: what it is adapted to.

    Attributes:
        inputs: what the head reads, each with B crops as leading axis.
        classes: BxN int64, 1 for the target, 0 for the background, -1 for neither (no loss).
        wanted: BxNx4, the regression that leads from each candidate to the target; of no meaning but for positives.
    """

    inputs: tuple[Tensor, ...]
    classes: Tensor
    wanted: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def select(self, index: slice | Tensor) -> Samples:
        """Some of the crops."""
        return Samples(tuple(part[index] for part in self.inputs), self.classes[index], self.wanted[index])

    def clone(self) -> Samples:
        """A copy without history, to be kept."""
        inputs = tuple(part.detach().clone() for part in self.inputs)
        return Samples(inputs, self.classes.clone(), self.wanted.detach().clone())


def make_samples(detector: GuidedDetector, candidates: Candidates, targets: Tensor) -> Samples:
    """Label candidates by the target of each crop.

    Args:
        detector: says how boxes are matched and encoded.
        candidates: of B crops.
        targets: Bx4; one without area (NaN, or a side of 0) is absent, and every candidate is background.
    """
    classes, wanted = _label(detector, candidates.boxes.detach(), targets)
    return Samples(candidates.inputs, classes.masked_fill(~candidates.valid, -1), wanted)


def _boxed(targets: Tensor, present: Tensor) -> Tensor:
    """Targets Bx4, a box of one pixel in place of those that are not `present` (B)."""
    return torch.where(present[:, None], targets, F.pad(torch.ones_like(targets[:, 2:]), (2, 0)))


def _label(detector: GuidedDetector, boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    present = (targets[:, 2:] > 0).all(1)
    safe = _boxed(targets, present)
    classes = torch.where(present[:, None], detector.match(boxes, safe), 0)
    return classes, detector.encode(safe[:, None], boxes)


def drawn_around(targets: int, count: int, generator: torch.Generator) -> Tensor:
    """Random numbers of `around` for so many targets, `count` boxes each: BxMx4, on the generator's device.

    They make boxes from close ones to ones that hardly overlap; the first of a target is the target itself.
    """
    shape, device = (targets, count), generator.device
    spread = torch.rand(*shape, 1, generator=generator, device=device) * math.log(0.4 / 0.02) + math.log(0.02)
    noise = torch.randn(*shape, 4, generator=generator, device=device) * spread.exp()
    noise[:, :1] = 0
    return noise


def around(targets: Tensor, noise: Tensor) -> Tensor:
    """Boxes around targets: what a two-stage head learns from beside its own proposals, which may all miss a new one.

    Args:
        targets: Bx4 (cx, cy, w, h); around one without area they are of no meaning.
        noise: BxMx4 of `drawn_around`, on the same device.

    Returns:
        BxMx4.
    """
    size = targets[:, None, 2:].clamp_min(1.0)
    center = targets[:, None, :2] + noise[..., :2] * size.prod(-1, keepdim=True).sqrt()
    return torch.cat([center, size * noise[..., 2:].exp()], -1)


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Put the crops of several samples one after another."""
    return Samples(
        tuple(torch.cat(inputs) for inputs in zip(*(part.inputs for part in parts), strict=True)),
        torch.cat([part.classes for part in parts]),
        torch.cat([part.wanted for part in parts]),
    )


def hard_negatives(loss: Tensor, classes: Tensor, ratio: float, least: int) -> Tensor:
    """Online hard negative mining: which negatives count.

    Args:
        loss: BxN, the loss that each candidate has as background.
        classes: BxN, see `Samples`.
        ratio: negatives a positive.
        least: negatives of a crop, however few positives it has.

    Returns:
        BxN bool: the negatives of highest loss, `ratio` times as many as there are positives.
    """
    negative = classes == 0
    most = min(_MOST_NEGATIVES, loss.shape[1])
    hardest = loss.detach().masked_fill(~negative, -1.0).topk(most, dim=1).indices
    count = ((classes == 1).sum(1, keepdim=True) * ratio).clamp_min(least)
    chosen = torch.arange(most, device=loss.device) < count
    return torch.zeros_like(negative).scatter(1, hardest, chosen) & negative


def classification_loss(
    logits: Tensor,
    classes: Tensor,
    *,
    ratio: float = 3.0,
    least: int = 8,
    positive_weight: float = 1.0,
) -> Tensor:
    """Cross entropy of the positives and of the hardest negatives, a value a crop: B.

    Args:
        logits: BxNx2 (background, target).
        classes: BxN, see `Samples`.
        ratio: negatives a positive; `least` negatives of a crop in any case.
        positive_weight: weight of a positive over that of a negative; 3 for the first stage of a two-stage detector
            (section 3.2).

    Returns:
        B: weighted mean over the chosen candidates.
    """
    log_p = logits.log_softmax(-1)
    positive = classes == 1
    weight = positive * positive_weight + hard_negatives(-log_p[..., 0], classes, ratio, least)
    loss = -torch.where(positive, log_p[..., 1], log_p[..., 0])
    return (loss * weight).sum(1) / weight.sum(1).clamp_min(1.0)


def regression_loss(offsets: Tensor, wanted: Tensor, classes: Tensor) -> Tensor:
    """Smooth L1 of the positives' regression, a value a crop: B.

    Args:
        offsets: BxNx4, predicted.
        wanted: BxNx4, see `Samples`.
        classes: BxN.

    Returns:
        B: sum over four numbers, mean over the positives; 0 without positives.
    """
    positive = classes == 1
    safe = torch.where(positive[..., None], wanted, torch.zeros_like(wanted))
    loss = F.smooth_l1_loss(offsets, safe.to(offsets.dtype), reduction="none").sum(-1)
    return (loss * positive).sum(1) / positive.sum(1).clamp_min(1)


def detection_loss(found: Detections, samples: Samples, regression: float = 1.0) -> Tensor:
    """The detector's loss, a value a crop: B. `regression` weights its second term."""
    loss = classification_loss(found.cls, samples.classes)
    if regression:
        loss = loss + regression * regression_loss(found.loc, samples.wanted, samples.classes)
    return loss


def first_stage_loss(detector: GuidedDetector, found: Detections, targets: Tensor) -> Tensor:
    """Loss of a two-stage detector's proposals, a value a crop: B (positives weigh 3:1, section 3.2).

    Args:
        detector: with `two_stage`.
        found: `Candidates.rpn` of B crops.
        targets: Bx4, see `make_samples`.
    """
    boxes = detector.rpn_boxes(found.cls.device)
    present = (targets[:, 2:] > 0).all(1)
    safe = _boxed(targets, present)
    classes = torch.where(present[:, None], detector.match_rpn(safe), 0)
    loss = classification_loss(found.cls, classes, positive_weight=detector.rpn_positive_weight)
    return loss + regression_loss(found.loc, detector.encode(safe[:, None], boxes[None]), classes)


def head_loss(head: nn.Module, parameters: Parameters, samples: Samples, regression: float = 1.0) -> Tensor:
    """The loss of a head with these parameters on samples, a value a crop: B; `regression` as in `detection_loss`."""
    found = call(head, parameters, *samples.inputs)
    assert isinstance(found, Detections)
    return detection_loss(found, samples, regression)


def support_loss(head: nn.Module, samples: Samples, regression: float = 1.0) -> SupportLoss:
    """The loss of a head on samples as a function of its parameters: what `adaptation.descend` descends."""

    def loss(parameters: Parameters) -> Tensor:
        return head_loss(head, parameters, samples, regression).mean()

    return loss
