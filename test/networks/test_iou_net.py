from __future__ import annotations

import pytest
import torch

from tracker_ros.networks.inference import prepare
from tracker_ros.networks.iou_net import BoxRefiner, IoUFeatures, IoUNet, Modulation


@pytest.fixture
def net() -> IoUNet:
    torch.manual_seed(0)
    net = IoUNet((8, 12), reference=(6, 10), hidden=16).double()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return net.eval()


def _inputs(net: IoUNet) -> tuple[Modulation, IoUFeatures, torch.Tensor]:
    torch.manual_seed(1)
    layer2, layer3 = torch.randn(2, 8, 18, 18).double(), torch.randn(2, 12, 9, 9).double()
    boxes = torch.tensor([[40.0, 50.0, 40.0, 30.0], [60.0, 30.0, 25.0, 50.0]]).double()
    with torch.no_grad():
        modulation, features = net.modulation(layer2, layer3, boxes), net.features(layer2, layer3)
    proposals = boxes[:, None] + 10 * torch.randn(2, 7, 4).double()
    return modulation, features, proposals


@pytest.mark.parametrize("folded", [False, True])
def test_closed_form_gradient_agrees_with_autograd(net: IoUNet, folded: bool) -> None:
    modulation, features, proposals = _inputs(net)
    if folded:
        net = prepare(net, torch.device("cpu"))
    proposals.requires_grad_()
    expected = net(modulation, features, proposals)
    (gradient,) = torch.autograd.grad(expected.sum(), proposals)
    iou, closed_form = BoxRefiner(net)(modulation, features, proposals.detach())
    assert torch.allclose(iou, expected)
    assert torch.allclose(closed_form, gradient)
    assert gradient.abs().max() > 1e-4


def test_boxes_that_leave_the_map_have_no_gradient_beyond_it(net: IoUNet) -> None:
    modulation, features, _ = _inputs(net)
    boxes = torch.tensor([[[-500.0, 10.0, 40.0, 30.0], [100.0, 900.0, 40.0, 30.0]]] * 2).double().requires_grad_()
    expected = net(modulation, features, boxes)
    overlap, gradient = BoxRefiner(net)(modulation, features, boxes.detach())
    assert torch.allclose(overlap, expected)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_folding_batch_norms_changes_nothing(net: IoUNet) -> None:
    modulation, features, proposals = _inputs(net)
    with torch.no_grad():
        before = net(modulation, features, proposals)
        after = prepare(net, torch.device("cpu"))(modulation, features, proposals)
    assert torch.allclose(before, after)
    assert not any(isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d) for m in net.modules())


def test_overlaps_of_fixed_boxes_are_those_of_the_iou_net() -> None:
    torch.manual_seed(0)
    net = IoUNet((8, 12), (8, 12), 16).eval()
    maps = IoUFeatures(torch.randn(2, 16, 12, 12), torch.randn(2, 16, 6, 6))
    modulation = Modulation(torch.rand(2, 16), torch.rand(2, 16))
    boxes = torch.tensor([[[10.0, 20.0, 40.0, 30.0]], [[5.0, 5.0, 50.0, 60.0]]])
    torch.testing.assert_close(
        net.rate_fixed(modulation, maps, boxes), net(modulation, maps, boxes), rtol=1e-4, atol=1e-5
    )
