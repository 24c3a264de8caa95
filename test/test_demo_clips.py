"""Images from files: videos, folders, their true boxes, and what is said where they can't be used."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tracker_ros.geometry.boxes import Box
from tracker_ros.ros.clips import (
    CameraClip,
    FlightClip,
    FolderClip,
    InvalidSource,
    InvalidTruth,
    UnreadableImage,
    VideoClip,
    open_clip,
)
from tracker_ros.simulation import FlightOptions

SIZE = (64, 96, 3)


def shade(index: int) -> np.ndarray:
    return np.full(SIZE, 20 + 15 * index, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(12):
        cv2.imwrite(str(tmp_path / f"{k}.png"), shade(k))
    return tmp_path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (96, 64))
    for k in range(10):
        writer.write(shade(k))
    writer.release()
    return path


def test_folder_is_read_in_the_order_of_the_numbers(folder: Path) -> None:
    clip = open_clip(str(folder))
    assert isinstance(clip, FolderClip)
    assert (clip.length, clip.fps, clip.live) == (12, 30, False)
    for k in range(12):
        picture = clip.read(k)
        assert picture is not None
        assert np.array_equal(picture.frame, shade(k))
        assert not picture.known
    assert clip.read(12) is None
    assert clip.first_box() is None


def test_images_in_a_folder_img_are_found(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    cv2.imwrite(str(tmp_path / "img" / "000001.jpg"), shade(1))
    (tmp_path / "groundtruth.txt").write_text("1.5,2,30,20\n")
    clip = open_clip(str(tmp_path))
    assert clip.length == 1
    assert clip.first_box() == Box(1.5, 2, 30, 20)


@pytest.mark.parametrize("separator", [",", "\t", " ", ", "])
def test_truth_with_any_separator_and_absent_targets(folder: Path, separator: str) -> None:
    rows = [separator.join(str(v) for v in (k + 0.25, 2, 30, 20)) for k in range(12)]
    rows[5] = separator.join(["nan"] * 4)
    (folder / "groundtruth.txt").write_text("\n".join(rows) + "\n")
    clip = open_clip(str(folder))
    truths = [clip.read(k) for k in range(12)]
    assert all(p is not None and p.known for p in truths)
    assert [None if p is None else p.truth for p in truths[4:7]] == [Box(4.25, 2, 30, 20), None, Box(6.25, 2, 30, 20)]


def test_truth_of_the_first_image_alone(folder: Path) -> None:
    (folder / "groundtruth.txt").write_text("1,2,30,20\n")
    clip = open_clip(str(folder))
    first, second = clip.read(0), clip.read(1)
    assert first is not None
    assert second is not None
    assert (first.known, second.known) == (True, False)
    assert first.truth == Box(1, 2, 30, 20)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1,2,30\n" * 12, "line 1: 3 numbers"),
        ("1,2,30,20\n" * 11 + "a,b,c,d\n", "line 12"),
        ("1,2,30,20\n" * 7, "7 boxes for 12 images"),
    ],
)
def test_broken_truth_is_refused_by_name(folder: Path, text: str, complaint: str) -> None:
    (folder / "groundtruth.txt").write_text(text)
    with pytest.raises(InvalidSource, match=complaint) as error:
        open_clip(str(folder))
    assert "groundtruth.txt" in str(error.value)


def test_truth_from_another_file(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "boxes.csv"
    other.write_text("3,4,5,6\n" * 12)
    assert open_clip(str(folder), str(other)).first_box() == Box(3, 4, 5, 6)
    with pytest.raises(InvalidSource, match=r"nothing\.csv"):
        open_clip(str(folder), str(tmp_path / "nothing.csv"))


def test_video_is_read_in_order_and_again_from_the_start(video: Path) -> None:
    clip = open_clip(str(video))
    assert isinstance(clip, VideoClip)
    assert clip.fps == 25
    assert clip.length == 10
    for k in (0, 1, 2, 7, 0, 1):
        picture = clip.read(k)
        assert picture is not None
        assert abs(picture.frame.mean() - shade(k).mean()) < 7  # mp4v is lossy; the next shade is 15 away
    assert clip.read(10) is None
    clip.close()


def test_video_with_truth(video: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.txt"
    truth.write_text("1 2 3 4\n" * 10)
    picture = open_clip(str(video), str(truth)).read(9)
    assert picture is not None
    assert picture.truth == Box(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("", "no source is given"),
        ("missing.mp4", "no file or folder 'missing.mp4'"),
        ("text.mp4", "can't be read as a video"),
        ("empty", "has no images"),
    ],
)
def test_unusable_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, complaint: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidSource, match=complaint):
        open_clip(source)


def test_image_that_is_none_is_named(folder: Path) -> None:
    (folder / "3.png").write_text("no image")
    clip = open_clip(str(folder))
    with pytest.raises(UnreadableImage, match=r"3\.png"):
        clip.read(3)
    picture = clip.read(4)
    assert picture is not None
    assert np.array_equal(picture.frame, shade(4)), "those after it can be read"


@pytest.mark.skipif(Path("/dev/video63").exists(), reason="this machine has a 64th camera")
def test_missing_webcam_is_named() -> None:
    with pytest.raises(InvalidSource, match="webcam 63"):
        CameraClip(63)


def test_flight_as_a_clip_has_truth_for_each_image() -> None:
    clip = FlightClip(FlightOptions(duration=1, width=160, height=120))
    assert clip.length == 30
    picture = clip.read(0)
    assert picture is not None
    assert picture.known
    assert picture.truth == clip.first_box()
    assert 0 <= picture.visible <= 1
    assert clip.read(30) is None


def damaged(path: Path, fourcc: str, how: str) -> Path:
    """A video of 60 images, of which some are destroyed."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*fourcc), 25, (96, 64))
    random = np.random.RandomState(0)
    for _ in range(60):
        writer.write(cv2.resize(random.randint(0, 255, (8, 12, 3)).astype(np.uint8), (96, 64)))
    writer.release()
    data = path.read_bytes()
    size = len(data)
    cut = {"cut": b"", "hole": bytes(size // 5) + data[6 * size // 10 :]}[how]
    path.write_bytes(data[: 4 * size // 10] + cut)
    return path


@pytest.mark.parametrize(
    ("name", "fourcc", "how"),
    [("a.avi", "MJPG", "cut"), ("b.avi", "XVID", "cut"), ("c.avi", "MJPG", "hole"), ("d.mkv", "MJPG", "hole")],
)
def test_a_damaged_video_is_not_taken_as_a_shorter_one(tmp_path: Path, name: str, fourcc: str, how: str) -> None:
    path = damaged(tmp_path / name, fourcc, how)
    clip = open_clip(str(path))
    assert clip.length == 60
    read, unreadable, index = [], [], 0
    while True:
        try:
            if clip.read(index) is None:
                break
            read.append(index)
        except UnreadableImage:
            unreadable.append(index)
        index += 1
    assert 0 < len(read) < 60
    # Where the file tells times, images after the gap have their numbers; else it ends early, and the length tells.
    assert index == 60 if name.endswith("mkv") else index < 60
    assert bool(unreadable) == name.endswith("mkv")
    clip.read(0)

    one = tmp_path / "one.txt"
    one.write_text("1,2,30,20\n")
    assert open_clip(str(path), str(one)).first_box() == Box(1, 2, 30, 20)
    every = tmp_path / "every.txt"
    every.write_text("1,2,30,20\n" * 60)
    row = unreadable[0] if unreadable else len(read)
    with pytest.raises(InvalidTruth, match=rf"{name}.*{row} images can be read in a row.*60 boxes"):
        open_clip(str(path), str(every))


def test_layouts_of_evaluate_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "color").mkdir()
    for k in range(3):
        cv2.imwrite(str(tmp_path / "color" / f"{k:08d}.jpg"), shade(k))
    (tmp_path / "color" / "._00000000.jpg").write_bytes(b"resource fork")
    (tmp_path / "groundtruth.txt").write_bytes("m1,2,30,20,0,600\n".encode("utf-16"))
    clip = open_clip(str(tmp_path))
    assert (clip.length, clip.first_box()) == (3, Box(1, 2, 30, 20))


def test_truth_can_be_left_out(folder: Path) -> None:
    (folder / "groundtruth.txt").write_text("1,2,30,20\n" * 7)
    with pytest.raises(InvalidTruth, match="7 boxes for 12 images"):
        open_clip(str(folder))
    assert open_clip(str(folder), "none").first_box() is None


def test_a_thermal_folder_keeps_its_grey_scale(tmp_path: Path) -> None:
    for k in range(3):
        cv2.imwrite(
            str(tmp_path / f"{k}.png"), np.arange(29000, 29256, dtype=np.uint16).reshape(8, 32) + np.uint16(50 * k)
        )
    clip = open_clip(str(tmp_path))
    pictures = [clip.read(k) for k in range(3)]
    means = [p.frame.mean() for p in pictures if p is not None]
    assert pictures[0] is not None
    assert len(np.unique(pictures[0].frame)) > 100
    assert means == sorted(means)
    assert means[2] > means[0] + 20


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("/dev/video63", r"no file or folder '/dev/video63'.*; there are: "),
        ("/dev/null", "can't be opened: it is no camera"),
        ("rtsp://me:secret@127.0.0.1:9/live", r"rtsp://\*\*\*@127.0.0.1:9/live can't be opened: check the address"),
        ("http://127.0.0.1:9/video.mjpg", "can't be opened: check the address"),
        ("gopher://127.0.0.1:9", "can't be opened: check the address"),
        ("pipe", "neither a file nor a folder nor a camera"),
        ("caf\udce9.mp4", "UTF-8 only"),
        ("ros1.bag", "is a recording: play it"),
        ("run.mcap", "is a recording: play it"),
        ("recorded", "is a recording: play it"),
    ],
)
def test_sources_that_are_no_files_say_why_they_do_not_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "caf\udce9.mp4").write_bytes(b"film")
    (tmp_path / "ros1.bag").write_bytes(b"#ROSBAG V2.0\n")
    (tmp_path / "run.mcap").touch()
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "recorded_0.db3").touch()
    with pytest.raises(ValueError, match=complaint) as error:
        open_clip(source)
    assert "secret" not in str(error.value)


def test_an_address_of_a_file_is_its_path(video: Path) -> None:
    assert open_clip(f"file://{video}").length == 10


class Stutter:
    """A camera whose driver leaves out images at times."""

    def __init__(self, gives: list[bool]) -> None:
        self.gives = gives

    def read(self) -> tuple[bool, np.ndarray | None]:
        good = self.gives.pop(0) if self.gives else False
        return good, shade(1) if good else None


def test_a_camera_that_leaves_out_an_image_goes_on_and_one_that_is_gone_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = object.__new__(CameraClip)
    clip.name, clip._capture = "webcam 0", Stutter([True, False, False, True])
    monkeypatch.setattr("tracker_ros.ros.clips._PATIENCE", 0.3)
    for index in range(2):
        picture = clip.read(index)
        assert picture is not None
        assert np.array_equal(picture.frame, shade(1))
    with pytest.raises(InvalidSource, match=r"webcam 0 gave no image for 0\.3 s, after 2 images"):
        clip.read(2)
