"""The published Siamese networks' numbers, from checkpoint import to result box."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import golden
import numpy as np
import pytest
import torch
from torch import Tensor

import tracker_ros
import tracker_ros.trackers.clnet as clnet_tracker
from tracker_ros import checkpoints, registry
from tracker_ros.geometry.anchors import anchor_shapes, anchors, cosine_window, decode_anchors, decode_points, points
from tracker_ros.geometry.boxes import Box
from tracker_ros.networks.roi_pooling import precise_roi_pool
from tracker_ros.networks.siamban import SiamBANNet
from tracker_ros.networks.siamese import central
from tracker_ros.networks.siamrn import FusedRelation
from tracker_ros.networks.siamrpn import SiamRPNNet
from tracker_ros.trackers.siamese import SiameseTracker

#: Scoring heads behind fifty layers magnify what the order of a sum does to the last digits of the features.
MAGNIFIED = 1e-3
#: Network name to the short name that its weights are used by.
TRACKERS = {
    "siamrpn_alex_dw": "siamrpn",
    "siamrpn_alex_up": "siamrpn",
    "siamrpnpp_r50": "siamrpnpp",
    "clnet_r50": "clnet",
    "siamban_r50": "siamban",
    "siamrn_r50": "siamrn",
}


@dataclass(frozen=True)
class Published:
    """A published network with its numbers."""

    folder: str
    name: str
    net: Any
    stages: golden.Stages

    def check(self, name: str, value: Any, tolerance: float = 1e-4) -> None:
        """Compare where the folder has this stage."""
        if name in self.stages:
            self.stages.check(name, value, tolerance)

    def check_levels(self, pattern: str, values: list[Tensor], tolerance: float = 1e-4) -> None:
        for i, value in enumerate(values):
            self.check(pattern.format(i), value, tolerance)


def on(*families: str) -> pytest.MarkDecorator:
    """Run a test for the networks of some families; those of one network run together, as they are large."""
    return pytest.mark.parametrize("published", golden.of(*families), indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The order of sums, and with it the last digits, follows from the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Through a file in the published container and the importer, as a user does it."""
    name = golden.spec(request.param)["name"]
    path = tmp_path_factory.mktemp("checkpoint") / f"{name}.pth"
    torch.save(golden.published_state(request.param), path)
    net = checkpoints.import_checkpoint(path, name).eval()
    path.unlink()
    return Published(request.param, name, net, golden.Stages(request.param))


def _features(p: Published, prefix: str) -> list[Tensor]:
    crop = p.stages.tensor(f"{prefix}_crop")
    levels = p.net.backbone(crop)
    p.check(f"{prefix}/backbone", levels[-1])
    p.check_levels(f"{prefix}/backbone[{{}}]", list(levels))
    features = p.net.features(crop)
    p.check_levels(f"{prefix}/neck[{{}}]", features if prefix == "x" else [central(f) for f in features])
    # Where both are kept of a template: its centre, and the whole of it.
    p.check_levels(f"{prefix}/neck[{{}}][0]", [central(f) for f in features])
    p.check_levels(f"{prefix}/neck[{{}}][1]", features)
    return features


@on("siam", "clnet")
@torch.no_grad()
def test_features(published: Published) -> None:
    _features(published, "z")
    _features(published, "x")


@on("siam", "clnet")
@torch.no_grad()
def test_anchors_and_proposals(published: Published) -> None:
    """What the stored location map decodes to; the network's own differs in its last digits, before an exponential."""
    s, loc = published.stages, published.stages.tensor("x/loc")
    cells = loc.shape[-1]
    grid = points(cells) if isinstance(published.net, SiamBANNet) else anchors(anchor_shapes(), cells)
    decode = decode_points if isinstance(published.net, SiamBANNet) else decode_anchors
    s.check("anchors_or_points", grid)
    s.check("x/pred_bbox_cxcywh_in_crop", decode(loc.reshape(1, 4, -1), torch.from_numpy(grid))[0].mT)
    s.check("window", np.tile(cosine_window(cells).ravel(), len(grid) // cells**2))


@on("siamrpn", "siamban")
@torch.no_grad()
def test_heads(published: Published) -> None:
    net, s = published.net, published.stages
    maps = net(s.tensor("x_crop"), net.template(s.tensor("z_crop")))
    s.check("x/cls", maps.cls)
    s.check("x/loc", maps.loc)
    s.check("x/score", maps.scores)


@on("clnet")
@pytest.mark.parametrize("compat", ["off", "published"])
@torch.no_grad()
def test_clnet_adjustment(published: Published, compat: str) -> None:
    net, s = published.net, published.stages
    options = clnet_tracker.PRESETS["clnet"].replace(compat=compat, precision="float32", device="cpu")
    tracker = clnet_tracker.CLNet("clnet", options, net)  # type: ignore[arg-type]
    kernels = net.template(s.tensor("z_crop"))
    features = net.features(s.tensor("adj/x_crop"))
    hidden = net.hidden(features, kernels)
    base = net.finish(hidden, net.unadjusted(kernels))
    s.check("adj/cls_unadjusted", base.cls)
    s.check("adj/loc_unadjusted", base.loc)

    x1, y1, x2, y2 = s["adj/target_box_in_crop_xyxy"] - 127
    box = np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
    unadjusted = s.tensor("adj/cls_unadjusted").reshape(2, -1)  # where two scores tie, the last digit decides
    labels = tracker.label(box, unadjusted.double().log_softmax(0).numpy(), 25)
    assert np.array_equal(labels, s["adj/label_cls_after_hard_neg"])
    positive, negative = tracker.sets(labels)
    kind = "batched" if compat == "off" else "authors"
    sets = torch.from_numpy(positive)[None], torch.from_numpy(negative)[None]
    shares: dict[str, list[tuple[float, float]]] = {"cls": [], "loc": []}
    for i, level in enumerate(net.adjustments):
        for branch, maps in zip(("cls", "loc"), hidden, strict=True):
            key = f"adj/{kind}/rpn{i + 2}.{branch}"
            assert np.array_equal(np.flatnonzero(positive), s[f"{key}.pos_idx"])
            if branch == "cls":
                assert np.array_equal(np.flatnonzero(negative), s[f"{key}.neg_idx"])
            network = getattr(level, branch)
            latent = network.latent(maps[i], *sets)
            s.check(f"{key}.latent", latent)
            s.check(f"{key}.decoder_raw", network.predictor(latent), MAGNIFIED)
            delta_w, delta_b, share = network(latent)
            s.check(f"{key}.delta_w", delta_w, MAGNIFIED)
            s.check(f"{key}.delta_b", delta_b, MAGNIFIED)
            shares[branch].append((float(share), s[f"{key}.layer_weight"].item()))
    # One number a level, of which some are close to zero: the stage is all of a branch's, as it is for the softmax.
    for branch, pairs in shares.items():
        found, expected = np.array(pairs).T
        assert np.abs(found - expected).max() <= MAGNIFIED * np.abs(expected).max(), branch

    adjusted = net.adjust(kernels, hidden, *sets)
    if compat == "off":
        return  # from here on the vectors are the published tracker's
    s.check("adj/cls_adjusted", net.finish(hidden, adjusted).cls)
    s.check("adj/loc_adjusted", net.finish(hidden, adjusted).loc)
    maps = net.respond(net.features(s.tensor("x_crop")), adjusted)
    s.check("x/cls", maps.cls)
    s.check("x/loc", maps.loc)
    s.check("x/score", maps.scores)


def _xywh(corners: Tensor) -> Tensor:
    return torch.cat([corners[..., :2], corners[..., 2:] - corners[..., :2]], -1)


@on("siamrn")
@torch.no_grad()
def test_siamrn_relations(published: Published) -> None:
    net, s = published.net, published.stages
    template = net.features(s.tensor("z_crop"))
    kernels = net.kernels(template)
    targets = net.pool_target(template, _xywh(s.tensor("prroi_template/boxes_in"))[None])
    published.check_levels("prroi_template/level{}", targets)
    features = net.features(s.tensor("x_crop"))
    s.check("x/loc", net.locate(features, kernels))
    correlations = net.correlate(features, kernels)
    s.check("x/original_cls_map", net.classify(correlations).softmax(1)[:, 1])
    s.check("x/origin_corr_cls", torch.stack(correlations).mean(0))  # reported as the mean over the levels

    stored = s.tensor("prroi_track/boxes_in")[0].mT  # x, y, w, h, not clipped yet
    boxes = _xywh(torch.cat([stored[:, :2], stored[:, :2] + stored[:, 2:]], 1).clamp(0, 255))[None]
    for i, relation in enumerate(net.detectors):
        logits = relation.logits(targets[i], precise_roi_pool(features[i], boxes, 7, 8)[0])
        for kind, value in zip(("global", "local", "patch"), logits, strict=True):
            published.check(f"x/multi_det.{kind}_det{i + 2}", value, MAGNIFIED)
    fused = FusedRelation(net)
    for matching in (
        net.match(features, targets, boxes),
        fused.match(features, fused.template(kernels, targets), boxes),
    ):
        s.check("x/matching_scores", matching)
        refined = [maps * matching.reshape(1, 1, 25, 25) for maps in correlations]
        s.check("x/corr_cls", torch.stack(refined).mean(0))
        s.check("x/cls", net.classify(refined))
        s.check("x/score", net.classify(refined).softmax(1)[:, 1])


def _frame(index: int) -> np.ndarray:
    image = cv2.imread(str(golden.GOLDEN / f"frame{index}.png"))
    assert image is not None
    return image


@on("siam", "clnet")
def test_second_frame(published: Published) -> None:
    s, entry = published.stages, registry.get(published.name)
    options = entry.options.replace(compat="published", device="cpu")
    factory: Any = entry.load()[0]
    tracker: SiameseTracker = factory(entry.name, options, published.net)
    seen: list[Tensor] = []
    network: SiamRPNNet | SiamBANNet = tracker.network  # type: ignore[attr-defined]
    network.backbone.register_forward_pre_hook(lambda _, crops: seen.append(crops[0]))
    target = tracker.start(_frame(0), [Box(*map(float, s["init_box"]))])[0]
    assert np.array_equal(seen[0], s["z_crop"])
    if published.name.startswith("clnet"):
        assert np.array_equal(seen[1], s["adj/x_crop"])
    estimate = tracker.step(_frame(1), [target])[0]
    assert np.array_equal(seen[-1], s["x_crop"])
    assert np.abs(np.array(estimate.box) - s["x/result_box_xywh"]).max() < 0.05
    assert estimate.score == pytest.approx(float(s["x/result_score"]), abs=MAGNIFIED)
    assert estimate.heatmap is not None
    cells = len(estimate.heatmap)
    expected = s["x/score"].reshape(-1, cells, cells).max(0)
    assert np.abs(estimate.heatmap - expected).max() < MAGNIFIED


@on("siamrpn_alex")
def test_an_imported_file_tracks_by_name(published: Published, tmp_path: Path) -> None:
    """Checkpoint, command, weights file, tracker: as it is done from a terminal."""
    checkpoint, file = tmp_path / "model.pth", tmp_path / "model.safetensors"
    torch.save(golden.published_state(published.folder), checkpoint)
    parser = argparse.ArgumentParser()
    checkpoints.add_arguments(parser)
    arguments = [str(checkpoint), "--tracker", published.name, "--out", str(file)]
    assert checkpoints.run(parser.parse_args(arguments)) == 0
    tracker = tracker_ros.create(
        TRACKERS[published.name],
        weights=str(file),
        compat="published",
        device="cpu",
    )
    tracker.initialize(_frame(0), tuple(map(float, published.stages["init_box"])))
    box = tracker.track(_frame(1)).box
    assert np.abs(np.array(box) - published.stages["x/result_box_xywh"]).max() < 0.05
