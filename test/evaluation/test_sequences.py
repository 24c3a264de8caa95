from __future__ import annotations

import math
import os
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


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff1,2,3,4\n5,6,7,8\n".encode(),
        "1,2,3,4\r\n5,6,7,8\r\n".encode("utf-16"),
        "\ufeff1\t2\t3\t4\n5 6 7 8".encode("utf-16-be"),
        "1,2,3,4\n5,6,7,8\n".encode("utf-16-le"),
        "1\xa02\xa03\xa04\n5,6,7,8\n".encode("latin-1"),
        b"1,2,3,4,\n5,6,7,8,,\n",
        b"1, 2, 3, 4 ,\n 5;6;7;8; \n",
        b"1,2,3,4\r5,6,7,8\r",
        b"m1,2,3,4,0,12\nm5,6,7,8,0,56\n",
    ],
    ids=["mark", "UTF-16", "UTF-16BE", "UTF-16 without mark", "Latin-1", "commas", "commas and blanks", "CR", "masks"],
)
def test_truth_files_as_other_programs_write_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "boxes.txt").write_bytes(content)
    np.testing.assert_array_equal(read_boxes(tmp_path / "boxes.txt"), [[1, 2, 3, 4], [5, 6, 7, 8]])


@pytest.mark.parametrize("seed", range(5))
def test_masks_become_their_bounding_boxes(tmp_path: Path, seed: int) -> None:
    random = np.random.RandomState(seed)
    mask = random.rand(7, 9) < 0.15
    mask[3, 4] = True
    flat = np.concatenate([[0], mask.ravel().astype(int)])  # runs begin with one of zeros
    changes = np.flatnonzero(np.diff(np.concatenate([flat, [-1]])))
    runs = np.diff(np.concatenate([[-1], changes]))
    runs[0] -= 1
    (tmp_path / "boxes.txt").write_text(f"m20,30,9,7,{','.join(map(str, runs))}\nm0,0,4,4,16\nm0,0,0,0\n")
    rows, columns = np.nonzero(mask)
    box = [20 + columns.min(), 30 + rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    first, second, third = read_boxes(tmp_path / "boxes.txt")
    np.testing.assert_array_equal(first, box)
    assert np.isnan([second, third]).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"1,2,3,4\n1,5;2,5;3,5;4,5\n", "line 2: .* both commas and semicolons"),
        (b"1,2,3,4\n1,,2,3,4\n", "line 2: .* is not a row of numbers"),
        (b"x,y,w,h\n1,2,3,4\n", "line 1: 'x,y,w,h' is not a row of numbers"),
        (b"1,2,3,4\nm1,2,3,4,20\n", "line 2: .* is not a mask"),
        (b"1,2,3,4\nmask\n", "line 2: .* is not a mask"),
        (b"1,2,3,4\n\x1b[31m\n", r"line 2: '\\x1b"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is no text file"),
        (b"\xff\xfe\x00", "is no text file"),
    ],
)
def test_truth_files_that_cannot_be_read_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "boxes.txt").write_bytes(content)
    with pytest.raises(InvalidSequence, match=rf"boxes\.txt' {words}"):
        read_boxes(tmp_path / "boxes.txt")


def test_one_box_alone_says_where_to_start(make_sequence) -> None:
    sequence = load_sequence(make_sequence("test", ["10,20,8,6"], frames=4))
    assert (len(sequence), sequence.known, sequence.first_box) == (4, False, (10, 20, 8, 6))
    assert np.isnan(sequence.truth[1:]).all()


def test_flags_in_any_encoding_and_broken_ones_are_named(make_sequence) -> None:
    got = make_sequence("got", ROWS, images=".")
    (got / "absence.label").write_bytes("\ufeff0\r\n1\r\n0\r\n".encode("utf-16"))
    assert load_sequence(got).absent.tolist() == [False, True, False]
    (got / "absence.label").write_text("0\nno\n0\n")
    with pytest.raises(InvalidSequence, match=r"absence\.label' is not a list of numbers"):
        load_sequence(got)


def test_files_that_systems_leave_behind_are_no_images(make_sequence) -> None:
    folder = make_sequence("car", ROWS)
    (folder / "img" / "._000001.png").write_bytes(b"\0\5\x16\7")
    (folder / "img" / ".000002.png").write_bytes(b"")
    (folder / "img" / "000009.png").mkdir()
    assert len(load_sequence(folder)) == 3
    shutil.copytree(folder, folder.parent / ".Trash" / "car")
    assert [s.name for s in find_sequences(folder.parent)] == ["car"]


def test_names_are_ordered_whatever_is_in_them(tmp_path: Path) -> None:
    names = ["a2.jpg", "a10.jpg", "a²3.jpg", "1b.jpg", "b.jpg", os.fsdecode(b"c\xe9.jpg")]
    for name in names:
        (tmp_path / name).touch()
    found = [path.name for path in list_images(tmp_path)]
    assert sorted(found) == sorted(names)
    assert found.index("a2.jpg") < found.index("a10.jpg")


def uav(root: Path, source: Path, *truths: str) -> Path:
    shutil.copytree(source, root / "data_seq" / "UAV123" / "bike1")
    for truth in truths:
        (root / "anno" / truth).mkdir(parents=True, exist_ok=True)
        rows = "0,1,0,0,1" if truth.endswith("att") else "\n".join(ROWS)
        (root / "anno" / truth / "bike1.txt").write_text(rows)
    return root


@pytest.mark.parametrize("truths", [("UAV123", "UAV123/att"), ("UAV20L", "UAV20L/att"), ("UAV20L", "UAV123")])
def test_uav123_has_several_files_of_a_name(tmp_path: Path, make_sequence, truths: tuple[str, ...]) -> None:
    (found,) = find_sequences(uav(tmp_path / "uav", make_sequence("source", ROWS, images=".", truth=""), *truths))
    np.testing.assert_array_equal(found.truth[2], [12, 20, 8, 6])
    assert any(path.parent.name == ("UAV123" if "UAV123" in truths else "UAV20L") for path in found.sources)


def test_truth_files_among_which_nothing_chooses_are_named(tmp_path: Path, make_sequence) -> None:
    root = uav(tmp_path / "uav", make_sequence("source", ROWS, images=".", truth=""), "one", "other")
    with pytest.raises(InvalidSequence, match=r"several truth files: .*bike1\.txt' and .*bike1\.txt'"):
        find_sequences(root)


def test_all_that_is_wrong_is_listed_and_the_rest_goes_on(tmp_path: Path, make_sequence) -> None:
    make_sequence("good", ROWS)
    make_sequence("outside", ["500,20,8,6", *ROWS[1:]])
    make_sequence("short", ROWS, frames=5)
    (sorted((make_sequence("unreadable", ROWS) / "img").iterdir())[0]).write_text("no picture")
    with pytest.raises(InvalidSequence, match="3 of 4 sequences can't be used") as error:
        find_sequences(tmp_path)
    problems: list[str] = []
    assert [s.name for s in find_sequences(tmp_path, on_problem=problems.append)] == ["good"]
    assert len(problems) == 3
    for name, words in {"outside": "outside the image", "short": "5 images", "unreadable": "can't be read"}.items():
        (problem,) = [p for p in problems if name in p and words in p]
        assert problem in str(error.value)
    with pytest.raises(InvalidSequence, match="outside the image"):  # nothing is left
        find_sequences(tmp_path, only=["outside"], on_problem=problems.append)


def test_a_name_that_is_not_utf_8_is_read(tmp_path: Path, make_sequence) -> None:
    folder = make_sequence("car", ROWS).rename(tmp_path / os.fsdecode(b"caf\xe9"))
    sequence = load_sequence(folder)
    assert sequence.name == r"caf\udce9"
    assert int(sequence.frame(2)[0, 0, 0]) == 2


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
