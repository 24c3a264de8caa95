"""What every tracker of the package looks like: options, estimates, targets and the `Tracker` interface."""

from __future__ import annotations

import dataclasses
import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import Box, validate_init_box
from tracker_ros.text import nearest

#: An image: HxWx3 uint8, BGR as OpenCV reads it.
Frame = NDArray[np.uint8]


class TrackState(enum.IntEnum):
    """What the tracker believes about its target. The values are those of ``TrackStatus.msg``."""

    IDLE = 0
    TRACKING = 1
    UNCERTAIN = 2
    LOST = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a tracker says of one target in one frame.

    Attributes:
        box: the target's box (x, y, w, h in pixels). While the target is LOST, its last known box.
        score: confidence in ``[0, 1]``, never hidden by the state.
        state: `TrackState.TRACKING`, `UNCERTAIN` or `LOST`.
        search_region: the part of the image that was searched (x, y, w, h in pixels; may reach beyond the image).
        heatmap: response over the search region, rows x columns, float32 in ``[0, 1]`` and stretched over
            `search_region`; None for trackers that have no response map or when it was not asked for.
        cues: the named numbers that the state was decided on, for status and diagnosis.
    """

    box: Box
    score: float
    state: TrackState
    search_region: Box
    heatmap: NDArray[np.float32] | None = None
    cues: dict[str, float] = field(default_factory=dict)

    def scaled(self, sx: float, sy: float) -> Estimate:
        """The estimate in pixels of an image that is `sx` times as wide and `sy` times as high."""
        if sx == sy == 1:
            return self
        box, region = (Box(x * sx, y * sy, w * sx, h * sy) for x, y, w, h in (self.box, self.search_region))
        return dataclasses.replace(self, box=box, search_region=region)


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
    live: bool = False,
) -> Any:
    """A field of an options dataclass with its description and the values that it takes (`low` <= value <= `high`).

    A `live` one is read anew in every frame, so that it may change while targets are tracked.
    """
    allowed = None if choices is None else tuple(choices)
    metadata = {"help": help, "low": low, "high": high, "choices": allowed, "live": live}
    if isinstance(default, list | dict):
        raise TypeError("an option's default must be immutable; use a tuple")
    return field(default=default, metadata=metadata)


class InvalidOption(ValueError):
    """An option that a tracker does not have, or a value that it does not take; the message names both."""


def again(declared: type[Settings], name: str, default: Any) -> Any:
    """The field `name` of the settings `declared`, with another default."""
    return field(default=default, metadata=declared.__dataclass_fields__[name].metadata)


SettingsT = TypeVar("SettingsT", bound="Settings")
OptionsT = TypeVar("OptionsT", bound="TrackerOptions")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A dataclass of `option` fields, all of whose values are checked."""

    def __post_init__(self) -> None:
        """Check every field against its declared type, range and choices.

        Raises:
            InvalidOption: names the option, its value and what was expected.
        """
        for f in dataclasses.fields(self):
            value: Any = getattr(self, f.name)
            meta = f.metadata
            expected: type = type(f.default)
            if expected is float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, f.name, float(value))
                value = float(value)
            if expected is tuple and isinstance(value, list):
                object.__setattr__(self, f.name, tuple(value))
                value = tuple(value)
            if type(value) is not expected:
                raise InvalidOption(
                    f"option '{f.name}' takes a {expected.__name__}, got {value!r} ({type(value).__name__})"
                )
            low, high, choices = meta.get("low"), meta.get("high"), meta.get("choices")
            if isinstance(value, int | float) and not isinstance(value, bool):
                if not math.isfinite(value):
                    raise InvalidOption(f"option '{f.name}' must be finite, got {value}")
                if (low is not None and value < low) or (high is not None and value > high):
                    raise InvalidOption(f"option '{f.name}' must lie in [{low}, {high}], got {value}")
            if choices is not None and value not in choices:
                raise InvalidOption(f"option '{f.name}' must be one of {', '.join(choices)}; got '{value}'")

    def replace(self: SettingsT, **changes: Any) -> SettingsT:
        """A copy with some options changed.

        Raises:
            InvalidOption: an unknown name, or a value that the option does not take.
        """
        known = {f.name for f in dataclasses.fields(self)}
        for name in changes:
            if name not in known:
                meant = nearest(name, known)
                hint = f"; did you mean '{meant}'?" if meant else ""
                raise InvalidOption(
                    f"there is no option '{name}'{hint} (there are: {', '.join(sorted(known - {'design'}))})"
                )
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Design(Settings):
    """What a paper, its network or a study fixes: set by a preset or an evaluation, never a parameter of the node."""


@dataclass(frozen=True, kw_only=True)
class TrackerOptions(Settings):
    """What the owner of a robot turns; all trackers have these. A tracker's own stand beside its class."""

    device: str = option("auto", "where to run: auto (CUDA where there is one), cpu, cuda or cuda:N")
    weights: str = option("", "weights file (.safetensors); empty: the ones that the package ships")
    heatmap: bool = option(True, "compute the response map of every frame", live=True)
    good_score: float = option(
        0.6,
        "score from which the target is surely seen; higher: more frames are UNCERTAIN",
        low=0.0,
        high=1.0,
        live=True,
    )
    bad_score: float = option(
        0.3,
        "score below which it is not seen; higher: it is LOST sooner, and wrong boxes are rarer",
        low=0.0,
        high=1.0,
        live=True,
    )
    regain_score: float = option(
        0.8,
        "score that a lost target must reach; higher: look-alikes are taken for it less often",
        low=0.0,
        high=1.0,
        live=True,
    )
    lost_after: int = option(
        5, "frames without the target until it is LOST; higher: short covers are borne", low=1, high=300, live=True
    )
    design: Design = Design()

    def options(self) -> list[dataclasses.Field[Any]]:
        """The fields that are options: all but the design."""
        return [f for f in dataclasses.fields(self) if f.name != "design"]

    def vary(self: OptionsT, **changes: Any) -> OptionsT:
        """A copy with some options, or fields of the design, changed: what an evaluation does.

        Raises:
            InvalidOption: a name that neither has, or a value that it does not take.
        """
        studied = {f.name for f in dataclasses.fields(self.design)}
        design = {name: value for name, value in changes.items() if name in studied}
        options = {name: value for name, value in changes.items() if name not in studied}
        return self.replace(**options, design=self.design.replace(**design))


TargetT = TypeVar("TargetT")


class Tracker(ABC, Generic[TargetT]):
    """A single-object tracker: a network (if any) that is loaded once, and targets that carry all state of a track.

    Subclasses implement `start` and `step`, which take several targets at once (one batched pass over the network);
    `initialize` and `track` are the same for one target, whose frames may change their size.

    Attributes:
        name: name in the registry (``dimp18``).
        options: the options that it was built with.
        device: the device that it runs on, ``cpu`` or ``cuda:N``.
    """

    def __init__(self, name: str, options: TrackerOptions) -> None:
        self.name = name
        self.options = options
        self.device = "cpu"
        self._target: TargetT | None = None
        self._size = (0, 0)

    @abstractmethod
    def start(self, frame: Frame, boxes: Sequence[Box]) -> list[TargetT]:
        """Start one target a box on `frame`.

        Args:
            frame: HxWx3 uint8, BGR.
            boxes: x, y, w, h in pixels, already checked (`validate_init_box`).
        """

    @abstractmethod
    def step(self, frame: Frame, targets: Sequence[TargetT]) -> list[Estimate]:
        """Find every target in the next frame and update its state. Returns one estimate a target, in order."""

    def reconfigure(self, options: TrackerOptions) -> bool:
        """Take over `options` if only live ones differ; the targets keep their tracks.

        Returns:
            Whether it did; otherwise nothing has changed, and the tracker must be built anew.
        """
        changed = [f for f in options.options() if getattr(options, f.name) != getattr(self.options, f.name, None)]
        alike = type(options) is type(self.options) and options.design == self.options.design
        if not alike or not all(f.metadata["live"] for f in changed):
            return False
        self.options = options
        return True

    def warm_up(self, width: int = 640, height: int = 480) -> None:
        """Run once on a synthetic image, so that the first real frame is not the slow one."""
        noise = np.random.RandomState(0).randint(0, 255, (height, width, 3)).astype(np.uint8)
        side = min(width, height) / 4
        targets = self.start(noise, [Box(width / 2 - side / 2, height / 2 - side / 2, side, side)])
        for _ in range(2):
            self.step(noise, targets)

    def initialize(self, frame: Frame, box: Sequence[float]) -> None:
        """Start a track on `frame` (HxWx3 uint8, BGR) with `box` (x, y, w, h in pixels, 0-based, sub-pixel).

        Raises:
            InvalidBox: the box is not one that a track can start on.
            ValueError: the frame is not HxWx3 uint8.
        """
        check_frame(frame)
        height, width = frame.shape[:2]
        self._target = self.start(frame, [validate_init_box(box, width, height)])[0]
        self._size = (width, height)

    def track(self, frame: Frame) -> Estimate:
        """Find the target in the next frame (HxWx3 uint8, BGR); the estimate is in pixels of this frame.

        A frame of another size than the first is resampled to that size, as the target is looked for at its scale.

        Raises:
            RuntimeError: `initialize` was not called.
            ValueError: the frame is not HxWx3 uint8.
        """
        if self._target is None:
            raise RuntimeError("track() was called before initialize(): give the tracker a box first")
        check_frame(frame)
        seen, sx, sy = fit(frame, self._size)
        return self.step(seen, [self._target])[0].scaled(sx, sy)


def fit(frame: Frame, size: tuple[int, int]) -> tuple[Frame, float, float]:
    """The frame at the `size` (width, height) that a track has, and how many times as wide and as high it is itself.

    Args:
        frame: HxWx3 uint8, BGR; returned as it is where it has that size.
        size: of the image that the track started on.
    """
    height, width = frame.shape[:2]
    if (width, height) == size:
        return frame, 1.0, 1.0
    import cv2  # which a list of the trackers does without

    resized = cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return resized, width / size[0], height / size[1]


def check_frame(frame: Frame) -> None:
    """Check that `frame` is HxWx3 uint8 and not empty.

    Raises:
        ValueError: says which shape and type came and which were expected.
    """
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"a frame is HxWx3 uint8 (BGR), got {got}")
    if frame.size == 0:
        raise ValueError(f"the frame is empty: {frame.shape}")
