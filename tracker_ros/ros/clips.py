"""Where images come from: video files, folders of images, webcams, and the simulated flight. Knows nothing of ROS."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.evaluation.sequences import (
    IMAGE_SUFFIXES,
    InvalidSequence,
    list_images,
    read_boxes,
    read_image,
)
from tracker_ros.files import opencv_path
from tracker_ros.geometry.boxes import Box
from tracker_ros.images import GreyScale
from tracker_ros.simulation.flight import Flight, FlightOptions
from tracker_ros.trackers.base import Frame

#: Frames a second where a source does not tell.
DEFAULT_FPS = 30.0
_TRUTH_FILES = ("groundtruth.txt", "groundtruth_rect.txt")


class InvalidSource(ValueError):
    """A source of images that can't be used; the message names it, what is wrong, and what was expected."""


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
            InvalidSource: the image can't be read.
        """

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

    def first_box(self) -> Box | None:
        """See `Clip.first_box`."""
        return self.flight.truth_at(0).box


class FolderClip(Clip):
    """A folder of images, in itself or in ``img/``, with the truth in ``groundtruth.txt`` if there is one."""

    def __init__(self, folder: Path, truth_file: Path | None = None) -> None:
        self.name = str(folder)
        images = folder / "img" if (folder / "img").is_dir() else folder
        self._images = list_images(images)
        self._scale = GreyScale()
        if not self._images:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise InvalidSource(f"the folder '{folder}' has no images ({kinds}), nor has its img/")
        self.length = len(self._images)
        if truth_file is None:
            truth_file = next((folder / name for name in _TRUTH_FILES if (folder / name).is_file()), None)
        self._truth = _read_truth(truth_file, self.length)
        self.sources = (folder, images, *filter(None, [truth_file]))

    def read(self, index: int) -> Picture | None:
        """See `Clip.read`."""
        if index >= len(self._images):
            return None
        try:
            return _with_truth(read_image(self._images[index], self._scale), self._truth, index)
        except InvalidSequence as error:
            raise InvalidSource(str(error)) from error

    def first_box(self) -> Box | None:
        """See `Clip.first_box`."""
        return _box_of(self._truth, 0)


class VideoClip(Clip):
    """A video file."""

    def __init__(self, path: Path, truth_file: Path | None = None) -> None:
        self.name = str(path)
        self._path = opencv_path(path)
        self.sources = (path, *filter(None, [truth_file]))
        self._capture = cv2.VideoCapture(self._path)
        self._next = 0
        if not self._capture.isOpened() or not self._capture.grab():
            raise InvalidSource(f"'{path}' can't be read as a video: OpenCV knows no decoder for it, or it is empty")
        self._rewind()
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = count if count > 0 else None
        self._truth = _read_truth(truth_file, self.length)

    def _rewind(self) -> None:
        self._capture.release()
        self._capture = cv2.VideoCapture(self._path)
        self._next = 0

    def read(self, index: int) -> Picture | None:
        """See `Clip.read`."""
        if index < self._next:
            self._rewind()
        while self._next < index:
            if not self._capture.grab():
                return None
            self._next += 1
        good, frame = self._capture.read()
        if not good:
            return None
        self._next += 1
        return _with_truth(np.asarray(frame, np.uint8), self._truth, index)

    def first_box(self) -> Box | None:
        """See `Clip.first_box`."""
        return _box_of(self._truth, 0)

    def close(self) -> None:
        """See `Clip.close`."""
        self._capture.release()


class WebcamClip(Clip):
    """A camera of this machine."""

    live = True

    def __init__(self, number: int) -> None:
        self.name = f"webcam {number}"
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise InvalidSource(
                f"webcam {number} can't be opened: check that the device exists (ls /dev/video*) and is not in use"
            )
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS

    def read(self, index: int) -> Picture | None:
        """See `Clip.read`; waits for the camera."""
        good, frame = self._capture.read()
        return Picture(np.asarray(frame, np.uint8)) if good else None

    def close(self) -> None:
        """See `Clip.close`."""
        self._capture.release()


def open_clip(source: str, truth: str = "") -> Clip:
    """Open a video file, a folder of images, or a webcam.

    Args:
        source: a path, or a webcam's number.
        truth: file of the true boxes (rows of x, y, w, h in pixels, 0-based; NaN where the target is absent); empty:
            ``groundtruth.txt`` in a folder of images.

    Raises:
        InvalidSource: it does not exist or can't be read, or its truth is broken.
    """
    if not source.strip():
        raise InvalidSource("no source is given: name a video file, a folder of images or a webcam's number")
    path = Path(source).expanduser()
    truth_file = Path(truth).expanduser() if truth else None
    if truth_file is not None and not truth_file.is_file():
        raise InvalidSource(f"there is no file '{truth}' with true boxes")
    if path.is_dir():
        return FolderClip(path, truth_file)
    if path.is_file():
        return VideoClip(path, truth_file)
    if source.strip().isdecimal():
        return WebcamClip(int(source))
    raise InvalidSource(f"there is no file or folder '{source}' (nor is it a webcam's number)")


def _read_truth(path: Path | None, count: int | None) -> NDArray[np.float64]:
    """The rows of a truth file; no rows where there is none."""
    if path is None:
        return np.empty((0, 4))
    try:
        boxes = read_boxes(path)
    except (InvalidSequence, OSError, UnicodeDecodeError) as error:
        raise InvalidSource(str(error)) from error
    # a file with one row names the target to start on, and nothing more
    if count is not None and len(boxes) not in (1, count):
        raise InvalidSource(f"'{path}' has {len(boxes)} boxes for {count} images; expected one an image, or one alone")
    return boxes


def _box_of(truth: NDArray[np.float64], index: int) -> Box | None:
    if index >= len(truth) or np.isnan(truth[index]).any():
        return None
    return Box(*(float(v) for v in truth[index]))


def _with_truth(frame: Frame, truth: NDArray[np.float64], index: int) -> Picture:
    return Picture(frame, _box_of(truth, index), index < len(truth))
