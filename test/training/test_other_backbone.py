"""Heads on a backbone that was distilled before, by the same recipes as on the shipped one."""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tracker_ros import registry, weights
from tracker_ros.networks.backbones import BACKBONES, build_backbone
from tracker_ros.training.command import RECIPES, add_arguments
from tracker_ros.training.distill import TEACHER_CHANNELS


class Teacher(nn.Module):
    """A fixed projection with the teacher's maps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.eight, self.sixteen = nn.Conv2d(3, TEACHER_CHANNELS[0], 8, 8), nn.Conv2d(3, TEACHER_CHANNELS[1], 16, 16)
        self.projected = nn.Conv2d(3, TEACHER_CHANNELS[2], 16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.eight(x), self.sixteen(x), self.projected(x)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen images with a box each, and a teacher."""
    root = tmp_path_factory.mktemp("data")
    (root / "jpg").mkdir()
    rows = ["image,source,x,y,w,h,label"]
    for seed in range(14):
        small = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
        cv2.imwrite(str(root / "jpg" / f"{seed:02d}.jpg"), cv2.resize(small, (320, 240)))
        rows.append(f"{seed:02d}.jpg,test,{100 + seed},90,44,36,thing")
    (root / "boxes.csv").write_text("\n".join(rows))
    torch.jit.script(Teacher()).save(str(root / "teacher.ts"))
    return root


def _train(recipe: str, data: Path, out: Path, *arguments: str, **settings: float | str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    given = [recipe, "--images", str(data), "--out", str(out), *arguments, *options, "--set", "steps=1"]
    RECIPES[recipe].build(parser.parse_args(given)).run()


@pytest.fixture(scope="module")
def distilled(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a distilled EfficientNet."""
    root = tmp_path_factory.mktemp("distilled")
    start = root / "start.safetensors"
    weights.save(start, build_backbone(BACKBONES["backbone_lite0"]), "backbone_lite0", "random")
    teacher = ("--teacher", str(data / "teacher.ts"))
    settings = {"backbone": "backbone_lite0", "pairs": 1, "crop": 64, "validation": 1}
    _train("distill", data, root, *teacher, "--base", str(start), **settings)
    figures = json.loads((root / "validation.jsonl").read_text())
    assert figures["projected_stills"] > 0
    return root / "distill.pt"


CASES: dict[str, tuple[str, dict[str, float | str]]] = {
    "dimp_lite0": (
        "dimp18",
        {"sets": 1, "box_sets": 1, "box_frames": 2, "iterations": 1, "validation": 1, "backbone_rate": 0},
    ),
    "siamban_lite0": ("siamban", {"searches": 2, "scenes": 2, "fresh": 1, "validation": 1}),
    "guided_ssd_lite0": (
        "guided_ssd",
        {"triplets": 1, "first": 1, "fresh": 1, "memory": 2, "supports": 1, "validation": 1, "conventional": 0},
    ),
}


@pytest.mark.parametrize("network", CASES)
def test_heads_are_trained_on_it(network: str, data: Path, distilled: Path, tmp_path: Path) -> None:
    recipe, settings = CASES[network]
    _train(recipe, data, tmp_path, "--network", network, "--backbone", str(distilled), **settings)
    file = tmp_path / f"{network}.safetensors"
    net = registry.networks()[network].create()
    weights.load(file, net, network)  # with the backbone beside it
    own = build_backbone(BACKBONES["backbone_lite0"])
    weights.load(distilled.with_name("backbone_lite0.safetensors"), own, "backbone_lite0")
    for key, value in own.state_dict().items():
        assert torch.equal(net.get_submodule("backbone").state_dict()[key], value), key
    assert file.stat().st_size < sum(p.numel() for p in net.parameters()) * 2
    tracker = registry.create(recipe, weights=str(file), device="cpu")  # takes the network that the file names
    frame = cv2.imread(str(data / "jpg" / "00.jpg"))
    tracker.initialize(frame, (100.0, 90.0, 44.0, 36.0))
    estimate = tracker.track(frame)
    assert np.isfinite([*estimate.box, estimate.score]).all()


def test_another_backbone_than_the_networks_is_refused(data: Path, distilled: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds another backbone than 'backbone18'"):
        _train("siamban", data, tmp_path, "--backbone", str(distilled))
    with pytest.raises(ValueError, match="does not train 'dimp18': expected one of siamban18, siamban_lite0"):
        _train("siamban", data, tmp_path, "--network", "dimp18")
