"""Long tracks: sequences that are played to and fro, and overlap over time."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tracker_ros import cli, weights
from tracker_ros.evaluation.long_run import looped, over_time, table
from tracker_ros.evaluation.runs import Track
from tracker_ros.evaluation.sequences import ImageFiles, Sequence, load_sequence
from tracker_ros.trackers.base import TrackState


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five frames of a bright square that moves 6 pixels a frame."""
    folder = tmp_path / "square"
    (folder / "img").mkdir(parents=True)
    rows = []
    for index in range(5):
        frame = np.random.RandomState(0).randint(0, 60, (120, 160, 3)).astype(np.uint8)
        x = 40 + 6 * index
        frame[40:64, x : x + 24] = cv2.resize(
            np.random.RandomState(1).randint(80, 255, (6, 6, 3)).astype(np.uint8), (24, 24)
        )
        cv2.imwrite(str(folder / "img" / f"{index:04d}.png"), frame)
        rows.append(f"{x},40,24,24")
    (folder / "groundtruth.txt").write_text("\n".join(rows) + "\n")
    return folder


def test_a_loop_goes_to_and_fro(folder: Path) -> None:
    sequence = load_sequence(folder)
    long = looped(sequence, 19)
    assert len(long) == 19
    assert ((long.truth[:, 0] - 40) / 6).tolist() == [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2]
    for index in (0, 4, 6, 8, 18):
        x = int(long.truth[index, 0])
        assert long.frame(index)[52, x + 12].mean() > 70
        np.testing.assert_array_equal(long.frame(index), sequence.frame((x - 40) // 6))


def test_overlap_over_time_shows_decay() -> None:
    truth = np.tile([10.0, 10.0, 20.0, 20.0], (100, 1))
    truth[90:] = np.nan
    boxes = np.tile([10.0, 10.0, 20.0, 20.0], (100, 1))
    boxes[30:, 0] += np.linspace(0, 20, 70)
    states = np.full(100, int(TrackState.TRACKING))
    states[60:] = TrackState.LOST
    track = Track(boxes, np.ones(100), states, np.full(100, 0.01), (64, 64))
    result = over_time("it", Sequence("s", ImageFiles(()), truth), track, 30)
    assert result.auc[0] == pytest.approx(20 / 21)  # an overlap of 1 is above all thresholds but the last
    assert result.auc[0] > result.auc[1] > result.auc[2]  # type: ignore[operator]
    assert result.auc[3] is None
    assert result.lost == (0.0, 0.0, 1.0, 1.0)
    assert table([result], 30).splitlines()[2].startswith("| it | s | 0.952 |")


def test_command_writes_a_table_and_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "long.json"
    options = ["--flights", "--frames", "20", "--span", "10", "--out", str(out)]
    code = cli.main(["long-run", "--tracker", "kcf", "--sequences", str(folder), *options])
    printed = capsys.readouterr()
    if code and "OpenCV" in printed.err:
        pytest.skip("this OpenCV has no KCF")
    assert code == 0
    assert "square_looped" in printed.out
    result = json.loads(out.read_text())["results"][0]
    assert len(result["auc"]) == 2
    assert min(result["auc"]) > 0.4


@pytest.mark.slow
@pytest.mark.skipif(
    not weights.shipped("guided_ssd18").is_file(), reason="models/guided_ssd18.safetensors is not there"
)
def test_anchored_updates_do_not_decay_on_a_long_flight(tmp_path: Path) -> None:
    """3,000 frames of a flight: with the anchor, the last third is about as good as without any updates."""
    out = tmp_path / "long.json"
    assert cli.main(["long-run", "--device", "cpu", "--out", str(out), "--span", "1000"]) == 0
    results = {result["tracker"].split("=")[1]: result for result in json.loads(out.read_text())["results"]}
    assert results["maml_anchored"]["auc"][-1] > results["none"]["auc"][-1] - 0.05
