"""IoU-Net: predicts the overlap of candidate boxes with a target (Danelljan et al., "ATOM", CVPR 2019, section 3.2).

The reference branch turns the target's appearance in the first frame into two modulation vectors; the test branch
scales its feature maps' channels by them, pools the candidate boxes and predicts their IoU. The prediction is
differentiable in the boxes, so they are refined by gradient ascent (DiMP, section 3.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracker_ros.networks import inference
from tracker_ros.networks.roi_pooling import pool_fixed_boxes, precise_roi_pool

#: Pixels a cell of the two feature maps that the network reads.
STRIDES = (8, 16)
#: Bins a side that candidate boxes are pooled to, on the maps of stride 8 and 16.
BINS = (5, 3)


class Modulation(NamedTuple):
    """Channel weights of a target, TxC each, for the maps of stride 8 and of stride 16."""

    stride8: Tensor
    stride16: Tensor


class IoUFeatures(NamedTuple):
    """Maps of the test branch: BxCxHxW at stride 8 and at stride 16."""

    stride8: Tensor
    stride16: Tensor


def conv_block(inputs: int, outputs: int, kernel: int = 3, padding: int = 1) -> nn.Sequential:
    """Convolution with bias, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class LinearBlock(nn.Module):
    """Linear layer on a pooled map, batch norm, ReLU: MxCxPxP to MxC'."""

    def __init__(self, inputs: int, outputs: int, bins: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs * bins * bins, outputs)
        self.bn: nn.BatchNorm1d | nn.Identity = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """MxCxPxP to MxC'."""
        return torch.relu(self.bn(self.linear(x.flatten(1))))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Weight (C'xCPP) and bias (C') of the layer with its batch norm (running statistics) folded in."""
        if isinstance(self.bn, nn.Identity):
            return self.linear.weight, self.linear.bias
        assert self.bn.running_var is not None
        assert self.bn.running_mean is not None
        scale = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
        return self.linear.weight * scale[:, None], (self.linear.bias - self.bn.running_mean) * scale + self.bn.bias


class IoUNet(nn.Module):
    """Predicts IoU (trained to ``2 IoU - 1``, so roughly in [-1, 1]) of boxes with the target.

    Args:
        channels: channels of the backbone's maps at stride 8 and 16.
        reference: channels of the reference branch at stride 8 and 16.
        hidden: channels of the test branch's maps and of its hidden layers.
    """

    def __init__(self, channels: tuple[int, int], reference: tuple[int, int] = (128, 256), hidden: int = 256) -> None:
        super().__init__()
        self.reference8 = conv_block(channels[0], reference[0])
        self.reference16 = conv_block(channels[1], reference[1])
        self.reference8_fc = conv_block(reference[0], hidden, 3, 0)
        self.modulation8 = conv_block(hidden + reference[1], hidden, 1, 0)
        self.modulation16 = conv_block(hidden + reference[1], hidden, 1, 0)
        self.test8 = nn.Sequential(conv_block(channels[0], hidden), conv_block(hidden, hidden))
        self.test16 = nn.Sequential(conv_block(channels[1], hidden), conv_block(hidden, hidden))
        self.fc8 = LinearBlock(hidden, hidden, BINS[0])
        self.fc16 = LinearBlock(hidden, hidden, BINS[1])
        self.predictor = nn.Linear(2 * hidden, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def modulation(self, layer2: Tensor, layer3: Tensor, boxes: Tensor) -> Modulation:
        """Modulation vectors of targets.

        Args:
            layer2, layer3: backbone maps of the reference images, TxCxHxW at stride 8 and 16.
            boxes: Tx4 target boxes (x, y, w, h in crop pixels).
        """
        pooled8 = precise_roi_pool(self.reference8(layer2), boxes.unsqueeze(1), 3, STRIDES[0]).squeeze(1)
        pooled16 = precise_roi_pool(self.reference16(layer3), boxes.unsqueeze(1), 1, STRIDES[1]).squeeze(1)
        joint = torch.cat([self.reference8_fc(pooled8), pooled16], 1)
        return Modulation(self.modulation8(joint).flatten(1), self.modulation16(joint).flatten(1))

    def features(self, layer2: Tensor, layer3: Tensor) -> IoUFeatures:
        """Maps of the test branch from the backbone's maps, BxCxHxW at stride 8 and 16."""
        return IoUFeatures(self.test8(layer2), self.test16(layer3))

    def forward(self, modulation: Modulation, features: IoUFeatures, boxes: Tensor) -> Tensor:
        """Predicted overlap of boxes.

        Args:
            modulation: of B targets.
            features: test maps of B targets.
            boxes: BxNx4 (x, y, w, h in crop pixels).

        Returns:
            BxN.
        """
        hidden = []
        pairs = zip((self.fc8, self.fc16), modulation, features, BINS, STRIDES, strict=True)
        for layer, vector, maps, bins, stride in pairs:
            pooled = precise_roi_pool(maps * vector[:, :, None, None], boxes, bins, stride)
            hidden.append(layer(pooled.flatten(0, 1)))
        return self.predictor(torch.cat(hidden, 1)).reshape(boxes.shape[:2])

    def rate_fixed(self, modulation: Modulation, features: IoUFeatures, boxes: Tensor) -> Tensor:
        """`forward` for boxes that need no gradient: channels are scaled after pooling, the same and cheaper."""
        hidden = []
        pairs = zip((self.fc8, self.fc16), modulation, features, BINS, STRIDES, strict=True)
        for layer, vector, maps, bins, stride in pairs:
            pooled = pool_fixed_boxes(maps, boxes, bins, stride) * vector[:, None, :, None, None]
            hidden.append(layer(pooled.flatten(0, 1)))
        return self.predictor(torch.cat(hidden, 1)).reshape(boxes.shape[:2])


class _Part(NamedTuple):
    """The part of a level's map that boxes reach: its first row and column, and its cells BxHxWxC, modulated."""

    top: int
    left: int
    cells: Tensor


class BoxRefiner:
    """IoU of boxes and its gradient in closed form: what box refinement evaluates, a few times a frame.

    Precise RoI pooling is one matrix product with a pooling matrix that has a row a bin, on maps stored cell by cell;
    the derivative by the box goes through the same matrix. No graph is recorded. What is done to the bins' edges is
    done for both axes and both levels at once, side by side.

    Args:
        net: evaluated IoU-Net; its running batch-norm statistics are folded in. Later changes of it are not seen.
    """

    def __init__(self, net: IoUNet) -> None:
        self._layers = []
        hidden = net.predictor.in_features // 2
        with torch.no_grad():
            head = net.predictor.weight.reshape(2, hidden)
            for layer, readout, bins in zip((net.fc8, net.fc16), head, BINS, strict=True):
                weight, bias = layer.affine()
                # Rows of the weight follow pooled maps stored bin by bin, channels last.
                weight = weight.reshape(weight.shape[0], -1, bins * bins).permute(0, 2, 1).flatten(1).contiguous()
                self._layers.append((weight, bias, readout))
            self._bias = net.predictor.bias
            # An edge lies at start * share + length * fraction, cells of its level. Between the edges of one level and
            # those of the next there is a bin of no meaning, of no weight.
            new = self._bias.new_ones
            share = torch.cat([new(bins + 1) / stride for bins, stride in zip(BINS, STRIDES, strict=True)])
            fraction = torch.cat([new(bins + 1).cumsum(0).sub(1) / bins for bins in BINS]) * share
            self._edge = torch.stack([share, fraction], 1)
            widths = [new(bins) * bins * stride for bins, stride in zip(BINS, STRIDES, strict=True)]
            self._per_length = torch.cat([widths[0], new(1) * 0, widths[1]])[:, None]

    @torch.no_grad()
    def __call__(self, modulation: Modulation, features: IoUFeatures, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted overlap and its derivative by the box.

        Args:
            modulation: of B targets.
            features: test maps of B targets, float32.
            boxes: BxNx4 (x, y, w, h in crop pixels).

        Returns:
            The overlap, BxN, and its gradient by (x, y, w, h), BxNx4.
        """
        return self._evaluate(self._parts(modulation, features, boxes, ()), boxes)

    @torch.no_grad()
    def ascend(self, modulation: Modulation, features: IoUFeatures, boxes: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Gradient ascent of the overlap, each step as long as the box is large (DiMP, section 3.5).

        Args:
            modulation, features, boxes: as in `__call__`.
            steps: at least one.

        Returns:
            The boxes after the last step, BxNx4, and the overlap before it, BxN.
        """
        parts: tuple[_Part, ...] = ()
        for _ in range(steps):
            parts = self._parts(modulation, features, boxes, parts)
            overlap, gradient = self._evaluate(parts, boxes)
            boxes = torch.addcmul(boxes, gradient, boxes[..., 2:].repeat(1, 1, 2))
        return boxes, overlap

    def _parts(
        self, modulation: Modulation, features: IoUFeatures, boxes: Tensor, known: tuple[_Part, ...]
    ) -> tuple[_Part, ...]:
        """The parts of the maps that boxes reach; those that are `known` where they still do.

        Cells that no box reaches cost time. Where asking which they are means to wait, all are taken.
        """
        if not inference.asking_is_free(boxes.device):
            return known or tuple(
                _Part(0, 0, _cells(maps, vector)) for maps, vector in zip(features, modulation, strict=True)
            )
        start, end = boxes[..., :2].flatten(0, 1), (boxes[..., :2] + boxes[..., 2:]).flatten(0, 1)
        low, high = torch.aminmax(torch.cat([start, end]).nan_to_num(), dim=0)
        reach = list(zip(low.tolist(), high.tolist(), strict=True))
        parts = []
        for i, (maps, vector, stride) in enumerate(zip(features, modulation, STRIDES, strict=True)):
            (left, right), (top, bottom) = (
                _reach(*axis, stride, cells) for axis, cells in zip(reach, maps.shape[:1:-1], strict=True)
            )
            if known:
                y, x, cells = known[i]
                if y <= top and x <= left and bottom <= y + cells.shape[1] and right <= x + cells.shape[2]:
                    parts.append(known[i])
                    continue
            parts.append(_Part(top, left, _cells(maps[..., top:bottom, left:right], vector)))
        return tuple(parts)

    def _evaluate(self, parts: Sequence[_Part], boxes: Tensor) -> tuple[Tensor, Tensor]:
        batch, count = boxes.shape[:2]
        start, length = boxes[..., :2, None], boxes[..., 2:, None]
        edges = torch.addcmul(start * self._edge[:, 0], length, self._edge[:, 1])  # B N 2 E
        if any(part.top or part.left for part in parts):
            first = [[place for part, b in zip(parts, BINS, strict=True) for place in [part[axis]] * (b + 1)]
                     for axis in (1, 0)]  # fmt: skip
            edges = edges - edges.new_tensor(first)
        longest = max(max(part.cells.shape[1:3]) for part in parts)
        at = torch.arange(longest, device=boxes.device, dtype=boxes.dtype)
        offset = (edges.unsqueeze(-1) - at).clamp(-1, 1)  # B N 2 E L
        away = offset.abs()
        integral = torch.addcmul(offset, offset, away, value=-0.5)  # of the hat function, but for a constant
        per_length = (length > 0) / length.clamp_min(1e-12)
        per_extent = per_length.unsqueeze(-1) * self._per_length  # B N 2 E-1 1; bins without extent count as zero
        weights = (integral[..., 1:, :] - integral[..., :-1, :]) * per_extent
        by_weights = torch.zeros_like(weights)
        overlap = self._bias.expand(batch, count)
        row = 0
        for part, (weight, bias, readout), bins in zip(parts, self._layers, BINS, strict=True):
            height, width, channels = part.cells.shape[1:]
            cells = part.cells.reshape(batch, height * width, channels)
            rows = slice(row, row + bins)
            row += bins + 1
            of_x = weights[:, :, 0, rows, :width].reshape(batch, count, 1, bins, 1, width)
            of_y = weights[:, :, 1, rows, :height].reshape(batch, count, bins, 1, height, 1)
            pooling = of_y * of_x
            pooled = torch.bmm(pooling.reshape(batch, count * bins * bins, height * width), cells)
            before = torch.addmm(bias, pooled.reshape(batch * count, -1), weight.mT)
            active = (before > 0) * readout
            overlap = overlap + (before * active).sum(1).reshape(batch, count)
            # Back through ReLU, linear layer and modulation to the pooling matrix, then to its two factors.
            back = (active @ weight).reshape(batch, count * bins * bins, channels)
            by_pooling = torch.bmm(back, cells.mT).reshape(pooling.shape)
            by_weights[:, :, 0, rows, :width] = (by_pooling * of_y).sum((2, 4))
            by_weights[:, :, 1, rows, :height] = (by_pooling * of_x).sum((3, 5))
        by_integral = F.pad(by_weights * per_extent, (0, 0, 1, 1))
        by_edges = ((1 - away) * (by_integral[..., :-1, :] - by_integral[..., 1:, :])).sum(-1)
        by_start, by_length = (by_edges @ self._edge).unbind(-1)
        # A longer box also has wider bins, of which each cell is a smaller part.
        by_length = by_length - (by_weights * weights).sum((-2, -1)) * per_length[..., 0]
        return overlap, torch.cat([by_start, by_length], -1)


def _cells(maps: Tensor, vector: Tensor) -> Tensor:
    """Maps BxCxHxW, their channels scaled by BxC, as BxHxWxC."""
    return maps.permute(0, 2, 3, 1) * vector[:, None, None]


def _reach(low: float, high: float, stride: int, cells: int) -> tuple[int, int]:
    """First and one past the last of `cells` cells that boxes from `low` to `high` read; at least one cell."""
    first = min(max(math.floor(low / stride), 0), cells - 1)
    return first, max(min(math.ceil(high / stride) + 1, cells), first + 1)
