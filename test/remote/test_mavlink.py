"""The camera component: what a ground station asks, what it is told; every bad command gets its result."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Any

import pytest

pytest.importorskip("pymavlink", reason="needs pymavlink (the extra `mavlink`; `make setup` gets it)")

from pymavlink.dialects.v20 import common as mavlink

from tracker_ros.geometry.boxes import Box
from tracker_ros.remote.mavlink import SILENCE, TARGET_ID, CameraComponent
from tracker_ros.remote.tracker import Answer, Sighting, State

WIDTH, HEIGHT = 640, 480
NAN, INF = math.nan, math.inf
POINT, RECTANGLE, STOP = (
    mavlink.MAV_CMD_CAMERA_TRACK_POINT,
    mavlink.MAV_CMD_CAMERA_TRACK_RECTANGLE,
    mavlink.MAV_CMD_CAMERA_STOP_TRACKING,
)
SET, GET, REQUEST = (
    mavlink.MAV_CMD_SET_MESSAGE_INTERVAL,
    mavlink.MAV_CMD_GET_MESSAGE_INTERVAL,
    mavlink.MAV_CMD_REQUEST_MESSAGE,
)
STATUS, GEO = 275, 276
ACCEPTED, REJECTED, DENIED, UNSUPPORTED, FAILED, PROGRESS = range(6)


class Station:
    """A ground station, its camera, a clock, and a `RemoteTracker` that answers as it is told. Messages go through
    their encoding, both ways.
    """

    def __init__(self, size: tuple[int, int] | None = (WIDTH, HEIGHT), **options: Any) -> None:
        self.now = 50.0
        self.asked: list[tuple[Any, ...]] = []
        self.answer: Answer | None = Answer(True, "")
        self.open: list[Future[Answer]] = []
        self.camera = CameraComponent(self, clock=lambda: self.now, **options)
        if size is not None:
            self.camera.set_image_size(*size)
        self._here = mavlink.MAVLink(None, srcSystem=255, srcComponent=190)
        self._there = mavlink.MAVLink(None, srcSystem=1, srcComponent=100)
        self.camera.due()

    def _note(self, *what: Any) -> Future[Answer]:
        self.asked.append(what)
        future: Future[Answer] = Future()
        if self.answer is None:
            self.open.append(future)
        else:
            future.set_result(self.answer)
        return future

    def start(self, stamp: int, box: Box, target_id: str) -> Future[Answer]:
        return self._note("start", stamp, box, target_id)

    def stop(self, target_id: str = "") -> Future[Answer]:
        return self._note("stop", target_id)

    def send(self, message: Any) -> None:
        (received,) = mavlink.MAVLink(None).parse_buffer(message.pack(self._here))
        self.camera.receive(received)

    def command(self, number: int, *values: float, system: int = 1, component: int = 100, confirmation: int = 0) -> Any:
        """Send a COMMAND_LONG; returns what comes back."""
        parameters = [*values, *[0.0] * (7 - len(values))]
        self.send(mavlink.MAVLink_command_long_message(system, component, number, confirmation, *parameters))
        return self.heard()

    def heard(self) -> list[Any]:
        data = b"".join(message.pack(self._there) for message in self.camera.due())
        messages = mavlink.MAVLink(None).parse_buffer(data) or []
        return [message for message in messages if message.get_type() != "HEARTBEAT"]

    def result(self, number: int, *values: float, **options: Any) -> tuple[int, str]:
        """The result of a command, and what the operator is told."""
        messages = self.command(number, *values, **options)
        (acknowledgement,) = [message for message in messages if message.get_type() == "COMMAND_ACK"]
        assert (acknowledgement.command, acknowledgement.target_system) == (number, 255)
        assert acknowledgement.target_component == 190
        return acknowledgement.result, text(messages)

    def status(self) -> Any:
        messages = self.command(REQUEST, STATUS)
        (status,) = [m for m in messages if m.get_type() == "CAMERA_TRACKING_IMAGE_STATUS"]
        return status

    def say(self, state: State = State.TRACKING, box: Box | None = None, name: str = TARGET_ID, stamp: int = 5) -> None:
        self.camera.observe(Sighting(stamp, name, state, 0.8, box))


def text(messages: list[Any]) -> str:
    return "".join(m.text for m in messages if m.get_type() == "STATUSTEXT")


def corners(status: Any) -> list[float]:
    return [status.rec_top_x, status.rec_top_y, status.rec_bottom_x, status.rec_bottom_y]


def test_heartbeats_of_a_camera_once_a_second():
    station = Station()
    beats = []
    for _ in range(50):
        station.now += 0.1
        beats += [m for m in station.camera.due() if m.get_type() == "HEARTBEAT"]
    assert len(beats) == 5
    assert (beats[0].type, beats[0].autopilot) == (mavlink.MAV_TYPE_CAMERA, mavlink.MAV_AUTOPILOT_INVALID)


@pytest.mark.parametrize("ask", [(REQUEST, 259), (mavlink.MAV_CMD_REQUEST_CAMERA_INFORMATION, 1)])
def test_information_says_that_points_and_rectangles_are_tracked_and_no_places_on_earth(ask: tuple[int, int]):
    messages = Station().command(*ask)
    (info,) = [m for m in messages if m.get_type() == "CAMERA_INFORMATION"]
    assert (info.resolution_h, info.resolution_v) == (WIDTH, HEIGHT)
    assert info.flags & mavlink.CAMERA_CAP_FLAGS_HAS_TRACKING_POINT
    assert info.flags & mavlink.CAMERA_CAP_FLAGS_HAS_TRACKING_RECTANGLE
    assert not info.flags & mavlink.CAMERA_CAP_FLAGS_HAS_TRACKING_GEO_STATUS
    assert bytes(info.vendor_name).rstrip(b"\0") == b"tracker_ros"


def test_rectangles_and_points_become_boxes():
    station = Station()
    assert station.result(RECTANGLE, 0.25, 0.5, 0.5, 0.75) == (ACCEPTED, "")
    assert station.result(RECTANGLE, 0.5, 0.75, 0.25, 0.5) == (ACCEPTED, "")  # Drawn from the other corner.
    assert station.result(POINT, 0.5, 0.5, 0.0625) == (ACCEPTED, "")
    assert station.result(POINT, 0.5, 0.5, NAN) == (ACCEPTED, "")
    assert station.result(POINT, 0.5, 0.5) == (ACCEPTED, "")
    box, square = Box(160, 240, 160, 120), Box(296, 216, 48, 48)
    boxes = [box, box, Box(280, 200, 80, 80), square, square]
    assert station.asked == [("start", 0, box, TARGET_ID) for box in boxes]


def test_a_rectangle_as_command_int():
    station = Station()
    values = (0.25, 0.5, 0.5, 0.75)
    station.send(mavlink.MAVLink_command_int_message(1, 100, 0, RECTANGLE, 0, 0, *values, 0, 0, 0))
    (acknowledgement,) = station.heard()
    assert acknowledgement.result == ACCEPTED
    assert station.asked == [("start", 0, Box(160, 240, 160, 120), TARGET_ID)]


def test_the_box_is_drawn_on_the_image_that_the_operator_saw():
    station = Station(video_delay=0.2)
    for k in range(30):
        station.say(stamp=10**9 + k * 33_000_000)
    station.command(POINT, 0.5, 0.5)
    newest = 10**9 + 29 * 33_000_000
    assert abs(station.asked[0][1] - (newest - 200_000_000)) <= 17_000_000


def test_status_follows_the_target():
    station = Station()
    status = station.status()
    assert (status.tracking_status, status.tracking_mode) == (mavlink.CAMERA_TRACKING_STATUS_FLAGS_IDLE, 0)
    for state in (State.TRACKING, State.UNCERTAIN):
        station.say(state, Box(64, 48, 32, 24))
        status = station.status()
        assert status.tracking_status == mavlink.CAMERA_TRACKING_STATUS_FLAGS_ACTIVE
        assert status.tracking_mode == mavlink.CAMERA_TRACKING_MODE_RECTANGLE
        assert corners(status) == pytest.approx([0.1, 0.1, 0.15, 0.15])
    for state in (State.LOST, State.STALE, State.UNCERTAIN):
        station.say(state)  # An UNCERTAIN without a box: the tracker failed on this image.
        status = station.status()
        assert status.tracking_status == mavlink.CAMERA_TRACKING_STATUS_FLAGS_ERROR
        assert all(map(math.isnan, corners(status)))
    station.say(State.TRACKING, Box(64, 48, 32, 24))
    station.now += SILENCE + 0.1
    assert station.status().tracking_status == mavlink.CAMERA_TRACKING_STATUS_FLAGS_ERROR, "a silent tracker"
    station.say(State.IDLE, name="")
    assert station.status().tracking_status == mavlink.CAMERA_TRACKING_STATUS_FLAGS_IDLE


def test_status_is_of_the_own_target_or_else_of_somebody_elses():
    station = Station()
    station.say(name="car", box=Box(0, 0, 64, 48))
    assert corners(station.status()) == pytest.approx([0, 0, 0.1, 0.1])
    station.say(box=Box(0, 0, 128, 96))
    station.say(name="car", box=Box(0, 0, 64, 48))
    assert corners(station.status()) == pytest.approx([0, 0, 0.2, 0.2])
    station.command(STOP)
    assert station.asked == [("stop", TARGET_ID)]
    station.now += SILENCE + 0.1
    station.say(name="car", box=Box(0, 0, 64, 48))
    station.command(STOP)
    assert station.asked[-1] == ("stop", "car")


def test_status_comes_at_the_rate_that_was_asked_for():
    station = Station()
    assert station.result(SET, STATUS, 50_000)[0] == ACCEPTED

    def count(seconds: float) -> int:
        heard = 0
        for _ in range(round(seconds / 0.004)):
            station.now += 0.004
            heard += len(station.heard())
        return heard

    assert count(5) == pytest.approx(100, abs=1)
    assert station.result(SET, STATUS, 0)[0] == ACCEPTED
    assert count(5) == pytest.approx(50, abs=1)
    station.now += 100  # Nobody looked for a while: no burst.
    assert len(station.heard()) <= 2
    intervals = [m for m in station.command(GET, STATUS) if m.get_type() == "MESSAGE_INTERVAL"]
    assert (intervals[0].message_id, intervals[0].interval_us) == (STATUS, 100_000)
    assert station.result(SET, STATUS, -1)[0] == ACCEPTED
    assert count(5) == 0
    (interval, _) = station.command(GET, STATUS)
    assert interval.interval_us == -1


def test_a_place_on_earth_is_refused_honestly():
    station = Station()
    result, said = station.result(SET, GEO, 100_000)
    assert (result, said) == (UNSUPPORTED, "no place on earth: this camera knows pixels only")
    assert station.result(REQUEST, GEO)[0] == UNSUPPORTED
    (interval, _) = station.command(GET, GEO)
    assert (interval.message_id, interval.interval_us) == (GEO, 0)


def test_a_refusal_of_the_tracker_reaches_the_operator_in_full():
    station = Station()
    for length in (10, 49, 50, 51, 100, 120):
        reason = ("tracking is paused: call pause_tracking with data: false first " * 3)[:length]
        station.answer = Answer(False, reason)
        messages = station.command(POINT, 0.5, 0.5)
        assert messages[0].result == FAILED
        assert text(messages) == reason
        parts = [m for m in messages if m.get_type() == "STATUSTEXT"]
        assert [m.chunk_seq for m in parts] == list(range(len(parts)))
        assert len({m.id for m in parts}) == 1
        assert len(parts[-1].text) < 50, "the last part is known by its end"


def test_a_tracker_that_takes_its_time():
    station = Station()
    station.answer = None
    assert station.command(POINT, 0.5, 0.5) == []
    station.now += 0.6
    (progress,) = station.heard()
    assert progress.result == PROGRESS
    assert station.result(POINT, 0.5, 0.5, confirmation=1)[0] == PROGRESS  # The station asks again.
    assert len(station.asked) == 1
    station.open[0].set_result(Answer(True, ""))
    (done,) = station.heard()
    assert (done.result, done.command) == (ACCEPTED, POINT)
    assert station.heard() == []


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ((RECTANGLE, NAN, 0.1, 0.2, 0.3), DENIED),
        ((RECTANGLE, 0.1, 0.1, INF, 0.3), DENIED),
        ((RECTANGLE, -0.1, 0.1, 0.2, 0.3), DENIED),
        ((RECTANGLE, 160, 120, 320, 240), DENIED),  # pixels
        ((RECTANGLE, 0.5, 0.5, 0.5, 0.5), DENIED),
        ((RECTANGLE, 0.5, 0.5, 0.501, 0.9), DENIED),
        ((POINT, NAN, 0.5), DENIED),
        ((POINT, 0.5, 1.5), DENIED),
        ((POINT, 0.5, 0.5, -1), DENIED),
        ((POINT, 0.5, 0.5, INF), DENIED),
        ((POINT, 0.5, 0.5, 0.001), DENIED),
        ((POINT, 3.4e38, -3.4e38), DENIED),
        ((SET, NAN, 100_000), DENIED),
        ((SET, 275.5, 100_000), DENIED),
        ((SET, -1, 100_000), DENIED),
        ((SET, STATUS, NAN), DENIED),
        ((SET, STATUS, -2), DENIED),
        ((SET, STATUS, 1), DENIED),
        ((SET, STATUS, INF), DENIED),
        ((SET, 30, 100_000), UNSUPPORTED),
        ((REQUEST, NAN), DENIED),
        ((REQUEST, 1e30), DENIED),
        ((REQUEST, 262), UNSUPPORTED),
        ((GET, INF), DENIED),
        ((mavlink.MAV_CMD_IMAGE_START_CAPTURE, 0, 0, 1), UNSUPPORTED),
        ((65535,), UNSUPPORTED),
    ],
)
def test_bad_commands_get_their_result_and_change_nothing(command: tuple[float, ...], result: int):
    station = Station()
    station.say(box=Box(64, 48, 32, 24))
    assert station.result(int(command[0]), *command[1:])[0] == result
    assert station.asked == []
    station.now += 0.5
    assert station.heard() == [], "no stream was started"
    assert station.status().tracking_status == mavlink.CAMERA_TRACKING_STATUS_FLAGS_ACTIVE
    assert station.result(RECTANGLE, 0.1, 0.1, 0.2, 0.2)[0] == ACCEPTED


@pytest.mark.parametrize(("system", "component"), [(2, 100), (1, 101), (255, 0), (2, 0), (1, 1)])
def test_commands_for_others_are_theirs(system: int, component: int):
    station = Station()
    assert station.command(POINT, 0.5, 0.5, system=system, component=component) == []
    assert station.asked == []


@pytest.mark.parametrize(("system", "component"), [(0, 0), (1, 0), (0, 100)])
def test_commands_for_all_are_carried_out_and_unknown_ones_left_to_others(system: int, component: int):
    station = Station()
    assert station.result(POINT, 0.5, 0.5, system=system, component=component)[0] == ACCEPTED
    if component == 0:
        assert station.command(mavlink.MAV_CMD_COMPONENT_ARM_DISARM, 1, system=system, component=component) == []


def test_before_the_first_image_the_size_is_not_known():
    station = Station(size=None)
    assert station.result(RECTANGLE, 0.1, 0.1, 0.2, 0.2) == (REJECTED, "no image has come from the camera yet")
    station.say(box=Box(64, 48, 32, 24))
    assert station.status().tracking_status == mavlink.CAMERA_TRACKING_STATUS_FLAGS_ERROR
    station.camera.set_image_size(0, -5)
    assert station.result(POINT, 0.5, 0.5)[0] == REJECTED


def test_many_stations_at_once_are_bounded():
    station = Station()
    station.answer = None
    for sender in range(40):
        station._here.srcComponent = sender
        station.command(POINT, 0.5, 0.5)
    assert len(station.asked) == 8


def test_other_messages_and_the_own_echo_are_ignored():
    station = Station()
    station.send(mavlink.MAVLink_heartbeat_message(6, 8, 0, 0, 4, 3))
    station.send(mavlink.MAVLink_command_ack_message(POINT, 0, 0, 0, 1, 100))
    station._here.srcSystem, station._here.srcComponent = 1, 100
    assert station.command(POINT, 0.5, 0.5) == []
    assert station.asked == []
