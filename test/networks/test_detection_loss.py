"""Losses of guided detectors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from tracker_ros.networks.adaptation import adapt, head_parameters
from tracker_ros.networks.detection import Detections, GuidedDetector
from tracker_ros.networks.detection_loss import (
    Samples,
    classification_loss,
    concatenate,
    detection_loss,
    first_stage_loss,
    hard_negatives,
    make_samples,
    regression_loss,
    support_loss,
)
from tracker_ros.networks.faster_rcnn import GUIDED_FRCNN18, FasterRCNN
from tracker_ros.networks.ssd import GUIDED_SSD18, SSD


def test_mining_keeps_the_hardest_three_negatives_a_positive() -> None:
    r = torch.Generator().manual_seed(0)
    loss = torch.rand(2, 40, generator=r)
    classes = torch.zeros(2, 40, dtype=torch.long)
    classes[0, :4] = 1
    classes[0, 4:10] = -1
    classes[1, :1] = 1
    chosen = hard_negatives(loss, classes, 3.0, 8)
    assert chosen.sum(1).tolist() == [12, 8]
    for row in range(2):
        negatives = loss[row][classes[row] == 0]
        kept = loss[row][chosen[row]]
        assert kept.min() >= negatives.topk(len(kept)).values.min()
        assert not (chosen[row] & (classes[row] != 0)).any()


def test_classification_loss_is_cross_entropy_of_what_was_chosen() -> None:
    r = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 30, 2, generator=r).double()
    classes = torch.zeros(1, 30, dtype=torch.long)
    classes[0, :5] = 1
    entropy = F.cross_entropy(logits[0], classes[0].clamp_min(0), reduction="none")
    chosen = hard_negatives(-logits.log_softmax(-1)[..., 0], classes, 3.0, 8)[0]
    expected = (entropy[:5].sum() + entropy[chosen].sum()) / (5 + 15)
    assert classification_loss(logits, classes).item() == pytest.approx(expected.item())
    heavy = classification_loss(logits, classes, positive_weight=3.0).item()
    assert heavy == pytest.approx(((3 * entropy[:5].sum() + entropy[chosen].sum()) / 30).item())


def test_what_is_ignored_has_no_gradient() -> None:
    logits = torch.zeros(1, 20, 2, requires_grad=True)
    classes = torch.full((1, 20), -1)
    classes[0, :2] = 1
    classes[0, 2:5] = 0
    classification_loss(logits, classes).sum().backward()
    assert (logits.grad[0, :5].abs().sum(1) > 0).all()
    assert (logits.grad[0, 5:] == 0).all()


def test_regression_counts_positives_only_and_none_is_no_loss() -> None:
    offsets = torch.zeros(2, 6, 4, requires_grad=True)
    wanted = torch.full((2, 6, 4), float("nan"))
    wanted[0, 1] = torch.tensor([0.5, -2.0, 0.0, 1.0])
    classes = torch.zeros(2, 6, dtype=torch.long)
    classes[0, 1] = 1
    loss = regression_loss(offsets, wanted, classes)
    assert loss.tolist() == [0.125 + 1.5 + 0.0 + 0.5, 0.0]
    loss.sum().backward()
    assert torch.isfinite(offsets.grad).all()


@pytest.fixture(scope="module", params=["ssd", "frcnn"])
def detector(request: pytest.FixtureRequest) -> GuidedDetector:
    torch.manual_seed(0)
    return (SSD(GUIDED_SSD18) if request.param == "ssd" else FasterRCNN(GUIDED_FRCNN18)).eval()


@pytest.fixture(scope="module")
def samples(detector: GuidedDetector) -> Samples:
    """Two crops, the target in the first only; maps are random: the backbone does not matter here."""
    side = detector.config.search
    r = torch.Generator().manual_seed(2)
    maps = [
        torch.rand(2, level.outputs, cells, cells, generator=r)
        for level in detector.guided_levels
        for cells in [-(-side // int(level.cells.stride))]
    ]
    targets = torch.tensor([[side / 2, side / 2, side / 5, side / 5], [0.0, 0.0, 0.0, 0.0]])
    extra = targets[:, None] + torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    with torch.no_grad():
        return make_samples(detector, detector.candidates(maps, extra), targets)


def test_a_target_that_is_absent_has_only_background(samples: Samples) -> None:
    assert (samples.classes[0] == 1).any()
    assert (samples.classes[1] <= 0).all()
    assert (samples.classes[1] == 0).any()
    assert torch.isfinite(samples.wanted).all()


def test_adapting_a_head_lowers_its_loss_on_the_support(detector: GuidedDetector, samples: Samples) -> None:
    loss = support_loss(detector.head, samples)
    theta = head_parameters(detector.head)
    with torch.no_grad():
        adapted = adapt(loss, theta, detector.inner_rates(), 5, limit=10.0)
        assert loss(adapted) < loss(theta)
        unmoved = adapt(support_loss(detector.head, samples, 0.0), theta, detector.inner_rates(), 2)
    for name in theta:
        if name.startswith("loc"):  # without the regression's loss its parameters stay
            assert torch.equal(unmoved[name], theta[name])


def test_crops_are_independent(detector: GuidedDetector, samples: Samples) -> None:
    """The loss of two crops is that of each alone, also under vmap, and of the two put together again."""
    found = detector.head(*samples.inputs)
    together = detection_loss(found, samples)
    alone = [
        detection_loss(detector.head(*part.inputs), part) for part in map(samples.select, (slice(0, 1), slice(1, 2)))
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    again = concatenate([samples.select(slice(0, 1)), samples.select(slice(1, 2))])
    torch.testing.assert_close(detection_loss(detector.head(*again.inputs), again), together)

    def one(cls: Tensor, loc: Tensor, classes: Tensor, wanted: Tensor) -> Tensor:
        part = Samples((), classes[None], wanted[None])
        return detection_loss(Detections(cls[None], loc[None]), part)[0]

    torch.testing.assert_close(vmap(one)(found.cls, found.loc, samples.classes, samples.wanted), together)


def test_first_stage_learns_the_targets_place() -> None:
    torch.manual_seed(0)
    detector = FasterRCNN(GUIDED_FRCNN18).eval()
    targets = torch.tensor([[160.0, 150.0, 64.0, 60.0]])
    labels = detector.match_rpn(targets)
    right = torch.stack([(labels == 0) * 6.0, (labels == 1) * 6.0], -1)
    loc = detector.encode(targets[:, None], detector.rpn_boxes()[None])
    good = first_stage_loss(detector, Detections(right, loc), targets)
    bad = first_stage_loss(detector, Detections(-right, loc + 1), targets)
    assert good.item() < 0.01
    assert bad.item() > 5
