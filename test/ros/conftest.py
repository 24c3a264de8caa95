"""Tests in here run against a real ROS 2, alone in a domain of their own; where there is none, they say so."""

import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("rclpy", "vision_msgs", "tf2_msgs", "tracker_ros_interfaces.msg")

# Read when a context is made, here and in the processes that tests start.
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("OMP_NUM_THREADS", "1")
if (ROOT / "config" / "fastdds.xml").exists():
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(ROOT / "config" / "fastdds.xml"))


def missing() -> str:
    """The first of the modules that these tests need and this machine lacks, or nothing."""
    for name in NEEDED:
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            return name
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = missing()
    for item in items:
        if absent and item.get_closest_marker("ros"):
            item.add_marker(
                pytest.mark.skip(reason=f"needs a ROS 2: {absent} can't be imported (`make setup` gets it)")
            )


if not missing():
    from .graph import Graph

    @pytest.fixture
    def graph():
        """A tracker node and a client, each in its own context and thread; both are ended afterwards."""
        with Graph() as graph:
            yield graph
