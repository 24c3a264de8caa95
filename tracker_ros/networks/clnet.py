"""CLNet (Dong et al., ECCV 2020): a compact latent network that adjusts SiamRPN++ to a sequence in its first frame.

The last layer of every branch and level is replaced: the statistics of the branch's hidden vectors over the annotated
positive and negative cells of the first frame predict the change of its weights (section 3.3).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracker_ros.networks.correlation import DepthwiseBranch
from tracker_ros.networks.siamese import Kernels, Maps
from tracker_ros.networks.siamrpn import SIAMRPNPP18, SIAMRPNPP_LITE0, SIAMRPNPP_R50, SiamRPNConfig, SiamRPNNet

#: What can be adjusted: the branch of classification and that of location.
BRANCHES = ("cls", "loc")


@dataclass(frozen=True)
class CLNetConfig:
    """Shape of a CLNet.

    Attributes:
        base: the SiamRPN++ that is adjusted.
        latent: channels of the adjusting features of the classification and of the location branch. The former has
            statistics of two sets, the latter of one, so twice as many channels make latent codes of the same size.
        width: hidden units of the prediction network.
    """

    base: SiamRPNConfig
    latent: tuple[int, int] = (128, 256)
    width: int = 256


CLNET_R50 = CLNetConfig(SIAMRPNPP_R50)
#: Compact presets on the shared backbones.
CLNET18 = CLNetConfig(SIAMRPNPP18, latent=(64, 128), width=128)
CLNET_LITE0 = CLNetConfig(SIAMRPNPP_LITE0, latent=(64, 128), width=128)


class FrameNorm(nn.Module):
    """Batch norm by the statistics of the sequence at hand, never by running ones.

    Every target is adjusted by one map, that of its first frame, and normalised by the statistics of that map, in
    training as in tracking. The paper trains with a batch of image pairs of one sequence for the same reason: what a
    latent code says must not depend on other sequences.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """BxCxHxW to BxCxHxW."""
        return F.instance_norm(x, weight=self.weight, bias=self.bias)


class Adjustment(nn.Module):
    """Feature-adjusting network, latent encoder and prediction network of one branch of one level (section 3.3).

    Args:
        channels: of the branch's hidden map.
        outputs: of the branch's last layer.
        latent: channels of the adjusting features.
        width: hidden units of the prediction network.
        negatives: the latent code also has the statistics of the negative set (classification).
    """

    def __init__(self, channels: int, outputs: int, latent: int, width: int, negatives: bool) -> None:
        super().__init__()
        self.outputs = outputs
        self.negatives = negatives
        layers: list[nn.Module] = []
        for inputs in (channels, latent, latent):
            layers += [nn.Conv2d(inputs, latent, 1, bias=False), FrameNorm(latent), nn.ReLU(inplace=True)]
        self.encoder = nn.Sequential(*layers)
        self.predictor = nn.Sequential(
            *(nn.Linear(latent * (4 if negatives else 2), width, bias=False), nn.ReLU(inplace=True)),
            *(nn.Linear(width, width, bias=False), nn.ReLU(inplace=True)),
            *(nn.Linear(width, outputs * (channels + 1) + 1, bias=False), nn.Tanh()),
        )

    def latent(self, hidden: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Latent code (eq. 4): means, then standard deviations, of the adjusting features over each set.

        Args:
            hidden: TxCxHxW hidden maps.
            positive, negative: TxN bool, the cells of each set, N = H * W.

        Returns:
            TxD: mean+, (mean-,) std+ (, std-).
        """
        features = self.encoder(hidden).flatten(2)
        sets = (positive, negative) if self.negatives else (positive,)
        statistics = [_statistics(features, chosen) for chosen in sets]
        return torch.cat([mean for mean, _ in statistics] + [std for _, std in statistics], 1)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latent codes TxD to changes (eq. 5): of the weights TxOxC, the biases TxO and the level's share T."""
        predicted = self.predictor(latent)
        table = predicted[:, 1:].reshape(latent.shape[0], self.outputs, -1)
        return table[..., 1:], table[..., 0], predicted[:, 0]


def _statistics(features: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation (zero below two samples) of TxCxN over the chosen ones, TxN: TxC each."""
    share = chosen.to(features.dtype)[:, None]
    count = share.sum(-1)
    mean = (features * share).sum(-1) / count.clamp_min(1)
    square = ((features - mean[..., None]).square() * share).sum(-1)
    variance = square / (count - 1).clamp_min(1)
    std = variance.clamp_min(1e-12).sqrt()  # whose slope at zero would spoil all gradients
    return mean, torch.where((count > 1) & (variance > 0), std, torch.zeros_like(std))


class AdjustedKernels(NamedTuple):
    """What is kept of T targets: correlation kernels, and last layers with all levels fused into one.

    Attributes:
        cls, loc: correlation kernels, TxLxCxKxK.
        cls_weight, loc_weight: TxOx(L C), every level's weights times its share.
        cls_bias, loc_bias: TxO.
    """

    cls: Tensor
    loc: Tensor
    cls_weight: Tensor
    cls_bias: Tensor
    loc_weight: Tensor
    loc_bias: Tensor


class LevelAdjustment(nn.Module):
    """The adjustments of one level's two branches."""

    def __init__(self, config: CLNetConfig) -> None:
        super().__init__()
        hidden, anchors = config.base.hidden, config.base.anchors
        self.cls = Adjustment(hidden, 2 * anchors, config.latent[0], config.width, negatives=True)
        self.loc = Adjustment(hidden, 4 * anchors, config.latent[1], config.width, negatives=False)


class CLNet(SiamRPNNet):
    """SiamRPN++ with compact latent networks."""

    def __init__(self, config: CLNetConfig) -> None:
        super().__init__(config.base)
        self.adjustments = nn.ModuleList(LevelAdjustment(config) for _ in self.heads)

    def hidden(self, features: list[Tensor], kernels: Kernels | AdjustedKernels) -> tuple[list[Tensor], list[Tensor]]:
        """The hidden maps M of eq. 3 for classification and location: one BxCxSxS a level."""
        cls, loc = [], []
        for i, (head, level) in enumerate(zip(self.levels, features, strict=True)):
            assert isinstance(head.cls, DepthwiseBranch)
            assert isinstance(head.loc, DepthwiseBranch)
            cls.append(head.cls.hidden(head.cls.correlate(level, kernels.cls[:, i])))
            loc.append(head.loc.hidden(head.loc.correlate(level, kernels.loc[:, i])))
        return cls, loc

    def unadjusted(self, kernels: Kernels) -> AdjustedKernels:
        """The base tracker's own last layers, for targets without samples to adjust by."""
        return self._fuse(kernels, {})

    def adjust(
        self,
        kernels: Kernels,
        hidden: tuple[list[Tensor], list[Tensor]],
        positive: Tensor,
        negative: Tensor,
        branches: Collection[str] = BRANCHES,
    ) -> AdjustedKernels:
        """Adjust the last layers of T targets (eq. 5 and 6). The network itself does not change.

        Args:
            kernels: correlation kernels of the targets.
            hidden: hidden maps of their first frames (`hidden`).
            positive, negative: TxN bool, the cells of either set, N = S * S. A target whose positive set is empty
                keeps the base tracker's layers.
            branches: which of `BRANCHES` are adjusted.
        """
        changes: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        usable = positive.any(1)
        for maps, name in zip(hidden, BRANCHES, strict=True):
            if name not in branches:
                continue
            networks = [cast(Adjustment, getattr(level, name)) for level in self.adjustments]
            predicted = [net(net.latent(level, positive, negative)) for net, level in zip(networks, maps, strict=True)]
            changes[name] = [
                (weight * usable[:, None, None], bias * usable[:, None], share * usable)
                for weight, bias, share in predicted
            ]
        return self._fuse(kernels, changes)

    def _fuse(
        self, kernels: Kernels, changes: Mapping[str, Sequence[tuple[Tensor, Tensor, Tensor]]]
    ) -> AdjustedKernels:
        """Sum over levels of share * (weight h + bias), as one layer on the concatenated hidden maps.

        Args:
            kernels: of T targets.
            changes: by branch, each level's changes of weights, biases and share (`Adjustment.forward`).
        """
        layers: list[Tensor] = []
        targets = kernels.cls.shape[0]
        for name in BRANCHES:
            logits = getattr(self, f"{name}_fusion").expand(targets, -1)
            outputs = [cast(DepthwiseBranch, getattr(head, name)).output for head in self.levels]
            weights = [layer.weight.flatten(1).expand(targets, -1, -1) for layer in outputs]
            biases = [layer.bias.expand(targets, -1) for layer in outputs if layer.bias is not None]
            if name in changes:
                weights = [w + change[0] for w, change in zip(weights, changes[name], strict=True)]
                biases = [b + change[1] for b, change in zip(biases, changes[name], strict=True)]
                logits = logits + torch.stack([change[2] for change in changes[name]], 1)
            shares = logits.softmax(1)
            layers.append(torch.cat([w * shares[:, i, None, None] for i, w in enumerate(weights)], 2))
            layers.append(sum((b * shares[:, i, None] for i, b in enumerate(biases)), torch.zeros_like(biases[0])))
        return AdjustedKernels(kernels.cls, kernels.loc, *layers)

    def respond(self, features: list[Tensor], kernels: Kernels | AdjustedKernels) -> Maps:
        """Search features and what is kept of B targets to their maps, by their adjusted last layers (eq. 7)."""
        if isinstance(kernels, Kernels):
            return super().respond(features, kernels)
        return self.finish(self.hidden(features, kernels), kernels)

    def finish(self, hidden: tuple[list[Tensor], list[Tensor]], kernels: AdjustedKernels) -> Maps:
        """Hidden maps (`hidden`) of B targets to their maps."""
        cls, loc = (torch.cat(maps, 1).flatten(2) for maps in hidden)
        return self.flatten(
            torch.baddbmm(kernels.cls_bias[..., None], kernels.cls_weight, cls),
            torch.baddbmm(kernels.loc_bias[..., None], kernels.loc_weight, loc),
        )
