from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from tracker_ros import registry
from tracker_ros.evaluation.metrics import evaluate
from tracker_ros.evaluation.runs import Protocol, run_all, track_sequence, track_supervised
from tracker_ros.evaluation.sequences import InvalidSequence, Sequence, load_sequence
from tracker_ros.evaluation.specs import TrackerSpec, parse_specs
from tracker_ros.geometry.boxes import Box
from tracker_ros.registry import UnknownTracker
from tracker_ros.trackers.base import Estimate, InvalidOption, Tracker, TrackerOptions, TrackState


class Clock:
    """A clock that only a tracker's work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Teller(Tracker):
    """Says the number of the frame that it sees (its grey level) as x, and takes the given time for it."""

    def __init__(self, clock: Clock, init: float = 0.0, step: float = 0.0) -> None:
        super().__init__("teller", TrackerOptions())
        self.clock, self.init, self.took = clock, init, step
        self.seen: list[int] = []

    def start(self, frame, boxes):
        self.clock.now += self.init
        self.noise = np.random.rand()
        return list(boxes)

    def step(self, frame, targets):
        self.clock.now += self.took
        self.seen.append(int(frame[0, 0, 0]))
        box = Box(float(self.seen[-1]), 10, 8, 8)
        cues = {"level": float(self.seen[-1])}
        return [Estimate(box, 0.5, TrackState.UNCERTAIN, box, cues=cues) for _ in targets]


class Still(Teller):
    """The same, but its box stays where the target is."""

    def step(self, frame, targets):
        estimates = super().step(frame, targets)
        return [dataclasses.replace(estimate, box=box) for estimate, box in zip(estimates, targets, strict=True)]


def _run(sequence: Sequence, realtime: float | None, **took: float):
    clock = Clock()
    tracker = Teller(clock, **took)
    return tracker, track_sequence(tracker, sequence, realtime=realtime, clock=clock)


def test_offline_every_frame_has_its_own_answer(ten_frames: Sequence) -> None:
    tracker, track = _run(ten_frames, None, init=5.0, step=2.0)
    assert tracker.seen == list(range(1, 10))
    assert track.boxes[:, 0].tolist() == [10, *range(1, 10)], "the first box is the one that was given"
    assert track.states.tolist() == [TrackState.TRACKING] + [TrackState.UNCERTAIN] * 9
    assert track.scores.tolist() == [1.0] + [0.5] * 9
    assert track.seconds.tolist() == [5.0] + [2.0] * 9
    assert track.size == (64, 48)


def test_a_tracker_as_fast_as_the_camera_loses_nothing(ten_frames: Sequence) -> None:
    tracker, track = _run(ten_frames, 10.0, step=0.1)
    assert tracker.seen == list(range(1, 10))
    assert track.boxes[:, 0].tolist() == [10, *range(1, 10)]


def test_a_slow_tracker_skips_frames_and_answers_late(ten_frames: Sequence) -> None:
    # 2.5 frames for one: frame 1 (at 0.1 s) is answered at 0.35 s, while frame 3 is current; then frame 3 is the
    # newest and is answered at 0.6 s, which is when frame 6 comes, so it counts on 5; and so on.
    tracker, track = _run(ten_frames, 10.0, step=0.25)
    assert tracker.seen == [1, 3, 6, 8]
    assert track.boxes[:, 0].tolist() == [10, 10, 10, 1, 1, 3, 3, 3, 6, 6]
    assert track.cues["level"][3:].tolist() == [1, 1, 3, 3, 3, 6, 6]
    assert np.isnan(track.seconds).tolist() == [i not in (0, 1, 3, 6, 8) for i in range(10)]


def test_a_slow_start_holds_the_first_box(ten_frames: Sequence) -> None:
    tracker, track = _run(ten_frames, 10.0, init=0.42, step=0.01)
    assert tracker.seen == list(range(4, 10))
    assert track.boxes[:, 0].tolist() == [10, 10, 10, 10, 4, 5, 6, 7, 8, 9]


def test_an_answer_after_the_end_counts_nowhere(ten_frames: Sequence) -> None:
    tracker, track = _run(ten_frames, 10.0, step=5.0)
    assert tracker.seen == [1]
    assert track.boxes[:, 0].tolist() == [10] * 10


@pytest.mark.parametrize(("realtime", "step"), [(None, 0.0), (10.0, 0.25), (10.0, 5.0)])
def test_every_frame_is_reported_once(ten_frames: Sequence, realtime: float | None, step: float) -> None:
    calls: list[None] = []
    clock = Clock()
    track_sequence(
        Teller(clock, step=step), ten_frames, realtime=realtime, clock=clock, on_frame=lambda: calls.append(None)
    )
    assert len(calls) == 10


def test_seeds_make_runs_repeat(ten_frames: Sequence) -> None:
    clock = Clock()
    tracker = Teller(clock)
    noises = []
    for seed in (1, 1, 2):
        track_sequence(tracker, ten_frames, seed=seed, clock=clock)
        noises.append(tracker.noise)
    assert noises[0] == noises[1] != noises[2]


@pytest.fixture
def teller(monkeypatch) -> list[Teller]:
    """The registry with the teller in it; gives the tellers that were built."""
    built: list[Teller] = []

    def make(name: str, options: TrackerOptions) -> Teller:
        built.append(Teller(Clock()))
        return built[-1]

    entry = registry.Entry("teller", "tells", make, preset=TrackerOptions())
    monkeypatch.setattr(registry, "DEFAULT", registry.DEFAULT.extended(entry))
    return built


@pytest.mark.parametrize("protocol", ["ope", "vot"])
def test_a_sequence_that_no_track_can_start_on_is_named(teller: list[Teller], make_sequence, protocol: str) -> None:
    sequence = load_sequence(make_sequence("tiny", ["10,10,2,2"] * 3))
    with pytest.raises(InvalidSequence, match="sequence 'tiny': the box is too small"):
        run_all([TrackerSpec("teller", "teller", {})], [sequence], protocol=Protocol(protocol))


def test_results_are_saved_and_resumed(teller: list[Teller], make_sequence, tmp_path: Path) -> None:
    sequences = [load_sequence(make_sequence(name, ["10,10,8,8"] * 4)) for name in ("a", "b")]
    out, specs = tmp_path / "out", [TrackerSpec("teller", "teller", {})]
    first = run_all(specs, sequences, out=out)
    saved = json.loads((out / "teller" / "a.json").read_text())
    assert saved["boxes"] == [[10, 10, 8, 8], [1, 10, 8, 8], [2, 10, 8, 8], [3, 10, 8, 8]]
    assert saved["cues"] == {"level": [None, 1, 2, 3]}
    np.testing.assert_array_equal(np.loadtxt(out / "teller" / "b.txt", delimiter=","), saved["boxes"])

    (out / "teller" / "b.json").unlink()
    frames: list[int] = []
    again = run_all(specs, sequences, out=out, resume=True, on_frames=lambda label, count: frames.append(count))
    assert teller[-1].seen[-3:] == [1, 2, 3]
    assert sum(frames) == 8
    for name in ("a", "b"):
        np.testing.assert_array_equal(again["teller"][name].boxes, first["teller"][name].boxes)
        np.testing.assert_array_equal(again["teller"][name].cues["level"], [np.nan, 1, 2, 3])
    built = len(teller)
    run_all(specs, sequences, out=out, resume=True)
    assert len(teller) == built, "nothing was left to do"
    run_all([TrackerSpec("teller", "teller", {"heatmap": False})], sequences, out=out, resume=True)
    assert len(teller) == built + 1, "results of other options are no results"


def test_results_of_other_weights_are_no_results(teller: list[Teller], make_sequence, tmp_path: Path) -> None:
    sequences, file = [load_sequence(make_sequence("a", ["10,10,8,8"] * 3))], tmp_path / "net.safetensors"
    for content, runs in ((b"one", 1), (b"one", 1), (b"two", 2)):
        file.write_bytes(content)
        spec = TrackerSpec("teller", "teller", {"weights": str(file)})
        run_all([spec], sequences, out=tmp_path / "out", resume=True)
        assert len(teller) == runs
    assert list(spec.files) == ["net.safetensors"]
    assert spec.files["net.safetensors"] == hashlib.sha256(b"two").hexdigest()[:16]


def test_shipped_weights_and_models_are_files_of_a_tracker(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKER_ROS_MODELS", str(tmp_path))
    (spec,) = parse_specs(["dimp18"])
    assert spec.files == {}, "they are not there"
    for name in ("dimp18.safetensors", "back.onnx", "head.onnx"):
        (tmp_path / name).write_text(name)
    (spec,) = parse_specs(["dimp18"])
    assert list(spec.files) == ["dimp18.safetensors"]
    (spec,) = parse_specs([f"nano:backbone_model={tmp_path}/back.onnx,head_model={tmp_path}/head.onnx"])
    assert list(spec.files) == ["back.onnx", "head.onnx"]


def test_supervised_results_are_saved_and_resumed(teller: list[Teller], make_sequence, tmp_path: Path) -> None:
    # The teller says x = 1, 2, ...: no overlap with a target at x = 40.
    sequences, specs = [load_sequence(make_sequence("a", ["40,10,8,8"] * 8))], [TrackerSpec("teller", "teller", {})]
    arguments = {"protocol": Protocol("vot"), "out": tmp_path / "out"}
    first = run_all(specs, sequences, **arguments)["teller"]["a"]
    assert (first.starts, first.failures) == ((0, 6), (1, 7))
    saved = json.loads((tmp_path / "out" / "teller" / "a.json").read_text(), parse_constant=pytest.fail)
    assert saved["boxes"][2] == [None] * 4
    again = run_all(specs, sequences, resume=True, **arguments)["teller"]["a"]
    assert len(teller) == 1
    assert (again.starts, again.failures) == ((0, 6), (1, 7))
    np.testing.assert_array_equal(again.boxes, first.boxes)
    np.testing.assert_allclose(again.seconds, first.seconds, atol=1e-6)
    run_all(specs, sequences, resume=True, out=tmp_path / "out")
    assert len(teller) == 2, "results of another protocol are no results"


def test_two_processes_give_what_one_gives(make_sequence) -> None:
    sequences = [load_sequence(make_sequence(name, ["10,10,20,20"] * 5)) for name in ("a", "b")]
    if not hasattr(cv2, "TrackerKCF_create"):
        pytest.skip("this OpenCV has no contrib modules; runs with opencv-contrib-python-headless")
    specs = parse_specs(["kcf"])
    one, two = run_all(specs, sequences), run_all(specs, sequences, jobs=2)
    for name in ("a", "b"):
        np.testing.assert_array_equal(one["kcf"][name].boxes, two["kcf"][name].boxes)


def test_specs_take_options_from_the_label_and_from_settings() -> None:
    plain, other = parse_specs(["kcf", "kcf:good_score=0.7,heatmap=false"], ["regain_score=0.9"], device="cpu")
    assert plain == TrackerSpec("kcf", "kcf", {"device": "cpu", "regain_score": 0.9})
    assert other.options == {"device": "cpu", "regain_score": 0.9, "good_score": 0.7, "heatmap": False}
    assert other.folder == "kcf_good_score=0.7,heatmap=false"
    csrt, kcf = parse_specs(["csrt", "kcf"], ["csrt.good_score=0.5"])
    assert (csrt.options, kcf.options) == ({"good_score": 0.5}, {})


@pytest.mark.parametrize(
    ("labels", "settings", "words"),
    [
        (["kcf"], ["size=3"], "none of the trackers kcf has the option in 'size=3'"),
        (["kcf"], ["csrt.good_score=1"], "none of the trackers"),
        (["kcf"], ["good_score"], "'good_score' is not of the form field=value"),
        (["kcf"], ["good_score=high"], "'good_score' takes a float, got 'high'"),
        (["kcf"], ["good_score=2"], r"must lie in \[0.0, 1.0\]"),
        (["kcf:colour=red"], [], "no option 'colour'"),
        (["kcf", "kcf"], [], "named twice"),
    ],
)
def test_wrong_specs_are_named(labels: list[str], settings: list[str], words: str) -> None:
    with pytest.raises(InvalidOption, match=words):
        parse_specs(labels, settings)


def test_unknown_trackers_are_named() -> None:
    with pytest.raises(UnknownTracker, match="did you mean 'kcf'"):
        parse_specs(["kfc"])


def test_a_frame_that_cannot_be_read_is_one_that_was_not_looked_at(ten_frames: Sequence) -> None:
    paths = ten_frames.images.paths
    paths[3].write_text("no picture")
    paths[7].write_bytes(paths[7].read_bytes()[:-20])
    paths[8].unlink()
    for run in (track_sequence, partial(track_sequence, realtime=30), track_supervised):
        # With new starts after failures, only one that stays on the target looks at every frame.
        tracker = (Still if run is track_supervised else Teller)(clock := Clock())
        track = run(tracker, ten_frames, clock=clock)
        assert [n for n in range(1, 10) if n not in tracker.seen] == [3, 7, 8]
        assert np.isnan(track.seconds).nonzero()[0].tolist() == [3, 7, 8]
        assert len(track.problems) == 3
        assert all(path.name in problem for path, problem in zip(paths[3:9:4], track.problems, strict=False))
        held = track.boxes[[3, 7, 8], 0]
        assert np.isnan(held).all() if run is track_supervised else held.tolist() == [2, 6, 6]


def test_a_tracker_that_fails_leaves_the_other_results(ten_frames: Sequence, make_sequence, tmp_path: Path) -> None:
    make_sequence("late", ["500,10,8,8"] * 3)
    broken = load_sequence(tmp_path / "late")
    problems: list[str] = []
    (spec,) = parse_specs(["kcf"])
    for jobs in (1, 2):
        problems.clear()
        tracks = run_all([spec], [broken, ten_frames], on_problem=problems.append, jobs=jobs)
        assert list(tracks["kcf"]) == ["ten"]
        assert len(problems) == 1
        assert "kcf failed on sequence 'late'" in problems[0]
        assert "outside the image" in problems[0]
    with pytest.raises(InvalidSequence, match="outside the image"):
        run_all([spec], [broken, ten_frames])


def test_problems_are_kept_with_results(ten_frames: Sequence, tmp_path: Path) -> None:
    ten_frames.images.paths[4].write_text("no picture")
    (spec,) = parse_specs(["kcf"])
    first: list[str] = []
    again: list[str] = []
    run_all([spec], [ten_frames], out=tmp_path / "out", on_problem=first.append)
    run_all([spec], [ten_frames], out=tmp_path / "out", resume=True, on_problem=again.append)
    assert first == again
    assert len(first) == 1


@pytest.mark.parametrize(
    ("name", "size"),
    [("csrt", (640, 480)), ("csrt", (160, 120)), ("csrt", (320, 120)), ("kcf", (640, 480)), ("dimp18", (200, 150))],
)
def test_images_may_change_their_size(make_sequence, tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    """A camera that switches its mode: the box follows in pixels of each image."""
    random = np.random.RandomState(0)
    ground = cv2.resize(random.randint(90, 130, (6, 8, 3)).astype(np.uint8), (320, 240))
    patch = cv2.resize(random.randint(0, 255, (8, 8, 3)).astype(np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    sx, sy = size[0] / 320, size[1] / 240
    scales = [(1, 1)] * 3 + [(sx, sy)] * 3 + [(1, 1)] * 2
    rows = []
    for i, (x, y) in enumerate(scales):
        rows.append(f"{(200 + 2 * i) * x},{150 * y},{64 * x},{64 * y}")
    folder = make_sequence("modes", rows)
    for i, (path, (x, y)) in enumerate(zip(sorted((folder / "img").iterdir()), scales, strict=True)):
        frame = ground.copy()
        frame[150:214, 200 + 2 * i : 264 + 2 * i] = patch
        cv2.imwrite(str(path), cv2.resize(frame, None, fx=x, fy=y))
    sequence = load_sequence(folder)
    tracks = run_all(parse_specs([name]), [sequence], out=tmp_path / "out")
    track = tracks[name]["modes"]
    assert evaluate(track.boxes, sequence.truth, track.size).ao > 0.6
    assert track.size[4].tolist() == list(size)
    again = run_all(parse_specs([name]), [sequence], out=tmp_path / "out", resume=True)[name]["modes"]
    np.testing.assert_array_equal(again.size, track.size)
    supervised = Protocol("vot").run(registry.create(name), sequence)
    assert supervised.failures == ()
