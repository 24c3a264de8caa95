"""The recipe of the guided detectors: its triplets, and a few steps of both phases."""

from __future__ import annotations

import argparse
import copy
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tracker_ros import registry, weights
from tracker_ros.networks.backbones import BACKBONE18
from tracker_ros.networks.detection import GuidedDetector
from tracker_ros.training.augment import FramePlan, Photometric, render
from tracker_ros.training.command import add_arguments
from tracker_ros.training.data import ImagePool, add_flights, make_pool, split
from tracker_ros.training.guided import GuidedOptions, GuidedTraining, TripletSampler, build
from tracker_ros.training.run import with_settings
from tracker_ros.training.sets import SetOptions

SHARED = Path(os.environ.get("TRACKER_ROS_SHARED", Path(__file__).parents[3] / "shared"))


@pytest.fixture(scope="module")
def pool() -> ImagePool:
    pool = ImagePool()
    add_flights(pool, range(1), 8)
    return pool


def _detector(name: str) -> GuidedDetector:
    torch.manual_seed(0)
    network = registry.networks()[name].create()
    assert isinstance(network, GuidedDetector)
    return network


@pytest.fixture(scope="module")
def ssd() -> GuidedDetector:
    return _detector("guided_ssd18")


def test_exemplar_shows_the_target_in_the_middle_at_its_size(pool: ImagePool, ssd: GuidedDetector) -> None:
    sampler = TripletSampler(pool, ssd)
    side = ssd.config.exemplar
    for seed in range(10):
        plan = sampler.triplet(np.random.default_rng(seed))
        box = plan.exemplar_box
        assert np.abs(box[:2] - side / 2).max() < 0.1 * side
        assert np.sqrt(box[2:].prod()) == pytest.approx(side / ssd.config.exemplar_context, rel=0.2)


def test_exemplar_is_the_search_crop_magnified(pool: ImagePool, ssd: GuidedDetector) -> None:
    plain = SetOptions(distractors=0.0, transplant=0.0, occluder=0.0, absent=0.0, videos=1.0)
    sampler = TripletSampler(pool, ssd, layout=plain)
    drawn = sampler.plan(np.random.default_rng(4))
    plan = sampler.triplet(np.random.default_rng(4))
    search, side = ssd.config.search, ssd.config.exemplar
    whole = render(pool.images, drawn.frames[0], search).astype(float)
    near = render(pool.images, plan.exemplar, side).astype(float)
    # Mean colours of the same part of the picture: the middle two fifths of the search crop.
    low, high = round(search * 0.3), round(search * 0.7)
    np.testing.assert_allclose(near.mean((0, 1)), whole[low:high, low:high].mean((0, 1)), atol=3)


def test_frames_follow_the_exemplar_in_time(pool: ImagePool, ssd: GuidedDetector) -> None:
    sampler = TripletSampler(
        pool, ssd, supports=2, queries=2, layout=SetOptions(videos=1.0, absent=0.0, transplant=0.0)
    )
    for seed in range(10):
        plan = sampler.triplet(np.random.default_rng(seed))
        shown = [frame.layers[0].image for frame in (plan.exemplar, *plan.frames)]
        assert shown == sorted(shown)
        assert plan.boxes.shape == (4, 4)


def test_support_crops_of_the_first_frame_show_it_moved(pool: ImagePool, ssd: GuidedDetector) -> None:
    """What lies in the box is what the exemplar shows, mirrored or not; the query frames are later ones as ever."""
    layout = SetOptions(distractors=1.0, absent=0.0, transplant=0.5)
    sampler = TripletSampler(ImagePool(pool.images), ssd, supports=4, queries=2, layout=layout, first_frame=1.0)
    later = TripletSampler(ImagePool(pool.images), ssd, supports=4, queries=2, layout=layout)
    side = ssd.config.search

    def inside(plan: FramePlan, box: NDArray[np.float32], size: int) -> NDArray[np.float64]:
        x, y = box[:2] - box[2:] / 2
        matrix = np.array([[32 / box[2], 0, -32 * x / box[2]], [0, 32 / box[3], -32 * y / box[3]]])
        return cv2.warpAffine(render(pool.images, plan, size), matrix, (32, 32)).astype(float)

    mirrored = 0
    for seed in range(8):
        plan = sampler.triplet(np.random.default_rng(seed))
        look = replace(plan.exemplar, look=Photometric())
        wanted = inside(look, plan.exemplar_box, ssd.config.exemplar)
        centre = np.abs(plan.boxes[0, :2] - side / 2)
        assert centre.max() < 1e-3
        for frame, box in zip(plan.frames[:4], plan.boxes[:4], strict=True):
            found = inside(replace(frame, look=Photometric()), box, side)
            errors = [np.abs(np.roll(view, (dy, dx), (0, 1)) - wanted)[4:-4, 4:-4].mean()
                      for view in (found, found[:, ::-1]) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]  # fmt: skip
            assert min(errors) < 14
            mirrored += int(np.argmin(errors) >= 9)
        queries = later.triplet(np.random.default_rng(seed)).frames[4:]
        for frame, same in zip(plan.frames[4:], queries, strict=True):
            np.testing.assert_array_equal(frame.layers[0].matrix, same.layers[0].matrix)
    assert 4 <= mirrored <= 20


def test_absent_targets_have_no_box(pool: ImagePool, ssd: GuidedDetector) -> None:
    pool = ImagePool(pool.images)  # stills, of which another one can be shown
    sampler = TripletSampler(pool, ssd, layout=SetOptions(absent=1.0))
    assert not sampler.triplet(np.random.default_rng(0)).boxes.any()


@pytest.mark.parametrize("name", ["guided_ssd18", "guided_frcnn18"])
def test_both_phases_learn_and_leave_weights(name: str, pool: ImagePool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKER_ROS_MODELS", str(tmp_path))
    detector = _detector(name)
    weights.save(tmp_path / f"{BACKBONE18}.safetensors", detector.backbone, BACKBONE18, "random")
    weights.load_backbone(detector.backbone, BACKBONE18)
    options = GuidedOptions(
        steps=2, conventional=0.5, triplets=2, fresh=1, first=4, inner_steps=2, validation=2, bf16=False, device="cpu"
    )
    run = GuidedTraining(name, detector, pool, pool, tmp_path / "run", options)
    head, rates = dict(run.net.head.named_parameters()), run.net.inner_rates()
    before = {key: value.detach().clone() for key, value in head.items()}
    backbone = {key: value.clone() for key, value in run.net.backbone.state_dict().items()}

    first = run.train_step()
    assert "after" not in first
    assert all(torch.equal(value, dict(run.conventional.named_parameters())[key]) for key, value in head.items())
    assert any(not torch.equal(value, before[key]) for key, value in head.items())
    assert all(torch.equal(value, rates[key]) for key, value in run.net.inner_rates().items())

    assert run.adapting
    second = run.train_step()
    assert {"before", "after", "conventional"} <= set(second)
    assert any(not torch.equal(value, dict(run.conventional.named_parameters())[key]) for key, value in head.items())
    assert any(not torch.equal(value, rates[key]) for key, value in run.net.inner_rates().items())
    assert all(torch.equal(value, backbone[key]) for key, value in run.net.backbone.state_dict().items())

    run.save()
    figures = (run.out / "validation.jsonl").read_text()
    assert '"improved"' in figures
    assert '"better"' in figures
    for suffix in ("", "_conventional"):
        loaded = _detector(name)
        weights.load(run.out / f"{name}{suffix}.safetensors", loaded, name)
        torch.testing.assert_close(loaded.backbone.state_dict(), run.net.backbone.state_dict(), rtol=1e-3, atol=1e-3)

    # A resumed run sees the same triplets: its memory is a function of seed and step.
    again = GuidedTraining(name, _detector(name), pool, ImagePool(), tmp_path / "run", options)
    again.load(again.checkpoint)
    assert again.step == 2
    torch.testing.assert_close(again.batch(5).boxes, run.batch(5).boxes)


def test_head_alone_learns_where_the_maps_stay(pool: ImagePool, ssd: GuidedDetector, tmp_path: Path) -> None:
    options = GuidedOptions(
        steps=1, conventional=0.0, triplets=2, fresh=1, first=4, inner_steps=2, validation=0, bf16=False, device="cpu"
    )
    options = replace(options, maps_rate=0.0, harm=2.0, harm_margin=10.0, plain=0.5)
    run = GuidedTraining("guided_ssd18", copy.deepcopy(ssd), pool, ImagePool(), tmp_path, options)
    before = {key: value.detach().clone() for key, value in run.net.named_parameters()}
    terms = run.train_step()
    # The two heads are still one, and a margin that no gain reaches adds the mean of after - before + margin.
    assert terms["plain"] == pytest.approx(terms["conventional"], rel=1e-5)
    expected = 3 * terms["after"] + 2 * (10.0 - terms["before"]) + 0.5 * terms["plain"] + terms["conventional"]
    assert terms["total"] == pytest.approx(expected, rel=1e-4)
    changed = {key for key, value in run.net.named_parameters() if not torch.equal(value, before[key])}
    assert {key.split(".")[0] for key in changed} == {"head", "log_rates"}
    # The gradient of what the steps gain can go through the loss before them too.
    other = GuidedTraining(
        "guided_ssd18", copy.deepcopy(ssd), pool, ImagePool(), tmp_path, replace(options, headroom=True)
    )
    assert other.train_step()["total"] == pytest.approx(terms["total"], rel=1e-5)
    assert not torch.equal(other.net.head.cls[0].weight, run.net.head.cls[0].weight)


def test_choice_of_targets_is_checked() -> None:
    assert with_settings(GuidedOptions(), ["targets=head"]).targets == "head"
    with pytest.raises(ValueError, match=r"targets=heads: expected all, maps or head"):
        with_settings(GuidedOptions(), ["targets=heads"])


def test_second_run_goes_on_with_both_heads_on_other_targets(ssd: GuidedDetector, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKER_ROS_MODELS", str(tmp_path))
    weights.save(tmp_path / f"{BACKBONE18}.safetensors", ssd.backbone, BACKBONE18, "random")
    (tmp_path / "jpg").mkdir()
    names = [f"{number}.jpg" for number in range(12)]
    for name in names:
        cv2.imwrite(str(tmp_path / "jpg" / name), np.full((120, 160, 3), 90, np.uint8))
    rows = "".join(f"{name},x,40,30,50,40,1\n" for name in names)
    (tmp_path / "boxes.csv").write_text("image,source,x,y,w,h,label\n" + rows)
    parser = argparse.ArgumentParser()
    add_arguments(parser)

    def run(out: str, targets: str, *more: str) -> GuidedTraining:
        settings = ["targets=" + targets, "steps=1", "validation=0", "memory=4", "first=4", "device=cpu", "bf16=false"]
        command = ["guided_ssd", "--out", str(tmp_path / out), "--images", str(tmp_path), *more]
        return build(parser.parse_args(command + [word for s in settings for word in ("--set", s)]))

    first = run("first", "maps")
    with torch.no_grad():
        first.conventional.cls[0].bias.fill_(7.0)  # a head that went its own way
    both = first.average
    both["conventional"].load_state_dict(first.conventional.state_dict())
    first.out.mkdir()
    first.on_save()
    second = run("second", "head", "--base", str(tmp_path / "first" / "guided_ssd18.safetensors"))
    torch.testing.assert_close(second.conventional.cls[0].bias, torch.full_like(second.conventional.cls[0].bias, 7.0))
    torch.testing.assert_close(second.net.head.state_dict(), first.net.head.state_dict(), rtol=1e-3, atol=1e-3)
    names_of = [{image.name for image in run.sampler.pool.images} for run in (first, second)]
    assert names_of[0]
    assert names_of[1]
    assert not names_of[0] & names_of[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["guided_ssd18", "guided_frcnn18"])
def test_shipped_heads_adapt_to_what_they_never_saw(name: str, tmp_path: Path) -> None:
    """Held-out triplets: after the inner steps the query loss is lower on at least 90 % of them."""
    if not (SHARED / "images" / "boxes.csv").is_file():
        pytest.skip(f"{SHARED / 'images'} is not there; it runs where the training images are")
    if not weights.shipped(name).is_file():
        pytest.skip(f"{weights.shipped(name)} is not there")
    detector = _detector(name)
    weights.load(weights.shipped(name), detector, name)
    # What is held out depends on all that was read: the data of the cards' commands, without the flights.
    videos = sorted((SHARED / "sequences").glob("drone_*"))
    pool, held_out = split(make_pool(SHARED / "images", [], videos, sequence_step=3))
    options = GuidedOptions(steps=1, validation=64, first=8, memory=8, device="cpu")
    figures = GuidedTraining(name, detector, pool, held_out, tmp_path, options).validate()
    print(figures)
    assert figures["improved"] >= 0.9
    assert figures["iou_after"] > figures["iou_before"]
