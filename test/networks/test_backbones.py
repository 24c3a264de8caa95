"""The shared backbone: where its cells look, and its weights in a file of their own."""

from pathlib import Path

import pytest
import torch

from tracker_ros import registry, weights
from tracker_ros.errors import WeightsError, WeightsMissing
from tracker_ros.networks.backbones import (
    BACKBONES,
    SharedBackbone,
    SharedBackboneConfig,
    build_backbone,
    shared_backbone,
)
from tracker_ros.networks.resnet import RESNET18, ResNet
from tracker_ros.networks.siamban import SiamBANConfig, SiamBANNet
from tracker_ros.networks.siamese import central

SMALL = SiamBANConfig(SharedBackboneConfig(), neck=8, hidden=8)


@pytest.fixture(scope="module")
def backbone() -> SharedBackbone:
    torch.manual_seed(0)
    return shared_backbone(SharedBackboneConfig()).eval()


@torch.no_grad()
def test_maps_are_those_of_the_resnet_on_normalised_rgb(backbone: SharedBackbone) -> None:
    plain = ResNet(RESNET18).eval()
    plain.load_state_dict(backbone.state_dict())
    crop = torch.rand(1, 3, 127, 127) * 255
    padded = torch.nn.functional.pad(crop, (1, 0, 1, 0), mode="replicate")
    for ours, theirs in zip(backbone.maps(crop), plain(plain.preprocess(padded.flip(1))), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_cells_are_centred_on_every_eighth_pixel_from_the_seventh(backbone: SharedBackbone) -> None:
    stage2 = torch.arange(32.0).expand(1, 1, 32, 32)
    stage3 = torch.arange(16.0).expand(1, 1, 16, 16)
    fine, coarse = backbone.align(stage2, stage3)
    assert fine.shape == coarse.shape == (1, 1, 31, 31)
    # Cell i looks at pixel 8 (i + 1) of the padded crop: where stage 2 has cell i + 1, stage 3 (i + 1) / 2.
    assert fine[0, 0, 0].tolist() == [float(i + 1) for i in range(31)]
    assert coarse[0, 0, 0, :30].tolist() == pytest.approx([(i + 1) / 2 for i in range(30)])
    assert coarse[0, 0, 0, 30] == 15.0  # beyond the last cell there is nothing but that cell


@torch.no_grad()
def test_a_template_looks_at_what_a_search_crop_has_in_its_middle(backbone: SharedBackbone) -> None:
    search = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 16) * 255, size=255, mode="bicubic").clamp(0, 255)
    template = search[..., 64:191, 64:191]
    for inner, outer in zip(backbone(template), backbone(search), strict=True):
        small, large = central(inner)[..., 2:5, 2:5], central(outer)[..., 2:5, 2:5]
        similarity = torch.cosine_similarity(small.flatten(1), large.flatten(1))
        moved = torch.cosine_similarity(small.flatten(1), outer[..., 15:18, 15:18].flatten(1))
        assert similarity > moved


@pytest.mark.parametrize("stages", [(2,), (3,), (2, 3)])
def test_the_stages_that_are_asked_for(stages: tuple[int, ...]) -> None:
    config = SharedBackboneConfig(stages=stages)
    maps = shared_backbone(config).eval()(torch.zeros(1, 3, 127, 127))
    assert tuple(m.shape[1] for m in maps) == config.channels
    assert all(m.shape[-2:] == (15, 15) for m in maps)


def test_a_head_finds_its_backbone_in_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKER_ROS_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    torch.manual_seed(1)
    net = SiamBANNet(SMALL)
    head = tmp_path / "head.safetensors"
    weights.save(head, net, "siamban18", "test", half=False, backbone="shared")
    with pytest.raises(WeightsMissing, match=r"needs the backbone 'shared'; put shared.safetensors beside it"):
        weights.load(head, SiamBANNet(SMALL), "siamban18")
    shared = tmp_path / "models" / "shared.safetensors"
    weights.save(shared, net.backbone, "shared", "test", half=False)
    other = SiamBANNet(SMALL)
    weights.load(head, other, "siamban18")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())
    assert head.stat().st_size < shared.stat().st_size / 10

    weights.save(tmp_path / "shared.safetensors", SiamBANNet(SMALL).backbone, "shared", "another", half=False)
    with pytest.raises(WeightsError, match="trained on another backbone"):
        weights.load(head, other, "siamban18")  # the file beside it comes first


def test_shipped_heads_belong_to_the_shipped_backbone() -> None:
    files = sorted(weights.models_directory().glob("*.safetensors"))
    assert weights.shipped("backbone18") in files
    for file in files:
        name = weights.network_of(file)
        assert name == file.stem
        if name != "backbone18":
            weights.load(file, registry.networks()[name].create(), name)


@pytest.mark.parametrize("config", [SharedBackboneConfig(net) for net in BACKBONES.values()])
@torch.no_grad()
def test_any_backbone_can_be_shared(config: SharedBackboneConfig) -> None:
    """Maps are the plain backbone's, from the same file, and centred where those of the ResNet are."""
    shared, plain = shared_backbone(config).eval(), build_backbone(config.net).eval()
    assert isinstance(shared, SharedBackbone)
    plain.load_state_dict(shared.state_dict())
    crop = torch.rand(1, 3, 127, 127) * 255
    padded = torch.nn.functional.pad(crop, (1, 0, 1, 0), mode="replicate")
    for ours, theirs in zip(shared.maps(crop), plain(plain.preprocess(padded.flip(1))), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert [tuple(m.shape[1:]) for m in shared(crop)] == [(channels, 15, 15) for channels in config.channels]


COMPACT = [name for name in registry.networks() if name.endswith("_lite0")]


def test_every_compact_tracker_has_a_network_on_either_backbone() -> None:
    assert {name.replace("_lite0", "18") for name in COMPACT} == {n for n in registry.networks() if n.endswith("18")}


@pytest.mark.parametrize("name", COMPACT)
def test_weights_of_a_head_name_the_backbone_that_they_need(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, other = registry.networks()[name].create(), registry.networks()[name].create()
    file, shared = tmp_path / f"{name}.safetensors", tmp_path / "backbone_lite0.safetensors"
    weights.save(file, net, name, "random", backbone="backbone_lite0")
    with pytest.raises(WeightsMissing, match="needs the backbone 'backbone_lite0'"):
        weights.load(file, other, name)
    weights.save(shared, net.get_submodule("backbone"), "backbone_lite0", "random")
    weights.load(file, other, name)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, atol=1e-2, rtol=1e-2)
