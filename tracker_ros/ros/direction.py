"""Where a target is in the world, as messages: from `camera_info`, and from depth images aligned with the camera's.

The geometry is that of `tracker_ros.geometry.camera`. Nothing here subscribes or publishes: `node.bearings` does.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, Vector3Stamped
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from tracker_ros.geometry.boxes import Box
from tracker_ros.geometry.camera import (
    Camera,
    InvalidCalibration,
    NoDirection,
    NoRange,
    azimuth_elevation,
    depth_in_box,
    position,
)
from tracker_ros.ros import messages

_NO_INFO = "no camera_info has come"
#: Depth images that are kept, and the longest time in seconds between a depth image and the image that it belongs to.
_KEPT, _APART = 16, 0.05


@dataclass(frozen=True, slots=True)
class Direction:
    """Where a target is, as seen in one image.

    Attributes:
        ray: unit vector in the optical frame, with the image's header.
        azimuth, elevation: radians, to the right of straight ahead and above it.
        pose: the target's place in the optical frame, turned as the camera is; None where there is no distance.
        no_pose: why there is none; empty where nobody provides depth.
    """

    ray: Vector3Stamped
    azimuth: float
    elevation: float
    pose: PoseStamped | None
    no_pose: str


class Directions:
    """Calibration and depth as they come. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._info: tuple[Any, ...] = ()
        self._camera: Camera | None = None
        self._size = (0, 0)
        self._problem = _NO_INFO
        self._depths: deque[tuple[int, Image]] = deque(maxlen=_KEPT)

    def on_camera_info(self, message: CameraInfo) -> None:
        """Take the calibration; the same one again costs nothing."""
        roi = message.roi
        info = (
            message.width,
            message.height,
            tuple(message.k),
            tuple(message.d),
            message.distortion_model,
            (message.binning_x, message.binning_y),
            (roi.x_offset, roi.y_offset),
            (roi.width or message.width, roi.height or message.height),
        )
        if info == self._info:
            return
        camera, problem = None, ""
        try:
            camera = Camera.from_calibration(*info[:5], binning=info[5], offset=info[6])
        except InvalidCalibration as error:
            problem = f"camera_info can't be used: {error}"
        width, height = (side // max(1, step) for side, step in zip(info[7], info[5], strict=True))
        with self._lock:
            self._info, self._camera, self._size, self._problem = info, camera, (width, height), problem

    def on_depth(self, message: Image) -> None:
        """Take a depth image (16UC1 in millimetres, 32FC1 in metres)."""
        with self._lock:
            self._depths.append((messages.stamp_to_ns(message.header.stamp), message))

    def forget(self, kind: type) -> None:
        """Forget what came as messages of a type, ``CameraInfo`` or ``Image``: it is not listened to any more."""
        with self._lock:
            if kind is Image:
                self._depths.clear()
            else:
                self._info, self._camera, self._problem = (), None, _NO_INFO

    @property
    def informed(self) -> bool:
        """Whether any camera_info has come."""
        return bool(self._info)

    @property
    def deep(self) -> bool:
        """Whether any depth image has come."""
        return bool(self._depths)

    @property
    def problem(self) -> str:
        """Why there are no directions; empty where there are."""
        return self._problem

    def of(self, header: Header, box: Box, size: tuple[int, int]) -> Direction:
        """Where the target in `box` (pixels) is, as seen in the image with this header, of this width and height.

        Raises:
            NoDirection: there is no calibration, it is that of images of another size, or the lens model has no
                direction for the box's centre.
        """
        with self._lock:
            camera, calibrated, problem, depths = self._camera, self._size, self._problem, list(self._depths)
        if camera is None:
            raise NoDirection(problem)
        if calibrated != size:
            raise NoDirection("camera_info is for images of {}x{}, they are {}x{}".format(*calibrated, *size))
        ray = camera.ray(*box.center)
        azimuth, elevation = azimuth_elevation(ray)
        vector = Vector3Stamped(header=header)
        vector.vector.x, vector.vector.y, vector.vector.z = (float(value) for value in ray)
        pose, no_pose = None, ""
        if depths:
            try:
                place = position(ray, depth_in_box(_matching(depths, messages.stamp_to_ns(header.stamp), size), box))
            except NoRange as error:
                no_pose = str(error)
            else:
                pose = PoseStamped(header=header)
                pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = (float(value) for value in place)
                pose.pose.orientation.w = 1.0
        return Direction(vector, azimuth, elevation, pose, no_pose)


def _matching(depths: list[tuple[int, Image]], stamp: int, size: tuple[int, int]) -> NDArray[Any]:
    """The depth image of this time.

    Raises:
        NoRange: there is none, or it is not aligned with the camera's images, which have this size.
    """
    when, message = min(depths, key=lambda known: abs(known[0] - stamp))
    if abs(when - stamp) > _APART * 1e9:
        raise NoRange(f"the nearest depth image is {abs(when - stamp) / 1e9:.3f} s away, {_APART:g} s are allowed")
    depth = depth_array(message)
    height, width = depth.shape
    if (width, height) != size:
        raise NoRange("the depth image is {}x{}, the camera's {}x{}: it must be aligned".format(width, height, *size))
    return depth


def depth_array(message: Image) -> NDArray[Any]:
    """The values of a depth image, HxW: uint16 in millimetres or float32 in metres.

    Raises:
        NoRange: another encoding, or data of another size than the message says.
    """
    types = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}
    if message.encoding not in types:
        raise NoRange(f"depth images are 16UC1 (mm) or 32FC1 (m), got '{message.encoding}'")
    kind = np.dtype(types[message.encoding]).newbyteorder(">" if message.is_bigendian else "<")
    row = message.width * kind.itemsize
    if message.step < row or len(message.data) != message.step * message.height or not message.height * message.width:
        raise NoRange(
            f"the depth image has {len(message.data)} bytes, which is not {message.width}x{message.height} pixels of "
            f"{message.encoding} with a step of {message.step}"
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, :row]
    values = np.ascontiguousarray(rows).view(kind)
    return values.astype(kind.newbyteorder("="), copy=False)
