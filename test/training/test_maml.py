"""The outer loop of MAML on small heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tracker_ros.networks.detection import Detections
from tracker_ros.networks.detection_loss import Samples, concatenate
from tracker_ros.training.maml import InnerLoop, Triplet, outcome


class Head(nn.Module):
    """Class and box of a candidate, linear in its features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.cls, self.loc = nn.Linear(features, 2), nn.Linear(features, 4)

    def forward(self, rois: Tensor) -> Detections:
        return Detections(self.cls(rois), self.loc(rois))


def _triplet(features: int, generator: torch.Generator) -> Triplet:
    """Targets whose features lie on one side of a plane that differs from triplet to triplet."""
    normal = torch.randn(features, generator=generator).double()

    def crops() -> Samples:
        rois = torch.randn(1, 24, features, generator=generator).double()
        return Samples((rois,), (rois @ normal > 0.5).long(), rois[..., :4] + normal[:4])

    return Triplet(crops(), crops())


@pytest.fixture
def triplets() -> list[Triplet]:
    generator = torch.Generator().manual_seed(3)
    return [_triplet(6, generator) for _ in range(12)]


def test_outer_gradient_agrees_with_finite_differences(triplets: list[Triplet]) -> None:
    torch.manual_seed(0)
    head = Head(6).double()
    inner = InnerLoop(0.2, 3)
    parameters = list(head.parameters())

    def value(loop: InnerLoop) -> Tensor:
        return outcome(head, triplets[:2], loop).after.sum()

    second = torch.cat([g.flatten() for g in torch.autograd.grad(value(inner), parameters)])
    first = torch.cat([g.flatten() for g in torch.autograd.grad(value(replace(inner, second_order=False)), parameters)])
    numeric, step = [], 1e-5
    for parameter in parameters:
        flat = parameter.data.view(-1)
        for index in range(len(flat)):
            ends = []
            for sign in (1, -1):
                flat[index] += sign * step
                ends.append(value(inner).item())
                flat[index] -= sign * step
            numeric.append((ends[0] - ends[1]) / (2 * step))
    expected = torch.tensor(numeric).double()
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-7)
    assert (first - expected).norm() > 0.05 * expected.norm()


def test_every_query_frame_has_its_loss(triplets: list[Triplet]) -> None:
    torch.manual_seed(0)
    head = Head(6).double()
    first, second = triplets[:2]
    both = Triplet(first.support, concatenate([first.query, second.query]))
    found = outcome(head, [both], InnerLoop(0.2, 2))
    alone = [outcome(head, [Triplet(first.support, query)], InnerLoop(0.2, 2)) for query in (first.query, second.query)]
    assert found.after.shape == found.before.shape == (1, 2)
    torch.testing.assert_close(found.after, torch.cat([one.after for one in alone], 1))
    torch.testing.assert_close(found.before, torch.cat([one.before for one in alone], 1))


def test_the_loss_before_the_steps_has_a_gradient_where_one_is_wanted(triplets: list[Triplet]) -> None:
    torch.manual_seed(0)
    head, inner = Head(6).double(), InnerLoop(0.2, 2)
    without, found = (outcome(head, triplets[:2], inner, through) for through in (False, True))
    assert not without.before.requires_grad
    torch.testing.assert_close(found.before.detach(), without.before)
    # It is that of the loss on the query frames alone, without steps.
    still = outcome(head, triplets[:2], InnerLoop(0.0, 1)).after.sum()
    wanted = torch.autograd.grad(still, list(head.parameters()))
    torch.testing.assert_close(torch.autograd.grad(found.before.sum(), list(head.parameters())), wanted)


def test_learned_rates_get_a_gradient(triplets: list[Triplet]) -> None:
    torch.manual_seed(0)
    head = Head(6).double()
    rates = {name: torch.tensor(0.1, requires_grad=True) for name, _ in head.named_parameters()}
    outcome(head, triplets[:2], InnerLoop(rates, 2)).after.sum().backward()
    assert all(rate.grad is not None and rate.grad != 0 for rate in rates.values())


def test_learned_start_adapts_to_new_targets(triplets: list[Triplet]) -> None:
    """After the outer loop the inner steps help on triplets that it never saw, and lead further than at first."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(7)
    head = Head(6).double()
    inner = InnerLoop(0.1, 3)
    untrained = outcome(head, triplets, inner)
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(25):
        optimizer.zero_grad()
        outcome(head, [_triplet(6, generator) for _ in range(3)], inner).after.mean().backward()
        optimizer.step()
    trained = outcome(head, triplets, inner)
    assert (trained.after < trained.before).all(1).double().mean() >= 0.9
    assert trained.after.mean() < untrained.after.mean()
    assert not trained.before.requires_grad
