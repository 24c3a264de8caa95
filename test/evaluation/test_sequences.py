from __future__ import annotations

import math
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tracker_ros.evaluation.sequences import (
    InvalidSequence,
    find_sequences,
    list_images,
    load_sequence,
    read_boxes,
    read_image,
    with_starts,
)

ROWS = ["10,20,8,6", "11,20,8,6", "12,20,8,6"]


@pytest.mark.parametrize("row", ["1,2,3,4", "1\t2\t3\t4", "1 2 3 4", " 1.0, 2.0,\t3.0, 4.0 ", "1,2,3,4,"])
def test_separators_of_truth_files(tmp_path: Path, row: str) -> None:
    (tmp_path / "boxes.txt").write_text(f"{row}\n{row}\n\n")
    np.testing.assert_array_equal(read_boxes(tmp_path / "boxes.txt"), [[1, 2, 3, 4]] * 2)


def test_polygons_become_their_bounding_boxes(tmp_path: Path) -> None:
    (tmp_path / "boxes.txt").write_text("10,0,20,5,10,15,0,5\n")
    np.testing.assert_array_equal(read_boxes(tmp_path / "boxes.txt"), [[0, 0, 20, 15]])


def test_rows_without_a_box_are_absent(tmp_path: Path) -> None:
    (tmp_path / "boxes.txt").write_text("nan,nan,nan,nan\n0,0,0,0\n5,5,NaN,3\n1,2,3,4\n")
    assert np.isnan(read_boxes(tmp_path / "boxes.txt")).tolist() == [[True] * 4] * 3 + [[False] * 4]


@pytest.mark.parametrize("row", ["1,2,3", "1,2,x,4", "1,2,3,4,5"])
def test_broken_rows_are_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "boxes.txt").write_text(f"1,2,3,4\n{row}\n")
    with pytest.raises(InvalidSequence, match=r"boxes\.txt' line 2"):
        read_boxes(tmp_path / "boxes.txt")


@pytest.mark.parametrize(
    ("images", "truth"),
    [
        ("img", "groundtruth_rect.txt"),
        ("img", "groundtruth.txt"),
        (".", "groundtruth.txt"),
        ("color", "groundtruth.txt"),
    ],
    ids=["OTB", "LaSOT", "GOT-10k", "VOT"],
)
def test_layouts_of_otb_lasot_and_got10k(make_sequence, images: str, truth: str) -> None:
    sequence = load_sequence(make_sequence("car", ROWS, images=images, truth=truth))
    assert sequence.name == "car"
    assert len(sequence) == 3
    np.testing.assert_array_equal(sequence.truth[:, 0], [10, 11, 12])
    assert [int(sequence.frame(i)[0, 0, 0]) for i in range(3)] == [0, 1, 2]
    assert sequence.first_box == (10, 20, 8, 6)


def test_one_based_truth_is_moved(make_sequence) -> None:
    sequence = load_sequence(make_sequence("car", ROWS), one_based=True)
    np.testing.assert_array_equal(sequence.truth[0], [9, 19, 8, 6])


def test_absence_of_got10k_and_lasot(make_sequence) -> None:
    got = make_sequence("got", ROWS, images=".")
    (got / "absence.label").write_text("0\n1\n0\n")
    assert load_sequence(got).absent.tolist() == [False, True, False]
    lasot = make_sequence("lasot", ROWS)
    (lasot / "full_occlusion.txt").write_text("0,0,1")
    (lasot / "out_of_view.txt").write_text("0,1,0")
    assert load_sequence(lasot).absent.tolist() == [False, True, True]
    (lasot / "out_of_view.txt").write_text("0,1")
    with pytest.raises(InvalidSequence, match="2 flags for 3 frames"):
        load_sequence(lasot)


def test_uav123_keeps_its_truth_apart(tmp_path: Path, make_sequence) -> None:
    source = make_sequence("source", ROWS, images=".", truth="")
    shutil.copytree(source, tmp_path / "uav" / "data_seq" / "UAV123" / "bike1")
    (tmp_path / "uav" / "anno" / "UAV123").mkdir(parents=True)
    (tmp_path / "uav" / "anno" / "UAV123" / "bike1.txt").write_text("\n".join(ROWS))
    (found,) = find_sequences(tmp_path / "uav")
    assert found.name == "bike1"
    np.testing.assert_array_equal(found.truth[2], [12, 20, 8, 6])


def test_images_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("10.jpg", "9.jpg", "100.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["9.jpg", "10.jpg", "100.png"]


def test_what_is_missing_is_named(tmp_path: Path, make_sequence) -> None:
    with pytest.raises(InvalidSequence, match="no folder"):
        load_sequence(tmp_path / "nowhere")
    with pytest.raises(InvalidSequence, match="has no images"):
        load_sequence(make_sequence("empty", [], frames=0))
    with pytest.raises(InvalidSequence, match=r"has no groundtruth\.txt or groundtruth_rect\.txt"):
        load_sequence(make_sequence("untold", ROWS, truth=""))
    with pytest.raises(InvalidSequence, match=r"has 5 images, but 'groundtruth\.txt' has 3 boxes"):
        load_sequence(make_sequence("short", ROWS, frames=5))
    with pytest.raises(InvalidSequence, match="no box for the first frame"):
        load_sequence(make_sequence("late", ["nan,nan,nan,nan", *ROWS]))


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("no picture")
    with pytest.raises(InvalidSequence, match=r"x\.jpg' can't be read as an image"):
        read_image(tmp_path / "x.jpg")


def test_a_grey_image_is_read_as_bgr(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), np.full((4, 5), 7, np.uint8))
    assert read_image(tmp_path / "x.png").shape == (4, 5, 3)


def test_sequences_are_found_and_chosen_by_pattern(tmp_path: Path, make_sequence) -> None:
    for name in ("otb_a", "otb_b", "drone_a"):
        make_sequence(name, ROWS)
    assert [s.name for s in find_sequences(tmp_path)] == ["drone_a", "otb_a", "otb_b"]
    assert [s.name for s in find_sequences(tmp_path, only=["otb_*"])] == ["otb_a", "otb_b"]
    assert [s.name for s in find_sequences(tmp_path, only=["*_a"], exclude=["drone_*"])] == ["otb_a"]
    assert [s.name for s in find_sequences(tmp_path / "otb_b")] == ["otb_b"]
    with pytest.raises(InvalidSequence, match="none of the 3 sequences"):
        find_sequences(tmp_path, only=["vot_*"])
    with pytest.raises(InvalidSequence, match="no folder below"):
        find_sequences(tmp_path / "otb_a" / "img")


def test_sequences_are_found_in_folders_of_categories(tmp_path: Path, make_sequence) -> None:
    for name in ("cat/cat-2", "cat/cat-1", "dog/dog-1"):
        make_sequence(f"set/{name}", ROWS)
    assert [s.name for s in find_sequences(tmp_path / "set")] == ["cat-1", "cat-2", "dog-1"]
    make_sequence("set/bird/cat-1", ROWS)
    with pytest.raises(InvalidSequence, match="have one name"):
        find_sequences(tmp_path / "set")
    assert [s.name for s in find_sequences(tmp_path / "set", only=["dog-*"])] == ["dog-1"]


def test_absent_frames_are_nan(make_sequence) -> None:
    sequence = load_sequence(make_sequence("gone", [*ROWS, "nan,nan,nan,nan"]))
    assert sequence.absent.tolist() == [False, False, False, True]
    assert all(math.isnan(v) for v in sequence.truth[3])


def test_other_starts_are_a_little_off(make_sequence) -> None:
    sequence = load_sequence(make_sequence("car", ["10,20,20,10", "11,20,20,10"]))
    found = with_starts(sequence, 13)
    assert found[0] is sequence
    boxes = {other.name: other.first_box for other in found}
    assert len(boxes) == 13
    assert boxes["car~left"] == pytest.approx((8, 20, 20, 10))
    assert boxes["car~right-down"] == pytest.approx((12, 21, 20, 10))
    assert boxes["car~smaller"] == pytest.approx((12, 21, 16, 8))
    for other in found:
        np.testing.assert_array_equal(other.truth, sequence.truth)
    small = load_sequence(make_sequence("small", ["10,20,4.2,10"]))
    assert {other.name for other in with_starts(small, 13)} & {"small~smaller", "small~small"} == set()
    assert len(with_starts(small, 13)) == 11
    assert [other.name for other in with_starts(sequence, 2)] == ["car", "car~left"]
    with pytest.raises(ValueError, match="1 to 13 starts, got 14"):
        with_starts(sequence, 14)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_the_first_image_sets_the_grey_scale_of_all(make_sequence, suffix: str) -> None:
    folder = make_sequence("thermal", ROWS)
    for i, path in enumerate(sorted((folder / "img").iterdir())):
        path.unlink()
        cv2.imwrite(
            str(path.with_suffix(suffix)), np.arange(7400 + 100 * i, 7656 + 100 * i, dtype=np.uint16).reshape(8, 32)
        )
    images = load_sequence(folder).images
    in_order = [images[i] for i in range(3)]
    assert len(np.unique(in_order[0])) > 100
    assert in_order[0].mean() < in_order[1].mean() < in_order[2].mean(), "one that gets hotter gets brighter"
    again = load_sequence(folder).images
    np.testing.assert_array_equal(again[2], in_order[2])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images))[1], in_order[1])


def test_images_that_lie_about_their_size_or_end_early_are_named(make_sequence) -> None:
    folder = make_sequence("car", ROWS)
    first, second, third = sorted((folder / "img").iterdir())
    first.write_bytes(first.read_bytes()[:-20])
    second.write_bytes(b"P5\n30000 30000\n255\n")
    third.write_bytes(third.read_bytes() + bytes(80))
    images = load_sequence(folder).images
    with pytest.raises(InvalidSequence, match=f"{first.name}.*cut short"):
        images[0]
    with pytest.raises(InvalidSequence, match=f"{second.name}.*900 Mpx"):
        read_image(second)
    assert int(read_image(third)[0, 0, 0]) == 2
