"""Adapting a detector's head to one target: gradient steps on a support loss, and anchored updating.

Huang et al., "Bridging the Gap Between Detection and Tracking", ICCV 2019, sections 3.3 and 3.4. A head's parameters
are a plain dictionary and its loss a function of that dictionary, so that the same few lines serve the inner loop of
the offline training (where the outer gradient flows through the steps) and the tracker (where nothing does).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

#: A head's parameters by name.
Parameters = Mapping[str, Tensor]
#: The support loss of a head with these parameters: a scalar.
SupportLoss = Callable[[Parameters], Tensor]
#: Step lengths: one for all parameters, or one a parameter.
Rates = float | Mapping[str, float | Tensor]


def head_parameters(head: nn.Module) -> dict[str, Tensor]:
    """The parameters of a head by name: what is adapted. Buffers stay the head's own."""
    return dict(head.named_parameters())


def call(head: nn.Module, parameters: Parameters, *inputs: object) -> object:
    """Evaluate a head with these parameters in place of its own (`torch.func.functional_call`)."""
    return functional_call(head, dict(parameters), inputs)


def norm(parameters: Parameters) -> Tensor:
    """Euclidean norm over all parameters together."""
    return torch.stack([value.square().sum() for value in parameters.values()]).sum().sqrt()


def _rate(rates: Rates, name: str) -> float | Tensor:
    return rates[name] if isinstance(rates, Mapping) else rates


def limited(gradient: Parameters, limit: float) -> dict[str, Tensor]:
    """The gradient, shortened to norm `limit` where it is longer; the direction stays."""
    if math.isinf(limit):
        return dict(gradient)
    # A gradient of zero has no norm to differentiate.
    length = torch.stack([value.square().sum() for value in gradient.values()]).sum().clamp_min(1e-24).sqrt()
    factor = (limit / length).clamp_max(1.0)
    return {name: value * factor for name, value in gradient.items()}


def descend(
    loss: SupportLoss, parameters: Parameters, rates: Rates, *, second_order: bool = False, limit: float = math.inf
) -> dict[str, Tensor]:
    """One step f(theta; z, s) = theta - alpha grad L(theta) (eq. 1).

    Args:
        loss: the support loss.
        parameters: theta.
        rates: alpha; a parameter whose rate is 0 stays.
        second_order: let an outer gradient flow through the step's gradient; without, it is taken for a constant
            (first-order MAML).
        limit: longest gradient, over all parameters; it bounds how far anchored updates can drift (`drift_limit`).

    Returns:
        the new parameters. An outer gradient always reaches `parameters` through the identity.
    """
    gradient = grad(loss)(dict(parameters))
    if not second_order:
        gradient = {name: value.detach() for name, value in gradient.items()}
    return follow(parameters, gradient, rates, limit=limit)


def follow(parameters: Parameters, gradient: Parameters, rates: Rates, *, limit: float = math.inf) -> dict[str, Tensor]:
    """The step of `descend` along a gradient that is known."""
    gradient = limited(gradient, limit)
    return {name: value - _rate(rates, name) * gradient[name] for name, value in parameters.items()}


def mean(gradients: Sequence[Parameters]) -> dict[str, Tensor]:
    """The gradient of a mean of losses, from those of the losses."""
    return {name: torch.stack([gradient[name] for gradient in gradients]).mean(0) for name in gradients[0]}


def adapt(
    loss: SupportLoss,
    parameters: Parameters,
    rates: Rates,
    steps: int,
    *,
    second_order: bool = False,
    limit: float = math.inf,
) -> dict[str, Tensor]:
    """`steps` steps of eq. 1 from theta_0 to theta_N; arguments as in `descend`."""
    current = dict(parameters)
    for _ in range(steps):
        current = descend(loss, current, rates, second_order=second_order, limit=limit)
    return current


def compose(anchor: Parameters, latest: Parameters, weight: float) -> dict[str, Tensor]:
    """The mixture lambda anchor + (1 - lambda) latest, parameter by parameter."""
    return {name: weight * value + (1 - weight) * latest[name] for name, value in anchor.items()}


def anchored_update(
    loss: SupportLoss,
    anchor: Parameters,
    latest: Parameters,
    rates: Rates,
    weight: float,
    steps: int = 1,
    *,
    limit: float = math.inf,
    anchor_gradient: Parameters | None = None,
) -> dict[str, Tensor]:
    """Eq. 4: theta_t = lambda f(theta_0; z_t, s_t) + (1 - lambda) f(theta_{t-1}; z_t, s_t).

    Args:
        loss: the support loss on the samples of update t.
        anchor: theta_0, the parameters that the first frame left; the same for the whole track.
        latest: theta_{t-1}.
        rates, limit: as in `descend`.
        weight: lambda in [0, 1]; 0 is continuous learning without an anchor.
        steps: gradient steps in each of the two.
        anchor_gradient: the gradient of the loss at theta_0 where it is known; it is computed where it is not.

    Returns:
        theta_t.

    Raises:
        ValueError: there is more than one step, and one gradient.
    """
    if anchor_gradient is not None and steps != 1:
        raise ValueError(f"the gradient at the anchor is that of one step, not of {steps}")
    moved = adapt(loss, latest, rates, steps, limit=limit)
    if weight == 0:
        return moved
    if anchor_gradient is not None:
        return compose(follow(anchor, anchor_gradient, rates, limit=limit), moved, weight)
    return compose(adapt(loss, anchor, rates, steps, limit=limit), moved, weight)


def drift_limit(rate: float, limit: float, weight: float, steps: int = 1, updates: int | None = None) -> float:
    """How far theta_t can be from theta_0 after any samples.

    With gradients of norm at most G, each update of eq. 4 gives d_t <= (1 - lambda) d_{t-1} + N alpha G, where d is
    the distance from the anchor: both terms of eq. 4 move by at most N alpha G, and only the second starts at
    theta_{t-1}. So d_t <= N alpha G (1 - (1 - lambda)^t) / lambda, which stays below N alpha G / lambda for ever.

    Args:
        rate: alpha (the largest, where there are several).
        limit: G.
        weight: lambda; 0 gives the bound of continuous learning, which grows with t.
        steps: N.
        updates: t; None for any number.
    """
    reach = steps * rate * limit
    if weight == 0:
        return math.inf if updates is None else updates * reach
    if updates is None:
        return reach / weight
    return reach * (1 - (1 - weight) ** updates) / weight
