"""The files beside the code: config, launch file, Fast DDS profile, message definitions, package description."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "config" / "track.yaml"
PROFILES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")

needs_ros = pytest.mark.skipif(
    importlib.util.find_spec("rclpy") is None, reason="needs ROS 2 (rclpy); runs in the environment of `make setup`"
)
needs_launch = pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None,
    reason="launch_ros is not installed (it has no wheel); runs where ROS 2 itself is installed",
)


def read_config(*, examples: bool = False) -> dict[str, Any]:
    """The parameters of config/track.yaml, nested as in the file; with `examples` those in its comments too."""
    text = CONFIG.read_text()
    if examples:
        text = re.sub(r"^    # {3}", "    ", text, flags=re.MULTILINE)
    return dict(yaml.safe_load(text)["/**"]["ros__parameters"])


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


@pytest.mark.ros
@needs_ros
def test_the_config_and_its_examples_hold_parameters_that_the_node_takes() -> None:
    from tracker_ros.registry import DEFAULT
    from tracker_ros.ros import parameters

    assert read_config() == {"tracker": "dimp18"}
    specs = {spec.name: spec for spec in parameters.NODE_SPECS.values()}
    for entry in DEFAULT:
        specs |= {spec.name: spec for spec in parameters.tracker_specs(entry.name, entry.options).values()}
    examples = flatten(read_config(examples=True))
    assert len(examples) > 12
    for name, value in examples.items():
        assert name in specs, f"config/track.yaml names '{name}', which is no parameter of the node"
        assert type(value) is type(specs[name].default), name
        specs[name].check(value)


def test_the_fast_dds_profile_has_room_for_images() -> None:
    namespace = {"dds": "http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"}
    tree = ElementTree.parse(ROOT / "config" / "fastdds.xml")
    transports = {
        descriptor.findtext("dds:type", namespaces=namespace): descriptor
        for descriptor in tree.iterfind(".//dds:transport_descriptor", namespace)
    }
    assert set(transports) == {"SHM", "UDPv4"}
    image, docker = 1920 * 1080 * 3, 64_000_000
    assert int(transports["SHM"].findtext("dds:maxMessageSize", "0", namespace)) > image
    # Camera, tracker, recorder and whoever started them share what Docker gives.
    assert 2 * image < int(transports["SHM"].findtext("dds:segment_size", "0", namespace)) < docker / 4


@pytest.mark.ros
@needs_ros
def test_vision_msgs_has_the_fields_of_the_real_package() -> None:
    """Whichever vision_msgs is installed: names, types and order make up the wire format."""
    from vision_msgs import msg

    expected = {
        "Point2D": {"x": "double", "y": "double"},
        "Pose2D": {"position": "vision_msgs/Point2D", "theta": "double"},
        "BoundingBox2D": {"center": "vision_msgs/Pose2D", "size_x": "double", "size_y": "double"},
        "ObjectHypothesis": {"class_id": "string", "score": "double"},
        "ObjectHypothesisWithPose": {
            "hypothesis": "vision_msgs/ObjectHypothesis",
            "pose": "geometry_msgs/PoseWithCovariance",
        },
        "Detection2D": {
            "header": "std_msgs/Header",
            "results": "sequence<vision_msgs/ObjectHypothesisWithPose>",
            "bbox": "vision_msgs/BoundingBox2D",
            "id": "string",
        },
        "Detection2DArray": {"header": "std_msgs/Header", "detections": "sequence<vision_msgs/Detection2D>"},
    }
    for name, fields in expected.items():
        assert list(getattr(msg, name).get_fields_and_field_types().items()) == list(fields.items()), name


@pytest.mark.ros
@needs_ros
def test_the_borrowed_messages_have_the_fields_of_the_real_packages() -> None:
    from foxglove_msgs import msg as foxglove
    from tf2_msgs.msg import TFMessage

    assert TFMessage.get_fields_and_field_types() == {"transforms": "sequence<geometry_msgs/TransformStamped>"}
    # What a node of ours writes; the real package may have more, as it has grown.
    wanted = {
        "ImageAnnotations": ["points", "texts"],
        "PointsAnnotation": ["timestamp", "type", "points", "outline_color", "thickness"],
        "TextAnnotation": ["timestamp", "position", "text", "font_size", "text_color", "background_color"],
        "Color": ["r", "g", "b", "a"],
        "Point2": ["x", "y"],
    }
    for name, fields in wanted.items():
        assert set(fields) <= set(getattr(foxglove, name).get_fields_and_field_types()), name


@pytest.mark.parametrize("folder", [".", "tracker_ros_interfaces"])
def test_versions_agree(folder: str) -> None:
    version = ElementTree.parse(ROOT / folder / "package.xml").findtext("version")
    assert f'version="{version}"' in (ROOT / "setup.py").read_text()


@pytest.mark.ros
@needs_ros
def test_ros2_launch_and_ros2_run_find_what_the_package_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both walk the package's folders with `os.walk`, which does not look behind a link to a folder."""
    from ament_index_python.packages import get_package_prefix, get_package_share_directory

    if not os.environ.get("AMENT_PREFIX_PATH"):  # Nothing was sourced: the environment of the interpreter is meant.
        monkeypatch.setenv("AMENT_PREFIX_PATH", sys.prefix)
    share = get_package_share_directory("tracker_ros")
    assert "track.launch.py" in {name for _, _, files in os.walk(share) for name in files}

    programs = Path(get_package_prefix("tracker_ros")) / "lib" / "tracker_ros"
    found = {path.name for path in programs.glob("*") if os.access(path, os.X_OK)}
    entries = distribution("tracker_ros").entry_points
    assert found == {entry.name for entry in entries if entry.group == "console_scripts"}


def launch_actions(arguments: dict[str, str]) -> list[Any]:
    """The actions that the launch file makes of `arguments`, those not named at their defaults."""
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    path = ROOT / "launch" / "track.launch.py"
    description = get_launch_description_from_python_launch_file(str(path))
    context = LaunchContext()
    context.launch_configurations.update(arguments)
    actions: list[Any] = []
    for entity in description.entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.visit(context)
        else:
            actions += entity.visit(context)
    return actions


@pytest.mark.ros
@needs_launch
class TestLaunch:
    @pytest.fixture(autouse=True)
    def _no_profile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in PROFILES:
            monkeypatch.delenv(name, raising=False)

    def test_starts_the_node_and_sets_the_profile(self) -> None:
        from launch.actions import SetEnvironmentVariable

        actions = launch_actions({})
        variables = [action for action in actions if isinstance(action, SetEnvironmentVariable)]
        assert [variable.name[0].text for variable in variables] == list(PROFILES)
        assert all(Path(variable.value[0].text).is_file() for variable in variables)
        (node,) = (action for action in actions if action not in variables)
        assert (node.node_package, node.node_executable) == ("tracker_ros", "tracker_node")

    @pytest.mark.parametrize("name", PROFILES)
    def test_leaves_the_profile_of_the_user(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, os.devnull)
        assert len(launch_actions({})) == 1

    def test_rviz_is_started_on_demand(self) -> None:
        packages = [getattr(action, "node_package", None) for action in launch_actions({"rviz": "true"})]
        assert packages[-2:] == ["tracker_ros", "rviz2"]

    def test_an_argument_that_nothing_reads_is_warned_of(self) -> None:
        from launch.actions import LogInfo

        actions = launch_actions({"traker": "csrt", "use_sim_time": "true"})
        (said,) = (action.msg[0].text for action in actions if isinstance(action, LogInfo))
        assert said == "warning: there is no launch argument 'traker'; did you mean 'tracker'?"

    def test_a_params_file_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match=r"params_file: .* does not exist"):
            launch_actions({"params_file": str(tmp_path / "mine.yaml")})

    @pytest.mark.parametrize(
        ("argument", "value"), [("tracker", "nope"), ("image_transport", "theora"), ("log_level", "loud")]
    )
    def test_refuses_values_that_are_no_choice(self, argument: str, value: str) -> None:
        with pytest.raises(RuntimeError, match=value):
            launch_actions({argument: value})
