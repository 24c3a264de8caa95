"""`examples/` as a user runs them: processes of their own, beside a tracker node and a camera."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")

from tracker_ros.geometry.boxes import Box
from tracker_ros.trackers.base import TrackState
from tracker_ros_interfaces.msg import TrackStatus

from .conftest import ROOT
from .graph import Graph

pytestmark = pytest.mark.ros


@pytest.fixture
def follow():
    """Starts ``examples/follow.py`` with arguments; ended after the test."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "examples" / "follow.py"), *arguments]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # What a shell starts in the background ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_follow_starts_a_target_tells_what_becomes_of_it_and_stops_it(graph: Graph, follow) -> None:
    graph.start("status")
    with graph.camera():
        process = follow("100", "60", "50", "40")
        assert process.stdout.readline().startswith("TRACKING, score 0.75")
        assert graph.received["status"][-1].target_id == "example"
        graph.puppet.state, graph.puppet.score = TrackState.LOST, 0.125
        assert process.stdout.readline() == "LOST, score 0.12 at 125, 80\n"
        graph.puppet.state = TrackState.TRACKING
        assert process.stdout.readline().startswith("TRACKING, ")
        process.send_signal(signal.SIGINT)
        assert graph.until(lambda: graph.received["status"][-1].state == TrackStatus.IDLE, 20)
        text = "".join(process.communicate(timeout=20))
    assert process.returncode == 0, text
    assert "stopped tracking 'example'" in text
    assert "Traceback" not in text


def test_somebody_elses_target_is_none_of_its_business(graph: Graph, follow) -> None:
    graph.start("status")
    with graph.camera():
        process = follow("100", "60", "50", "40")
        assert process.stdout.readline().startswith("TRACKING, ")
        assert graph.init(Box(10, 10, 20, 20), target_id="other").success
        graph.puppet.state = TrackState.UNCERTAIN
        assert graph.until(lambda: graph.received["status"][-1].state == TrackStatus.UNCERTAIN)
        process.send_signal(signal.SIGINT)
        text = "".join(process.communicate(timeout=20))
        seen = len(graph.received["status"])
        assert graph.until(lambda: len(graph.received["status"]) > seen + 2)
    assert process.returncode == 0, text
    assert "UNCERTAIN" not in text
    assert "example" in text, "it says that its own is gone"
    assert "Traceback" not in text
    assert graph.received["status"][-1].target_id == "other"


def test_follow_says_why_it_was_refused(graph: Graph, follow) -> None:
    graph.start("status")
    graph.process()
    process = follow("100", "60", "2", "2")
    text = process.communicate(timeout=20)[1]
    assert process.returncode == 1
    # Before it, ROS itself may warn of a variable of the environment.
    assert text.endswith("refused: the box is too small: x=100 y=60 w=2 h=2; each side must be at least 4 px\n")


def test_follow_names_the_service_that_it_misses(follow) -> None:
    """Nobody runs a tracker node; remapping as with every ROS program."""
    process = follow("1", "2", "30", "40", "--ros-args", "-r", "__ns:=/drone")
    text = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert "there is no service /drone/init_target: is the tracker node running?" in text
    assert "Traceback" not in text
