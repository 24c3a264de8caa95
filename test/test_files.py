"""Outputs that would replace inputs or files of others, and names that OpenCV does not take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tracker_ros import cli
from tracker_ros.files import NotOurs, clear, note, opencv_path, refuse_overwriting
from tracker_ros.text import printable


def test_an_output_that_is_an_input_is_refused_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "clip.mp4"
    given.write_text("film")
    (tmp_path / "link.mp4").symlink_to(given)
    os.link(given, tmp_path / "hard.mp4")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", tmp_path / "clip.mp4", "link.mp4", "hard.mp4", "folder/../clip.mp4"):
        with pytest.raises(NotOurs, match="is an input"):
            refuse_overwriting([Path(name)], [given])
    with pytest.raises(NotOurs, match="is an input"):
        refuse_overwriting([tmp_path / "folder"], [given, tmp_path / "folder"])
    refuse_overwriting([tmp_path / "other.mp4", tmp_path / "folder", tmp_path], [given, tmp_path / "missing"])


def test_a_file_of_a_folder_that_is_read_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "car"
    folder.mkdir()
    (folder / "groundtruth.txt").write_text("1,2,3,4")
    with pytest.raises(NotOurs, match=r"groundtruth\.txt' lies in the folder"):
        refuse_overwriting([folder / "groundtruth.txt"], [folder])
    refuse_overwriting([folder / "new.json", folder / "out"], [folder])


def test_only_what_was_made_in_that_form_is_deleted(tmp_path: Path) -> None:
    names = ("demo.mp4", "logs/a.log", "sheet.png")
    (tmp_path / "mine.txt").write_text("mine")
    clear(tmp_path, names)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.log").write_text("mine")
    for name in names[:2]:
        (tmp_path / name).write_text("made")
    note(tmp_path, names)
    clear(tmp_path, names)
    assert not (tmp_path / "demo.mp4").exists()
    assert not (tmp_path / "logs" / "a.log").exists()
    assert (tmp_path / "mine.txt").read_text() == (tmp_path / "logs" / "mine.log").read_text() == "mine"


def test_what_a_run_that_was_killed_left_is_its_own(tmp_path: Path) -> None:
    clear(tmp_path, ["a"])
    (tmp_path / "a").write_text("half")
    clear(tmp_path, ["a"])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", ["never noted", "changed", "folder", "link", "broken note"])
def test_files_of_others_are_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "summary.json"
    if kind != "never noted":
        clear(tmp_path, ["other.txt", path.name])
        path.write_text("made")
        (tmp_path / "other.txt").write_text("made")
        note(tmp_path, ["other.txt", path.name])
        path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        (tmp_path / "elsewhere").write_text("made")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text("mine")
    if kind == "broken note":
        (tmp_path / ".made_by_tracker_ros.json").write_text("[")
    with pytest.raises(NotOurs, match=r"(summary\.json|other\.txt)' would be replaced"):
        clear(tmp_path, ["other.txt", path.name])
    assert path.exists()
    assert kind == "never noted" or (tmp_path / "other.txt").exists(), "nothing is deleted where one thing is refused"


@pytest.mark.parametrize(
    "arguments",
    [
        ["import-weights", "GIVEN", "--tracker", "dimp18", "--out", "GIVEN"],
        ["benchmark", "--tracker", "csrt", "--sequence", "FOLDER", "--out", "FOLDER/groundtruth.txt"],
        ["benchmark", "--tracker", "nano:backbone_model=GIVEN", "--out", "GIVEN"],
        ["long-run", "--tracker", "csrt", "--sequences", "FOLDER", "--out", "FOLDER/groundtruth.txt"],
        ["evaluate", "--tracker", "csrt", "--sequences", "FOLDER", "--out", "FOLDER"],
        ["evaluate", "--tracker", "csrt", "--sequences", "PARENT", "--out", "FOLDER"],
        ["evaluate", "--tracker", "csrt", "--sequences", "PARENT", "--out", "FOLDER/img"],
        ["pack", "--images", "FOLDER", "--out", "FOLDER"],
        ["pack", "--data", "got10k:FOLDER", "--out", "FOLDER"],
        ["train", "siamrpn", "--base", "OUT/siamrpn18.safetensors", "--out", "OUT"],
        ["demo", "--video", "FOLDER", "--out", "FOLDER", "--tracker", "csrt"],
        ["demo", "--video", "OUT/demo.mp4", "--out", "OUT", "--tracker", "csrt", "--box", "1,2,30,30"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_every_command_refuses_to_write_over_its_input(
    tmp_path: Path, make_sequence, arguments: list[str], capsys
) -> None:
    if arguments[0] == "demo":
        pytest.importorskip("tracker_ros_interfaces.msg", reason="the demo needs ROS 2 (`make setup`)")
    folder = make_sequence("car", ["10,20,8,6"] * 3)
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "given.bin").write_text("given")
    (out / "siamrpn18.safetensors").write_text("given")
    if "OUT/demo.mp4" in arguments:
        import cv2
        import numpy as np

        writer = cv2.VideoWriter(str(out / "demo.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (96, 64))
        for k in range(3):
            writer.write(np.full((64, 96, 3), 40 * k, np.uint8))
        writer.release()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    places = {"GIVEN": tmp_path / "given.bin", "FOLDER": folder, "PARENT": folder.parent, "OUT": out}
    for word, place in places.items():
        arguments = [argument.replace(word, str(place)) for argument in arguments]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "would be overwritten: choose another --out" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", b"\xff\xfe", b"a\x80/b.onnx"])
def test_names_that_opencv_crashes_on_are_refused(name: bytes) -> None:
    with pytest.raises(ValueError, match=r"OpenCV takes names in UTF-8 only") as error:
        opencv_path(Path(os.fsdecode(name)))
    str(error.value).encode()
    assert opencv_path(Path("/tmp/café.mp4")) == "/tmp/café.mp4"


def test_text_to_print_has_no_control_characters() -> None:
    assert printable("café 1") == "café 1"
    assert printable("a\x1b[31mb\nc") == r"a\x1b[31mb\nc"
    printable(os.fsdecode(b"caf\xe9")).encode()
