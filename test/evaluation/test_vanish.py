"""Clips whose target vanishes: what they show, and what is counted after the cut."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from tracker_ros.cli import main
from tracker_ros.evaluation.runs import Track
from tracker_ros.evaluation.sequences import InvalidSequence, Sequence
from tracker_ros.evaluation.vanish import CUT, GRACE, erase, summarize, vanish
from tracker_ros.geometry.boxes import Box

BOX = Box(20, 14, 12, 10)


class Pictures:
    """A red target on a grey ground that says which sequence and frame it is of."""

    def __init__(self, ground: int, count: int, size: tuple[int, int] = (64, 48)) -> None:
        self.ground, self.count, self.size = ground, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        frame = np.full((self.size[1], self.size[0], 3), self.ground + index, np.uint8)
        frame[14:24, 20:32] = 0, 0, 255
        return frame


def sequence(name: str, ground: int, count: int, size: tuple[int, int] = (64, 48)) -> Sequence:
    return Sequence(name, Pictures(ground, count, size), np.tile(np.array(BOX, float), (count, 1)))


def test_before_the_cut_nothing_is_changed_and_after_it_the_target_is_nowhere() -> None:
    one, two = sequence("one", 20, 100), sequence("two", 120, 90, (32, 24))
    clips = {clip.name: clip for clip in vanish([one, two])}
    assert list(clips) == ["one@elsewhere", "one@erased", "two@elsewhere", "two@erased"]
    for name, clip in clips.items():
        own = one if name.startswith("one") else two
        assert (clip.frame(CUT - 1) == own.frame(CUT - 1)).all()
        assert clip.absent.tolist() == [False] * CUT + [True] * (len(clip) - CUT), name
    switched = clips["one@elsewhere"]
    assert len(switched) == CUT + 60
    assert switched.frame(CUT).shape == one.frame(0).shape, "the other scene comes in the size of the stream"
    assert switched.frame(CUT)[0, 0, 0] == 120
    assert switched.frame(CUT + 5)[0, 0, 0] == 125, "and goes on"
    erased = clips["one@erased"]
    assert len(erased) == 100
    assert not ((erased.frame(CUT)[..., 2].astype(int) - erased.frame(CUT)[..., 0]) > 40).any(), "nothing red is left"
    assert erased.frame(CUT)[0, 0, 0] == 20 + CUT, "the rest is as it was"


def test_another_seed_takes_other_scenes_and_the_same_one_the_same() -> None:
    many = [sequence(f"s{i}", 10 * i, 80) for i in range(12)]

    def scenes(seed: int) -> list[int]:
        return [int(clip.frame(CUT)[0, 0, 0]) for clip in vanish(many, seed) if clip.name.endswith("@elsewhere")]

    assert scenes(0) == scenes(0) != scenes(1)
    assert all(scene != 10 * i for i, scene in enumerate(scenes(0))), "never its own"


def test_short_sequences_are_cut_in_the_middle_and_too_few_or_too_short_ones_refused() -> None:
    clips = vanish([sequence("one", 0, 10), sequence("two", 0, 8)])
    assert [int(clip.absent.sum()) for clip in clips] == [8, 5, 10, 4]
    with pytest.raises(InvalidSequence, match="two sequences or more"):
        vanish([sequence("one", 0, 10)])
    with pytest.raises(InvalidSequence, match="'two' has 3 frames"):
        vanish([sequence("one", 0, 10), sequence("two", 0, 3)])


@pytest.mark.parametrize("box", [Box(-6, -4, 12, 10), Box(58, 40, 12, 12), Box(0, 0, 64, 48), Box(70, 60, 5, 5)])
def test_a_target_at_the_border_or_as_large_as_the_image_is_painted_out(box: Box) -> None:
    frame = np.full((48, 64, 3), 90, np.uint8)
    cut = box.clip(64, 48)
    if cut.area:
        cv2.rectangle(
            frame, (int(cut.x), int(cut.y)), (int(cut.x + cut.w) - 1, int(cut.y + cut.h) - 1), (0, 0, 255), -1
        )
    found = erase(frame, box)
    assert found.shape == frame.shape
    if 0 < cut.area < 64 * 48:
        assert not ((found[..., 2].astype(int) - found[..., 0]) > 40).any()


def test_a_frame_without_truth_is_left_as_it_is() -> None:
    one = sequence("one", 20, 100)
    truth = one.truth.copy()
    truth[CUT + 3] = np.nan
    clip = vanish([dataclasses.replace(one, truth=truth), sequence("two", 50, 100)])[1]
    assert (clip.frame(CUT + 3) == one.frame(CUT + 3)).all()


def test_what_was_said_after_the_cut_is_counted() -> None:
    clips = vanish([sequence("one", 0, 10), sequence("two", 0, 10)])
    assert [len(clip) - 5 for clip in clips[:2]] == [10, 5]

    def said(clip: Sequence, after: list[int]) -> Track:
        count = len(clip)
        states = np.array([1] * (count - len(after)) + after)
        return Track(np.zeros((count, 4)), np.zeros(count), states, np.zeros(count), (64, 48))

    tracks = {
        "one@elsewhere": said(clips[0], [1, 1, 2, 2, 3, 3, 3, 3, 3, 3]),
        "one@erased": said(clips[1], [1] * 5),
        "two@elsewhere": said(clips[2], [3, 3, 3, 3, 3, 1, 1, 3, 3, 3]),
        "two@erased": said(clips[3], [1, 1, 3, 1, 1]),
    }
    found = summarize(tracks, clips)
    assert found["elsewhere"] == {
        "clips": 2, "frames": 20, "tracking": 0.2, "tracking_late": 0.2, "never_lost": 0, "frames_to_lost": 2.0,
    }  # fmt: skip
    erased = found["erased"]
    assert (erased["tracking"], erased["never_lost"], erased["frames_to_lost"]) == (0.9, 1, 2.0)
    assert math.isnan(erased["tracking_late"]), f"no clip goes on for more than {GRACE} frames"


def test_clips_can_be_shared_with_processes() -> None:
    clips = vanish([sequence("one", 0, 10), sequence("two", 0, 10)])
    again = pickle.loads(pickle.dumps(clips))
    assert (again[0].frame(7) == clips[0].frame(7)).all()


def test_the_report_has_a_table_of_its_own_and_the_other_figures_stay(make_sequence, tmp_path: Path, capsys) -> None:
    for name, shift in (("a", 0), ("b", 3)):
        make_sequence(f"data/{name}", [f"{10 + i + shift},10,16,16" for i in range(12)])
    plain = ["evaluate", "--tracker", "kcf", "--sequences", str(tmp_path / "data"), "--no-strips"]
    assert main([*plain, "--out", str(tmp_path / "plain")]) == 0
    assert main([*plain, "--out", str(tmp_path / "gone"), "--vanish"]) == 0
    words = capsys.readouterr().out
    assert "erased: never LOST" in words
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("plain", "gone")]
    plain_kcf, kcf = (report["trackers"]["kcf"] for report in reports)
    assert kcf["vanish"]["erased"]["clips"] == 2
    assert "vanish" not in plain_kcf
    assert kcf["mean"] == plain_kcf["mean"]
    assert reports[1]["sequences"] == ["a", "b"]
    assert main([*plain, "--out", str(tmp_path / "x"), "--vanish", "--protocol", "vot"]) == 2
    assert "--vanish goes without" in capsys.readouterr().err
