"""Where images come from: video files, folders of images, cameras, streams, and the simulated flight.

Knows nothing of ROS.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.evaluation.bags import is_bag
from tracker_ros.evaluation.sequences import (
    IMAGE_SUFFIXES,
    InvalidSequence,
    image_folder,
    list_images,
    read_boxes,
    read_image,
    truth_in,
)
from tracker_ros.files import opencv_path
from tracker_ros.geometry.boxes import Box
from tracker_ros.images import GreyScale
from tracker_ros.simulation.flight import Flight, FlightOptions
from tracker_ros.trackers.base import Frame

#: Frames a second where a source does not tell.
DEFAULT_FPS = 30.0


#: What stands for "without truth" where a truth file is named.
NO_TRUTH = "none"
#: How often a video is asked for its next image before it is taken as ended: a damaged one may go on after a gap.
_ATTEMPTS = 8
#: Number of the first noise that is not any picture's own.
_STILLS = 10**9
#: Seconds for which a camera may give no image.
_PATIENCE = 5.0


class InvalidSource(ValueError):
    """A source of images that can't be used; the message names it, what is wrong, and what was expected."""


class InvalidTruth(InvalidSource):
    """True boxes that can't be used; the images can."""


class UnreadableImage(InvalidSource):
    """One image that can't be read; those after it may be."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a clip.

    Attributes:
        frame: HxWx3 uint8, BGR.
        truth: the target's true box (x, y, w, h in pixels); None where it is out of view or not known.
        known: whether the truth of this image is known.
        visible: the part of the target that can be seen, 0 to 1; NaN where nobody knows.
    """

    frame: Frame
    truth: Box | None = None
    known: bool = False
    visible: float = math.nan


class Clip(ABC):
    """Images in order.

    Attributes:
        name: what to call it in messages.
        fps: frames a second at which it was recorded.
        length: number of images, None where it is not known.
        live: the images come when they come (a camera) and not when they are asked for.
        sources: the files and folders that it is read from.
    """

    name: str
    fps: float = DEFAULT_FPS
    length: int | None = None
    live: bool = False
    sources: tuple[Path, ...] = ()

    @abstractmethod
    def read(self, index: int) -> Picture | None:
        """Image number `index`, from 0. Ask in order, or begin again at 0. None after the last one.

        Raises:
            UnreadableImage: this image can't be read.
            InvalidSource: nor can any that follows.
        """

    def still(self, picture: Picture, index: int, count: int) -> Picture:
        """The same moment as image `index`, which was `picture`, seen once more, for the `count`-th time."""
        return picture

    def first_box(self) -> Box | None:
        """The target's true box in the first image, if it is known."""
        return None

    def close(self) -> None:  # noqa: B027 - most have nothing to release
        """Release files and devices."""


class FlightClip(Clip):
    """The simulated flight."""

    def __init__(self, options: FlightOptions) -> None:
        self.flight = Flight(options)
        self.name = f"simulated flight, seed {options.seed}"
        self.fps = options.fps
        self.length: int | None = len(self.flight)

    def read(self, index: int) -> Picture | None:
        """See `Clip.read`."""
        if self.length is not None and index >= self.length:
            return None
        frame, truth = self.flight.render(index)
        return Picture(frame, truth.box, True, truth.in_view * (1 - truth.hidden))

    def still(self, picture: Picture, index: int, count: int) -> Picture:
        """See `Clip.still`. With fresh noise, as a living camera has it that looks at one thing."""
        return dataclasses.replace(picture, frame=self.flight.render(index, grain=_STILLS + count)[0])

    def first_box(self) -> Box | None:
        """See `Clip.first_box`."""
        return self.flight.truth_at(0).box


class FolderClip(Clip):
    """A folder of images, in itself, ``img/`` or ``color/``, with the truth in ``groundtruth.txt`` if there is one."""

    def __init__(self, folder: Path, truth_file: Path | None = None, *, truth: bool = True) -> None:
        self.name = str(folder)
        images = image_folder(folder)
        self._images = list_images(images)
        self._scale = GreyScale()
        if not self._images:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise InvalidSource(f"the folder '{folder}' has no images ({kinds}), nor has its img/")
        self.length = len(self._images)
        if truth_file is None and truth:
            truth_file = truth_in(folder)
        self._truth = _read_truth(truth_file, self.length)
        self.sources = (folder, images, *filter(None, [truth_file]))

    def read(self, index: int) -> Picture | None:
        """See `Clip.read`."""
        if index >= len(self._images):
            return None
        try:
            return _with_truth(read_image(self._images[index], self._scale), self._truth, index)
        except InvalidSequence as error:
            raise UnreadableImage(str(error)) from error

    def first_box(self) -> Box | None:
        """See `Clip.first_box`."""
        return _box_of(self._truth, 0)


class VideoClip(Clip):
    """A video file.

    Where a damaged file has a gap, its images are numbered by their times from there on, and none has a known truth.
    Truth for every image goes only with a file that is whole: some decoders leave out what they can't read.
    """

    def __init__(self, path: Path, truth_file: Path | None = None) -> None:
        self.name = str(path)
        self._path = opencv_path(path)
        self.sources = (path, *filter(None, [truth_file]))
        self._open()
        if not self._capture.isOpened() or not self._capture.grab():
            raise InvalidSource(f"'{path}' can't be read as a video: OpenCV knows no decoder for it, or it is empty")
        self.fps = _rate(self._capture)
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = count if count > 0 else None
        self._truth = _read_truth(truth_file, self.length)
        if len(self._truth) > 1:
            readable = 1 + len(list(iter(self._capture.grab, False)))
            if readable != len(self._truth):
                raise InvalidTruth(
                    f"of '{path}', {readable} images can be read in a row, "
                    f"but '{truth_file}' has {len(self._truth)} boxes: "
                    "nobody can tell which box belongs to which image"
                )
        self._open()

    def _open(self) -> None:
        """Begin again; what was open is closed with its last reference."""
        self._capture = cv2.VideoCapture(self._path)
        self._asked = self._number = -1  # of the image that was asked for last, and of the one that was grabbed last

    def read(self, index: int) -> Picture | None:
        """See `Clip.read`."""
        if index <= self._asked:
            self._open()
        self._asked = index
        while self._number < index:
            if not self._advance():
                return None
        good, frame = self._capture.retrieve() if self._number == index else (False, None)
        if not good:
            raise UnreadableImage(f"image {index} of '{self.name}' can't be read: the file is damaged")
        return _with_truth(np.asarray(frame, np.uint8), self._truth, index)

    def _advance(self) -> bool:
        """Grab the next image that can be read; False where there is none."""
        for attempt in range(_ATTEMPTS):
            if self._capture.grab():
                self._number += 1
                if attempt:
                    by_time = round(float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) * self.fps / 1000)
                    self._number = max(self._number, by_time)
                    self._truth = np.empty((0, 4))
                return True
        return False

    def first_box(self) -> Box | None:
        """See `Clip.first_box`."""
        return _box_of(self._truth, 0)

    def close(self) -> None:
        """See `Clip.close`."""
        self._capture.release()


class CameraClip(Clip):
    """A camera of this machine, by its number or device, or a stream, by its address."""

    live = True

    def __init__(self, camera: int | str) -> None:
        # An address may hold a password, which is nothing for a log.
        self.name = f"webcam {camera}" if isinstance(camera, int) else re.sub(r"//[^/@]*@", "//***@", camera)
        if isinstance(camera, int):
            self._capture = cv2.VideoCapture(camera)
            reason = "check that the device exists (ls /dev/video*) and is not in use"
        elif _is_address(camera):
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 10_000]
            self._capture = cv2.VideoCapture(opencv_path(camera), cv2.CAP_FFMPEG, limits)
            reason = "check the address, that the host answers, and name and password; OpenCV needs FFmpeg for it"
        else:
            if not os.access(camera, os.R_OK | os.W_OK):
                raise InvalidSource(f"'{camera}' can't be opened: no permission (are you in the group video?)")
            self._capture = cv2.VideoCapture(opencv_path(camera), cv2.CAP_V4L2)
            reason = "it is no camera that gives images, or it is in use"
        if not self._capture.isOpened():
            raise InvalidSource(f"{self.name} can't be opened: {reason}")
        self.fps = _rate(self._capture)

    def read(self, index: int) -> Picture | None:
        """See `Clip.read`; waits for the camera.

        Raises:
            InvalidSource: it gave no image for some seconds.
        """
        end = time.monotonic() + _PATIENCE
        while True:
            good, frame = self._capture.read()
            if good:
                return Picture(np.asarray(frame, np.uint8))
            if time.monotonic() > end:
                raise InvalidSource(f"{self.name} gave no image for {_PATIENCE:g} s, after {index} images")
            time.sleep(0.02)

    def close(self) -> None:
        """See `Clip.close`."""
        self._capture.release()


def _rate(capture: cv2.VideoCapture) -> float:
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS


def _is_address(source: str) -> bool:
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", source) is not None


def open_clip(source: str, truth: str = "") -> Clip:
    """Open a video file, a folder of images, a camera or a stream.

    Args:
        source: a path (``/dev/video0`` is a camera), a webcam's number, or a stream's address (``rtsp://...``).
        truth: file of the true boxes (rows of x, y, w, h in pixels, 0-based; NaN where the target is absent); empty:
            ``groundtruth.txt`` in a folder of images; `NO_TRUTH`: none.

    Raises:
        InvalidSource: it does not exist or can't be read.
        InvalidTruth: its truth is broken.
    """
    source = source.strip().removeprefix("file://")
    if not source:
        raise InvalidSource("no source is given: name a video file, a folder of images or a webcam's number")
    if _is_address(source):
        return CameraClip(source)
    path = Path(source).expanduser()
    truth_file = Path(truth).expanduser() if truth and truth != NO_TRUTH else None
    if truth_file is not None and not truth_file.is_file():
        raise InvalidTruth(f"there is no file '{truth}' with true boxes")
    if is_bag(path):
        raise InvalidSource(
            f"'{path}' is a recording: play it (ros2 bag play {path}) beside the node, or measure trackers on it "
            f"(tracker_ros evaluate --sequences {path})"
        )
    if path.is_dir():
        return FolderClip(path, truth_file, truth=truth != NO_TRUTH)
    if path.is_file():
        return VideoClip(path, truth_file)
    if path.is_char_device():
        return CameraClip(str(path))
    if source.isdecimal():
        return CameraClip(int(source))
    if path.exists():
        raise InvalidSource(f"'{source}' is neither a file nor a folder nor a camera")
    cameras = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) if path.parent == Path("/dev") else ""
    hint = f"; there are: {cameras or 'no cameras'}" if path.parent == Path("/dev") else ""
    raise InvalidSource(f"there is no file or folder '{source}' (nor is it a webcam's number){hint}")


def _read_truth(path: Path | None, count: int | None) -> NDArray[np.float64]:
    """The rows of a truth file; no rows where there is none."""
    if path is None:
        return np.empty((0, 4))
    try:
        boxes = read_boxes(path)
    except InvalidSequence as error:
        raise InvalidTruth(str(error)) from error
    # a file with one row names the target to start on, and nothing more
    if count is not None and len(boxes) not in (1, count):
        raise InvalidTruth(f"'{path}' has {len(boxes)} boxes for {count} images; expected one an image, or one alone")
    return boxes


def _box_of(truth: NDArray[np.float64], index: int) -> Box | None:
    if index >= len(truth) or np.isnan(truth[index]).any():
        return None
    return Box(*(float(v) for v in truth[index]))


def _with_truth(frame: Frame, truth: NDArray[np.float64], index: int) -> Picture:
    return Picture(frame, _box_of(truth, index), index < len(truth))
