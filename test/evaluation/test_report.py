from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import tracker_ros
from tracker_ros.evaluation import provenance, vot
from tracker_ros.evaluation import report as reports
from tracker_ros.evaluation.plots import COLOURS, draw_bars, draw_curves, draw_strip
from tracker_ros.evaluation.runs import Protocol, Track
from tracker_ros.evaluation.sequences import Sequence, load_sequence, with_starts


def _track(sequence: Sequence, shift: float = 0.0, score: float = 0.95, state: int = 1) -> Track:
    """The truth, moved sideways from the second frame on; where there is none, the last box."""
    boxes = sequence.truth.copy()
    for i in range(1, len(boxes)):
        boxes[i] = boxes[i - 1] if np.isnan(boxes[i, 0]) else boxes[i]
    boxes[1:, 0] += shift
    count = len(boxes)
    seconds = np.linspace(0.01, 0.01 * count, count)
    return Track(boxes, np.full(count, score), np.full(count, state), seconds, (64, 48))


@pytest.fixture
def pair(make_sequence) -> list[Sequence]:
    short = make_sequence("short", ["10,10,8,8"] * 3)
    long = make_sequence("long", [*["20,10,8,8"] * 5, "nan,nan,nan,nan"])
    return [load_sequence(short), load_sequence(long)]


@pytest.fixture
def tracks(pair: list[Sequence]) -> dict[str, dict[str, Track]]:
    short, long = pair
    return {
        "bad": {"short": _track(short, 50, score=0.05), "long": _track(long, 50, score=0.05, state=3)},
        "good": {"short": _track(short), "long": _track(long)},
    }


def test_means_are_over_sequences_and_pooled_measures_over_frames(pair, tracks) -> None:
    report = reports.summarize(tracks, pair)
    assert report["sequences"] == ["short", "long"]
    good, bad = report["trackers"]["good"], report["trackers"]["bad"]
    assert good["mean"]["auc"] == pytest.approx(20 / 21)
    # The first frame's box is right: 1 of 3 frames and 1 of 5.
    assert bad["mean"]["auc"] == pytest.approx((1 / 3 + 1 / 5) / 2 * 20 / 21)
    assert bad["mean"]["precision"] == pytest.approx((1 / 3 + 1 / 5) / 2)
    assert (good["pooled"]["ao"], bad["pooled"]["ao"]) == (1, 0)
    mixed = reports.summarize({"x": {"short": tracks["good"]["short"], "long": tracks["bad"]["long"]}}, pair)
    assert mixed["trackers"]["x"]["pooled"]["ao"] == pytest.approx(2 / 6), "2 of the 6 frames with truth are right"


def test_states_and_times_are_reported(pair, tracks) -> None:
    report = reports.summarize(tracks, pair)
    good, bad = report["trackers"]["good"], report["trackers"]["bad"]
    assert bad["states"]["recall"] == 1
    assert bad["states"]["silent_misses"] == pytest.approx(2 / 7)
    assert good["states"]["recall"] == 0
    assert math.isnan(good["states"]["precision"])
    assert good["milliseconds"]["p50"] == pytest.approx(30)
    assert good["milliseconds"]["init_p50"] == pytest.approx(10)
    assert good["skipped"] == 0


def test_reliability_sorts_frames_by_score(pair, tracks) -> None:
    report = reports.summarize(tracks, pair)
    good, bad = (report["trackers"][k]["reliability"] for k in ("good", "bad"))
    assert good["frames"] == [0] * 9 + [7]
    assert bad["frames"] == [7] + [0] * 9
    assert good["iou"][9] == pytest.approx(6 / 7), "the frame without the target counts as overlap 0"
    assert good["iou"][0] is None
    assert bad["iou"][0] == 0
    assert good["score"][0] == 0.05
    assert good["hits"][9] == pytest.approx(6 / 7)
    # All of a tracker's scores are alike: the error is how far they are from its hits.
    assert good["ece"] == pytest.approx(0.95 - 6 / 7)
    assert bad["ece"] == pytest.approx(0.05)


def test_the_calibration_error_weighs_bins_by_their_frames(make_sequence) -> None:
    sequence = load_sequence(make_sequence("s", ["10,10,8,8"] * 9))
    track = _track(sequence)
    track.boxes[5:, 0] += 50  # four hits after the first frame, then four misses
    track.scores[1:] = [1.0, 0.96, 0.92, 0.6, 0.92, 0.1, 0.12, 0.14]
    # Bins: 0.92 to 1 (three of four hit, mean 0.95), 0.6 (one of one), 0.1 to 0.14 (none of three, mean 0.12).
    error = reports.reliability({"s": track}, [sequence])["ece"]
    assert error == pytest.approx((4 * 0.2 + 1 * 0.4 + 3 * 0.12) / 8)


def test_bars_are_as_high_as_the_root_of_their_counts() -> None:
    picture = draw_bars("frames", [[4, 0], [1, 16]], (900, 180))
    assert picture.shape == (180, 900, 3)
    # Two groups of 395 px from column 80 on, two bars each; the axis lies at row 165 and the highest at row 40.
    heights = []
    for x, colour in ((200, COLOURS[0]), (360, COLOURS[1]), (595, COLOURS[0]), (755, COLOURS[1])):
        heights.append(int(_near(picture[:, x], colour).sum()))
    assert heights == pytest.approx([125 / 2, 125 / 4, 1, 125], abs=2)


def test_table_ranks_by_auc(pair, tracks) -> None:
    lines = reports.table(reports.summarize(tracks, pair, Protocol(realtime=30))).splitlines()
    assert lines[0].split()[:4] == ["tracker", "AUC", "AUC*", "Prec"]
    assert lines[1].split()[:2] == ["good", "0.952"]
    assert lines[2].split()[0] == "bad"
    assert any(line.split() == ["short", "0.952", "0.317"] for line in lines)
    assert lines[-1] == "against the clock: frames came at 30 Hz"


def test_table_has_the_mean_over_the_starts_of_a_sequence(make_sequence) -> None:
    sequence = load_sequence(make_sequence("car", ["10,10,8,8"] * 5))
    pair = with_starts(sequence, 2)
    tracks = {s.name: _track(s) for s in pair}
    tracks["car~left"].boxes[:] += 100
    lines = reports.table(reports.summarize({"one": tracks}, pair)).splitlines()
    apart = [reports.summarize({"one": tracks}, [s])["trackers"]["one"]["mean"]["auc"] for s in pair]
    assert apart[0] > 0.9 > 0.1 > apart[1]
    assert ["car", f"{sum(apart) / 2:.3f}"] in [line.split() for line in lines]
    assert not any("~left" in line for line in lines)
    # A sequence may have such a name of its own.
    other = dataclasses.replace(sequence, name="van~left")
    lines = reports.table(reports.summarize({"one": {"van~left": _track(other)}}, [other])).splitlines()
    assert any(line.split()[:1] == ["van~left"] for line in lines)


def test_files_are_written_and_json_has_no_nan(pair, tracks, tmp_path: Path) -> None:
    report = reports.summarize(tracks, pair)
    files = reports.write(tmp_path / "out", report, tracks, pair)
    names = [str(path.relative_to(tmp_path / "out")) for path in files]
    plots = ["success.png", "precision.png", "normalized_precision.png", "reliability.png"]
    assert names == ["report.json", "report.txt", *plots, "strips/short.jpg", "strips/long.jpg"]
    read = json.loads(files[0].read_text(), parse_constant=pytest.fail)
    assert read["trackers"]["good"]["states"]["precision"] is None
    assert all(cv2.imread(str(path)) is not None for path in files[2:])


def test_the_report_says_where_it_comes_from(pair, tracks) -> None:
    report = reports.summarize(tracks, pair, Protocol(seed=7))
    built = {"good": {"device": "cpu", "files": {"a.onnx": "12ab"}}, "bad": {"device": "cuda:0", "files": {}}}
    report["origin"] = provenance.describe("tracker_ros evaluate --seed 7", built)
    lines = reports.table(report).splitlines()
    assert "command: tracker_ros evaluate --seed 7" in lines
    assert "devices: good on cpu, bad on cuda:0" in lines
    assert "weights (SHA-256): a.onnx 12ab" in lines
    assert any(line.startswith("machine: ") and f"{os.cpu_count()} cores" in line for line in lines)
    (versions,) = (line for line in lines if line.startswith("versions: "))
    assert f"tracker_ros {tracker_ros.__version__}" in versions
    assert f"opencv {cv2.__version__}" in versions
    assert lines[-1] == "seed: 7"
    json.dumps(report["origin"])


@pytest.fixture
def vot_tracks(pair) -> dict[str, dict[str, Track]]:
    """`frail` fails once in the longer sequence, `firm` never."""
    short, long = pair
    failed = dataclasses.replace(_track(long), failures=(2,))
    failed.boxes[3:] = np.nan
    failed.seconds[3:] = np.nan
    return {"frail": {"short": _track(short), "long": failed}, "firm": {"short": _track(short), "long": _track(long)}}


def test_vot_pools_frames_of_all_sequences(pair, vot_tracks, monkeypatch) -> None:
    monkeypatch.setattr(vot, "BURN_IN", 1)
    report = reports.summarize(vot_tracks, pair, Protocol("vot"))
    frail = report["trackers"]["frail"]
    assert (report["protocol"], frail["failures"], frail["frames"], frail["judged"]) == ("vot", 1, 8, 3)
    assert frail["robustness"] == pytest.approx(math.exp(-30 / 8))
    assert frail["sequences"]["long"]["failure_rate"] == pytest.approx(100 / 5)
    assert frail["milliseconds"]["init_p50"] == pytest.approx(10)
    # 20 and 30 ms of each sequence; frames that it did not look at have no time.
    assert frail["milliseconds"]["mean"] == pytest.approx(25)


def test_vot_report_in_text_and_pictures(pair, vot_tracks, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(vot, "BURN_IN", 1)
    report = reports.summarize(vot_tracks, pair, Protocol("vot"))
    lines = reports.table(report).splitlines()
    assert lines[0].split()[:4] == ["tracker", "A", "R", "fail"]
    assert lines[1].split()[:5] == ["firm", "1.000", "1.000", "0", "0.00"]
    assert lines[2].split()[:5] == ["frail", "1.000", f"{math.exp(-30 / 8):.3f}", "1", "12.50"]
    assert any(line.split() == ["long", "1.000", "(0)", "1.000", "(1)"] for line in lines)
    files = [path.name for path in reports.write(tmp_path / "out", report, vot_tracks, pair)]
    assert files == ["report.json", "report.txt", "accuracy_robustness.png", "short.jpg", "long.jpg"]
    picture = cv2.imread(str(tmp_path / "out" / "accuracy_robustness.png"))
    # A dot for `firm`, the first in rank, at (1, 1): the corner of the axes.
    assert _near(picture[48:53, 868:873], COLOURS[0]).all()


def test_a_tracker_has_one_colour_in_plots_and_strips(pair, tracks, tmp_path: Path, monkeypatch) -> None:
    orders: list[list[str]] = []

    def curves(title, x_label, y_label, curves, **options):
        orders.append([label.split()[0] for label in curves])
        return draw_curves(title, x_label, y_label, curves, **options)

    def strip(sequence, boxes):
        orders.append(list(boxes))
        return draw_strip(sequence, boxes)

    monkeypatch.setattr(reports, "draw_curves", curves)
    monkeypatch.setattr(reports, "draw_strip", strip)
    assert list(tracks) == ["bad", "good"]
    reports.write(tmp_path / "out", reports.summarize(tracks, pair), tracks, pair)
    assert orders == [["good", "bad"]] * 6


def _near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(picture.astype(int) - colour).max(-1) < 40


def test_curves_are_drawn_where_they_belong() -> None:
    x = np.linspace(0, 1, 11)
    picture = draw_curves("t", "x", "y", {"low": (x, np.full(11, 0.25)), "gap": (x, np.full(11, np.nan))}, (900, 640))
    assert picture.shape == (640, 900, 3)
    rows = np.flatnonzero(_near(picture, COLOURS[0])[:, 100:400].any(1))
    # The axes span rows 50 (y = 1) to 570 (y = 0).
    assert abs(rows.mean() - (570 - 0.25 * 520)) < 1


@pytest.mark.parametrize(("curve", "place"), [("falling", "top right"), ("rising", "bottom right")])
def test_the_legend_hides_no_curve(curve: str, place: str) -> None:
    x = np.linspace(0, 1, 51)
    y = 0.2 + 0.8 * x if curve == "rising" else 0.9 - 0.8 * x
    picture = draw_curves("t", "x", "y", {"a long name of a tracker": (x, y)}, (900, 640))
    # The axes span columns 80 to 870 and rows 50 to 570; the curve must be whole in the outer fifths.
    seen = _near(picture[50:570], COLOURS[0])
    assert seen[:, 760:865].any(0).all()
    assert seen[:, 85:200].any(0).all()
    rows = slice(55, 100) if place == "top right" else slice(520, 568)
    assert _near(picture[rows, 600:860], (60, 60, 60)).sum() > 100, f"the text is at the {place}"


def test_a_plot_without_curves_is_still_a_plot() -> None:
    assert draw_curves("nothing", "x", "y", {}).std() > 0


def test_strips_show_frames_with_boxes(pair) -> None:
    short, long = pair
    strip = draw_strip(long, {"ours": _track(long, shift=3).boxes}, count=3, height=96)
    assert strip.shape == (24 + 96, 3 * 128 + 2 * 3, 3)
    assert _near(strip[24:], COLOURS[0]).any()
    assert _near(strip[24:, :128], (255, 255, 255)).any(), "the truth of the first frame"
    assert draw_strip(short, {}, count=8).shape[1] > 0
