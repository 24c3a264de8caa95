"""An image source that publishes the simulated flight, with its truth. Topics and services: see `source`."""

from __future__ import annotations

import sys

from rclpy.node import Node

from tracker_ros.ros.clips import Clip, FlightClip
from tracker_ros.ros.parameters import Spec
from tracker_ros.ros.source import run_source
from tracker_ros.simulation.flight import FlightOptions

_DEFAULT = FlightOptions()

SPECS = (
    Spec("seed", 0, "what the flight is made of; the same seed gives the same images", low=0, high=2**31 - 1),
    Spec("width", _DEFAULT.width, "of the images, pixels", low=64, high=3840, read_only=True),
    Spec("height", _DEFAULT.height, "of the images, pixels", low=64, high=3840, read_only=True),
    Spec("fps", _DEFAULT.fps, "frames for each second of the flight", low=1.0, high=240.0, read_only=True),
    Spec("duration", 0.0, "of the flight, seconds; 0: without an end", low=0.0, high=1e6, read_only=True),
    Spec(
        "wait_for_target",
        True,
        "stand still while a tracker is there that follows nothing, and print a call of init_target that hits the car",
        read_only=True,
    ),
    Spec("noise", _DEFAULT.noise, "sensor noise, grey levels", low=0.0, high=50.0, read_only=True),
    Spec(
        "similarity",
        _DEFAULT.similarity,
        "how much the paint of the look-alikes is the target's own, 0 to 1",
        low=0.0,
        high=1.0,
        read_only=True,
    ),
)


def open_flight(node: Node) -> Clip:
    """The flight that the node's parameters ask for.

    Raises:
        ValueError: a parameter is out of range.
    """
    values = {spec.name: node.get_parameter(spec.name).value for spec in SPECS if hasattr(_DEFAULT, spec.name)}
    endless = values["duration"] == 0
    if endless:
        values["duration"] = _DEFAULT.duration
    clip = FlightClip(FlightOptions(**values))
    if endless:
        clip.length = None
    return clip


def main(args: list[str] | None = None) -> int:
    """Run the node until the flight ends or it is told to."""
    return run_source("simulated_camera", SPECS, open_flight, args)


if __name__ == "__main__":
    sys.exit(main())
