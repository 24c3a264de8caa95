"""IoU-Net: predicts the overlap of candidate boxes with a target (Danelljan et al., "ATOM", CVPR 2019, section 3.2).

The reference branch turns the target's appearance in the first frame into two modulation vectors; the test branch
scales its feature maps' channels by them, pools the candidate boxes and predicts their IoU. The prediction is
differentiable in the boxes, so they are refined by gradient ascent (DiMP, section 3.5).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tracker_ros.networks.roi_pooling import bin_edges, bin_weights, pool_fixed_boxes, precise_roi_pool

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


class BoxRefiner:
    """IoU of boxes and its gradient in closed form: what box refinement evaluates, a few times a frame.

    Precise RoI pooling is one matrix product with a pooling matrix that has a row a bin, on maps stored cell by cell;
    the derivative by the box goes through the same matrix. No graph is recorded.

    Args:
        net: evaluated IoU-Net; its running batch-norm statistics are folded in. Later changes of it are not seen.
    """

    def __init__(self, net: IoUNet) -> None:
        self._layers = []
        hidden = net.predictor.in_features // 2
        with torch.no_grad():
            head = net.predictor.weight.reshape(2, hidden)
            for layer, readout, bins, stride in zip((net.fc8, net.fc16), head, BINS, STRIDES, strict=True):
                weight, bias = layer.affine()
                # Rows of the weight follow pooled maps stored bin by bin, channels last.
                weight = weight.reshape(weight.shape[0], -1, bins * bins).permute(0, 2, 1).flatten(1).contiguous()
                self._layers.append((weight, bias, readout, bins, stride))
        self._bias = net.predictor.bias

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
        batch, count = boxes.shape[:2]
        overlap = self._bias.expand(batch, count)
        gradient = torch.zeros_like(boxes)
        for (weight, bias, readout, bins, stride), vector, maps in zip(self._layers, modulation, features, strict=True):
            channels = maps.shape[1]
            scaled = boxes / stride
            edges_x = bin_edges(scaled[..., 0], scaled[..., 2], bins)
            edges_y = bin_edges(scaled[..., 1], scaled[..., 3], bins)
            if boxes.device.type == "cpu":  # cells that no box reaches cost time; elsewhere, asking costs more
                (left, right), (top, bottom) = _reach(edges_x, maps.shape[-1]), _reach(edges_y, maps.shape[-2])
                maps, edges_x, edges_y = maps[..., top:bottom, left:right], edges_x - left, edges_y - top
            height, width = maps.shape[-2:]
            cells = maps.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
            weights_x, weights_y = bin_weights(edges_x, width), bin_weights(edges_y, height)
            pooling = weights_y[:, :, :, None, :, None] * weights_x[:, :, None, :, None, :]
            pooled = pooling.reshape(batch, count * bins * bins, height * width) @ cells * vector.unsqueeze(1)
            before = torch.addmm(bias, pooled.reshape(batch * count, -1), weight.mT)
            active = (before > 0) * readout
            overlap = overlap + (before * active).sum(1).reshape(batch, count)
            # Back through ReLU, linear layer and modulation to the pooling matrix, then to its two factors.
            back = (active @ weight).reshape(batch, count * bins * bins, channels) * vector.unsqueeze(1)
            by_pooling = (back @ cells.mT).reshape(pooling.shape)
            by_x = (by_pooling * weights_y[:, :, :, None, :, None]).sum((2, 4))
            by_y = (by_pooling * weights_x[:, :, None, :, None, :]).sum((3, 5))
            for axis, (by, edges, weights) in enumerate(((by_x, edges_x, weights_x), (by_y, edges_y, weights_y))):
                start, length = _box_gradient(by, edges, weights)
                gradient[..., axis] += start / stride
                gradient[..., 2 + axis] += length / stride
        return overlap, gradient


def _reach(edges: Tensor, cells: int) -> tuple[int, int]:
    """First and one past the last of `cells` cells that bins with these edges read; at least one cell."""
    low, high = int(edges.min().nan_to_num().floor()), int(edges.max().nan_to_num().ceil()) + 1
    first = min(max(low, 0), cells - 1)
    return first, max(min(high, cells), first + 1)


def _box_gradient(by_weights: Tensor, edges: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Chain the derivative by the bin weights (SxPxL) to the box's start and length along one axis (S each)."""
    bins, cells = weights.shape[-2:]
    hat = (1 - (edges.unsqueeze(-1) - torch.arange(cells, device=edges.device, dtype=edges.dtype)).abs()).clamp_min(0)
    extent = (edges[..., 1:] - edges[..., :-1]).unsqueeze(-1).clamp_min(1e-12)
    scaled = by_weights / extent
    start = (scaled * (hat[..., 1:, :] - hat[..., :-1, :])).sum((-2, -1))
    fraction = (torch.arange(bins + 1, device=edges.device, dtype=edges.dtype) / bins)[:, None]
    spread = fraction[1:] * hat[..., 1:, :] - fraction[:-1] * hat[..., :-1, :]
    length = (scaled * (spread - weights / bins)).sum((-2, -1))
    return start, length
