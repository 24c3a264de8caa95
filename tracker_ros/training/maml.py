"""The outer loop of MAML for guided detectors (Huang et al., ICCV 2019, section 3.3).

For every triplet the head takes a few gradient steps on the support frame (`networks.adaptation`); what is minimised
is its loss on the query frame afterwards, through the steps (eq. 2 and 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tracker_ros.networks.adaptation import Parameters, Rates, adapt, head_parameters
from tracker_ros.networks.detection_loss import Samples, head_loss, support_loss


@dataclass(frozen=True)
class InnerLoop:
    """How a head is adapted to the support frames.

    Attributes:
        rates: alpha (section 4.1: 0.05), for all parameters or one a parameter.
        steps: N.
        second_order: outer gradients flow through the gradients of the steps; False is first-order MAML.
        limit: longest gradient of a step, see `adaptation.descend`.
        regression: weight of the regression in the support loss; 0 adapts the classification alone.
    """

    rates: Rates = 0.05
    steps: int = 5
    second_order: bool = True
    limit: float = math.inf
    regression: float = 1.0


class Triplet(NamedTuple):
    """Support and query frames of one target, under the guidance of one exemplar."""

    support: Samples
    query: Samples


class Outcome(NamedTuple):
    """Query losses of T triplets with Q query frames each.

    Attributes:
        before: TxQ, of the head as it is.
        after: TxQ, of the head adapted to each triplet's support frames.
    """

    before: Tensor
    after: Tensor


def adapted(head: nn.Module, triplet: Triplet, inner: InnerLoop) -> Parameters:
    """The head's parameters after the inner loop on the support frames (eq. 1)."""
    loss = support_loss(head, triplet.support, inner.regression)
    theta = head_parameters(head)
    return adapt(loss, theta, inner.rates, inner.steps, second_order=inner.second_order, limit=inner.limit)


def outcome(head: nn.Module, triplets: Sequence[Triplet], inner: InnerLoop, through_before: bool = False) -> Outcome:
    """Query losses before and after the inner loop; `after` is differentiable (the terms of eq. 2).

    The detector's whole loss counts on the query frames, whatever the inner loop adapts.

    Args:
        head: what takes the steps.
        triplets: T of them.
        inner: the steps.
        through_before: `before` is differentiable too.
    """
    before, after = [], []
    for triplet in triplets:
        after.append(head_loss(head, adapted(head, triplet, inner), triplet.query))
        with torch.set_grad_enabled(through_before and torch.is_grad_enabled()):
            before.append(head_loss(head, head_parameters(head), triplet.query))
    return Outcome(torch.stack(before), torch.stack(after))
