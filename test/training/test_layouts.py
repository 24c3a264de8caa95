"""Published data sets in miniature: boxes, absence, what counts from 1, missing files, and bounded memory."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from tracker_ros.training.augment import View, cut
from tracker_ros.training.data import (
    FileLevels,
    ImagePool,
    PixelStore,
    TrainingImage,
    image_groups,
    image_size,
    pyramid,
    split,
)
from tracker_ros.training.layouts import LAYOUTS, UAV123_FIRST, open_data
from tracker_ros.training.sets import SetOptions, SetSampler

WIDTH, HEIGHT = 64, 48


def _images(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        picture = np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)
        (folder / name).write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _frames(first: int, count: int, form: str) -> list[str]:
    return [form.format(number) for number in range(first, first + count)]


def got10k(root: Path) -> None:
    video = root / "GOT-10k_Train_000001"
    _images(video, _frames(1, 5, "{:08d}.jpg"))
    _write(video / "groundtruth.txt", "11.0000,6.0000,20.0,10.0\n12,6,20,10\n-1,-1,-1,-1\n13,6,20,10\n14,6,20,10\n")
    _write(video / "absence.label", "0\n1\n0\n0\n0\n")
    _write(video / "cover.label", "8\n8\n8\n0\n3\n")
    _write(root / "list.txt", "GOT-10k_Train_000001\n")


def lasot(root: Path) -> None:
    for name in ("kite-1", "kite-6"):
        video = root / "kite" / name
        _images(video / "img", _frames(1, 5, "{:08d}.jpg"))
        _write(video / "groundtruth.txt", "11,6,20,10\n12,6,20,10\n0,0,0,0\n13,6,20,10\n14,6,20,10\n")
        _write(video / "full_occlusion.txt", "0,1,0,0,0")
        _write(video / "out_of_view.txt", "0,0,0,1,0")
    _write(root / "testing_set.txt", "kite-6\n")


def trackingnet(root: Path) -> None:
    _images(root / "TRAIN_0" / "frames" / "abc_0", _frames(0, 5, "{}.jpg"))
    _write(root / "TRAIN_0" / "anno" / "abc_0.txt", "10,5,20,10\n11,5,0,10\n11,5,20,0\nnan,nan,nan,nan\n13,5,20,10\n")


def otb(root: Path) -> None:
    _images(root / "David" / "img", _frames(298, 7, "{:04d}.jpg"))
    _write(root / "David" / "groundtruth_rect.txt", "11,6,20,10\n12\t6\t0\t0\n0 0 0 0\nNaN,NaN,NaN,NaN\n14,6,20,10\n")


def uav123(root: Path) -> None:
    _images(root / "data_seq" / "UAV123" / "truck4", _frames(576, 6, "{:06d}.jpg"))
    rows = "11,6,20,10\nNaN,NaN,NaN,NaN\nNaN,NaN,NaN,NaN\nNaN,NaN,NaN,NaN\n14,6,20,10\n"
    _write(root / "anno" / "UAV123" / "truck4_2.txt", rows)


def ytbb(root: Path) -> None:
    _images(root / "frames" / "AbC-1", _frames(1, 5, "{}000.jpg"))
    row = "{},{}000,0,person,0,{},{},{},{},{}\n"
    box = (10 / WIDTH, 30 / WIDTH, 5 / HEIGHT, 15 / HEIGHT)
    gone = ("absent", -1.0, -1.0, -1.0, -1.0)
    table = row.format("vanished", 1, "present", *box) + row.format("AbC-1", 1, "present", *box)
    table += "".join(row.format("AbC-1", second, *gone) for second in (2, 3, 4))
    table += row.format("AbC-1", 5, "present", 13 / WIDTH, 33 / WIDTH, *box[2:]) + row.format("AbC-1", 9, *gone)
    _write(root / "yt_bb_detection_train.csv", table)


def vid(root: Path) -> None:
    part = Path("VID/train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000")
    _images(root / "Data" / part, _frames(0, 5, "{:06d}.JPEG"))
    for number, left in enumerate((10, None, None, None, 13)):
        box = f"<xmax>{left + 20}</xmax><xmin>{left}</xmin><ymax>15</ymax><ymin>5</ymin>" if left is not None else ""
        item = f"<object><trackid>0</trackid><name>n1</name><bndbox>{box}</bndbox></object>" if box else ""
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        _write(root / "Annotations" / part / f"{number:06d}.xml", f"<annotation>{size}{item}</annotation>")


def sequences(root: Path) -> None:
    _images(root / "bike" / "img", _frames(1, 5, "{:06d}.jpg"))
    rows = "10,5,20,10\nnan,nan,nan,nan\nnan,nan,nan,nan\nnan,nan,nan,nan\n13,5,20,10\n"
    _write(root / "bike" / "groundtruth.txt", rows)


def coco(root: Path) -> None:
    _images(root / "train2017", ["000000000009.jpg", "000000000025.jpg"])
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in (9, 25)]
    entries = [
        {"image_id": 9, "bbox": [10.5, 5.25, 20.0, 10.0], "iscrowd": 0},
        {"image_id": 9, "bbox": [1.0, 2.0, 3.0, 4.0], "iscrowd": 1},
        {"image_id": 9, "bbox": [1.0, 2.0, 0.0, 4.0], "iscrowd": 0},
    ]
    _write(root / "annotations" / "instances_train2017.json", json.dumps({"images": images, "annotations": entries}))


def images(root: Path) -> None:
    _images(root / "jpg", ["a.jpg", "b.jpg"])
    _write(root / "boxes.csv", "image,source,x,y,w,h,label\na.jpg,zoo,10.5,5.25,20,10,bear\nb.jpg,zoo,,,,,\n")


VIDEOS = (got10k, lasot, trackingnet, otb, uav123, ytbb, vid, sequences)
STILLS = (coco, images)
Writer = Callable[[Path], None]


@pytest.mark.parametrize("write", VIDEOS)
def test_videos_have_boxes_from_0_and_none_where_the_target_is_absent(write: Writer, tmp_path: Path) -> None:
    write(tmp_path)
    pool = open_data([f"{write.__name__}:{tmp_path}"])
    assert pool.sequences == [[0, 1, 2, 3, 4]]
    first, *hidden, last = (image.boxes for image in pool.images)
    np.testing.assert_allclose(first, [[10, 5, 20, 10]], atol=1e-4)
    np.testing.assert_allclose(last, [[13, 5, 20, 10]], atol=1e-4)
    assert [boxes.shape for boxes in hidden] == [(0, 4)] * 3
    assert {image.size for image in pool.images} == {(WIDTH, HEIGHT)}


def test_parts_of_a_video_begin_at_their_own_image(tmp_path: Path) -> None:
    otb(tmp_path / "otb")
    uav123(tmp_path / "uav123")
    david, truck = (open_data([f"{name}:{tmp_path / name}"]).images for name in ("otb", "uav123"))
    assert [image.name for image in david][::4] == ["0300.jpg", "0304.jpg"]
    assert [image.name for image in truck][::4] == ["000577.jpg", "000581.jpg"]
    assert int(truck[1].levels[0].mean()) in range(19, 22)  # the third image of the folder
    assert UAV123_FIRST["truck4_2"] == 577


@pytest.mark.parametrize("write", STILLS)
def test_stills_have_their_boxes(write: Writer, tmp_path: Path) -> None:
    write(tmp_path)
    pool = open_data([f"{write.__name__}:{tmp_path}"])
    assert pool.sequences == []
    assert [image.boxes.tolist() for image in pool.images] == [[[10.5, 5.25, 20, 10]], []]
    assert pool.images[0].source == {"coco": "coco", "images": "zoo"}[write.__name__]


def test_every_layout_is_tested() -> None:
    assert {write.__name__ for write in (*VIDEOS, *STILLS)} == set(LAYOUTS) - {"pack"}  # test_pack.py


def test_tracks_of_one_frame_are_videos_of_their_own(tmp_path: Path) -> None:
    vid(tmp_path)
    part = tmp_path / "Annotations/VID/train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"
    for number in (1, 2):
        text = (part / f"{number:06d}.xml").read_text()
        box = "<xmax>9</xmax><xmin>2</xmin><ymax>8</ymax><ymin>3</ymin>"
        item = f"<object><trackid>7</trackid><bndbox>{box}</bndbox></object></annotation>"
        (part / f"{number:06d}.xml").write_text(text.replace("</annotation>", item))
    pool = open_data([f"vid:{tmp_path}"])
    assert [len(sequence) for sequence in pool.sequences] == [5, 2]
    assert [pool.images[index].boxes.tolist() for index in pool.sequences[1]] == [[[2, 3, 7, 5]]] * 2
    assert pool.images[pool.sequences[1][0]].levels is pool.images[pool.sequences[0][1]].levels


def test_several_targets_of_an_otb_video(tmp_path: Path) -> None:
    _images(tmp_path / "Jogging" / "img", _frames(1, 2, "{:04d}.jpg"))
    _write(tmp_path / "Jogging" / "groundtruth_rect.1.txt", "1,1,10,10\n2,1,10,10\n")
    _write(tmp_path / "Jogging" / "groundtruth_rect.2.txt", "21,1,10,10\n22,1,10,10\n")
    pool = open_data([f"otb:{tmp_path}"])
    assert [[pool.images[i].boxes[0, 0] for i in sequence] for sequence in pool.sequences] == [[0, 1], [20, 21]]


def test_training_set_of_lasot_is_taken(tmp_path: Path) -> None:
    lasot(tmp_path)
    _write(tmp_path / "training_set.txt", "kite-6\n")
    assert open_data([f"lasot:{tmp_path}"]).images[0].levels.path.endswith("kite-6/img/00000001.jpg")  # type: ignore[attr-defined]


def test_step_takes_every_nth_frame_of_dense_videos(tmp_path: Path) -> None:
    got10k(tmp_path / "got10k")
    ytbb(tmp_path / "ytbb")
    specs = [f"got10k:{tmp_path / 'got10k'}", f"ytbb:{tmp_path / 'ytbb'}", f"got10k:{tmp_path / 'got10k'},step=4"]
    pool = open_data(specs, step=2)
    assert [len(sequence) for sequence in pool.sequences] == [3, 5, 2]
    assert pool.sequences[1] == [3, 4, 5, 6, 7]


def _remove(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def test_videos_are_chosen_by_name_and_further_targets_are_videos_of_their_own(tmp_path: Path) -> None:
    for name in ("bike_1", "bike_2", "bird"):
        _images(tmp_path / name / "img", _frames(1, 2, "{:06d}.jpg"))
        _write(tmp_path / name / "groundtruth.txt", "10,5,20,10\n10,5,20,10\n")
    _write(tmp_path / "bird" / "groundtruth_2.txt", "nan,nan,nan,nan\n1,2,3,4\n")

    def sources(choice: str) -> list[str]:
        pool = open_data([f"sequences:{tmp_path}{choice}"])
        return [pool.images[sequence[0]].source for sequence in pool.sequences]

    assert sources("") == ["bike_1", "bike_2", "bird", "bird"]
    assert sources(",only=bike_*") == ["bike_1", "bike_2"]
    assert sources(",skip=*_1+bird") == ["bike_2"]
    assert sources(",only=bi*,skip=bike_*,step=2") == ["bird"]  # the second target is in no first frame
    pool = open_data([f"sequences:{tmp_path},skip=bird", f"sequences:{tmp_path},only=bird,loose"])
    assert pool.loose == {"bird"}
    assert [pool.images[index].boxes.tolist() for index in pool.sequences[-1]] == [[], [[1, 2, 3, 4]]]
    assert len(set(image_groups(pool))) == 3  # the two targets of one video share its files
    with pytest.raises(FileNotFoundError, match=r"none of the 3 videos .* is chosen"):
        sources(",only=car*")


@pytest.mark.parametrize(
    ("write", "damage", "message"),
    [
        (got10k, _remove("GOT-10k_Train_000001/00000003.jpg"), "1 of 5 frames are not in .*, e.g. 00000003.jpg"),
        (got10k, _remove("GOT-10k_Train_000001/absence.label"), "absence.label not found: expected one number a frame"),
        (
            got10k,
            _remove("GOT-10k_Train_000001/groundtruth.txt"),
            "groundtruth.txt not found: expected one row x,y,w,h",
        ),
        (lasot, _remove("kite/kite-1/out_of_view.txt"), "out_of_view.txt not found"),
        (lasot, lambda r: _write(r / "kite/kite-1/full_occlusion.txt", "0,1"), "has 2 numbers for 5 frames"),
        (trackingnet, _remove("TRAIN_0/frames/abc_0/4.jpg"), "frames/abc_0, e.g. 4.jpg"),
        (trackingnet, _remove("TRAIN_0/anno/abc_0.txt"), "has no image with a box"),
        (coco, _remove("annotations/instances_train2017.json"), "has no instances_train2017.json"),
        (coco, _remove("train2017/000000000025.jpg"), "1 of 2 images of .* e.g. 000000000025.jpg"),
        (coco, lambda r: _write(r / "annotations/instances_train2017.json", "[]"), "no table of COCO's instances"),
        (vid, lambda r: _write(next(r.rglob("000002.xml")), "<annot"), "000002.xml is no annotation of ImageNet VID"),
        (vid, lambda r: next(r.rglob("000002.JPEG")).unlink(), "e.g. 000002.JPEG"),
        (ytbb, _remove("yt_bb_detection_train.csv"), "yt_bb_detection_train.csv not found"),
        (ytbb, lambda r: _write(r / "yt_bb_detection_train.csv", "a,b\n"), "line 1 is 'a,b': expected youtube_id,"),
        (otb, _remove("David/img/0302.jpg"), "img holds 4 images, but its truth has 5 rows"),
        (otb, lambda r: _write(r / "David/groundtruth_rect.txt", "1,2,3\n"), "3 numbers a row: expected x,y,w,h"),
        (otb, lambda r: _write(r / "David/groundtruth_rect.txt", "1,2,3,4\n5"), "not rows of equally many numbers"),
        (uav123, _remove("data_seq/UAV123/truck4/000580.jpg"), "e.g. 000580.jpg"),
        (uav123, lambda r: _write(r / "anno/UAV123/truck9_2.txt", "1,2,3,4"), "its first image is not known"),
        (images, _remove("jpg/b.jpg"), "1 of 2 images of .*boxes.csv"),
        (sequences, _remove("bike/img/000002.jpg"), "holds 4 images, but its truth has 5 rows"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_decoded(
    write: Writer, damage: Writer, message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        open_data([f"{write.__name__}:{tmp_path}"])


def test_everything_missing_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open_data([f"{name}:{tmp_path}" for name in LAYOUTS] + ["coco:/nowhere/coco"])
    assert "coco: folder /nowhere/coco not found: expected annotations/" in str(caught.value)
    assert all(f"\n{name}: " in str(caught.value) for name in LAYOUTS)


@pytest.mark.parametrize("spec", ["coco", "mars:/data", "coco:/data,step=0", ":/data"])
def test_a_spec_that_is_none_is_answered_with_those_there_are(spec: str) -> None:
    with pytest.raises(ValueError, match=r"expected LAYOUT:FOLDER(.|\n)*got10k: a split"):
        open_data([spec])


def test_only_videos_with_names_can_be_chosen_from() -> None:
    with pytest.raises(ValueError, match="for layouts whose videos have names, not for 'coco'"):
        open_data(["coco:/data,only=bird"])


def _textured(folder: Path, count: int) -> list[TrainingImage]:
    """Images as PNG in `folder` and the same in memory."""
    rng = np.random.default_rng(0)
    held = []
    folder.mkdir()
    for number in range(count):
        picture = cv2.resize(rng.integers(0, 255, (30, 40, 3), np.uint8), (400, 300))
        cv2.imwrite(str(folder / f"{number}.png"), picture)
        box = np.array([[150, 100, 60, 40]], np.float32)
        held.append(TrainingImage(pyramid(picture.astype(np.uint8)), box, "test", f"{number}.png"))
    return held


def test_files_give_the_same_sets_as_images_in_memory(tmp_path: Path) -> None:
    held = ImagePool(_textured(tmp_path / "png", 6), [[4, 5]])
    store = PixelStore(1_000_000)
    lazy = ImagePool(
        [
            TrainingImage(FileLevels(store, str(tmp_path / "png"), image.name), image.boxes, image.source, image.name)
            for image in held.images
        ],
        [[4, 5]],
    )
    assert [len(image.levels) for image in lazy.images] == [len(image.levels) for image in held.images]
    options = SetOptions(size=64, videos=0.5)
    for seed in range(8):
        one, other = (SetSampler(pool, options).draw(np.random.default_rng(seed)) for pool in (held, lazy))
        np.testing.assert_array_equal(one.crops, other.crops)
        np.testing.assert_array_equal(one.boxes, other.boxes)
    training, held_out = split(lazy, every=2)
    assert len(training) + len(held_out) == 6


def test_memory_stays_bounded_and_the_last_images_stay(tmp_path: Path) -> None:
    names = [image.name for image in _textured(tmp_path / "png", 6)]
    each = 400 * 300 * 3 * 5 // 4  # with its half-size copy
    store = PixelStore(2 * each)
    images = [FileLevels(store, str(tmp_path / "png"), name) for name in names]
    for image in [*images, *images]:
        assert image[0].shape == (300, 400, 3)
        assert store.bytes <= 2 * each
    again = images[-1][0]
    (tmp_path / "png" / names[-1]).unlink()
    assert images[-1][0] is again  # from memory
    small = PixelStore(10)
    alone = FileLevels(small, str(tmp_path / "png"), names[0])
    assert alone[0] is alone[0]
    assert pickle.loads(pickle.dumps(store)).bytes == 0
    with pytest.raises(FileNotFoundError, match=r"5\.png.*is not there"):
        FileLevels(small, str(tmp_path / "png"), names[-1])[0]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_size_of_an_image_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(
        str(path), np.zeros((31, 57, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if suffix == ".jpg" else []
    )
    assert image_size(path) == (57, 31)
    if suffix != ".bmp":
        path.write_bytes(path.read_bytes()[:-40])  # the header is enough
        assert image_size(path) == (57, 31)
    path.write_bytes(b"\xff\xd8")
    with pytest.raises(FileNotFoundError, match=r"can.t be read as an image"):
        image_size(path)


def test_a_crop_of_a_file_is_a_crop_of_its_pixels(tmp_path: Path) -> None:
    held = _textured(tmp_path / "png", 1)[0]
    lazy = TrainingImage(FileLevels(PixelStore(0), str(tmp_path / "png"), "0.png"), held.boxes, "test", "0.png")
    for side in (50.0, 390.0):
        view = View((200, 150), side)
        np.testing.assert_array_equal(cut(lazy, view, 96), cut(held, view, 96))
