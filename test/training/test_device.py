"""Crops made by torch from images in a device's memory are those that OpenCV makes of the same plans."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.training.augment import (
    FramePlan,
    Layer,
    Photometric,
    View,
    colour_matrix,
    draw_photometric,
    map_box,
    motion_kernel,
)
from tracker_ros.training.data import ImagePool, TrainingImage, pyramid
from tracker_ros.training.device import DeviceImages, HostImages, blur_kernel, jpeg, proposals, quantisation
from tracker_ros.training.sets import SetOptions, SetSampler

SIZE = 96
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
    ),
]


def _smooth(width: int, height: int, seed: int) -> TrainingImage:
    """Smooth colours, so that what differs is geometry or arithmetic and not interpolation."""
    coarse = np.random.default_rng(seed).integers(20, 235, (4, 5, 3), np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    boxes = np.array([[0.3 * width, 0.3 * height, 0.2 * width, 0.25 * height]], np.float32)
    return TrainingImage(pyramid(picture), boxes, "test", str(seed))


@pytest.fixture(scope="module")
def pool() -> ImagePool:
    """Images of several sizes, odd ones among them, with one to three levels."""
    sizes = [(640, 480), (401, 301), (150, 203), (799, 533)]
    return ImagePool([_smooth(width, height, seed) for seed, (width, height) in enumerate(sizes)])


def _both(pool: ImagePool, plans: list[FramePlan], device: str) -> tuple[np.ndarray, np.ndarray]:
    """Host's and device's BxSxSx3."""
    made = [images.render(plans, SIZE) for images in (HostImages(pool), DeviceImages(pool, device))]
    assert made[0].shape == made[1].shape == (len(plans), 3, SIZE, SIZE)
    host, other = (crops.permute(0, 2, 3, 1).cpu().numpy() for crops in made)
    return host, other


def _views() -> list[FramePlan]:
    rng = np.random.default_rng(0)
    plans = []
    for number in range(24):
        view = View(
            (float(rng.uniform(40, 300)), float(rng.uniform(40, 250))),
            float(np.exp(rng.uniform(np.log(50), np.log(500)))),
            float(rng.uniform(0.7, 1.4)),
            float(rng.uniform(-0.6, 0.6)),
            bool(number % 2),
        )
        plans.append(FramePlan((Layer.whole(number % 4, view, SIZE),)))
    return plans


@pytest.mark.parametrize("device", DEVICES)
def test_views_agree_with_opencv(pool: ImagePool, device: str) -> None:
    host, other = _both(pool, _views(), device)
    # OpenCV rounds to whole grey levels, and positions to 1/32 pixel in its older versions.
    assert np.abs(host - other).mean() < 0.3
    assert np.abs(host - other).max() < 1.0


@pytest.mark.parametrize("device", DEVICES)
def test_a_target_lies_where_map_box_says(device: str) -> None:
    """A blob's centre of mass, which knows fractions of a pixel, against the centre of its mapped box."""
    y, x = np.mgrid[:300, :400] + 0.5
    blob = 250 * np.exp(-0.5 * (((x - 180) / 12) ** 2 + ((y - 130) / 8) ** 2))
    picture = np.repeat(np.round(blob).astype(np.uint8)[..., None], 3, 2)
    pool = ImagePool([TrainingImage(pyramid(picture), np.zeros((0, 4), np.float32), "test", "blob")])
    box = np.array([180 - 36, 130 - 24, 72, 48], np.float32)
    views = [View((190, 120), 150), View((170, 140), 230, 1.2, 0.5), View((185, 135), 330, 0.9, -0.3, True)]
    made = DeviceImages(pool, device).render([FramePlan((Layer.whole(0, view, SIZE),)) for view in views], SIZE)
    steps = torch.arange(SIZE) + 0.5
    for crop, view in zip(made[:, 0].cpu(), views, strict=True):
        found = float((crop.sum(0) * steps).sum() / crop.sum()), float((crop.sum(1) * steps).sum() / crop.sum())
        place = map_box(box, view, SIZE)
        assert found == pytest.approx(tuple(place[:2] + place[2:] / 2), abs=0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_layers_lie_as_on_the_host(pool: ImagePool, device: str) -> None:
    ground = Layer.whole(0, View((300, 240), 300), SIZE)
    ellipse = Layer.piece(1, View((200, 150), 120), (20, 30, 40, 31), ellipse=True)
    cut_off = Layer.piece(2, View((80, 100), 90, 1.2, flip=True), (-15, 70, 50, 44), ellipse=True)
    cover = Layer.piece(3, View((400, 250), 200), (70, -5, 23, 61), ellipse=False)
    target = Layer(1, View((210, 160), 200, angle=0.3).matrix(SIZE), (10, 10, 60, 70), ellipse=True)
    plans = [FramePlan(layers) for layers in ((ground,), (ground, ellipse, cut_off, cover), (ground, target, cover))]
    host, other = _both(pool, plans, device)
    # Blending on the host cuts off the fraction.
    assert np.abs(host - other).mean() < 0.4
    assert np.abs(host - other).max() < 2.0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("look", "mean", "most"),
    [
        (Photometric(colour_matrix(np.random.default_rng(1))), 0.6, 2.0),
        (Photometric(sigma=1.7), 0.3, 1.2),
        (Photometric(motion=motion_kernel(13, 0.4)), 0.4, 1.2),
        (Photometric(motion=motion_kernel(3, 2.0)), 0.4, 1.2),
        (Photometric(quality=25), 0.8, 30.0),  # a coefficient near half a step may be rounded either way
        (Photometric(quality=60), 0.8, 15.0),
    ],
)
def test_looks_agree_with_opencv(pool: ImagePool, device: str, look: Photometric, mean: float, most: float) -> None:
    plans = [replace(plan, look=look) for plan in _views()[:6]]
    plans[0] = replace(plans[0], look=Photometric())  # one crop stays as it is
    plans[1] = replace(plans[1], illumination=colour_matrix(np.random.default_rng(5)))
    host, other = _both(pool, plans, device)
    assert np.abs(host - other).mean() < mean
    assert np.abs(host - other).max() < most


def test_jpeg_artefacts_are_those_of_jpeg() -> None:
    """On a picture with edges and texture the difference to real JPEG is small beside what compression changes."""
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (30, 30, 3), np.uint8), (101, 99), interpolation=cv2.INTER_LINEAR)
    cv2.rectangle(picture, (20, 15), (70, 60), (20, 40, 230), -1)
    for quality in (20, 45, 69):
        real = cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
        rgb = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1)[None].float()
        made = jpeg(rgb, torch.from_numpy(quantisation(quality))[None])[0].permute(1, 2, 0).numpy()[..., ::-1]
        assert made.shape == picture.shape
        changed = np.abs(real.astype(float) - picture).mean()
        assert changed > 4
        assert np.abs(made - real).mean() < 0.25 * changed


@pytest.mark.parametrize("device", DEVICES)
def test_noise_has_its_deviation_and_repeats(pool: ImagePool, device: str) -> None:
    plain = FramePlan((Layer.whole(0, View((320, 240), 200), SIZE),))
    plans = [replace(plain, look=Photometric(noise=deviation, noise_seed=7)) for deviation in (0.0, 3.0, 9.0)]
    images = DeviceImages(pool, device)
    first, again = (images.render(plans, SIZE) for _ in range(2))
    assert torch.equal(first, again)
    assert (first[1:] - first[:1]).flatten(1).std(1).tolist() == pytest.approx([3.0, 9.0], rel=0.05)


def test_every_blur_that_is_drawn_fits_the_kernel() -> None:
    rng = np.random.default_rng(0)
    looks = [draw_photometric(rng) for _ in range(400)]
    kernels = [blur_kernel(look) for look in looks]
    assert sum(look.sigma > 0 for look in looks) > 10
    assert sum(look.motion is not None for look in looks) > 10
    assert all(kernel.sum() == pytest.approx(1, abs=1e-5) for kernel in kernels)


def test_sets_look_alike_on_host_and_device(pool: ImagePool) -> None:
    """Whole sets as they are trained on: everything drawn at once, without noise, whose values may differ."""
    sampler = SetSampler(pool, SetOptions(size=SIZE, distractors=0.8, transplant=0.4, occluder=0.5, absent=0.2))
    plans = [plan for seed in range(6) for plan in sampler.plan(np.random.default_rng(seed)).frames]
    plans = [replace(plan, look=replace(plan.look, noise=0.0)) for plan in plans]
    assert max(len(plan.layers) for plan in plans) >= 3
    host, other = _both(pool, plans, "cpu")
    assert np.abs(host - other).mean() < 0.7
    assert abs(float((host - other).mean())) < 0.3


def test_a_plan_and_its_set_are_drawn_alike(pool: ImagePool) -> None:
    sampler = SetSampler(pool, SetOptions(size=SIZE))
    plan, drawn = sampler.plan(np.random.default_rng(3)), sampler.draw(np.random.default_rng(3))
    np.testing.assert_array_equal(plan.boxes, drawn.boxes)
    np.testing.assert_array_equal(plan.present, drawn.present)
    crops = HostImages(pool).render(plan.frames, SIZE).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(crops[..., ::-1], drawn.crops)


def test_nothing_is_read_back(pool: ImagePool) -> None:
    """Tensors of the device "meta" have no values: whatever needed one on the host, or mixed devices, would fail."""
    sampler = SetSampler(pool, SetOptions(size=SIZE, distractors=0.8, transplant=0.4, occluder=0.5))
    plans = [plan for seed in range(40) for plan in sampler.plan(np.random.default_rng(seed)).frames]
    plans = [replace(plan, look=replace(plan.look, noise=0.0)) for plan in plans]  # "meta" has no random numbers
    assert any(plan.look.sigma for plan in plans)
    assert any(plan.look.quality for plan in plans)
    crops = DeviceImages(pool, "meta").render(plans, SIZE)
    assert crops.device.type == "meta"
    assert crops.shape == (len(plans), 3, SIZE, SIZE)
    assert crops.is_contiguous(memory_format=torch.channels_last)
    candidates, overlaps = proposals(torch.ones(5, 4, device="meta"), 24)
    assert (candidates.shape, overlaps.device.type) == ((5, 24, 4), "meta")


def test_memory_is_what_is_promised(pool: ImagePool) -> None:
    pixels = sum(level.shape[0] * level.shape[1] for image in pool.images for level in image.levels)
    assert DeviceImages(pool, "cpu").megabytes == pytest.approx(4 * pixels / 1e6)
    twice = ImagePool([*pool.images, replace(pool.images[1], boxes=pool.images[0].boxes)])
    shared = DeviceImages(twice, "cpu")
    assert shared.megabytes == pytest.approx(4 * pixels / 1e6)
    plans = [FramePlan((Layer.whole(index, View((200, 150), 100), SIZE),)) for index in (1, 4)]
    assert torch.equal(*shared.render(plans, SIZE))


def test_proposals_overlap_as_they_say() -> None:
    boxes = torch.tensor([[100.0, 80.0, 60.0, 30.0], [10.0, 20.0, 25.0, 70.0]])
    found, overlaps = proposals(boxes, 400, torch.Generator().manual_seed(0))
    assert found.shape == (2, 400, 4)
    assert float(overlaps.min()) >= 0.1
    assert float(overlaps.min()) < 0.2
    assert float(overlaps.max()) > 0.95
    for box, around, values in zip(boxes, found, overlaps, strict=True):
        expected = [iou(Box(*candidate), Box(*box.tolist())) for candidate in around.tolist()]
        assert values.tolist() == pytest.approx(expected, abs=1e-4)


def test_no_proposals_can_be_asked_for() -> None:
    found, overlaps = proposals(torch.ones(3, 4), 0, torch.Generator())
    assert (found.shape, overlaps.shape) == ((3, 0, 4), (3, 0))


def test_few_overlapping_proposals_give_the_best_of_the_rest() -> None:
    box = torch.tensor([[50.0, 50.0, 40.0, 40.0]])
    _, overlaps = proposals(box, 16, torch.Generator().manual_seed(1), lowest=0.97)
    assert overlaps.shape == (1, 16)
    assert float(overlaps.min()) > 0.7
