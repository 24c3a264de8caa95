"""The published networks' numbers, from checkpoint import to result box."""

from __future__ import annotations

from pathlib import Path

import cv2
import golden
import numpy as np
import pytest
import torch

from tracker_ros import checkpoints
from tracker_ros.geometry.boxes import Box
from tracker_ros.networks.dimp import DiMPNet
from tracker_ros.networks.filter_optimizer import apply_filter
from tracker_ros.networks.iou_net import BoxRefiner, Modulation
from tracker_ros.trackers.dimp import FLAGS, PRESETS, DiMP, DiMPTarget, RandomDraws, localize

ITERATED = 1e-3  # tolerance after ten optimizer iterations or five box refinements


@pytest.mark.parametrize(
    "network", golden.networks() or [pytest.param("none", marks=pytest.mark.skip(reason="absent"))]
)
def test_every_folder_has_an_implementation(network: str) -> None:
    if not network.startswith(golden.FAMILIES):
        pytest.skip(f"'{network}' is of a family that this version does not implement: {golden.FAMILIES}")
    assert golden.spec(network)["name"] in checkpoints.importers()


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, DiMPNet]]:
    return {}


def _load(network: str, nets: dict[str, tuple[str, DiMPNet]], folder: Path) -> tuple[str, DiMPNet, golden.Stages]:
    """Through a file in the published container and the importer, as a user does it."""
    if network not in nets:
        name = golden.spec(network)["name"]
        path = folder / f"{network}.pth"
        container = {"epoch": 50, "net_type": "DiMPnet", "net": golden.published_state(network), "settings": Settings()}
        torch.save(container, path)
        nets[network] = (name, checkpoints.import_checkpoint(path, name).eval())
    return *nets[network], golden.Stages(network)


class Settings:
    """Stands for the classes that a published checkpoint pickles; the importer must not need them."""


@golden.parametrize("dimp")
@torch.no_grad()
def test_dimp_stages(network: str, nets: dict, tmp_path: Path) -> None:
    _, net, s = _load(network, nets, tmp_path)
    features = net.extract(net.backbone.preprocess(s.tensor("f1/patch")))
    s.check("f1/backbone_layer3", features.layer3)
    samples = net.classification_features(features)
    s.check("f1/clf_feat", samples)
    s.check("f1/scores", apply_filter(samples[None], s.tensor("init/final_filter")))

    optimizer = net.classifier.optimizer
    boxes = s.tensor("init/opt_boxes")[None]
    for name, value in zip(("label_map", "target_mask", "spatial_weight"), optimizer.maps(boxes, 19, 19), strict=True):
        s.check(f"init/{name}", value)
    for name, value in zip(
        ("label_map", "target_mask", "spatial_weight"),
        optimizer.maps(s.tensor("update/opt_boxes"), 19, 19),
        strict=True,
    ):
        s.check(f"update/{name}", value)

    stored = s.tensor("init/opt_feat")[None]
    initial = net.classifier.initializer(stored, boxes)
    s.check("init/initial_filter", initial)
    iterates = optimizer(s.tensor("init/initial_filter"), stored, boxes, 10)
    s.check("init/filter_iterates", torch.stack(iterates), ITERATED)
    s.check("init/losses", torch.cat([optimizer.loss(f, stored, boxes) for f in iterates]), ITERATED)

    maps = net.iou_net.features(*features)
    s.check("f1/iou_feat3", maps.stride8)
    s.check("f1/iou_feat4", maps.stride16)
    vectors = Modulation(
        s.tensor("init/iou_modulation3").flatten()[None], s.tensor("init/iou_modulation4").flatten()[None]
    )
    refine = BoxRefiner(net.iou_net)
    proposals, overlaps, before = s.tensor("f1/init_boxes")[None], [], []
    for _ in range(5):
        overlap, gradient = refine(vectors, maps, proposals)
        overlaps.append(overlap)
        before.append(proposals)
        proposals = proposals + gradient * proposals[..., 2:].repeat(1, 1, 2)
    s.check("f1/boxes_per_iter(before_step)", torch.cat(before), ITERATED)
    s.check("f1/ious_per_iter", torch.cat(overlaps), ITERATED)
    s.check("f1/boxes_final", proposals, ITERATED)
    s.check("f1/ious_returned", overlaps[-1], ITERATED)


class StoredDraws(RandomDraws):
    """The random numbers that the stored run drew."""

    def __init__(self, stages: golden.Stages) -> None:
        super().__init__(0)
        self._stages = stages

    def shifts(self, count: int) -> torch.Tensor:
        return self._stages.tensor("init/rand_shifts")

    def dropout(self, count: int, channels: int, probability: float) -> torch.Tensor:
        return self._stages.tensor("init/dropout_mask_x_scale")

    def jitter(self, count: int) -> torch.Tensor:
        return self._stages.tensor("f1/rand")


def _first_frame(network: str, nets: dict, folder: Path) -> tuple[DiMP, DiMPTarget, golden.Stages]:
    name, net, s = _load(network, nets, folder)
    options = PRESETS[name].replace(compat="published", precision="float32", device="cpu")
    tracker = DiMP(name, options, net)
    target = tracker.begin(_frame(0), Box(*map(float, s["init_box"])), StoredDraws(s))
    return tracker, target, s


def _frame(index: int) -> np.ndarray:
    image = cv2.imread(str(golden.GOLDEN / f"frame{index}.png"))
    assert image is not None
    return image


@golden.parametrize("dimp")
def test_dimp_first_frame(network: str, nets: dict, tmp_path: Path) -> None:
    _, target, s = _first_frame(network, nets, tmp_path)
    assert target.memory is not None
    s.check("init/opt_boxes", target.memory.boxes[:15])
    s.check("init/sample_weights", target.memory.weights)
    expected = s.tensor("init/opt_feat")
    rotated = np.array([name == "Rotate" for name in s["init/transform_names"]])
    error = (target.memory.features[:15] - expected).abs().amax((1, 2, 3)).numpy() / float(expected.abs().max())
    assert error[~rotated].max() < 1e-4
    assert error[rotated].max() < 1e-3  # OpenCV's versions themselves differ by more
    s.check("init/clf_feat0", target.memory.features[0])
    s.check("init/final_filter", target.filter, ITERATED)
    s.check("init/iou_modulation3", target.modulation.stride8)
    s.check("init/iou_modulation4", target.modulation.stride16)
    assert target.scale == pytest.approx(float(s["init/target_scale"]), rel=1e-6)


@golden.parametrize("dimp")
def test_dimp_second_frame(network: str, nets: dict, tmp_path: Path) -> None:
    tracker, target, s = _first_frame(network, nets, tmp_path)
    estimate = tracker.step(_frame(1), [target])[0]
    assert np.abs(np.array(estimate.box) - s["f1/result_box_xywh"]).max() < 0.05
    assert target.scale == pytest.approx(float(s["f1/target_scale"]), rel=1e-3)
    assert estimate.heatmap is not None
    s.check("f1/scores", np.where(s["f1/scores"] > 0, estimate.heatmap[None, None], s["f1/scores"]), ITERATED)
    assert target.memory is not None
    assert target.memory.count == 16


@golden.parametrize("dimp")
def test_dimp_sample_weights(network: str) -> None:
    from tracker_ros.trackers.dimp import SampleMemory

    s = golden.Stages(network)
    memory = SampleMemory.start(torch.zeros(15, 1, 1, 1), torch.zeros(15, 4), 50)
    for _ in range(len(s["update/sample_weight"]) - 15):
        memory.add(torch.zeros(1, 1, 1), torch.zeros(4), 0.01, 0.25)
    s.check("update/sample_weight", memory.weights[: memory.count])


@golden.parametrize("dimp")
def test_dimp_localisation(network: str) -> None:
    path = golden.GOLDEN / network / "localize_cases.npz"
    if not path.is_file():
        pytest.skip(f"{network} has no localize_cases.npz")
    cases = np.load(path)
    options = PRESETS["dimp18"]
    for i, name in enumerate(cases["name"]):
        cell = 16 * cases["sample_scales"][i]
        previous = ((cases["pos"][i] - cases["sample_pos"][i, 0]) / cell)[::-1]
        size = (cases["target_sz"][i] / cell)[::-1]
        found = localize(
            torch.from_numpy(cases["scores"][i : i + 1]),
            torch.tensor(previous.copy(), dtype=torch.float32)[None],
            torch.tensor(size.copy(), dtype=torch.float32)[None],
            options,
        )
        translation = found.cell[0].numpy()[::-1] * cell
        assert FLAGS[int(found.flag[0])] == cases["flag"][i], name
        assert np.allclose(translation, cases["translation_vec"][i], atol=1e-3), name
