"""What rules are worth: the counting, and the command on a small sequence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tracker_ros import weights
from tracker_ros.cli import main
from tracker_ros.evaluation.rules import GONE, Watched, WatchedBook, acts, forms, returns
from tracker_ros.evaluation.runs import Protocol
from tracker_ros.evaluation.sequences import load_sequence
from tracker_ros.evaluation.specs import parse_specs
from tracker_ros.geometry.boxes import Box
from tracker_ros.trackers.rules import RULES
from tracker_ros.trackers.state import ConfidenceMonitor, ConfidenceThresholds, Cues
from tracker_ros.trackers.target import Found, Target

AWAY, ON, NOWHERE = [0.0], [0.8], [math.nan]


def test_a_track_is_gone_after_ten_frames_and_back_when_it_overlaps() -> None:
    assert returns(np.array(ON * 50)) == (0, 0)
    assert returns(np.array(ON * 5 + AWAY * (GONE - 1) + ON * 5)) == (0, 0)
    assert returns(np.array(ON * 5 + AWAY * GONE + ON * 5)) == (1, 1)
    assert returns(np.array(ON * 5 + AWAY * (GONE + 31))) == (1, 0)
    # What is out of view can't be seen, and the time until it shows again does not count.
    assert returns(np.array(ON * 5 + NOWHERE * 80 + AWAY * 5 + ON * 5)) == (1, 1)
    assert returns(np.array(ON * 5 + NOWHERE * 80)) == (0, 0)
    assert returns(np.array((ON * 5 + AWAY * 12) * 3 + ON)) == (3, 3)


def test_forms_leave_out_what_is_kept_and_add_what_is_not() -> None:
    table = forms(["scan", "smooth"], ["smooth", "median"])
    assert table == {
        "as it is": "", "without smooth": "-smooth", "with median": "+median", "none": "none", "smooth alone": "smooth",
        "median alone": "median",
    }  # fmt: skip


def watched(kept: tuple[str, ...], *, missing: int, score: float) -> set[str]:
    """The rules that act where a target of typical score 0.9, `missing` for some frames, is found with `score`."""
    monitor = ConfidenceMonitor(ConfidenceThresholds(0.5, 0.3, regain_score=0.7, lost_after=3))
    monitor.update(Cues(0.9))
    box = Box(40, 40, 20, 20)
    book = WatchedBook(frozenset(kept), tuple(RULES))
    at, size = np.array(box.center), np.array(box[2:])
    target = Target(position=at, size=size, monitor=monitor, missing=missing)
    book.refuses(target, Found(box, at, size, at, True, score, 0.1, 0.9))
    book.counted(score, 0.1, 0.3)
    return book.acted


def test_a_rule_acts_where_its_switch_decides() -> None:
    assert watched(("vanished",), missing=0, score=0.3) == set(), "nothing is suspicious"
    assert watched(("vanished",), missing=3, score=0.9) == {"border"}, "as high as ever"
    assert watched(("vanished", "border"), missing=3, score=0.6) == {"vanished", "border"}
    assert watched((), missing=3, score=0.6) == {"vanished", "border"}, "rules that are off would"


@pytest.mark.skipif(not weights.shipped("siamban18").is_file(), reason="models/siamban18.safetensors is not there")
def test_a_track_is_the_same_without_a_rule_that_does_not_act(make_sequence) -> None:
    sequence = load_sequence(make_sequence("s", [f"{10 + i},10,16,16" for i in range(25)]))
    (spec,) = parse_specs(["siamban"], device="cpu")
    kept = tuple(spec.create().book.kept)
    track = Watched(watched=kept).run(spec.create(), sequence)
    assert any(acts(track, name) for name in kept), "what is grey all over is soon lost"
    for name in kept:
        (without,) = parse_specs([f"siamban:rules=-{name}"], device="cpu")
        other = Protocol().run(without.create(), sequence)
        if not acts(track, name):
            np.testing.assert_array_equal(other.boxes, track.boxes)
            np.testing.assert_array_equal(other.states, track.states)


def test_a_track_that_was_not_watched_does_not_tell(make_sequence) -> None:
    sequence = load_sequence(make_sequence("s", [f"{10 + i},10,16,16" for i in range(3)]))
    track = Protocol().run(parse_specs(["kcf"])[0].create(), sequence)
    assert acts(track, "scan")


@pytest.mark.skipif(not weights.shipped("siamban18").is_file(), reason="models/siamban18.safetensors is not there")
def test_the_command_makes_a_table(make_sequence, tmp_path: Path, capsys) -> None:
    folder = make_sequence("s", [f"{10 + i},10,16,16" for i in range(4)])
    call = ["rules", "--tracker", "siamban", "--sequences", str(folder), "--rules", "scan", "--no-alone"]
    assert main([*call, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "out" / "rules.json").read_text(), parse_constant=pytest.fail)
    assert list(report["forms"]) == ["as it is", "without scan", "none"]
    assert report["seeds"] == [0], "it draws nothing at random"
    words = capsys.readouterr().out
    assert "| without scan |" in words
    assert (tmp_path / "out" / "rules.md").read_text().strip() in words
    assert main(["rules", "--tracker", "kcf", "--sequences", str(folder), "--out", str(tmp_path / "k")]) == 2
    assert "keeps no rules of ours" in capsys.readouterr().err
