"""The inner loop of MAML, and anchored updating."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from tracker_ros.networks import adaptation
from tracker_ros.networks.adaptation import Parameters


@pytest.fixture
def head() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 1)).double()


@pytest.fixture
def support() -> tuple[Tensor, Tensor]:
    r = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 5, 5, generator=r).double(), torch.randint(0, 2, (2, 5, 5), generator=r)


def support_loss(head: nn.Module, maps: Tensor, labels: Tensor) -> adaptation.SupportLoss:
    def loss(parameters: Parameters) -> Tensor:
        output = adaptation.call(head, parameters, maps)
        assert isinstance(output, Tensor)
        return F.cross_entropy(output, labels)

    return loss


def test_a_step_is_equation_1(head, support) -> None:
    loss = support_loss(head, *support)
    theta = adaptation.head_parameters(head)
    moved = adaptation.descend(loss, theta, 0.05)
    head.zero_grad()
    F.cross_entropy(head(support[0]), support[1]).backward()
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(moved[name], parameter - 0.05 * parameter.grad)
    assert loss(moved) < loss(theta)


def test_rates_may_differ_between_parameters(head, support) -> None:
    loss = support_loss(head, *support)
    theta = adaptation.head_parameters(head)
    rates = {name: 0.3 if name.startswith("2") else 0.0 for name in theta}
    moved = adaptation.descend(loss, theta, rates)
    assert torch.equal(moved["0.weight"], theta["0.weight"])
    assert not torch.equal(moved["2.weight"], theta["2.weight"])


def test_anchored_update_is_equation_4_exactly(head, support) -> None:
    loss = support_loss(head, *support)
    anchor = adaptation.head_parameters(head)
    latest = {name: value + 0.1 * torch.randn_like(value) for name, value in anchor.items()}
    updated = adaptation.anchored_update(loss, anchor, latest, 0.05, 0.3)
    for name, value in updated.items():
        a = torch.autograd.grad(loss(anchor), anchor[name], retain_graph=True)[0]
        leaf = {key: latest[key].detach().requires_grad_(key == name) for key in latest}
        b = torch.autograd.grad(loss(leaf), leaf[name])[0]
        expected = 0.3 * (anchor[name] - 0.05 * a) + 0.7 * (latest[name] - 0.05 * b)
        assert torch.equal(value, expected) or (value - expected).abs().max() < 1e-15


def test_a_known_gradient_at_the_anchor_changes_nothing(head, support) -> None:
    """The gradient of a mean of losses is the mean of the samples' gradients, also where it is too long."""
    inputs, targets = support
    loss = support_loss(head, inputs, targets)
    anchor = adaptation.head_parameters(head)
    latest = {name: value + 0.1 * torch.randn_like(value) for name, value in anchor.items()}
    each = [
        torch.func.grad(support_loss(head, inputs[i : i + 1], targets[i : i + 1]))(anchor) for i in range(len(inputs))
    ]
    for limit in (math.inf, 1e-3):
        known = adaptation.anchored_update(
            loss, anchor, latest, 0.05, 0.3, limit=limit, anchor_gradient=adaptation.mean(each)
        )
        for name, value in adaptation.anchored_update(loss, anchor, latest, 0.05, 0.3, limit=limit).items():
            torch.testing.assert_close(known[name], value)
    with pytest.raises(ValueError, match="one step"):
        adaptation.anchored_update(loss, anchor, latest, 0.05, 0.3, 2, anchor_gradient=each[0])


def test_no_weight_is_continuous_learning_and_full_weight_forgets(head, support) -> None:
    loss = support_loss(head, *support)
    anchor = adaptation.head_parameters(head)
    latest = {name: value + 1.0 for name, value in anchor.items()}
    plain = adaptation.anchored_update(loss, anchor, latest, 0.05, 0.0)
    forgetful = adaptation.anchored_update(loss, anchor, latest, 0.05, 1.0)
    for name in anchor:
        assert torch.equal(plain[name], adaptation.descend(loss, latest, 0.05)[name])
        torch.testing.assert_close(forgetful[name], adaptation.descend(loss, anchor, 0.05)[name])


@pytest.mark.parametrize("steps", [1, 2])
def test_parameters_never_drift_beyond_what_equation_4_permits(head, steps) -> None:
    """Losses that pull away from the anchor, always in the same direction and as hard as they can."""
    anchor = {name: value.detach() for name, value in adaptation.head_parameters(head).items()}
    away = {name: torch.randn_like(value) for name, value in anchor.items()}
    rate, limit, weight = 0.5, 2.0, 0.1

    def pull(parameters: Parameters) -> Tensor:
        return -1e6 * sum((away[name] * value).sum() for name, value in parameters.items())

    anchored, free = dict(anchor), dict(anchor)
    drifts = []
    for update in range(1, 81):
        anchored = adaptation.anchored_update(pull, anchor, anchored, rate, weight, steps, limit=limit)
        free = adaptation.anchored_update(pull, anchor, free, rate, 0.0, steps, limit=limit)
        drifts.append(float(adaptation.norm({name: anchored[name] - anchor[name] for name in anchor})))
        bound = adaptation.drift_limit(rate, limit, weight, steps, update)
        assert drifts[-1] <= bound * (1 + 1e-9)
        # The bound is attained: gradients that all point one way are the worst case.
        assert drifts[-1] == pytest.approx(bound, rel=1e-6)
    assert drifts[-1] < adaptation.drift_limit(rate, limit, weight, steps)
    wandered = float(adaptation.norm({name: free[name] - anchor[name] for name in anchor}))
    assert wandered == pytest.approx(adaptation.drift_limit(rate, limit, 0.0, steps, 80), rel=1e-6)
    assert wandered > 5 * drifts[-1]
    assert math.isinf(adaptation.drift_limit(rate, limit, 0.0))


def outer(head: nn.Module, support, query, flat: Tensor, *, second_order: bool) -> Tensor:
    """Query loss after three inner steps from parameters that are given as one vector."""
    theta, start = {}, 0
    for name, value in adaptation.head_parameters(head).items():
        theta[name] = flat[start : start + value.numel()].reshape(value.shape)
        start += value.numel()
    adapted = adaptation.adapt(support_loss(head, *support), theta, 0.4, 3, second_order=second_order, limit=0.5)
    return support_loss(head, *query)(adapted)


def test_outer_gradient_agrees_with_finite_differences(head, support) -> None:
    r = torch.Generator().manual_seed(2)
    query = torch.randn(2, 3, 5, 5, generator=r).double(), torch.randint(0, 2, (2, 5, 5), generator=r)
    flat = torch.cat([value.detach().flatten() for value in adaptation.head_parameters(head).values()])
    gradients = {}
    for second_order in (True, False):
        point = flat.clone().requires_grad_()
        value = outer(head, support, query, point, second_order=second_order)
        gradients[second_order] = torch.autograd.grad(value, point)[0]
    step = 1e-5
    numeric = torch.zeros_like(flat)
    for index in range(0, len(flat), 7):
        ends = []
        for sign in (1, -1):
            shifted = flat.clone()
            shifted[index] += sign * step
            ends.append(float(outer(head, support, query, shifted, second_order=True)))
        numeric[index] = (ends[0] - ends[1]) / (2 * step)
    checked = slice(0, len(flat), 7)
    torch.testing.assert_close(gradients[True][checked], numeric[checked], rtol=1e-6, atol=1e-8)
    difference = (gradients[False] - gradients[True])[checked].norm() / numeric[checked].norm()
    assert difference > 0.05  # first order leaves the curvature out


def test_targets_can_be_adapted_together(head, support) -> None:
    """`vmap` over targets gives what one after the other gives."""
    maps, labels = support
    theta = {name: value.detach() for name, value in adaptation.head_parameters(head).items()}
    several = {name: torch.stack([value, 0.9 * value]) for name, value in theta.items()}

    def one(parameters: Parameters, crop: Tensor, label: Tensor) -> dict[str, Tensor]:
        return adaptation.adapt(support_loss(head, crop[None], label[None]), parameters, 0.1, 2)

    together = vmap(one)(several, maps, labels)
    for index in range(2):
        alone = one({name: value[index] for name, value in several.items()}, maps[index], labels[index])
        for name in theta:
            torch.testing.assert_close(together[name][index], alone[name])


def test_a_gradient_of_zero_is_left_alone() -> None:
    theta = {"w": torch.ones(3)}
    moved = adaptation.descend(lambda p: (0.0 * p["w"]).sum(), theta, 0.1, second_order=True, limit=1.0)
    assert torch.equal(moved["w"], theta["w"])
