"""The node's parameters as a table: name, default, description, range, choices, read-only.

`NodeOptions` is the table of the node's own parameters. A tracker's options come from the metadata of its options
dataclass and are declared as ``<tracker>.<field>``; ``device``, ``weights`` and ``update`` are the same for all
trackers and have no prefix.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidTopicNameException
from rclpy.node import Node
from rclpy.validate_topic_name import validate_topic_name

from tracker_ros.images import GreyScale
from tracker_ros.trackers.base import InvalidOption, TrackerOptions

#: Options of every tracker that are parameters of the node itself.
SHARED = ("device", "weights", "update")
#: Options that the node decides on by itself: response maps are computed while someone may look at them.
_HIDDEN = ("heatmap",)


class InvalidParameter(ValueError):
    """A parameter with a value that it does not take; the message names both."""


def _check_topic(name: str) -> None:
    if name:
        try:
            validate_topic_name(name)
        except InvalidTopicNameException as error:
            raise ValueError(" ".join(str(error).split())) from error


def _parameter(
    default: Any,
    help: str,
    *,
    name: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    read_only: bool = False,
    parse: Callable[[Any], object] | None = None,
) -> Any:
    metadata: dict[str, Any] = {"help": help, "name": name, "low": low, "high": high, "choices": choices}
    metadata |= {"read_only": read_only, "parse": parse}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """Values of the node's own parameters."""

    tracker: str = _parameter("dimp18", "preset of the tracker; may change while running")
    device: str = _parameter("auto", "where the tracker runs: auto (CUDA where there is one), cpu, cuda or cuda:N")
    weights: str = _parameter("", "weights file of the tracker; empty: the ones that the package ships")
    update: str = _parameter("", "the tracker's update policy, where it has one, such as none; empty: its default")
    max_targets: int = _parameter(
        1, "most targets at a time; 1: a new one replaces the one before; each more costs a frame more time",
        low=1, high=16,
    )  # fmt: skip
    selected: str = _parameter("", "target that detection and heatmap are of; empty: the one that was started last")
    image_transport: str = _parameter(
        "raw", "raw: sensor_msgs/Image on image_raw; compressed: CompressedImage on image_raw/compressed",
        choices=("raw", "compressed"), read_only=True,
    )  # fmt: skip
    reliability: str = _parameter(
        "best_effort", "of the image subscription; best_effort hears every camera, reliable only reliable ones",
        choices=("best_effort", "reliable"), read_only=True,
    )  # fmt: skip
    autostart: bool = _parameter(True, "configure and activate the node when it starts", read_only=True)
    buffer_seconds: float = _parameter(
        1.0, "how far back in seconds the stamp of an init_target request may lie", low=0.0, high=10.0
    )
    buffer_megabytes: int = _parameter(256, "most memory that the buffered images may take", low=1, high=16384)
    catch_up_seconds: float = _parameter(
        0.5, "most time in seconds to catch up from a stamped image to the newest one; images are skipped to keep it",
        low=0.0, high=10.0,
    )  # fmt: skip
    service_timeout: float = _parameter(
        5.0, "seconds after which a service answers even if the tracker is still busy", low=0.1, high=600.0
    )
    silence: float = _parameter(
        2.0, "seconds without an image, or without a result, after which status says STALE", low=0.1, high=600.0
    )
    grey_scale: str = _parameter(
        "auto",
        "which values of images of more than 8 bits become grey levels: auto (those of the first image of a track), or "
        "low,high",
        parse=GreyScale.parse,
    )
    depth_topic: str = _parameter(
        "",
        "depth images aligned with the camera's (16UC1 in mm, 32FC1 in m), for target_pose; empty: none",
        parse=_check_topic,
    )
    publish_tf: bool = _parameter(
        False, "publish the target's place, where depth gives one, as the TF frame target_<id>"
    )
    heatmap_stride: int = _parameter(
        8, "image pixels for each cell of the heatmap topic", name="heatmap.stride", low=1, high=64
    )


@dataclass(frozen=True, slots=True)
class Spec:
    """One parameter: `low` and `high` bound numbers, `choices` strings; `parse` raises ValueError for other values."""

    name: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    read_only: bool = False
    parse: Callable[[Any], object] | None = None

    def check(self, value: Any) -> Any:
        """The value as the parameter takes it: a whole number where a float is wanted becomes one.

        Raises:
            InvalidParameter: not a value that the parameter takes.
        """
        if type(self.default) is float:
            # "gain: 1" in a YAML file is an integer to ROS; nobody should have to know.
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidParameter(f"parameter '{self.name}' takes a finite number, got {value!r}")
            value = float(value)
        if self.choices is not None and value not in self.choices:
            raise InvalidParameter(f"parameter '{self.name}' must be one of {', '.join(self.choices)}; got '{value}'")
        if self.parse is not None:
            try:
                self.parse(value)
            except ValueError as error:
                raise InvalidParameter(f"parameter '{self.name}': {error}") from error
        too_low, too_high = self.low is not None and value < self.low, self.high is not None and value > self.high
        if too_low or too_high:
            raise InvalidParameter(f"parameter '{self.name}' must lie in [{self.low}, {self.high}], got {value}")
        return value

    def descriptor(self) -> ParameterDescriptor:
        """The descriptor that ``ros2 param describe`` shows."""
        descriptor = ParameterDescriptor(
            description=self.help,
            read_only=self.read_only,
            dynamic_typing=type(self.default) is float,  # `check` sees to it that it stays a number.
            additional_constraints="" if self.choices is None else f"one of: {', '.join(self.choices)}",
        )
        if type(self.default) is int and self.low is not None and self.high is not None:
            descriptor.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high), step=0)]
        if type(self.default) is float and self.low is not None and self.high is not None:
            bounds = FloatingPointRange(from_value=float(self.low), to_value=float(self.high), step=0.0)
            descriptor.floating_point_range = [bounds]
        return descriptor


#: Of the programs that look at the camera's images beside the tracker.
IMAGE_TRANSPORT = Spec(
    "image_transport",
    "raw",
    "raw: image_raw; compressed: image_raw/compressed",
    choices=("raw", "compressed"),
    read_only=True,
)


def _spec(f: dataclasses.Field[Any], name: str) -> Spec:
    get = f.metadata.get
    limits = get("low"), get("high"), get("choices")
    return Spec(name, f.default, get("help", ""), *limits, read_only=get("read_only", False), parse=get("parse"))


#: Field of `NodeOptions` -> its parameter.
NODE_SPECS: dict[str, Spec] = {f.name: _spec(f, f.metadata["name"] or f.name) for f in dataclasses.fields(NodeOptions)}


def tracker_specs(tracker: str, options: TrackerOptions) -> dict[str, Spec]:
    """Field of the preset's options -> its parameter, ``<tracker>.<field>`` with the preset's value as default."""
    specs = {}
    for f in options.options():
        value = getattr(options, f.name)
        if f.name in (*SHARED, *_HIDDEN) or value == ():
            continue  # The type of an empty array can't be told to ROS.
        default = list(value) if isinstance(value, tuple) else value
        specs[f.name] = dataclasses.replace(_spec(f, f"{tracker}.{f.name}"), default=default)
    return specs


def declare(node: Node, specs: Mapping[str, Spec]) -> None:
    """Declare those of `specs` that `node` does not have yet.

    Raises:
        InvalidParameter: a value from the command line or a parameter file is of another type, or out of range.
    """
    for spec in specs.values():
        if node.has_parameter(spec.name):
            continue
        try:
            value = node.declare_parameter(spec.name, spec.default, spec.descriptor()).value
        except Exception as error:
            raise InvalidParameter(f"parameter '{spec.name}': {error}") from error
        spec.check(value)


def read(node: Node, specs: Mapping[str, Spec], changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Field -> value of every parameter of `specs`, as it will be with `changes` (parameter name -> value) applied.

    Raises:
        InvalidParameter: a value that the parameter does not take.
    """
    changes = changes or {}
    values = {}
    for key, spec in specs.items():
        value = changes[spec.name] if spec.name in changes else node.get_parameter(spec.name).value
        values[key] = spec.check(value)
    return values


def build_options(preset: TrackerOptions, node: NodeOptions, own: Mapping[str, Any], tracker: str) -> dict[str, Any]:
    """The options to build a tracker with, checked.

    Args:
        preset: the preset's options.
        node: gives device, weights and update.
        own: field -> value of the tracker's own parameters.
        tracker: name of the preset, for messages.

    Raises:
        InvalidParameter: a value that an option does not take, or an update policy for a tracker that has none.
    """
    known = {f.name for f in preset.options()}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
    # What is left at its default is the preset's to say, which may be another one for other weights.
    options: dict[str, Any] = {key: value for key, value in values.items() if value != getattr(preset, key)}
    options["device"] = node.device
    if node.weights:
        options["weights"] = node.weights
    if node.update:
        if "update" not in known:
            raise InvalidParameter(f"tracker '{tracker}' has no update policy, but 'update' is '{node.update}'")
        options["update"] = node.update
    try:
        preset.replace(**options)
    except InvalidOption as error:
        raise InvalidParameter(f"tracker '{tracker}': {error}") from error
    return options
