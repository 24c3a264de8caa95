"""The guided detectors, small: what they share is tested on all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tracker_ros.geometry.detection import overlap_matrix
from tracker_ros.networks.detection import Candidates, Detections, GuidedDetector, LevelConfig, with_one_exemplar
from tracker_ros.networks.faster_rcnn import GUIDED_FRCNN18, GUIDED_FRCNN_R50, FasterRCNN
from tracker_ros.networks.guidance import Cells, TargetGuidance, pool
from tracker_ros.networks.inference import prepare
from tracker_ros.networks.resnet import ResNet, ResNetConfig
from tracker_ros.networks.ssd import GUIDED_SSD18, GUIDED_SSD_VGG16, SSD, SSDConfig
from tracker_ros.networks.vgg import VGGConfig

SMALL = ResNetConfig(blocks=(1, 1, 1), bottleneck=False)
SMALL_50 = ResNetConfig(blocks=(1, 1, 1), bottleneck=True)


def _build(name: str) -> GuidedDetector:
    torch.manual_seed(0)
    if name == "ssd":
        levels = tuple(LevelConfig(s, e, channels=32, bins=3, tower=1) for s, e in ((8, 32), (16, 64), (32, 96)))
        return SSD(replace(GUIDED_SSD18, backbone=SMALL, search=128, levels=levels))
    if name == "ssd_vgg":
        levels = tuple(LevelConfig(s, e) for s, e in ((8, 24), (16, 48), (32, 80)))
        return SSD(replace(GUIDED_SSD_VGG16, backbone=VGGConfig(width=8), search=108, levels=levels))
    if name == "frcnn":
        levels = (LevelConfig(8, 64, channels=16), LevelConfig(16, 64, channels=32, tower=1))
        return FasterRCNN(
            replace(GUIDED_FRCNN18, backbone=SMALL, search=128, levels=levels, proposals=8, considered=64, hidden=32)
        )
    levels = (LevelConfig(16, 64, channels=64),)
    return FasterRCNN(
        replace(GUIDED_FRCNN_R50, backbone=SMALL_50, search=96, levels=levels, proposals=6, considered=32, bins=4)
    )


NAMES = ("ssd", "ssd_vgg", "frcnn", "frcnn_r50")


def _crops(detector: GuidedDetector, count: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Exemplars, targets' boxes in them, and search crops."""
    generator = torch.Generator().manual_seed(seed)
    config = detector.config
    exemplars = 255 * torch.rand(count, 3, config.exemplar, config.exemplar, generator=generator)
    boxes = config.exemplar * torch.tensor([[0.5, 0.5, 0.6, 0.4], [0.5, 0.5, 0.4, 0.7]])[torch.arange(count) % 2]
    return exemplars, boxes, 255 * torch.rand(count, 3, config.search, config.search, generator=generator)


def _run(detector: GuidedDetector, exemplars: Tensor, boxes: Tensor, search: Tensor) -> tuple[Candidates, Detections]:
    guidance = detector.embed(exemplars, boxes)
    candidates = detector.candidates(detector.guided(detector.features(search), guidance))
    return candidates, detector.head(*candidates.inputs)


# --- the guidance itself ---------------------------------------------------------------------------------------------


def test_the_guided_map_is_the_merge_of_the_drawn_concatenation() -> None:
    torch.manual_seed(0)
    guidance = TargetGuidance(6, 5, bins=3)
    nn.init.normal_(guidance.merge.bias)
    features, modulator = torch.randn(2, 6, 4, 7), torch.randn(2, 6)
    tiled = modulator[:, :, None, None].expand_as(features)
    normalised = nn.functional.instance_norm(features, eps=1e-3)
    drawn = guidance.merge(torch.cat([normalised, normalised * tiled, tiled], 1))
    assert torch.allclose(guidance(features, modulator), drawn, atol=1e-5)


def test_guidance_sees_the_target_only() -> None:
    """Where things lie well outside the target's box in the exemplar's map does not matter."""
    guidance = TargetGuidance(4, 4, bins=3)
    features = torch.rand(1, 4, 12, 12)
    box = torch.tensor([[48.0, 48.0, 32.0, 24.0]])
    outside = features.clone()
    outside[..., :2, :] = features[..., :2, :].flip(3)
    inside = features.clone()
    inside[..., 6, 6] = 9.0
    embedded = guidance.embed(features, box, Cells(8, 0.5))
    assert torch.allclose(guidance.embed(outside, box, Cells(8, 0.5)), embedded, atol=1e-5)
    assert not torch.allclose(guidance.embed(inside, box, Cells(8, 0.5)), embedded)


def test_the_modulator_starts_near_the_targets_mean_features() -> None:
    torch.manual_seed(0)
    guidance = TargetGuidance(64, 8, bins=4)
    features = torch.zeros(1, 64, 12, 12)
    features[..., 3:9, 3:9] = torch.randn(1, 64, 1, 1)
    box = torch.tensor([[48.0, 48.0, 32.0, 32.0]])
    embedded = guidance.embed(features, box, Cells(8, 0.5)).detach()
    assert float(torch.corrcoef(torch.stack([embedded[0], features[0, :, 6, 6].sign()]))[0, 1]) > 0.9


def test_guidance_answers_to_the_target_before_any_training() -> None:
    """The outputs that start as correlations are highest where the search map shows the exemplar's features."""
    torch.manual_seed(0)
    guidance = TargetGuidance(64, 32, bins=3)
    target = torch.randn(64, 1, 1)
    exemplar, search = torch.randn(1, 64, 12, 12), torch.randn(1, 64, 16, 16)
    exemplar[0, :, 4:8, 4:8] = target
    search[0, :, 10, 3] = target[:, 0, 0]
    modulator = guidance.embed(exemplar, torch.tensor([[48.0, 48.0, 32.0, 32.0]]), Cells(8, 4.0))
    answer = guidance(search, modulator)[0, :8].mean(0)
    assert int(answer.argmax()) == 10 * 16 + 3


def test_pooling_reads_cells_where_they_look() -> None:
    ramp = (0.5 + 16 * torch.arange(20.0)).expand(1, 1, 20, 20)  # each cell holds the x that it looks at
    pooled = pool(ramp, torch.tensor([[[100.0, 150.0, 64.0, 48.0]]]), Cells(16, 0.5), 2)
    assert torch.allclose(pooled[0, 0, 0], torch.tensor([[84.0, 116.0]] * 2), atol=1e-3)


# --- all detectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_shapes_agree(name: str) -> None:
    detector = _build(name).train()
    candidates, found = _run(detector, *_crops(detector))
    count = candidates.boxes.shape[1]
    assert candidates.boxes.shape == (2, count, 4)
    assert candidates.valid.shape == (2, count)
    assert found.cls.shape == (2, count, 2)
    assert found.scores.shape == (2, count)
    decoded = detector.decode(found.loc, candidates.boxes)
    assert decoded.shape == (2, count, 4)
    assert (decoded[..., 2:] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_targets_is_each_alone(name: str) -> None:
    detector = _build(name).eval()
    exemplars, boxes, search = _crops(detector)
    with torch.no_grad():
        candidates, both = _run(detector, exemplars, boxes, search)
        for i in range(2):
            one, alone = _run(detector, exemplars[i : i + 1], boxes[i : i + 1], search[i : i + 1])
            assert torch.allclose(one.boxes[0], candidates.boxes[i], atol=1e-2)
            assert torch.allclose(alone.cls[0], both.cls[i], atol=1e-4)
            assert torch.allclose(alone.loc[0], both.loc[i], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_another_exemplar_guides_to_other_maps(name: str) -> None:
    detector = _build(name).eval()
    exemplars, boxes, search = _crops(detector)
    with torch.no_grad():
        features = detector.features(search[:1])
        guidance = detector.embed(exemplars, boxes)
        first, second = (detector.guided(features, guidance[i : i + 1]) for i in range(2))
    for a, b, level in zip(first, second, detector.guided_levels, strict=True):
        assert a.shape[1] == level.outputs
        assert (a - b).abs().mean() > 0.01 * a.abs().mean()


@pytest.mark.parametrize("name", NAMES)
def test_heads_of_several_targets_run_side_by_side(name: str) -> None:
    """Parameters stacked over targets, as the inner loop has them, against one call a target."""
    detector = _build(name).eval()
    with torch.no_grad():
        candidates, _ = _run(detector, *_crops(detector))
        own = dict(detector.head.named_parameters())
        stacked = {key: torch.stack([value, value + 0.1 * torch.randn_like(value)]) for key, value in own.items()}
        inputs = tuple(part[:, None] for part in candidates.inputs)
        together = vmap(lambda p, *x: functional_call(detector.head, p, x))(stacked, *inputs)
        for i in range(2):
            alone = functional_call(detector.head, {k: v[i] for k, v in stacked.items()}, tuple(x[i] for x in inputs))
            assert torch.allclose(together.cls[i], alone.cls, atol=1e-4)
            assert torch.allclose(together.loc[i], alone.loc, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_regression_round_trips_and_the_target_is_labelled(name: str) -> None:
    detector = _build(name).eval()
    with torch.no_grad():
        candidates, _ = _run(detector, *_crops(detector))
    middle = detector.config.search / 2
    side = detector.config.search / detector.config.search_context
    targets = torch.tensor([[middle + 3, middle - 2, side, side], [middle - 5, middle, 0.9 * side, 1.3 * side]])
    # Two-stage proposals of a random network miss the target; in training it is one of the candidates itself.
    boxes = torch.cat([candidates.boxes, targets[:, None]], 1) if detector.two_stage else candidates.boxes
    labels = detector.match(boxes, targets)
    assert labels.shape == boxes.shape[:2]
    for i in range(2):
        positives = labels[i] == 1
        assert positives.any()
        assert (labels[i] == 0).sum() > positives.sum()
        codes = detector.encode(targets[i], boxes[i])
        assert torch.isfinite(codes).all()
        decoded = detector.decode(codes[positives], boxes[i][positives])
        assert torch.allclose(decoded, targets[i].expand_as(decoded), atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_backbone_stays_and_the_rest_learns(name: str) -> None:
    detector = _build(name).train()
    _, found = _run(detector, *_crops(detector))
    assert not any(m.training for m in detector.modules() if isinstance(m, nn.BatchNorm2d))
    (found.cls.square().mean() + found.loc.square().mean()).backward()
    frozen = detector.config.frozen
    assert all(p.grad is None for p in detector.backbone.parameters()) == frozen
    assert len(detector.outer_parameters()) + frozen * len(list(detector.backbone.parameters())) == len(
        list(detector.parameters())
    )
    for level in detector.guided_levels:
        assert level.guidance.modulator.weight.grad is not None
        assert float(level.guidance.modulator.weight.grad.abs().max()) > 0
    for parameter in detector.head.parameters():
        assert parameter.grad is not None


@pytest.mark.parametrize("name", ["ssd", "frcnn"])
def test_the_shared_backbones_names_and_nothing_else_carry_its_prefix(name: str) -> None:
    detector = _build(name)
    shared = {key.removeprefix("backbone.") for key in detector.state_dict() if key.startswith("backbone.")}
    assert shared == set(ResNet(SMALL).state_dict())
    assert not any("anchors" in key or "points" in key for key in detector.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_prepared_network_gives_the_same_from_bytes(name: str) -> None:
    detector = _build(name).eval()
    exemplars, boxes, search = (x if x.dim() == 2 else x.to(torch.uint8) for x in _crops(detector))
    with torch.no_grad():
        before = _run(detector, exemplars.float(), boxes, search.float())[1]
        prepare(detector, torch.device("cpu"))
        after = _run(detector, exemplars, boxes, search)[1]
        assert torch.allclose(before.cls, after.cls, atol=1e-3)
        for part in detector.convolutions():
            part.to(torch.bfloat16)
        assert _run(detector, exemplars, boxes, search)[1].cls.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_cells_look_where_the_anchors_are(name: str) -> None:
    """With averaging weights, what a bright square leaves in a map is centred on it in the map's coordinates."""
    detector = _build(name).eval()
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / (module.weight[0].numel()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    detector.extra = None if detector.extra is None else _without_norms(detector.extra)
    # A crop of its own size, so that the border is far away.
    size, cells = 512, detector.guided_levels
    x0, y0 = 256, 192
    crop = torch.full((1, 3, size, size), 130.0)
    crop[..., y0 - 16 : y0 + 16, x0 - 16 : x0 + 16] = 255.0
    with torch.no_grad():
        plain, seen = detector.features(torch.full_like(crop, 130.0)), detector.features(crop)
    for level, a, b in zip(cells, plain, seen, strict=True):
        response = (b - a)[0].sum(0)
        assert float(response.max()) > 0
        response = response / response.sum()
        at = level.cells.offset + level.cells.stride * torch.arange(response.shape[0])
        assert float((response.sum(0) * at).sum()) == pytest.approx(x0, abs=1.0)
        assert float((response.sum(1) * at).sum()) == pytest.approx(y0, abs=1.0)


def _without_norms(layers: nn.Module) -> nn.Module:
    return nn.Sequential(*(m for m in layers.children() if not isinstance(m, nn.GroupNorm)))


@pytest.mark.parametrize("name", NAMES)
def test_kept_backbone_maps_give_the_same(name: str) -> None:
    """What a frozen backbone computed can be kept, for exemplars as for search crops."""
    detector = _build(name).eval()
    exemplars, boxes, search = _crops(detector)
    with torch.no_grad():
        for level, kept in zip(
            detector.features(search), detector.level_maps(detector.backbone_maps(search)), strict=True
        ):
            assert torch.equal(level, kept)
        kept_guidance = detector.modulators(detector.exemplar_maps(exemplars), boxes)
        assert torch.equal(detector.embed(exemplars, boxes), kept_guidance)


# --- SSD -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ssd", "ssd_vgg"])
def test_a_cells_output_belongs_to_the_anchor_at_the_cell(name: str) -> None:
    detector = _build(name)
    assert isinstance(detector, SSD)
    for parameter in detector.head.parameters():
        nn.init.zeros_(parameter)
    maps = [m.detach() for m in detector.guided(detector.features(_crops(detector)[2]), _guidance(detector))]
    start = 0
    for i, (level, layer) in enumerate(zip(detector.guided_levels, detector.head.cls, strict=True)):
        side, anchors = maps[i].shape[-1], layer.out_channels // 2
        row, column, anchor = 2, 1, anchors - 1
        one = [torch.zeros_like(m) for m in maps]
        one[i][0, 0, row, column] = 1.0
        nn.init.zeros_(layer.weight)
        with torch.no_grad():
            layer.weight[2 * anchor + 1, 0, 1, 1] = 1.0
        found = detector.head(*one).cls[0, :, 1]
        assert int(found.argmax()) == start + (row * side + column) * anchors + anchor
        cx, cy, w, h = detector.anchors[int(found.argmax())].tolist()
        stride, offset = level.cells
        assert (cx, cy) == (offset + stride * column, offset + stride * row)
        assert w == h  # the last one of a cell is the square between two levels
        start += side * side * anchors
        with torch.no_grad():
            layer.weight.zero_()
    assert start == len(detector.anchors)


def _guidance(detector: GuidedDetector) -> Tensor:
    exemplars, boxes, _ = _crops(detector)
    return detector.embed(exemplars, boxes).detach()


def test_the_papers_base_sizes_and_maps() -> None:
    with torch.device("meta"):
        levels = SSD(GUIDED_SSD_VGG16).guided_levels
    assert [level.outputs for level in levels] == [512, 1024, 512]
    assert [level.cells for level in levels] == [(8, 4), (16, 8), (32, 8)]
    anchors = SSD(replace(GUIDED_SSD_VGG16, backbone=VGGConfig(width=8))).anchors
    assert len(anchors) == 38 * 38 * 4 + 19 * 19 * 6 + 10 * 10 * 6
    sizes = (anchors[:, 2] * anchors[:, 3]).sqrt()
    for start, base in ((0, 30), (38 * 38 * 4, 60), (38 * 38 * 4 + 19 * 19 * 6, 111)):
        assert float(sizes[start]) == pytest.approx(base, abs=0.01)


def test_one_exemplar_for_all_levels() -> None:
    config = with_one_exemplar(_build("ssd").config, 48)
    assert isinstance(config, SSDConfig)
    detector = SSD(config).eval()
    assert detector.config.exemplar == 48
    exemplar = 255 * torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[24.0, 24.0, 24.0, 24.0]])
    with torch.no_grad():
        guidance = detector.embed(exemplar, box)
        maps = detector.features(exemplar)
        alone = [
            level.guidance.embed(x, box, level.cells) for level, x in zip(detector.guided_levels, maps, strict=True)
        ]
    assert torch.allclose(guidance, torch.cat(alone, 1))


# --- Faster R-CNN ----------------------------------------------------------------------------------------------------


def _first_stage(detector: FasterRCNN, favourites: dict[int, float]) -> Detections:
    count = len(detector.rpn_boxes())
    cls = torch.zeros(1, count, 2)
    cls[..., 1] = -5 - torch.arange(count) * 1e-3
    for index, score in favourites.items():
        cls[0, index, 1] = score
    return Detections(cls, torch.zeros(1, count, 4))


def test_proposals_are_the_best_boxes_apart_inside_the_crop() -> None:
    detector = _build("frcnn")
    assert isinstance(detector, FasterRCNN)
    anchors = detector.rpn_boxes()
    inside = ((anchors[:, :2] - anchors[:, 2:] / 2) >= 0).all(1) & ((anchors[:, :2] + anchors[:, 2:] / 2) <= 128).all(1)
    best = int(inside.nonzero()[-1])
    same = best - 9  # the same shape one cell to the left
    boxes, valid = detector.propose(_first_stage(detector, {best: 9.0, same: 8.0}))
    assert boxes.shape == (1, detector.config.proposals, 4)
    assert torch.allclose(boxes[0, 0], anchors[best])
    assert valid[0, 0]
    kept = boxes[0][valid[0]]
    overlaps = overlap_matrix(kept, kept).fill_diagonal_(0)
    assert float(overlaps.max()) <= detector.config.suppression
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    assert float(low.min()) >= -1e-3
    assert float(high.max()) <= 128 + 1e-3


def test_suppressed_proposals_fill_up_and_are_marked() -> None:
    detector = _build("frcnn")
    assert isinstance(detector, FasterRCNN)
    detector.config = replace(detector.config, suppression=0.0, proposals=64)
    _, valid = detector.propose(_first_stage(detector, {}))
    assert not valid.all()
    assert valid.int().diff(dim=1).le(0).all()  # those that exist come first


def test_added_boxes_follow_the_proposals() -> None:
    detector = _build("frcnn").eval()
    exemplars, boxes, search = _crops(detector)
    extra = torch.tensor([[[64.0, 64.0, 30.0, 20.0]], [[60.0, 50.0, 10.0, 20.0]]])
    with torch.no_grad():
        maps = detector.guided(detector.features(search), detector.embed(exemplars, boxes))
        plain, more = detector.candidates(maps), detector.candidates(maps, extra)
    assert torch.equal(more.boxes[:, -1:], extra)
    assert torch.equal(more.boxes[:, :-1], plain.boxes)
    assert more.valid[:, -1].all()
    assert torch.allclose(more.inputs[0][:, :-1], plain.inputs[0], atol=1e-5)


def test_the_first_stages_labels() -> None:
    detector = _build("frcnn")
    assert isinstance(detector, FasterRCNN)
    side = 128 / 5
    labels = detector.match_rpn(torch.tensor([[64.5, 64.5, side, side], [500.0, 500.0, 10.0, 10.0]]))
    positives = detector.rpn_boxes()[labels[0] == 1]
    assert len(positives) > 0
    assert (overlap_matrix(positives, torch.tensor([[64.5, 64.5, side, side]])) >= 0.69).all()
    assert not (labels[1] == 1).any()


def test_gradients_reach_the_first_stage() -> None:
    detector = _build("frcnn").train()
    candidates, found = _run(detector, *_crops(detector))
    assert candidates.rpn is not None
    assert not candidates.boxes.requires_grad
    (candidates.rpn.cls.sum() + found.cls.sum()).backward()
    assert isinstance(detector, FasterRCNN)
    assert detector.rpn.conv.weight.grad is not None


# --- full size -------------------------------------------------------------------------------------------------------


def test_full_size_networks_have_the_published_backbones_names() -> None:
    with torch.device("meta"):
        vgg = SSD(GUIDED_SSD_VGG16).backbone.state_dict()
        r50 = FasterRCNN(GUIDED_FRCNN_R50).state_dict()
    convolutions = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert [key for key in vgg if key.startswith("features") and key.endswith("weight")] == [
        f"features.{i}.weight" for i in convolutions
    ]
    assert vgg["features.28.weight"].shape == (512, 512, 3, 3)
    assert vgg["conv7.weight"].shape == (1024, 1024, 1, 1)
    assert r50["backbone.layer3.5.conv3.weight"].shape == (1024, 256, 1, 1)
    assert r50["layer4.0.downsample.0.weight"].shape == (2048, 1024, 1, 1)
    assert r50["layer4.2.bn3.running_var"].shape == (2048,)
