"""What README.md and docs tell people to type to `ros2`: programs, parameters, services, topics, messages."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
import yaml

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")
pytest.importorskip("aiohttp", reason="needs aiohttp (the extra `page`; `make setup` gets it)")
pytest.importorskip("pymavlink", reason="needs pymavlink (the extra `mavlink`; `make setup` gets it)")

from documented import ROOT, Command, commands

from tracker_ros.registry import DEFAULT
from tracker_ros.ros import mavlink_camera, page, parameters, recorder, simulated_camera, source, video_source

from .graph import Graph

pytestmark = pytest.mark.ros

#: Program -> the parameters that its node declares.
DECLARED = {
    "tracker_node": [
        *parameters.NODE_SPECS.values(),
        *(spec for entry in DEFAULT for spec in parameters.tracker_specs(entry.name, entry.options).values()),
    ],
    "video_source": [*source.SPECS, *video_source.SPECS],
    "simulated_camera": [*source.SPECS, *simulated_camera.SPECS],
    "recorder": [*recorder.SPECS],
    "page": [*page.SPECS],
    "mavlink_camera": [*mavlink_camera.SPECS],
}


def check(command: Command, topics: dict[str, str], services: dict[str, str]) -> None:
    """Fails where a call of `ros2` names what is not there; `topics` and `services`: the node's, name -> type."""
    verb, *rest = command.words[1:]
    if verb == "run":
        names = {spec.name for spec in DECLARED[rest[1]]}
        for setting in re.findall(r"-p (\S+?):=", " ".join(rest)):
            assert setting in names, f"{rest[1]} has no parameter '{setting}'"
    elif (verb, rest[0]) == ("service", "call"):
        assert services.get(rest[1]) == rest[2]
        package, _, name = rest[2].split("/")
        if rest[3:]:
            fill(getattr(importlib.import_module(f"{package}.srv"), name).Request(), yaml.safe_load(rest[3]))
    elif verb == "topic":
        assert rest[1] in topics
    elif verb == "param" and rest[0] != "list":
        assert rest[1] == "/tracker"
        spec = {spec.name: spec for spec in DECLARED["tracker_node"]}[rest[2]]
        if rest[0] == "set":
            spec.check(yaml.safe_load(rest[3]))


def fill(message: Any, values: dict[str, Any]) -> None:
    """Set fields as `ros2 service call` does."""
    for name, value in values.items():
        if isinstance(value, dict):
            fill(getattr(message, name), value)
        else:
            setattr(message, name, type(getattr(message, name))(value))


@pytest.fixture
def interface(graph: Graph) -> tuple[dict[str, str], dict[str, str]]:
    """Topics and services of the node, name -> type."""
    graph.start()
    topics = {name: types[0] for name, types in graph.node.get_topic_names_and_types()}
    services = {name: types[0] for name, types in graph.node.get_service_names_and_types()}
    return topics, services


def test_commands_to_ros2_name_what_is_there(interface) -> None:
    found = commands("ros2")
    assert {command.words[1] for command in found} >= {"run", "launch", "service", "topic", "param"}
    for command in found:
        check(command, *interface)


@pytest.mark.parametrize(
    "wrong",
    [
        "ros2 run tracker_ros video_source --ros-args -p path:=clip.mp4",
        "ros2 run tracker_ros simulated_camera --ros-args -p seed:=1 -p video:=clip.mp4",
        "ros2 service call /init_targets tracker_ros_interfaces/srv/InitTarget",
        "ros2 service call /stop_tracking std_srvs/srv/SetBool",
        'ros2 service call /init_target tracker_ros_interfaces/srv/InitTarget "{box: 1}"',
        'ros2 service call /init_target tracker_ros_interfaces/srv/InitTarget "{bbox: {size_x: wide}}"',
        "ros2 topic echo /nothing",
        "ros2 param describe /tracker dimp18.nothing",
        "ros2 param set /tracker image_transport theora",
    ],
)
def test_a_mistake_is_noticed(wrong: str) -> None:
    (command,) = commands(text=f"```bash\n{wrong}\n```\n")
    topics = {"/detection": "vision_msgs/msg/Detection2D"}
    services = {
        "/init_target": "tracker_ros_interfaces/srv/InitTarget",
        "/stop_tracking": "std_srvs/srv/Trigger",
    }
    with pytest.raises((AssertionError, KeyError, AttributeError, ValueError)):
        check(command, topics, services)


def test_the_table_of_topics_and_services_is_the_nodes(interface) -> None:
    """The README's table: names and types, as the node has them."""
    topics, services = interface
    table = (ROOT / "README.md").read_text().partition("## Topics, services, states")[2].partition("| state |")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    checked = 0
    for kind, names, types, _ in rows[1:]:
        there, part = (services, "srv") if kind == "service" else (topics, "msg")
        full = re.findall(r"`([^`]+)`", names)
        wanted = re.findall(r"`(?:(\w+)/)?(\w+)`", types)
        package = wanted[0][0]
        for index, name in enumerate(full):
            own_package, own = wanted[min(index, len(wanted) - 1)]
            found = there[name if name.startswith("/") else f"/{name}"]
            assert found == f"{own_package or package}/{part}/{own}", name
            checked += 1
    assert checked >= 11
