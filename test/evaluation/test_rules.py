"""What rules are worth: the counting, and the command on a small sequence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tracker_ros import weights
from tracker_ros.cli import main
from tracker_ros.evaluation.rules import GONE, forms, returns

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
    table = forms(["scan", "jump"], ["jump", "median"])
    assert table == {
        "as it is": "", "without jump": "-jump", "with median": "+median", "none": "none", "jump alone": "jump",
        "median alone": "median",
    }  # fmt: skip


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
