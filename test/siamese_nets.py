"""Small Siamese networks with seeded random weights, shared by the tests of networks and trackers."""

from __future__ import annotations

import torch
from torch import nn

from tracker_ros.networks.alexnet import AlexNetConfig
from tracker_ros.networks.clnet import CLNet, CLNetConfig
from tracker_ros.networks.resnet_dilated import DilatedResNetConfig
from tracker_ros.networks.siamban import SiamBANConfig, SiamBANNet
from tracker_ros.networks.siamrn import SiamRNConfig, SiamRNNet
from tracker_ros.networks.siamrpn import SiamRPNConfig, SiamRPNNet

ALEX = AlexNetConfig((8, 12, 16, 16, 12))
RESNET = DilatedResNetConfig((1, 1, 1, 1), 8)
DEEP = SiamRPNConfig(RESNET, neck=12, hidden=12)
POINTS = SiamBANConfig(RESNET, neck=12, hidden=12)


def build(kind: str) -> nn.Module:
    """The small network of a kind, in evaluation, with batch norms that are not the identity."""
    torch.manual_seed(7)
    net: nn.Module = {
        "alex_dw": lambda: SiamRPNNet(SiamRPNConfig(ALEX, hidden=12)),
        "alex_up": lambda: SiamRPNNet(SiamRPNConfig(ALEX)),
        "siamrpnpp": lambda: SiamRPNNet(DEEP),
        "clnet": lambda: CLNet(CLNetConfig(DEEP, latent=(4, 8), width=8)),
        "siamban": lambda: SiamBANNet(POINTS),
        "siamrn": lambda: SiamRNNet(SiamRNConfig(POINTS)),
    }[kind]()
    net.train()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.7, 1.3)
                nn.init.normal_(module.bias, 0, 0.1)
                module.momentum = None
        # Proposals near their anchors and points, as trained networks make them.
        for name, weight in net.named_parameters():
            if ".loc.output." in name or ".loc.adjust." in name:
                weight.mul_(0.05)
                if name.endswith("bias") and kind in ("siamban", "siamrn"):
                    weight.fill_(3.0)
        # One pass in training gives the backbone the statistics of what it sees.
        net.backbone(torch.rand(2, 3, 127, 127) * 255)  # type: ignore[operator]
    return net.eval()
