"""One tracker and one target, without ROS."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tracker_ros import registry
from tracker_ros.geometry.boxes import Box, InvalidBox
from tracker_ros.ros.session import Session, TrackerFailed
from tracker_ros.trackers.base import Estimate, Tracker, TrackerOptions, TrackState

FRAME = np.zeros((480, 640, 3), np.uint8)
BOX = Box(100, 120, 50.5, 40.25)


class Fixed(Tracker):
    """Says what it is told; its target is the box that it started on."""

    def __init__(self, name="fixed"):
        super().__init__(name, TrackerOptions())
        self.says = None
        self.fails = False
        self.started_on = []
        self.seen_shapes = []

    def start(self, frame, boxes):
        if self.fails:
            raise RuntimeError("out of memory")
        self.started_on.append((frame, boxes[0]))
        return [boxes[0]]

    def step(self, frame, targets):
        self.seen_shapes.append(frame.shape)
        if self.fails:
            raise RuntimeError("out of memory")
        return [self.says or Estimate(box, 0.9, TrackState.TRACKING, box) for box in targets]


def estimate(state=TrackState.TRACKING, **changes):
    return replace(Estimate(BOX, 0.5, state, Box(0, 0, 200, 200)), **changes)


@pytest.fixture
def session():
    return Session(Fixed())


def test_is_idle_until_started_and_after_it_was_stopped(session):
    assert (session.active, session.state) == (False, TrackState.IDLE)
    with pytest.raises(RuntimeError, match="no target"):
        session.step(FRAME)
    session.start(FRAME, BOX, "car")
    assert (session.active, session.state, session.target_id) == (True, TrackState.TRACKING, "car")
    assert session.step(FRAME).box == BOX
    session.stop()
    assert (session.active, session.state, session.target_id) == (False, TrackState.IDLE, "")


def test_a_refused_start_leaves_the_running_track_alone(session):
    session.start(FRAME, BOX, "car")
    with pytest.raises(InvalidBox, match="too small"):
        session.start(FRAME, (0, 0, 3, 50), "bike")
    session.tracker.fails = True
    with pytest.raises(TrackerFailed, match=r"fixed could not start.*out of memory"):
        session.start(FRAME, BOX, "bike")
    session.tracker.fails = False
    assert session.target_id == "car"
    assert session.step(FRAME).box == BOX


def test_a_failing_frame_does_not_end_the_track(session):
    session.start(FRAME, BOX, "car")
    session.tracker.fails = True
    with pytest.raises(TrackerFailed, match=r"640x480: out of memory \(RuntimeError\)"):
        session.step(FRAME)
    assert session.frames_since_seen == 1
    session.tracker.fails = False
    assert session.step(FRAME).state is TrackState.TRACKING
    assert session.frames_since_seen == 0


@pytest.mark.parametrize("wrong", [{"box": Box(math.nan, 0, 5, 5)}, {"score": math.inf}])
def test_nonsense_is_a_failure(session, wrong):
    session.start(FRAME, BOX, "car")
    session.tracker.says = estimate(**wrong)
    with pytest.raises(TrackerFailed, match="not finite"):
        session.step(FRAME)
    assert session.estimate.box == BOX


def test_counts_frames_since_the_target_was_seen(session):
    session.start(FRAME, BOX, "car")
    states = [TrackState.TRACKING, TrackState.UNCERTAIN, TrackState.LOST, TrackState.LOST, TrackState.TRACKING]
    counts = []
    for state in states:
        session.tracker.says = estimate(state)
        session.step(FRAME)
        counts.append(session.frames_since_seen)
    assert counts == [0, 1, 2, 3, 0]


def test_images_of_another_size_are_scaled_there_and_back(session):
    session.start(FRAME, BOX, "car")
    out = session.step(np.zeros((960, 960, 3), np.uint8))
    assert session.tracker.seen_shapes == [(480, 640, 3)]
    assert out.box == pytest.approx((150, 240, 75.75, 80.5))
    assert out.search_region == pytest.approx(out.box)
    assert session.step(FRAME).box == BOX


def test_another_tracker_goes_on_from_the_last_box_on_its_own_image(session):
    session.start(FRAME, BOX, "car")
    last = FRAME.copy()
    session.step(last)
    other = Fixed("other")
    assert "goes on" in session.replace_tracker(other)
    assert other.started_on[0][0] is last
    assert other.started_on[0][1] == BOX
    assert session.target_id == "car"


def test_a_lost_target_or_a_bad_box_is_not_handed_over(session):
    assert session.replace_tracker(Fixed()) == ""
    session.start(FRAME, BOX, "car")
    session.tracker.says = estimate(TrackState.LOST)
    session.step(FRAME)
    assert "LOST and is dropped" in session.replace_tracker(Fixed())
    assert not session.active
    session.start(FRAME, BOX, "car")
    session.tracker.says = estimate(box=Box(630, 10, 2, 2))
    session.step(FRAME)
    assert "dropped: the box is too small" in session.replace_tracker(Fixed())
    assert not session.active


@pytest.mark.parametrize("name", ["kcf", "csrt"])
def test_follows_a_real_target_with_a_real_tracker(name):
    rng = np.random.RandomState(1)
    ground = np.full((240, 320, 3), 90, np.uint8)
    target = rng.randint(0, 255, (40, 48, 3)).astype(np.uint8)

    def frame(x):
        image = ground.copy()
        image[100:140, x : x + 48] = target
        return image

    session = Session(registry.create(name))
    session.start(frame(60), (60, 100, 48, 40), "patch")
    for x in range(62, 100, 2):
        out = session.step(frame(x))
        assert out.state is TrackState.TRACKING
        assert abs(out.box.center[0] - (x + 24)) < 3
