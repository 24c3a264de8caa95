"""Reading training data, crops and the rules that sets are drawn by."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.training.augment import FramePlan, Layer, View, cut, map_box, paste, photometric, render, soft_ellipse
from tracker_ros.training.data import (
    ImagePool,
    TrainingImage,
    add_flights,
    apart,
    make_pool,
    pyramid,
    read_images,
    read_sequence,
    scenes,
    split,
)
from tracker_ros.training.sets import SetOptions, SetSampler


def _image(width: int = 400, height: int = 300, boxes: list[list[float]] | None = None, seed: int = 0) -> TrainingImage:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (height // 10, width // 10, 3), np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    given = np.asarray([[150, 100, 60, 40]] if boxes is None else boxes, np.float32).reshape(-1, 4)
    return TrainingImage(pyramid(picture), given, "test", f"{seed}.jpg")


def _write(folder: Path, rows: list[str], names: list[str]) -> None:
    (folder / "jpg").mkdir(parents=True)
    for name in names:
        cv2.imwrite(str(folder / "jpg" / name), np.zeros((40, 50, 3), np.uint8))
    (folder / "boxes.csv").write_text("image,source,x,y,w,h,label\n" + "".join(row + "\n" for row in rows))


def test_images_are_read_with_all_their_boxes(tmp_path: Path) -> None:
    _write(tmp_path, ["a.jpg,coco,1,2,3,4,9", "a.jpg,coco,5,6,7,8,9", "b.jpg,ukbench,,,,,"], ["a.jpg", "b.jpg"])
    first, second = read_images(tmp_path)
    assert first.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert first.size == (50, 40)
    assert second.boxes.shape == (0, 4)
    assert second.source == "ukbench"


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    _write(tmp_path, ["a.jpg,coco,1,2,3,4,9", "b.jpg,coco,1,2,3,4,9"], ["a.jpg"])
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images .*b\.jpg"):
        read_images(tmp_path)


def test_missing_folders_are_named_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*nothing"):
        make_pool(tmp_path / "nowhere", [tmp_path / "nothing"])


def test_frames_without_the_target_have_no_box(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    for number in range(1, 4):
        cv2.imwrite(str(tmp_path / "img" / f"{number:06d}.jpg"), np.zeros((40, 50, 3), np.uint8))
    (tmp_path / "groundtruth.txt").write_text("1,2,3,4\nnan,nan,nan,nan\n5,6,7,8\n")
    assert [image.boxes.tolist() for image in read_sequence(tmp_path)] == [[[1, 2, 3, 4]], [], [[5, 6, 7, 8]]]


def test_split_never_shares_an_image() -> None:
    pool = ImagePool([_image(seed=i) for i in range(40)], [[0, 1, 2], [3, 4, 5]])
    training, held_out = split(pool, every=4)
    names = {image.name for image in training.images}, {image.name for image in held_out.images}
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 40
    assert [len(s) for s in training.sequences] == [3]
    assert [held_out.images[i].name for i in held_out.sequences[0]] == ["3.jpg", "4.jpg", "5.jpg"]


def _videos(*sources: str) -> ImagePool:
    """Videos of two frames each."""
    pool = ImagePool()
    for number, source in enumerate(sources):
        pool.sequences.append([len(pool), len(pool) + 1])
        pool.images += [TrainingImage([], np.zeros((0, 4), np.float32), source, f"{number}_{i}") for i in range(2)]
    return pool


def test_scenes_are_videos_but_for_a_number_at_the_end_of_their_names() -> None:
    pool = _videos("uav_group1_1", "uav_group1_3", "uav_group2_1", "ball_2", "got10k", "got10k", "otb_Dog")
    names = scenes(pool)
    assert names[0] == names[1]
    assert len(set(names)) == 6


def test_of_many_videos_a_tenth_is_held_out_whatever_else_is_read() -> None:
    sources = [f"set{letter}_{scene}_{part}" for letter in "abcdefghij" for scene in "klmnopqrst" for part in "12"]
    training, held_out = split(_videos(*sources))
    chosen = {held_out.images[s[0]].source for s in held_out.sequences}
    assert 8 <= len(chosen) <= 40
    assert chosen == {source for source in sources if source[:-2] in {other[:-2] for other in chosen}}
    assert not chosen & {training.images[s[0]].source for s in training.sequences}
    half = split(_videos(*reversed(sources[: len(sources) // 2])))[1]
    assert {half.images[s[0]].source for s in half.sequences} == chosen & set(sources[: len(sources) // 2])


def test_targets_of_two_trainings_are_apart() -> None:
    pool = ImagePool([_image(seed=i) for i in range(40)], [[0, 1, 2], [3, 4, 5], [6, 7]], loose={"x"})
    maps, head = apart(pool)
    names = {image.name for image in maps.images}, {image.name for image in head.images}
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 40
    assert len(names[1]) == 3 + 11
    assert [[part.images[i].name for i in video] for part in (maps, head) for video in part.sequences] == [
        ["3.jpg", "4.jpg", "5.jpg"],
        ["6.jpg", "7.jpg"],
        ["0.jpg", "1.jpg", "2.jpg"],
    ]
    assert maps.loose == head.loose == pool.loose


def test_videos_of_one_photograph_stay_together() -> None:
    shown = [_image(seed=i) for i in (0, 1, 2, 3, 1, 2, 0)]  # two videos and a still share photographs
    pool = ImagePool([*shown, *(_image(seed=i) for i in range(9, 15))], [[0, 1], [2, 3], [4, 5]])
    for every in (2, 3, 4):
        maps, head = apart(pool, every)
        assert not {image.name for image in maps.images} & {image.name for image in head.images}
        assert maps.images
        assert len(head.sequences) == 3


def test_flights_have_boxes_only_where_the_target_is_seen() -> None:
    pool = ImagePool()
    add_flights(pool, [1000], 3, step=90)
    assert [len(sequence) for sequence in pool.sequences] == [3]
    assert all(image.boxes.shape in ((0, 4), (1, 4)) for image in pool.images)
    assert any(len(image.boxes) for image in pool.images)


@pytest.mark.parametrize("side", [80.0, 300.0])
def test_a_crop_shows_the_box_where_map_box_says(side: float) -> None:
    image = _image(boxes=[[150, 100, 60, 40]])
    for level in image.levels:
        level[:] = 0
        factor = level.shape[1] / 400
        level[round(100 * factor) : round(140 * factor), round(150 * factor) : round(210 * factor)] = 255
    view = View(centre=(170, 130), side=side)
    crop = cut(image, view, 96)
    found = cv2.boundingRect((crop[..., 0] > 127).astype(np.uint8))
    expected = Box(*map_box(image.boxes[0], view, 96)).clip(96, 96)
    assert iou(Box(*found), expected) > 0.9


def test_flip_mirrors_the_box() -> None:
    box = np.array([110, 100, 20, 40], np.float32)
    plain = map_box(box, View((100, 100), 100), 100)
    mirrored = map_box(box, View((100, 100), 100, flip=True), 100)
    assert plain.tolist() == [60, 50, 20, 40]
    assert mirrored.tolist() == [20, 50, 20, 40]


def test_a_quarter_turn_swaps_the_sides() -> None:
    turned = map_box(np.array([90, 80, 20, 40], np.float32), View((100, 100), 100, angle=np.pi / 2), 100)
    np.testing.assert_allclose(turned, [30, 40, 40, 20], atol=1e-4)


def test_paste_cuts_at_the_border_and_weighs_by_the_mask() -> None:
    crop = np.zeros((10, 10, 3), np.uint8)
    paste(crop, np.full((4, 4, 3), 200, np.uint8), 8, -2, np.full((4, 4), 0.5, np.float32))
    assert (crop[:2, 8:] == 100).all()
    assert crop.sum() == 2 * 2 * 3 * 100
    paste(crop, np.full((4, 4, 3), 200, np.uint8), 30, 30, np.ones((4, 4), np.float32))
    assert crop.sum() == 2 * 2 * 3 * 100


def test_soft_ellipse_is_one_inside_and_zero_in_the_corners() -> None:
    mask = soft_ellipse(40, 20)
    assert mask.shape == (20, 40)
    assert mask[10, 20] == 1
    assert mask[0, 0] == 0


def test_photometric_keeps_shape_and_type(texture: np.ndarray) -> None:
    for seed in range(30):
        result = photometric(texture, np.random.default_rng(seed))
        assert result.shape == texture.shape
        assert result.dtype == np.uint8


def _sampler(**changes: float) -> SetSampler:
    pool = ImagePool([_image(seed=i) for i in range(4)])
    return SetSampler(pool, SetOptions(**changes))  # type: ignore[arg-type]


def test_a_set_is_a_function_of_the_generator() -> None:
    sampler = _sampler(absent=0.3)
    first, again = (sampler.draw(np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.crops, again.crops)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert (sampler.draw(np.random.default_rng(6)).crops != first.crops).any()


def test_targets_lie_in_the_crop_at_the_size_that_the_tracker_sees() -> None:
    sampler = _sampler(absent=0.0)
    sizes = []
    for seed in range(40):
        drawn = sampler.draw(np.random.default_rng(seed))
        assert drawn.crops.shape == (4, 288, 288, 3)
        centres = drawn.boxes[:, :2] + drawn.boxes[:, 2:] / 2
        assert (centres > 0).all()
        assert (centres < 288).all()
        sizes += np.sqrt(drawn.boxes[:, 2:].prod(1)).tolist()
    assert np.exp(np.mean(np.log(sizes))) == pytest.approx(288 / 5, rel=0.1)
    assert min(sizes) > 25
    assert max(sizes) < 110


def test_only_test_frames_lack_the_target() -> None:
    drawn = [_sampler(absent=1.0).draw(np.random.default_rng(seed)) for seed in range(5)]
    assert all(d.present.tolist() == [True, True, False, False] for d in drawn)


def test_look_alikes_leave_the_middle_of_the_target_alone() -> None:
    sampler = _sampler(distractors=1.0)
    nothing = TrainingImage([np.zeros((288, 288, 3), np.uint8)], np.zeros((0, 4), np.float32), "test", "black")
    place = np.array([120, 120, 50, 50], np.float32)
    layers = [Layer.whole(4, View((144, 144), 288), 288)]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for look in sampler._look_alikes(rng):
            layers += sampler._place_look_alike(look, place, rng)
    crop = render([*sampler.pool.images, nothing], FramePlan(tuple(layers)), 288)
    assert crop[135:155, 135:155].sum() == 0
    assert (crop > 0).mean() > 0.2


def test_a_piece_fills_its_region_with_its_view() -> None:
    image = _image(boxes=[[150, 100, 60, 40]])
    image.levels = [np.zeros((300, 400, 3), np.uint8)]
    image.levels[0][100:140, 150:180] = 255  # the left half of the box
    view = View((180, 120), np.sqrt(60 * 40), aspect=np.sqrt(60 / 40), flip=True)
    ground = Layer(0, np.array([[1.0, 0, 0], [0, 1, 0]]), (0, 0, 96, 96))  # black: the image's upper left corner
    crop = render([image], FramePlan((ground, Layer.piece(0, view, (20, 30, 30, 40), ellipse=False))), 96)
    assert crop[31:69, 36:49].min() == 255  # mirrored: the right half of the region
    assert crop[:, :34].max() == 0
    assert crop[:29].max() == crop[71:].max() == 0


def test_video_sets_take_training_frames_before_test_frames() -> None:
    images = [_image(seed=i) for i in range(12)]
    sampler = SetSampler(ImagePool(images, [list(range(12))]), SetOptions(segment=12))
    for seed in range(20):
        chosen = [index for index, _ in sampler._from_video(np.random.default_rng(seed))]
        assert max(chosen[:2]) < 6 <= min(chosen[2:])


def test_loose_boxes_are_left_out_where_sizes_matter() -> None:
    images = [_image(seed=i) for i in range(4)]
    images[0].source = images[1].source = "video"
    pool = ImagePool(images, [[0, 1]], {"video"})
    assert len(SetSampler(pool, SetOptions()).videos) == 1
    tight = SetSampler(pool, SetOptions(), tight=True)
    assert not tight.videos
    assert len(tight.targets) == 2


def test_a_set_is_boxed_in_one_way_that_need_not_be_the_annotation() -> None:
    """What a frame's box covers of the image is the same in all frames of a set, another in the next."""
    sampler = _sampler(convention=0.2, absent=0.0, angle=0.0, transplant=0.0, distractors=0.0, occluder=0.0)
    covered = []
    for seed in range(6):
        drawn = sampler.plan(np.random.default_rng(seed))
        image = drawn.frames[0].layers[0].image
        parts = []
        for frame, box in zip(drawn.frames, drawn.boxes, strict=True):
            to_image = np.linalg.inv(np.vstack([frame.layers[0].matrix, [0, 0, 1]]))
            corners = np.array([[*box[:2], 1], [*(box[:2] + box[2:]), 1]]) @ to_image.T
            parts.append(np.concatenate([corners.min(0)[:2], corners.max(0)[:2]]))
        assert np.ptp(parts, axis=0).max() < 0.01
        annotated = sampler.pool.images[image].boxes
        corners = np.concatenate([annotated[:, :2], annotated[:, :2] + annotated[:, 2:]], 1)
        covered.append(np.abs(corners - parts[0]).max(1).min())
    assert min(covered) > 0.5
    assert max(covered) > 5


def test_light_changes_as_much_as_asked() -> None:
    spread = []
    for strength in (0.0, 0.6, 1.5):
        sampler = _sampler(photometric=strength)
        plans = [frame for seed in range(20) for frame in sampler.plan(np.random.default_rng(seed)).frames]
        gains = [plan.look.colour[:, :3].sum(1).mean() for plan in plans if plan.look.colour is not None]
        spread.append(float(np.std(np.log(gains))))
    assert spread[0] < 1e-9
    assert 1.8 * spread[1] < spread[2] < 3.2 * spread[1]


def test_a_pool_without_usable_boxes_is_refused() -> None:
    with pytest.raises(ValueError, match="no image of the pool has a usable box"):
        SetSampler(ImagePool([_image(boxes=[[0, 0, 3, 3]])]), SetOptions())
