"""DiMP's model predictor: filter initializer and steepest-descent optimizer (Bhat et al., ICCV 2019, section 3).

Tensors carry a target axis T first, then a sample axis N, so several targets are optimised in one pass.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracker_ros.networks.roi_pooling import precise_roi_pool

#: lambda^2 of eq. 1 never falls below this.
MIN_REGULARISATION = 1e-6
#: Lower bound of the denominator of the step length.
MIN_CURVATURE = 1e-8


def apply_filter(features: Tensor, filters: Tensor) -> Tensor:
    """Target scores ``s = x * f`` (eq. 1) with a padding of half the filter.

    A filter has few columns (K^2), so the product over channels comes first, as one matrix product, and the
    shifted sum over the filter's cells last, on a map of one channel.

    Args:
        features: TxNxCxHxW.
        filters: TxCxKxK.

    Returns:
        TxNxH'xW' with ``H' = H + 1`` for an even K and ``H`` for an odd one.
    """
    targets, samples, channels, height, width = features.shape
    k = filters.shape[-1]
    taps = filters.flip(-2, -1).reshape(targets, 1, channels, k * k).mT
    products = taps @ features.reshape(targets, samples, channels, height * width)
    full = F.fold(products.reshape(targets * samples, k * k, -1), (height + k - 1, width + k - 1), k)
    lead = k - 1 - k // 2
    rows, columns = height + 2 * (k // 2) - k + 1, width + 2 * (k // 2) - k + 1
    return full[:, 0, lead : lead + rows, lead : lead + columns].reshape(targets, samples, rows, columns)


def apply_filter_transposed(features: Tensor, maps: Tensor, k: int) -> Tensor:
    """Adjoint of `apply_filter` in the filter: ``(ds/df)^T r``, summed over the samples (eq. S5).

    Args:
        features: TxNxCxHxW.
        maps: TxNxH'xW' (for instance weighted residuals).
        k: side of the filter.

    Returns:
        TxCxKxK.
    """
    targets, samples, channels, height, width = features.shape
    lead = k - 1 - k // 2
    tail = height + k - 1 - lead - maps.shape[-2]
    padded = F.pad(maps.reshape(targets * samples, 1, *maps.shape[-2:]), (lead, tail, lead, tail))
    shifted = F.unfold(padded, k).reshape(targets, samples, k * k, height * width)
    products = features.reshape(targets, samples, channels, height * width) @ shifted.mT
    return products.sum(1).reshape(targets, channels, k, k).flip(-2, -1)


class RadialFunction(nn.Module):
    """A function of the distance to the target's centre: piecewise linear, N knots `spacing` cells apart (eq. 6, 7).

    Beyond the last knot it stays constant. Evaluating the triangular basis functions is linear interpolation between
    the two neighbouring coefficients.
    """

    def __init__(self, coefficients: Tensor, spacing: float) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(coefficients.clone())
        self.spacing = spacing

    def forward(self, distance: Tensor) -> Tensor:
        """Values at distances (cells) of any shape."""
        last = self.coefficients.numel() - 1
        position = (distance / self.spacing).clamp(max=float(last))
        lower = position.floor().clamp(max=last - 1)
        fraction = position - lower
        index = lower.long()
        return self.coefficients[index] * (1 - fraction) + self.coefficients[index + 1] * fraction


def centre_distance(centres: Tensor, rows: int, columns: int) -> Tensor:
    """Distance of every cell of a score map to a centre.

    Args:
        centres: Sx2 (x, y) in cells, S any shape.
        rows, columns: size of the score map.

    Returns:
        S x rows x columns, in cells.
    """
    y = torch.arange(rows, device=centres.device, dtype=centres.dtype).reshape(-1, 1) - centres[..., 1, None, None]
    x = torch.arange(columns, device=centres.device, dtype=centres.dtype) - centres[..., 0, None, None]
    return torch.sqrt(y * y + x * x)


class FilterInitializer(nn.Module):
    """Initial filter from the target's appearance alone (section 3.3): convolution, precise RoI pooling, mean."""

    def __init__(self, channels: int, filter_size: int, stride: int) -> None:
        super().__init__()
        self.filter_size = filter_size
        self.stride = stride
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Features TxNxCxHxW and boxes TxNx4 (x, y, w, h in crop pixels) to filters TxCxKxK."""
        targets, samples = features.shape[:2]
        maps = self.conv(features.flatten(0, 1))
        pooled = precise_roi_pool(maps, boxes.reshape(-1, 1, 4), self.filter_size, self.stride)
        return pooled.reshape(targets, samples, *pooled.shape[2:]).mean(1)


class FilterOptimizer(nn.Module):
    """Steepest descent on the learned discriminative loss (sections 3.1, 3.2 and 3.4; algorithm 1).

    The residual of a sample is ``r = v (m s + (1 - m) max(0, s) - y)`` (eq. 2), with the label y, the target mask m
    and the spatial weight v learned as functions of the distance to the target's centre.

    Args:
        stride: pixels a cell of the score map.
        knots, spacing: number and distance (cells) of the knots of y, m and v.
        init_sigma: standard deviation (cells) of the Gaussian that y starts from.
        init_step, init_regularisation: initial step factor and lambda.
        mask_slope: slope of the scaled tanh (here, before the sigmoid) that the mask starts from.
    """

    def __init__(
        self,
        stride: int,
        knots: int = 100,
        spacing: float = 0.1,
        init_sigma: float = 0.9,
        init_step: float = 0.9,
        init_regularisation: float = 0.1,
        mask_slope: float = 3.0,
    ) -> None:
        super().__init__()
        self.stride = stride
        distance = torch.arange(knots) * spacing
        gauss = torch.exp(-0.5 * (distance / init_sigma) ** 2)
        self.label = RadialFunction(gauss - gauss.min(), spacing)
        self.mask = RadialFunction(mask_slope * torch.tanh(2.0 - distance), spacing)
        self.weight = RadialFunction(torch.ones(knots), spacing)
        self.log_step_length = nn.Parameter(torch.tensor([math.log(init_step)]))
        self.filter_reg = nn.Parameter(torch.tensor([init_regularisation]))

    def maps(self, boxes: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        """Label y, target mask m and spatial weight v for boxes Sx4 (x, y, w, h in crop pixels): S x rows x columns."""
        distance = centre_distance((boxes[..., :2] + boxes[..., 2:] / 2) / self.stride, rows, columns)
        return self.label(distance), torch.sigmoid(self.mask(distance)), self.weight(distance)

    def forward(
        self,
        filters: Tensor,
        features: Tensor,
        boxes: Tensor,
        iterations: int,
        sample_weights: Tensor | None = None,
        step_length: float | None = None,
    ) -> list[Tensor]:
        """Refine filters on their samples.

        Args:
            filters: TxCxKxK, f(0).
            features: TxNxCxHxW classification features.
            boxes: TxNx4 target boxes in crop pixels.
            iterations: number of steps.
            sample_weights: TxN that sum to one a target; None weighs all samples alike. A weight of zero leaves a
                sample out.
            step_length: alpha of plain gradient descent (eq. 3); None: steepest descent, which computes it (eq. 5).

        Returns:
            The iterates f(0) ... f(`iterations`), each TxCxKxK.
        """
        k = filters.shape[-1]
        rows, columns = features.shape[-2] + 1 - k % 2, features.shape[-1] + 1 - k % 2
        label, mask, weight = self.maps(boxes, rows, columns)
        if sample_weights is None:
            weight = weight * math.sqrt(1.0 / features.shape[1])
        else:
            weight = weight * sample_weights.sqrt()[..., None, None]
        step, regularisation = self._step_and_regularisation()
        iterates = [filters]
        for _ in range(iterations):
            scores = apply_filter(features, filters)
            # m s + (1 - m) max(0, s), written as the leaky ReLU that it is, and its derivative.
            slope = torch.where(scores > 0, torch.ones_like(mask), torch.where(scores < 0, mask, (1 + mask) / 2))
            residuals = weight * (slope * scores - label)
            jacobian = weight * slope  # q of eq. S4
            gradient = apply_filter_transposed(features, jacobian * residuals, k) + regularisation * filters
            if step_length is not None:
                filters = filters - step_length * gradient
            else:
                curvature = jacobian * apply_filter(features, gradient)
                norm = gradient.square().sum((1, 2, 3))
                alpha = norm / (curvature.square().sum((1, 2, 3)) + regularisation * norm).clamp_min(MIN_CURVATURE)
                filters = filters - (step * alpha)[:, None, None, None] * gradient
            iterates.append(filters)
        return iterates

    def loss(self, filters: Tensor, features: Tensor, boxes: Tensor, sample_weights: Tensor | None = None) -> Tensor:
        """The loss that `forward` descends (eq. 1), a value a target: T. Arguments as in `forward`."""
        scores = apply_filter(features, filters)
        label, mask, weight = self.maps(boxes, scores.shape[-2], scores.shape[-1])
        if sample_weights is None:
            weight = weight * math.sqrt(1.0 / features.shape[1])
        else:
            weight = weight * sample_weights.sqrt()[..., None, None]
        residuals = weight * (mask * scores + (1 - mask) * scores.clamp_min(0) - label)
        regularisation = self._step_and_regularisation()[1]
        return residuals.square().sum((1, 2, 3)) + regularisation * filters.square().sum((1, 2, 3))

    def _step_and_regularisation(self) -> tuple[Tensor, Tensor]:
        return torch.exp(self.log_step_length), self.filter_reg.square().clamp_min(MIN_REGULARISATION)
