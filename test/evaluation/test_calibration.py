"""Thresholds from cues: the arithmetic on made-up cues, and a whole run with a tracker whose score is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.conftest import spoil
from tracker_ros import registry
from tracker_ros.cli import main
from tracker_ros.evaluation.calibration import (
    Samples,
    auroc,
    best_threshold,
    calibrate,
    chance_of_a_hit,
    gather,
    quality,
)
from tracker_ros.evaluation.sequences import load_sequence
from tracker_ros.evaluation.specs import TrackerSpec
from tracker_ros.trackers.base import Estimate, Tracker, TrackerOptions, TrackState


def test_the_best_threshold_lies_in_the_widest_gap() -> None:
    assert best_threshold(np.array([0.8, 0.9]), np.array([0.1, 0.2])) == pytest.approx(0.5)
    # One of three hits scores like a miss; losing it costs less than any other choice.
    assert best_threshold(np.array([0.15, 0.8, 0.9]), np.array([0.1, 0.2, 0.3])) == pytest.approx(0.55)
    # 90 negatives below and 10 above, 10 positives of which 5 above: counted by part, not by number.
    positives = np.array([0.4] * 5 + [0.8] * 5)
    assert best_threshold(positives, np.array([0.2] * 90 + [0.6] * 10)) == pytest.approx(0.3)


def test_auroc_counts_ties_half() -> None:
    assert auroc(np.array([0.5, 0.9]), np.array([0.1, 0.2])) == 1
    assert auroc(np.array([0.5]), np.array([0.5, 0.5])) == 0.5
    rng = np.random.default_rng(0)
    on, off = rng.normal(1, 1, 200), rng.normal(0, 1, 300)
    assert auroc(on, off) == pytest.approx((on[:, None] > off).mean())


def _samples() -> Samples:
    """100 hits that score 0.5 to 1, 100 misses that score 0 to 0.4 but for ten beside a double that score 0.9."""
    hits, misses = np.linspace(0.5, 1, 100), np.concatenate([np.linspace(0, 0.4, 90), np.full(10, 0.9)])
    return Samples(
        [*hits, 0.45, *misses],
        [*np.linspace(0, 0.6, 100), 0.5, *np.full(90, 0.1), *np.full(10, 0.95)],
        [math.nan] * 201,
        [0.8] * 100 + [0.3] + [0.0] * 100,
        [False] * 151 + [True] * 50,
        list(np.linspace(0.2, 0.7, 101)),
    )


def test_thresholds_follow_from_the_cues() -> None:
    report = calibrate(TrackerSpec("siamrpn", "siamrpn", {}), _samples())
    assert report["frames"] == {"hits": 100, "between": 1, "misses": 100, "absent": 50, "lost_absent": 101}
    suggested = report["suggested"]
    assert suggested["good_score"] == pytest.approx(0.45, abs=0.001), "the middle of the gap"
    assert suggested["bad_score"] == pytest.approx(0.45, abs=0.001), "no more than good_score"
    assert suggested["regain_score"] == pytest.approx(0.69, abs=0.001), "2 % of the searches score higher"
    assert set(report["cues"]) == {"score", "distractor"}, "there is no sharpness"
    new = report["quality"]["suggested"]
    assert (new["good_hits"], new["good_misses"], new["bad_hits"], new["bad_misses"]) == (1, 0.1, 0, 0.9)
    assert new["false_regains"] == pytest.approx(2 / 101)
    assert "--set siamrpn.good_score=0.45" in report["set"]


def test_scores_become_chances() -> None:
    """Scores whose log-odds are twice and a half those of the chances that they were drawn with, and shifted."""
    rng = np.random.default_rng(0)
    odds = rng.normal(0.5, 2, 20000)
    hit = rng.random(len(odds)) < 1 / (1 + np.exp(-odds))
    score = 1 / (1 + np.exp(-(2.5 * odds + 1)))
    fit = chance_of_a_hit(score, hit)
    assert fit["scale"] == pytest.approx(1 / 2.5, abs=0.02)
    assert fit["shift"] == pytest.approx(-1 / 2.5, abs=0.05)
    apart = chance_of_a_hit(np.array([0.9] * 20 + [0.1] * 20), np.array([True] * 20 + [False] * 20))
    assert 1 < apart["scale"] < 10, "finite, though nothing is doubtful"


def test_without_misses_nothing_is_suggested() -> None:
    samples = Samples([0.9], [0.0], [1.0], [0.8], [False])
    report = calibrate(TrackerSpec("kcf", "kcf", {}), samples)
    assert (report["suggested"], report["cues"], report["set"]) == ({}, {}, "")
    assert math.isnan(quality(samples, {"good_score": 0.5, "bad_score": 0.2, "regain_score": 0.8})["good_misses"])


class Sleeper(Tracker):
    """Never moves, and scores by the grey level of the frame. Notes on which frames it was started."""

    starts: list[int] = []
    seen: list[int] = []

    def start(self, frame, boxes):
        self.starts.append(int(frame[0, 0, 0]))
        return list(boxes)

    def step(self, frame, targets):
        level = int(frame[0, 0, 0])
        self.seen.append(level)
        return [Estimate(box, level / 100, TrackState.TRACKING, box) for box in targets]


@pytest.fixture
def sleeper(monkeypatch) -> TrackerSpec:
    entry = registry.Entry("sleeper", "", Sleeper, preset=TrackerOptions())
    monkeypatch.setattr(registry, "DEFAULT", registry.Registry((entry,)))
    Sleeper.starts, Sleeper.seen = [], []
    return TrackerSpec("sleeper", "sleeper", {})


def test_a_lost_track_counts_for_a_while_and_is_started_again(make_sequence, sleeper) -> None:
    away = ["30,30,8,8"] * 20
    sequence = load_sequence(make_sequence("s", ["10,10,8,8"] * 4 + away + ["nan,nan,nan,nan"] * 6))
    samples = gather(sleeper, [sequence])
    # Frames 1 to 3 are hits, 4 to 13 misses; it is started again on 14, stays on the target, and loses it for good.
    assert Sleeper.starts == [0, 14, 0]
    assert samples.score == [i / 100 for i in [*range(1, 14), *range(15, 30)]]
    assert samples.overlap == [1.0] * 3 + [0.0] * 10 + [1.0] * 9 + [0.0] * 6
    assert samples.absent == [False] * 22 + [True] * 6
    # Then it is held LOST and sees only the frames without the target.
    assert samples.lost_scores == [i / 100 for i in range(24, 30)]


def test_no_track_starts_on_a_target_cut_by_the_border(make_sequence, sleeper) -> None:
    rows = ["10,10,8,8"] + ["nan,nan,nan,nan"] * 10 + ["0,20,6,8", "0,20,8,8", "4,20,8,8", "5,20,8,8"]
    gather(sleeper, [load_sequence(make_sequence("s", rows))])
    assert Sleeper.starts == [0, 13, 0]


def test_the_command_writes_thresholds(make_sequence, tmp_path: Path, capsys) -> None:
    """KCF on a patch that vanishes: bright noise on noise, so that its score falls."""
    rng = np.random.default_rng(0)
    folder = make_sequence("s", ["20,16,16,16"] * 8 + ["nan,nan,nan,nan"] * 4)
    patch, ground = rng.integers(100, 255, (16, 16, 3)), rng.integers(0, 100, (48, 64, 3))
    for i, path in enumerate(sorted((folder / "img").iterdir())):
        frame = ground.astype(np.uint8)
        if i < 8:
            frame[16:32, 20:36] = patch
        cv2.imwrite(str(path), frame)
    call = ["evaluate", "--calibrate", "--tracker", "kcf", "--sequences", str(folder), "--out", str(tmp_path / "out")]
    assert main(call) == 0
    report = json.loads((tmp_path / "out" / "calibration.json").read_text(), parse_constant=pytest.fail)
    own = report["trackers"]["kcf"]
    assert own["frames"]["hits"] == 7
    assert own["quality"]["suggested"]["good_hits"] == 1
    assert own["quality"]["suggested"]["good_misses"] == 0
    assert set(own["suggested"]) == {"good_score", "bad_score", "regain_score"}
    assert own["set"] in capsys.readouterr().out
    assert "command: tracker_ros evaluate --calibrate" in (tmp_path / "out" / "calibration.txt").read_text()
    assert main([*call, "--realtime", "30"]) == 2
    assert "--calibrate goes without" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["cut short", "gone", "text"])
def test_an_image_that_cannot_be_read_is_left_out(make_sequence, sleeper, tmp_path: Path, fault: str) -> None:
    """While it follows, where it would start, and without the target; nothing more is counted than without it."""
    rows = ["10,10,8,8"] * 6 + ["nan,nan,nan,nan"] * 3
    sequences = [load_sequence(make_sequence(name, rows)) for name in ("broken", "whole")]
    for index in (2, 7):
        spoil(sequences[0].images.paths[index], fault)
    problems: list[str] = []
    broken = gather(sleeper, sequences[:1], on_problem=problems.append)
    assert [sequences[0].images.paths[i].name in problem for i, problem in zip((2, 7), problems, strict=True)] == [1, 1]
    whole = gather(sleeper, sequences[1:])
    assert len(broken.score) == len(whole.score) - 2
    assert len(broken.lost_scores) == len(whole.lost_scores) - 1
    spoil(sequences[0].images.paths[0], fault)
    both = gather(sleeper, sequences, on_problem=problems.append)
    assert len(both.score) == len(whole.score), "a sequence without its first image is left out as a whole"


def test_the_command_counts_what_is_left_out(make_sequence, tmp_path: Path, capsys) -> None:
    folder = make_sequence("s", ["20,16,16,16"] * 4 + ["nan,nan,nan,nan"] * 2)
    spoil(sorted((folder / "img").iterdir())[2], "cut short")
    call = ["evaluate", "--calibrate", "--tracker", "kcf", "--sequences", str(folder), "--out", str(tmp_path / "out")]
    assert main(call) == 0
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert "left out, as the warnings above say: 1 frames or sequences" in said
    assert len(json.loads((tmp_path / "out" / "calibration.json").read_text())["problems"]) == 1


@pytest.mark.parametrize("fault", ["cut short", "gone", "text"])
def test_a_benchmark_goes_on_without_an_image(make_sequence, tmp_path: Path, capsys, fault: str) -> None:
    folder = make_sequence("s", ["20,16,16,16"] * 6)
    call = ["benchmark", "--tracker", "kcf", "--sequence", str(folder), "--frames", "4", "--warm-up", "1"]
    images = sorted((folder / "img").iterdir())
    if fault == "gone":
        images[3].unlink()
        images[3].symlink_to("nothing")
    else:
        spoil(images[3], fault)
    assert main(call) == 0
    said = capsys.readouterr().err
    assert images[3].name in said
    assert "1 of 6 images could not be read" in said
    spoil(images[0], "text")
    assert main(call) == 2, "without the first one there is nothing to start on"
    assert images[0].name in capsys.readouterr().err
