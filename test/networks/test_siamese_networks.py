"""The Siamese networks on small shapes: alignment, batches, CLNet's adjustment, SiamRN's relation detector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from siamese_nets import build
from torch import Tensor

from tracker_ros.networks import inference
from tracker_ros.networks.clnet import AdjustedKernels
from tracker_ros.networks.inference import prepare
from tracker_ros.networks.siamese import Kernels, central, gather, split
from tracker_ros.networks.siamrn import FusedRelation, RelationParts


def _crops(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 255


@pytest.mark.parametrize(
    ("kind", "size", "planes", "cells"),
    [
        ("alex_dw", 287, 5, 21),
        ("alex_dw", 255, 5, 17),
        ("alex_up", 287, 5, 21),
        ("siamrpnpp", 255, 5, 25),
        ("clnet", 255, 5, 25),
        ("siamban", 255, 1, 25),
    ],
)
@torch.no_grad()
def test_maps_have_the_published_sizes(kind: str, size: int, planes: int, cells: int) -> None:
    net: Any = build(kind)
    maps = net(_crops(2, size), net.template(_crops(2, 127)))
    assert maps.cls.shape == (2, 2, planes * cells * cells)
    assert maps.loc.shape == (2, 4, planes * cells * cells)
    assert maps.scores.shape == (2, planes * cells * cells)


@pytest.mark.parametrize("kind", ["alex_dw", "alex_up", "siamrpnpp", "siamban"])
@torch.no_grad()
def test_targets_in_a_batch_do_not_mix(kind: str) -> None:
    net: Any = build(kind)
    kernels = net.template(_crops(2, 127))
    search = _crops(2, 255, 1)
    both = net(search, kernels)
    first, second = (net(search[i : i + 1], gather([one])) for i, one in enumerate(split(kernels)))
    torch.testing.assert_close(both.cls, torch.cat([first.cls, second.cls]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.loc, torch.cat([first.loc, second.loc]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["alex_dw", "siamrpnpp"])
@torch.no_grad()
def test_the_middle_of_a_search_map_is_the_templates(kind: str) -> None:
    """Template and search crops are aligned: the search map's centre sees the template's pixels."""
    net: Any = build(kind)
    search = _crops(1, 255)
    template = search[..., 64:191, 64:191]
    for small, large in zip(net.features(template), net.features(search), strict=True):
        start = (large.shape[-1] - small.shape[-1]) // 2
        assert (large.shape[-1] - small.shape[-1]) % 2 == 0
        # Padding reaches in from a deep template's border, and not to its middle cell in this shallow network.
        i = small.shape[-1] // 2
        middle = large[..., start + i, start + i]
        torch.testing.assert_close(small[..., i, i], middle, atol=1e-3, rtol=1e-3)
    assert central(torch.zeros(1, 1, 15, 15)).shape == (1, 1, 7, 7)
    assert central(torch.zeros(1, 1, 6, 6)).shape == (1, 1, 6, 6)


@pytest.mark.parametrize("kind", ["alex_dw", "alex_up", "siamrpnpp", "siamban"])
@torch.no_grad()
def test_preparing_for_inference_keeps_the_results(kind: str) -> None:
    net: Any = build(kind)
    crops, search = _crops(1, 127), _crops(1, 255, 1)
    before = net(search, net.template(crops))
    prepared = prepare(net, torch.device("cpu"))
    last = search.to(memory_format=torch.channels_last)
    after = prepared(last, prepared.template(crops))
    scale = float(before.loc.abs().max())
    torch.testing.assert_close(after.cls, before.cls, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after.loc, before.loc, atol=1e-3 * scale, rtol=1e-3)


# --- CLNet -----------------------------------------------------------------------------------------------------------


def _sets(count: int) -> tuple[Tensor, Tensor]:
    r = torch.rand(count, 625, generator=torch.Generator().manual_seed(5))
    return r > 0.98, r < 0.1


@torch.no_grad()
def test_clnets_latent_code_is_means_and_deviations_of_the_sets() -> None:
    net: Any = build("clnet")
    adjustment = net.adjustments[0].cls
    hidden = torch.randn(2, 12, 25, 25)
    positive, negative = _sets(2)
    negative[1] = False
    negative[1, 3] = True  # one sample has no deviation
    code = adjustment.latent(hidden, positive, negative)
    for t in range(2):
        features = adjustment.encoder(hidden[t : t + 1]).flatten(2)[0]
        plus, minus = features[:, positive[t]], features[:, negative[t]]
        deviation = minus.std(1) if t == 0 else torch.zeros(4)
        expected = torch.cat([plus.mean(1), minus.mean(1), plus.std(1), deviation])
        torch.testing.assert_close(code[t], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_clnets_fused_layer_is_the_levels_mixed() -> None:
    net: Any = build("clnet")
    kernels = net.template(_crops(1, 127))
    features = net.features(_crops(1, 255, 1))
    base, fused = net.respond(features, kernels), net.respond(features, net.unadjusted(kernels))
    torch.testing.assert_close(fused.cls, base.cls, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fused.loc, base.loc, atol=1e-4, rtol=1e-4)

    positive, negative = _sets(1)
    hidden = net.hidden(features, kernels)
    adjusted = net.respond(features, net.adjust(kernels, hidden, positive, negative))
    logits, outputs = [], []
    for i, head in enumerate(net.heads):
        network = net.adjustments[i].cls
        weight, bias, share = network(network.latent(hidden[0][i], positive, negative))
        layer = head.cls.output
        new = torch.einsum("oc,cyx->oyx", layer.weight.flatten(1) + weight[0], hidden[0][i][0])
        outputs.append(new + (layer.bias + bias[0])[:, None, None])
        logits.append(net.cls_fusion[i] + share[0])
    shares = torch.stack(logits).softmax(0)
    expected = sum(s * o for s, o in zip(shares, outputs, strict=True))
    torch.testing.assert_close(adjusted.cls, expected.reshape(1, 2, -1), atol=1e-4, rtol=1e-4)
    assert (adjusted.cls - base.cls).abs().max() > 1e-3


@torch.no_grad()
def test_an_adjustment_stays_with_its_target() -> None:
    net: Any = build("clnet")
    state = {k: v.clone() for k, v in net.state_dict().items()}
    positive, negative = _sets(2)

    def adjust(chosen: list[int]) -> AdjustedKernels:
        kernels = net.template(_crops(2, 127)[chosen])
        hidden = net.hidden(net.features(_crops(2, 255, 1)[chosen]), kernels)
        return net.adjust(kernels, hidden, positive[chosen], negative[chosen])

    first, second, again = adjust([0]), adjust([1]), adjust([0])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.cls_weight, second.cls_weight)
    both = adjust([0, 1])
    for one, two, pair in zip(first, second, both, strict=True):
        torch.testing.assert_close(pair, torch.cat([one, two]), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())


# --- SiamRN ----------------------------------------------------------------------------------------------------------


def _relation_inputs(net: Any, targets: int) -> tuple[Kernels, list[Tensor], list[Tensor], Tensor]:
    template = net.features(_crops(targets, 127))
    target_boxes = torch.tensor([[30.0, 25.0, 66.0, 77.0]]).repeat(targets, 1)
    features = net.features(_crops(targets, 255, 1))
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(targets, 150, 2, generator=generator) * 200
    size = torch.rand(targets, 150, 2, generator=generator) * 120
    high = (corner + size).clamp_max(255)
    boxes = torch.cat([corner, high - corner], -1)
    boxes[:, 5, 2:] = 0  # no area
    boxes[:, 6] = torch.tensor([0.0, 0.0, 255.0, 255.0])
    return net.kernels(template), net.pool_target(template, target_boxes), features, boxes


@pytest.mark.parametrize("folded", [False, True])
@torch.no_grad()
def test_the_fused_relation_detector_is_the_one_box_by_box(folded: bool) -> None:
    net: Any = build("siamrn")
    kernels, targets, features, boxes = _relation_inputs(net, 2)
    naive = torch.empty(2, 150)
    from tracker_ros.networks.roi_pooling import precise_roi_pool

    shares = net.relation_fusion.softmax(0)
    for t in range(2):
        for n in range(150):
            logits = torch.zeros(1, 2)
            for i, relation in enumerate(net.detectors):
                pooled = precise_roi_pool(features[i][t : t + 1], boxes[t : t + 1, n : n + 1], 7, 8)[0]
                parts = relation.logits(targets[i][t : t + 1], pooled)
                logits = logits + shares[i] * (parts[0] + parts[1] + parts[2])
            naive[t, n] = logits.softmax(1)[0, 1]
    assert naive.std() > 1e-3
    torch.testing.assert_close(net.match(features, targets, boxes), naive, atol=1e-5, rtol=1e-4)
    if folded:
        net = prepare(net, torch.device("cpu"))
    fused = FusedRelation(net)
    template = fused.template(kernels, targets)
    torch.testing.assert_close(fused.match(features, template, boxes), naive, atol=1e-5, rtol=1e-4)
    one = fused.match([f[1:] for f in features], gather([split(template)[1]]), boxes[1:])
    torch.testing.assert_close(one[0], naive[1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_relation_detector_of_a_gpu_needs_no_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that a GPU takes, run on the CPU."""
    net: Any = build("siamrn")
    kernels, targets, features, boxes = _relation_inputs(net, 1)
    fused = FusedRelation(net)
    template = fused.template(kernels, targets)
    by_taps = fused.match(features, template, boxes)
    monkeypatch.setattr(inference, "asking_is_free", lambda device: False)
    torch.testing.assert_close(fused.match(features, template, boxes), by_taps, atol=1e-5, rtol=1e-4)


ABLATIONS = (
    RelationParts(global_detector=False),
    RelationParts(local_detector=False),
    RelationParts(patch_detector=False),
    RelationParts(self_attention=False),
    RelationParts(global_detector=False, local_detector=False, self_attention=False),
)


@torch.no_grad()
def test_parts_of_the_relation_detector_switch_off_in_both_forms_alike() -> None:
    net: Any = build("siamrn")
    kernels, targets, features, boxes = _relation_inputs(net, 1)
    whole = net.match(features, targets, boxes)
    results = []
    for net.parts in ABLATIONS:
        results.append(net.match(features, targets, boxes))
        fused = FusedRelation(net)
        found = fused.match(features, fused.template(kernels, targets), boxes)
        torch.testing.assert_close(found, results[-1], atol=1e-5, rtol=1e-4)
    for i, one in enumerate(results):
        assert (one - whole).abs().max() > 1e-3
        assert all((one - other).abs().max() > 1e-3 for other in results[:i])
    with pytest.raises(ValueError, match="at least one"):
        RelationParts(global_detector=False, local_detector=False, patch_detector=False)


def test_the_fused_relation_detector_has_the_gradients_of_the_one_box_by_box() -> None:
    """Also with a second target on the same crop, which shares the crop's maps."""
    net: Any = build("siamrn")
    with torch.no_grad():
        kernels, targets, features, boxes = _relation_inputs(net, 2)
    first, second = boxes[:, :20], boxes[:, 7:30]
    swapped = [level.flip(0) for level in targets]

    def gradients(scores: list[Tensor]) -> dict[str, Tensor]:
        net.zero_grad()
        sum((score.square() * torch.linspace(0.1, 1, score.shape[1])).sum() for score in scores).backward()  # type: ignore[union-attr]
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    plain = gradients([net.match(features, targets, first), net.match(features, swapped, second)])
    fused = FusedRelation(net)
    supports = [(fused.template(kernels, targets), first), (fused.template(kernels, swapped), second)]
    quick = gradients(fused.match_each(features, supports))
    assert plain.keys() == quick.keys()
    assert all(name.startswith("relation") for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(quick[name], gradient, atol=1e-4 * float(gradient.abs().max()) + 1e-7, rtol=1e-3)
