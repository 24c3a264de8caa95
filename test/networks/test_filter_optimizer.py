from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tracker_ros.networks.filter_optimizer import (
    FilterInitializer,
    FilterOptimizer,
    RadialFunction,
    apply_filter,
    apply_filter_transposed,
)


@pytest.mark.parametrize("k", [1, 3, 4, 5])
def test_apply_filter_is_a_padded_convolution(k: int) -> None:
    torch.manual_seed(0)
    features, filters = torch.randn(2, 3, 5, 7, 9).double(), torch.randn(2, 5, k, k).double()
    expected = torch.stack([F.conv2d(features[t], filters[t : t + 1], padding=k // 2)[:, 0] for t in range(2)])
    assert torch.allclose(apply_filter(features, filters), expected)


@pytest.mark.parametrize("k", [3, 4])
def test_transposed_is_the_adjoint(k: int) -> None:
    torch.manual_seed(0)
    features, filters = torch.randn(2, 3, 5, 7, 9).double(), torch.randn(2, 5, k, k).double()
    scores = apply_filter(features, filters)
    maps = torch.randn_like(scores)
    left = (scores * maps).sum()
    right = (filters * apply_filter_transposed(features, maps, k)).sum()
    assert torch.allclose(left, right)


def test_radial_function_is_piecewise_linear_and_saturates() -> None:
    function = RadialFunction(torch.tensor([1.0, 3.0, 7.0]), 0.5)
    distance = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 9.0])
    assert torch.allclose(function(distance), torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0, 7.0]))


def _problem(dtype: torch.dtype = torch.double) -> tuple[FilterOptimizer, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    optimizer = FilterOptimizer(stride=16).to(dtype)
    with torch.no_grad():
        optimizer.weight.coefficients += 0.3 * torch.rand(100, dtype=dtype)
    features = torch.randn(2, 6, 8, 10, 10, dtype=dtype) / 8
    boxes = torch.cat([40 + 60 * torch.rand(2, 6, 2), 20 + 20 * torch.rand(2, 6, 2)], -1).to(dtype)
    return optimizer, torch.randn(2, 8, 4, 4, dtype=dtype) / 8, features, boxes


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_goes_along_the_gradient_of_the_loss(weighted: bool) -> None:
    """Closed form (S1) against autograd: the step is parallel to it, its length is that of Gauss-Newton (S2)."""
    optimizer, filters, features, boxes = _problem()
    weights = torch.rand(2, 6).double() if weighted else None
    if weights is not None:
        weights = weights / weights.sum(1, keepdim=True)
    filters = filters.requires_grad_()
    # The loss has no factor of one half, so its gradient is twice that of the closed form.
    (gradient,) = torch.autograd.grad(optimizer.loss(filters, features, boxes, weights).sum() / 2, filters)
    with torch.no_grad():
        start, after = optimizer(filters, features, boxes, 1, weights)
    step = start - after
    for t in range(2):
        g, s = gradient[t].flatten(), step[t].flatten()
        alpha = (s @ g) / (g @ g)
        assert torch.allclose(s, alpha * g, atol=1e-10)
        jacobian = torch.autograd.functional.jvp(
            lambda f, t=t: _residuals(optimizer, f, features[t : t + 1], boxes[t : t + 1], weights, t),
            filters[t : t + 1].detach(),
            gradient[t : t + 1],
        )[1]
        expected = torch.exp(optimizer.log_step_length) * (g @ g) / jacobian.square().sum()
        assert torch.allclose(alpha, expected, rtol=1e-6)


def _residuals(
    optimizer: FilterOptimizer,
    filters: torch.Tensor,
    features: torch.Tensor,
    boxes: torch.Tensor,
    weights: torch.Tensor | None,
    target: int,
) -> torch.Tensor:
    scores = apply_filter(features, filters)
    label, mask, weight = optimizer.maps(boxes, *scores.shape[-2:])
    share = torch.full((1, 6), 1 / 6).double() if weights is None else weights[target : target + 1]
    data = weight * share.sqrt()[..., None, None] * (mask * scores + (1 - mask) * scores.clamp_min(0) - label)
    return torch.cat([data.flatten(), optimizer.filter_reg.abs() * filters.flatten()])


def test_the_loss_falls_at_every_step() -> None:
    optimizer, filters, features, boxes = _problem()
    with torch.no_grad():
        losses = torch.stack([optimizer.loss(f, features, boxes) for f in optimizer(filters, features, boxes, 8)])
    assert (losses[1:] < losses[:-1]).all()


def test_gradient_descent_takes_steps_of_one_length_and_is_slower() -> None:
    optimizer, filters, features, boxes = _problem()
    with torch.no_grad():
        steepest = optimizer(filters, features, boxes, 6)
        # The largest length that no step of steepest descent falls short of.
        plain = optimizer(filters, features, boxes, 6, step_length=0.05)
        losses = [torch.stack([optimizer.loss(f, features, boxes) for f in fs]) for fs in (steepest, plain)]
    assert (losses[1][1:] < losses[1][:-1]).all(), "it does descend"
    assert (losses[1][1:] > losses[0][1:]).all(), "but never as far as steepest descent"
    # Along the same first gradient, and by the given length.
    first = filters.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(optimizer.loss(first, features, boxes).sum() / 2, first)
    assert torch.allclose(plain[0] - plain[1], 0.05 * gradient)


def test_targets_do_not_mix_and_zero_weight_leaves_a_sample_out() -> None:
    optimizer, filters, features, boxes = _problem()
    with torch.no_grad():
        both = optimizer(filters, features, boxes, 3)[-1]
        alone = optimizer(filters[1:], features[1:], boxes[1:], 3)[-1]
        assert torch.allclose(both[1:], alone)
        weights = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0, 0.0]]).double()
        padded = optimizer(filters[:1], features[:1], boxes[:1], 3, weights)[-1]
        short = optimizer(filters[:1], features[:1, :2], boxes[:1, :2], 3)[-1]
    assert torch.allclose(padded, short)


def test_training_reaches_every_parameter() -> None:
    optimizer, _, features, boxes = _problem(torch.float32)
    initializer = FilterInitializer(8, 4, 16)
    final = optimizer(initializer(features, boxes), features, boxes, 2)[-1]
    apply_filter(features, final).square().sum().backward()
    for name, parameter in [*optimizer.named_parameters(), *initializer.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
