"""One tracker and its targets, without ROS."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from tracker_ros import registry
from tracker_ros.geometry.boxes import Box, InvalidBox
from tracker_ros.ros.session import Session, TargetError, TrackerFailed
from tracker_ros.trackers.base import Estimate, Tracker, TrackerOptions, TrackState

FRAME = np.zeros((480, 640, 3), np.uint8)
BOX, OTHER = Box(100, 120, 50.5, 40.25), Box(300, 200, 60, 60)
TRACKING, UNCERTAIN, LOST = TrackState.TRACKING, TrackState.UNCERTAIN, TrackState.LOST


class Fixed(Tracker):
    """Says what it is told; its target is the box that it started on."""

    def __init__(self, name="fixed"):
        super().__init__(name, TrackerOptions())
        self.says = {}
        self.fails = False
        self.fails_on = []
        self.started_on = []
        self.passes = []

    def start(self, frame, boxes):
        if self.fails:
            raise RuntimeError("out of memory")
        self.started_on.append((frame, boxes[0]))
        return [boxes[0]]

    def step(self, frame, targets):
        self.passes.append((frame.shape, len(targets)))
        if self.fails or any(target in self.fails_on for target in targets):
            raise RuntimeError("out of memory")
        return [self.says.get(box) or Estimate(box, 0.9, TRACKING, box) for box in targets]


def estimate(state=TRACKING, **changes):
    return replace(Estimate(BOX, 0.5, state, Box(0, 0, 200, 200)), **changes)


@pytest.fixture
def session():
    return Session(Fixed())


@pytest.fixture
def two(session):
    """A session with the targets car and bus."""
    session.start(FRAME, BOX, "car", limit=4)
    session.start(FRAME, OTHER, "bus", limit=4)
    return session


def only(session, *arguments):
    """What a step says of the one target."""
    (report,) = session.step(*arguments)
    return report


def test_has_no_target_until_started_and_after_it_was_stopped(session):
    assert (session.states, session.step(FRAME), session.named) == ({}, [], "")
    session.start(FRAME, BOX, "car", label="vehicle")
    assert session.states == {"car": TRACKING}
    report = only(session, FRAME)
    assert (report.estimate.box, report.target_id, report.label, report.seen) == (BOX, "car", "vehicle", True)
    session.stop("car")
    assert (session.states, session.step(FRAME)) == ({}, [])


def test_one_alone_replaces_the_one_before(session):
    session.start(FRAME, BOX, "car")
    session.start(FRAME, OTHER, "bus")
    assert list(session.tracks) == ["bus"]


def test_several_run_in_one_pass_and_start_and_stop_by_their_names(two):
    assert [(report.target_id, report.estimate.box) for report in two.step(FRAME)] == [("car", BOX), ("bus", OTHER)]
    assert two.tracker.passes == [((480, 640, 3), 2)]
    third = Box(10, 10, 40, 40)
    two.start(FRAME, third, "car", limit=4)
    assert {report.target_id: report.estimate.box for report in two.step(FRAME)} == {"bus": OTHER, "car": third}
    with pytest.raises(TargetError, match="there is no target 'van'; there are: bus, car"):
        two.stop("van")
    two.stop("bus")
    assert [report.target_id for report in two.step(FRAME)] == ["car"]
    two.stop_all()
    assert two.tracks == {}
    with pytest.raises(TargetError, match="there is none at all"):
        two.stop("car")


def test_one_too_many_is_refused_and_names_those_that_there_are(two):
    with pytest.raises(TargetError, match=r"no room for 'van': there are: bus, car, and max_targets is 2"):
        two.start(FRAME, BOX, "van", limit=2)
    assert list(two.tracks) == ["car", "bus"]
    assert two.start(FRAME, BOX, "car", limit=2), "the same name is no further target"
    assert two.start(FRAME, BOX, "van", limit=1), "where there may be one alone, it replaces them all"
    assert list(two.tracks) == ["van"]


def test_a_slot_stays_with_its_target_and_is_free_afterwards(two):
    two.start(FRAME, BOX, "van", limit=4)
    two.stop("bus")
    two.start(FRAME, BOX, "car", limit=4)
    two.start(FRAME, OTHER, "tram", limit=4)
    two.replace_tracker(Fixed())
    assert {name: track.slot for name, track in two.tracks.items()} == {"car": 0, "tram": 1, "van": 2}


def test_a_refused_start_leaves_the_running_tracks_alone(session):
    session.start(FRAME, BOX, "car")
    with pytest.raises(InvalidBox, match="too small"):
        session.start(FRAME, (0, 0, 3, 50), "bike")
    session.tracker.fails = True
    with pytest.raises(TrackerFailed, match=r"fixed could not start.*out of memory"):
        session.start(FRAME, BOX, "bike")
    session.tracker.fails = False
    assert not session.start(FRAME, BOX, "bike", commit=lambda: False)
    assert (list(session.tracks), session.named) == (["car"], "car")
    assert only(session, FRAME).estimate.box == BOX


def test_a_failing_frame_does_not_end_the_track(session):
    session.start(FRAME, BOX, "car")
    session.tracker.fails = True
    report = only(session, FRAME)
    assert "640x480: out of memory (RuntimeError)" in report.reason
    assert (report.failed, report.seen, report.frames_since_seen) == (True, False, 1)
    assert (report.estimate.box, report.estimate.score, report.estimate.state) == (BOX, 0, UNCERTAIN)
    session.tracker.fails = False
    report = only(session, FRAME)
    assert (report.estimate.state, report.frames_since_seen, report.reason) == (TRACKING, 0, "")


def test_a_target_that_the_tracker_cannot_bear_does_not_end_the_others(two):
    two.tracker.fails_on = [BOX]
    for _ in range(3):
        car, bus = two.step(FRAME)
        assert car.failed
        assert (bus.failed, bus.estimate.box, bus.estimate.state) == (False, OTHER, TRACKING)


@pytest.mark.parametrize("wrong", [{"box": Box(math.nan, 0, 5, 5)}, {"score": math.inf}])
def test_nonsense_is_a_failure_of_that_target_alone(two, wrong):
    two.tracker.says[BOX] = estimate(**wrong)
    car, bus = two.step(FRAME)
    assert "not finite" in car.reason
    assert car.estimate.box == two.tracks["car"].estimate.box == BOX
    assert (bus.failed, bus.estimate.state) == (False, TRACKING)


def test_counts_frames_since_the_target_was_seen(session):
    session.start(FRAME, BOX, "car")
    counts = []
    for state in [TRACKING, UNCERTAIN, LOST, LOST, TRACKING]:
        session.tracker.says[BOX] = estimate(state)
        counts.append(only(session, FRAME).frames_since_seen)
    assert counts == [0, 1, 2, 3, 0]


def test_nothing_is_tracked_on_a_frame_that_can_show_nothing(two):
    two.tracker.says[BOX] = estimate(LOST)
    assert [report.estimate.state for report in two.step(FRAME, False)] == [LOST, UNCERTAIN]


def test_images_of_another_size_are_scaled_there_and_back(session):
    session.start(FRAME, BOX, "car", limit=2)
    larger = np.zeros((960, 960, 3), np.uint8)
    out = only(session, larger).estimate
    assert session.tracker.passes == [((480, 640, 3), 1)]
    assert out.box == pytest.approx((150, 240, 75.75, 80.5))
    assert out.search_region == pytest.approx(out.box)
    assert only(session, FRAME).estimate.box == BOX
    # A target that starts on images of the other size has these; each sees the target at the size that it has learned.
    session.start(larger, OTHER, "bus", limit=2)
    car, bus = session.step(larger)
    assert (car.estimate.box, bus.estimate.box) == (pytest.approx((150, 240, 75.75, 80.5)), OTHER)
    assert session.tracker.passes[-2:] == [((480, 640, 3), 1), ((960, 960, 3), 1)]


def test_another_tracker_goes_on_from_each_last_box_on_its_own_image(two):
    two.tracker.fails_on = [BOX]
    last = FRAME.copy()
    two.step(last)  # Of the car there is nothing new.
    other = Fixed("other")
    remarks = two.replace_tracker(other)
    assert remarks == [f"target '{name}' goes on from its last box" for name in ("car", "bus")]
    assert other.started_on[0][0] is FRAME
    assert other.started_on[1][0] is last
    assert [box for _, box in other.started_on] == [BOX, OTHER]
    assert list(two.tracks) == ["car", "bus"]


def test_a_lost_target_or_a_bad_box_is_not_handed_over(two):
    two.tracker.says[BOX] = estimate(LOST)
    two.step(FRAME)
    assert "'car' was LOST and is dropped" in two.replace_tracker(Fixed())[0]
    assert list(two.tracks) == ["bus"]
    two.tracker.says[OTHER] = estimate(box=Box(630, 10, 2, 2))
    two.step(FRAME)
    assert "'bus' is dropped: the box is too small" in two.replace_tracker(Fixed())[0]
    assert two.tracks == {}
    assert two.replace_tracker(Fixed()) == []


def test_of_two_tracks_that_drift_onto_one_object_the_younger_is_uncertain(two):
    for dx in (60, 30, 20, 10, 5, 5, 5, 5):
        two.tracker.says[OTHER] = estimate(box=BOX._replace(x=BOX.x + dx))
        car, bus = two.step(FRAME)
    assert (car.estimate.state, car.reason) == (TRACKING, "")
    assert (bus.estimate.state, bus.reason) == (UNCERTAIN, "its box has become that of 'car'")
    assert bus.frames_since_seen == 1
    # Apart again: a little is not enough, so that the state does not flicker.
    for dx, state in [(20, UNCERTAIN), (40, TRACKING), (20, TRACKING)]:
        two.tracker.says[OTHER] = estimate(box=BOX._replace(x=BOX.x + dx))
        assert two.step(FRAME)[1].estimate.state is state
    # A target that is started anew is the younger one from then on.
    two.start(FRAME, BOX, "car", limit=4)
    two.tracker.says[OTHER] = estimate()
    bus, car = [two.step(FRAME) for _ in range(6)][-1]
    assert (bus.estimate.state, car.estimate.state) == (TRACKING, UNCERTAIN)
    assert car.reason == "its box has become that of 'bus'"


@pytest.mark.parametrize("between", [LOST, TRACKING])
def test_targets_that_pass_each_other_or_are_lost_have_not_drifted(two, between):
    where = itertools.cycle([10, 10, 10, 10, 60] if between is TRACKING else [5])
    for _ in range(20):
        two.tracker.says[OTHER] = estimate(between, box=BOX._replace(x=BOX.x + next(where)))
        assert two.step(FRAME)[1].reason == ""


GROUND = np.random.RandomState(4).randint(60, 120, (240, 320, 3)).astype(np.uint8)
PATCHES = [np.random.RandomState(seed).randint(0, 255, (40, 48, 3)).astype(np.uint8) for seed in (1, 2, 3)]


def scene(k):
    """Image `k` of three patches that go their ways, and their boxes."""
    image = GROUND.copy()
    boxes = [Box(40 + 2 * k, 20, 48, 40), Box(250 - 2 * k, 100, 48, 40), Box(60 + k, 180, 48, 40)]
    for patch, box in zip(PATCHES, boxes, strict=True):
        x, y = int(box.x), int(box.y)
        image[y : y + 40, x : x + 48] = patch
    return image, dict(zip("abc", boxes, strict=True))


def alone(name, target_id, first, last, **options):
    """The boxes of one target, followed alone from image `first` to image `last`."""
    session = Session(registry.create(name, **options))
    image, boxes = scene(first)
    session.start(image, boxes[target_id], target_id)
    return [session.step(scene(k)[0])[0].estimate.box for k in range(first + 1, last + 1)]


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [("kcf", {}, 0.0), ("csrt", {}, 0.0), ("siamrpn", {"precision": "float32", "device": "cpu"}, 0.01)],
)
def test_adding_and_stopping_one_changes_nothing_for_the_others(name, options, tolerance):
    session = Session(registry.create(name, **options))
    together = {target_id: [] for target_id in "abc"}
    session.start(scene(0)[0], scene(0)[1]["a"], "a", limit=3)
    for k in range(1, 16):
        for report in session.step(scene(k)[0]):
            together[report.target_id].append(report.estimate.box)
        if k == 4:
            session.start(scene(k)[0], scene(k)[1]["b"], "b", limit=3)
            session.start(scene(k)[0], scene(k)[1]["c"], "c", limit=3)
        if k == 8:
            session.stop("b")
        if k == 10:  # Anew, while two others run.
            session.start(scene(k)[0], scene(k)[1]["c"], "c", limit=3)
    expected = {
        "a": alone(name, "a", 0, 15, **options),
        "b": alone(name, "b", 4, 8, **options),
        "c": alone(name, "c", 4, 10, **options) + alone(name, "c", 10, 15, **options),
    }
    for target_id, boxes in expected.items():
        np.testing.assert_allclose(together[target_id], boxes, rtol=0, atol=tolerance, err_msg=target_id)
    if name != "siamrpn":  # A learned tracker knows nothing of patches of noise.
        truth = scene(15)[1]
        for target_id in "ac":
            assert together[target_id][-1].center == pytest.approx(truth[target_id].center, abs=3)
