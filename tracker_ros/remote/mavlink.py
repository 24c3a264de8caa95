"""The tracker as a MAVLink camera component (https://mavlink.io/en/services/camera.html, "Camera Tracking").

A ground station asks for CAMERA_INFORMATION, whose flags say that points and rectangles can be tracked, sends
MAV_CMD_CAMERA_TRACK_POINT, _TRACK_RECTANGLE or _STOP_TRACKING, and has CAMERA_TRACKING_IMAGE_STATUS sent at a rate of
its choice. Places are parts of the image, 0 to 1 from its top-left corner. Here is what is said, not how it travels:
messages come in with `CameraComponent.receive` and go out with `CameraComponent.due`.

pymavlink (LGPL) is an optional extra, and only this module and its node import it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from pymavlink.dialects.v20 import common as mavlink

from tracker_ros.geometry.boxes import Box, InvalidBox, around_point, validate_init_box
from tracker_ros.remote.tracker import Answer, RemoteTracker, Sighting

#: Name of the target that a ground station starts.
TARGET_ID = "mavlink"
#: Seconds without news of a target after which nothing is known of it.
SILENCE = 1.0
#: Seconds between heartbeats; between status messages where a ground station leaves that to us; shortest and longest.
_HEARTBEAT, _DEFAULT, _SHORTEST, _LONGEST = 1.0, 0.1, 0.01, 3600.0
#: Seconds after which a command that is not finished is said to be in progress.
_PROGRESS = 0.5
#: Commands that may be under way at a time, and messages that wait to be sent.
_AT_ONCE, _WAITING = 8, 256
#: Characters of a STATUSTEXT, and of the longest text that is sent in parts.
_CHUNK, _TEXT = 50, 200
_FLAGS = mavlink.CAMERA_CAP_FLAGS_HAS_TRACKING_POINT | mavlink.CAMERA_CAP_FLAGS_HAS_TRACKING_RECTANGLE
_STATUS_ID = mavlink.MAVLINK_MSG_ID_CAMERA_TRACKING_IMAGE_STATUS


class _Refused(Exception):
    """A command that is not carried out: MAV_RESULT and the reason."""

    def __init__(self, result: int, text: str) -> None:
        super().__init__(text)
        self.result = result


class _Sender(NamedTuple):
    system: int
    component: int


class _Pending:
    """A command whose answer the tracker owes."""

    def __init__(self, answer: Future[Answer], since: float) -> None:
        self.answer, self.since, self.reported = answer, since, False


class CameraComponent:
    """See the module's text. `observe` and `set_image_size` may be called from any thread, the rest from one.

    Args:
        tracker: takes the commands.
        system, component: MAVLink's numbers of this camera.
        video_delay: how old the picture is that the operator sees, seconds: the box is taken to be drawn on an image
            that old.
        clock: steady seconds.
    """

    def __init__(
        self,
        tracker: RemoteTracker,
        system: int = 1,
        component: int = mavlink.MAV_COMP_ID_CAMERA,
        video_delay: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracker = tracker
        self._me = _Sender(system, component)
        self._delay = video_delay
        self._clock = clock
        self._begin = clock()
        self._lock = threading.Lock()
        self._size: tuple[int, int] | None = None
        self._targets: dict[str, tuple[Sighting, float]] = {}
        self._stamps: deque[int] = deque(maxlen=256)
        self._outbox: deque[Any] = deque(maxlen=_WAITING)
        self._pending: dict[tuple[_Sender, int], _Pending] = {}
        self._heartbeat = -math.inf
        self._interval = 0.0  # s between status messages; 0: none
        self._status = -math.inf
        self._text_id = 0
        self._commands: dict[int, Callable[[list[float]], Future[Answer] | None]] = {
            mavlink.MAV_CMD_CAMERA_TRACK_POINT: self._track_point,
            mavlink.MAV_CMD_CAMERA_TRACK_RECTANGLE: self._track_rectangle,
            mavlink.MAV_CMD_CAMERA_STOP_TRACKING: self._stop,
            mavlink.MAV_CMD_SET_MESSAGE_INTERVAL: self._set_interval,
            mavlink.MAV_CMD_GET_MESSAGE_INTERVAL: self._get_interval,
            mavlink.MAV_CMD_REQUEST_MESSAGE: self._request,
            mavlink.MAV_CMD_REQUEST_CAMERA_INFORMATION: self._request_information,
        }

    # ---------------------------------------------------------------------------------------------- from the tracker

    def set_image_size(self, width: int, height: int) -> None:
        """The camera's images have this size, pixels."""
        with self._lock:
            self._size = (width, height) if width > 0 and height > 0 else None

    def observe(self, sighting: Sighting) -> None:
        """The tracker's word on a target in an image, or (without a name) that there is none."""
        now = self._clock()
        with self._lock:
            if not self._stamps or sighting.stamp != self._stamps[-1]:
                self._stamps.append(sighting.stamp)
            if not sighting.target_id:
                self._targets.clear()
                return
            self._targets[sighting.target_id] = sighting, now
            # Of those that are gone nothing is said any more, while the others go on.
            for name in [n for n, (_, seen) in self._targets.items() if now - seen > SILENCE]:
                del self._targets[name]

    def _target(self) -> tuple[Sighting, float] | None:
        """Our own target, or else the one that was spoken of last: somebody else may have started it."""
        with self._lock:
            if TARGET_ID in self._targets:
                return self._targets[TARGET_ID]
            return max(self._targets.values(), key=lambda known: known[1], default=None)

    # -------------------------------------------------------------------------------------------- to the ground station

    def due(self) -> list[Any]:
        """The messages that are to be sent now."""
        now = self._clock()
        if now - self._heartbeat >= _HEARTBEAT:
            self._heartbeat = now
            self._outbox.append(self._heartbeat_message())
        if self._interval and now - self._status >= self._interval:
            # In step with the rate that was asked for, unless that has become impossible.
            self._status = max(self._status + self._interval, now - self._interval)
            self._outbox.append(self._status_message())
        for (sender, command), pending in list(self._pending.items()):
            if pending.answer.done():
                del self._pending[sender, command]
                answer = pending.answer.result()
                self._acknowledge(sender, command, *_result(answer))
            elif not pending.reported and now - pending.since >= _PROGRESS:
                pending.reported = True
                self._acknowledge(sender, command, mavlink.MAV_RESULT_IN_PROGRESS)
        messages = list(self._outbox)
        self._outbox.clear()
        return messages

    def _heartbeat_message(self) -> Any:
        return mavlink.MAVLink_heartbeat_message(
            mavlink.MAV_TYPE_CAMERA, mavlink.MAV_AUTOPILOT_INVALID, 0, 0, mavlink.MAV_STATE_ACTIVE, 3
        )

    def _status_message(self) -> Any:
        target, size = self._target(), self._size
        corners = [math.nan] * 4
        status, mode, data = mavlink.CAMERA_TRACKING_STATUS_FLAGS_IDLE, mavlink.CAMERA_TRACKING_MODE_NONE, 0
        if target is not None:
            sighting, seen = target
            mode = mavlink.CAMERA_TRACKING_MODE_RECTANGLE
            # LOST, or nobody knows: there is a target, but no place to point at.
            status = mavlink.CAMERA_TRACKING_STATUS_FLAGS_ERROR
            current = self._clock() - seen <= SILENCE
            if sighting.state.seen and sighting.box is not None and size is not None and current:
                status = mavlink.CAMERA_TRACKING_STATUS_FLAGS_ACTIVE
                data = mavlink.CAMERA_TRACKING_TARGET_DATA_IN_STATUS
                x, y, w, h = sighting.box
                corners = [x / size[0], y / size[1], (x + w) / size[0], (y + h) / size[1]]
        return mavlink.MAVLink_camera_tracking_image_status_message(
            status, mode, data, math.nan, math.nan, math.nan, *corners
        )

    def _information_message(self) -> Any:
        width, height = self._size or (0, 0)
        return mavlink.MAVLink_camera_information_message(
            self._boot_ms(),
            _octets("tracker_ros"),
            _octets("tracker_ros"),
            0,
            math.nan,
            math.nan,
            math.nan,
            width,
            height,
            0,
            _FLAGS,
            0,
            b"",
        )

    def _boot_ms(self) -> int:
        return int((self._clock() - self._begin) * 1000) % 2**32

    def _acknowledge(self, to: _Sender, command: int, result: int, text: str = "") -> None:
        self._outbox.append(mavlink.MAVLink_command_ack_message(command, result, 0, 0, to.system, to.component))
        if text:
            self._say(text)

    def _say(self, text: str) -> None:
        """A text to the operator, in parts where it is long."""
        octets = text.encode("ascii", "replace")[:_TEXT]
        parts = [octets[i : i + _CHUNK] for i in range(0, len(octets), _CHUNK)]
        self._text_id = self._text_id % 0xFFFF + 1
        # A text in one part has no number; one whose parts are all full ends with an empty one.
        number = self._text_id if len(octets) >= _CHUNK else 0
        if number and len(parts[-1]) == _CHUNK:
            parts.append(b"")
        for k, part in enumerate(parts):
            self._outbox.append(mavlink.MAVLink_statustext_message(mavlink.MAV_SEVERITY_WARNING, part, number, k))

    # ------------------------------------------------------------------------------------------ from the ground station

    def receive(self, message: Any) -> None:
        """Take a message; what is not a command for this camera is no business of ours."""
        if message.get_type() not in ("COMMAND_LONG", "COMMAND_INT"):
            return
        sender = _Sender(message.get_srcSystem(), message.get_srcComponent())
        if message.target_system not in (0, self._me.system) or sender == self._me:
            return
        if message.target_component not in (0, self._me.component):
            return
        number = int(message.command)
        carry_out = self._commands.get(number)
        if carry_out is None:
            # To everybody: others may understand it.
            if message.target_component == self._me.component:
                self._acknowledge(sender, number, mavlink.MAV_RESULT_UNSUPPORTED)
            return
        if (sender, number) in self._pending:  # Asked again, because the answer takes a while.
            self._acknowledge(sender, number, mavlink.MAV_RESULT_IN_PROGRESS)
            return
        last = [message.param5, message.param6, message.param7] if message.get_type() == "COMMAND_LONG" else []
        parameters = [message.param1, message.param2, message.param3, message.param4, *last]
        try:
            if len(self._pending) >= _AT_ONCE:
                raise _Refused(mavlink.MAV_RESULT_TEMPORARILY_REJECTED, "too many commands are under way")
            answer = carry_out(parameters)
        except _Refused as refusal:
            self._acknowledge(sender, number, refusal.result, str(refusal))
        except InvalidBox as error:
            self._acknowledge(sender, number, mavlink.MAV_RESULT_DENIED, str(error))
        else:
            if answer is None:
                self._acknowledge(sender, number, mavlink.MAV_RESULT_ACCEPTED)
            else:
                self._pending[sender, number] = _Pending(answer, self._clock())

    def _image(self) -> tuple[int, int]:
        with self._lock:
            if self._size is None:
                raise _Refused(mavlink.MAV_RESULT_TEMPORARILY_REJECTED, "no image has come from the camera yet")
            return self._size

    def _track_point(self, parameters: list[float]) -> Future[Answer]:
        width, height = self._image()
        x, y = _parts(parameters[:2], "the point")
        radius = parameters[2]
        if math.isnan(radius) or radius == 0:
            return self._start(around_point(x * width, y * height, width, height))
        (radius,) = _parts([radius], "the radius")
        return self._start(Box.from_center(x * width, y * height, 2 * radius * width, 2 * radius * width))

    def _track_rectangle(self, parameters: list[float]) -> Future[Answer]:
        width, height = self._image()
        x1, y1, x2, y2 = _parts(parameters[:4], "the rectangle")
        left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)  # Drawn from any corner.
        return self._start(Box(left * width, top * height, (right - left) * width, (bottom - top) * height))

    def _start(self, box: Box) -> Future[Answer]:
        return self._tracker.start(self._stamp(), validate_init_box(box, *self._image()), TARGET_ID)

    def _stamp(self) -> int:
        """The stamp of the image that the operator saw; 0, for the newest one, where that is as good."""
        with self._lock:
            if self._delay <= 0 or not self._stamps:
                return 0
            seen = self._stamps[-1] - int(self._delay * 1e9)
            return min(self._stamps, key=lambda stamp: abs(stamp - seen))

    def _stop(self, parameters: list[float]) -> Future[Answer]:
        target = self._target()
        return self._tracker.stop("" if target is None else target[0].target_id)

    def _set_interval(self, parameters: list[float]) -> None:
        self._check_stream(parameters[0])
        microseconds = parameters[1]
        if microseconds == 0:
            interval = _DEFAULT
        elif microseconds == -1:
            interval = 0.0
        elif _SHORTEST <= microseconds / 1e6 <= _LONGEST:
            interval = microseconds / 1e6
        else:
            raise _Refused(
                mavlink.MAV_RESULT_DENIED,
                f"an interval of {microseconds:g} us can't be had: {_SHORTEST * 1e6:.0f} to {_LONGEST * 1e6:.0f}",
            )
        self._interval, self._status = interval, self._clock() - interval

    def _get_interval(self, parameters: list[float]) -> None:
        number = _whole(parameters[0])
        interval = {_STATUS_ID: self._interval, mavlink.MAVLINK_MSG_ID_HEARTBEAT: _HEARTBEAT}.get(number)
        # 0: not available; -1: not sent.
        value = 0 if interval is None else int(interval * 1e6) if interval else -1
        self._outbox.append(mavlink.MAVLink_message_interval_message(number & 0xFFFF, value))

    def _request(self, parameters: list[float]) -> None:
        number = _whole(parameters[0])
        messages = {
            mavlink.MAVLINK_MSG_ID_HEARTBEAT: self._heartbeat_message,
            mavlink.MAVLINK_MSG_ID_CAMERA_INFORMATION: self._information_message,
            _STATUS_ID: self._status_message,
        }
        if number not in messages:
            raise _Refused(mavlink.MAV_RESULT_UNSUPPORTED, _no_stream(number))
        self._outbox.append(messages[number]())

    def _request_information(self, parameters: list[float]) -> None:
        self._outbox.append(self._information_message())

    def _check_stream(self, parameter: float) -> None:
        number = _whole(parameter)
        if number != _STATUS_ID:
            raise _Refused(mavlink.MAV_RESULT_UNSUPPORTED, _no_stream(number))


def _no_stream(number: int) -> str:
    if number == mavlink.MAVLINK_MSG_ID_CAMERA_TRACKING_GEO_STATUS:
        return "no place on earth: this camera knows pixels only"
    return ""  # Ground stations ask for much; the result says it.


def _result(answer: Answer) -> tuple[int, str]:
    """MAV_RESULT, and the reason where the tracker refused."""
    return (mavlink.MAV_RESULT_ACCEPTED, "") if answer.ok else (mavlink.MAV_RESULT_FAILED, answer.text)


def _parts(values: list[float], what: str) -> list[float]:
    """Parts of the image, checked."""
    if not all(0 <= value <= 1 for value in values):  # NaN is neither.
        shown = ", ".join(f"{value:g}" for value in values)
        raise _Refused(mavlink.MAV_RESULT_DENIED, f"{what} must lie in [0, 1], got {shown}")
    return values


def _whole(value: float) -> int:
    """The number of a message, which comes as a float."""
    if not (math.isfinite(value) and value == int(value) and 0 <= value < 2**24):
        raise _Refused(mavlink.MAV_RESULT_DENIED, f"{value:g} is not a message's number")
    return int(value)


def _octets(text: str) -> list[int]:
    return list(text.encode()[:32].ljust(32, b"\0"))
