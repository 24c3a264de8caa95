"""Names that nothing reads: misspelt parameters, sections and files are said, with the name that was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")

import yaml
from diagnostic_msgs.msg import DiagnosticStatus

from tracker_ros import registry
from tracker_ros.ros.node.names import unknown_parameters, unused_files
from tracker_ros.text import nearest, printable

from .conftest import ROOT
from .graph import diagnosis

pytestmark = pytest.mark.ros


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("traker", "tracker"),
        ("kcf.good_scor", "kcf.good_score"),
        ("kfc.lost_after", "kcf.lost_after"),
        ("dimp18.lost_aftr", "dimp18.lost_after"),
        ("Device", "device"),
        ("heatmap_stride", "heatmap.stride"),
        ("buffer_second", "buffer_seconds"),
        ("use_simtime", "use_sim_time"),
        ("csrt.good_scores", "csrt.good_score"),
        ("completely.different", ""),
    ],
)
def test_an_unknown_parameter_is_named_with_the_nearest(name, guess):
    (said,) = unknown_parameters([name], registry.DEFAULT)
    assert f"there is no parameter '{name}'" in said
    assert (f"did you mean '{guess}'?" in said) if guess else ("mean" not in said)


def test_an_option_that_a_tracker_does_not_have_is_said_with_those_that_it_has():
    (said,) = unknown_parameters(["kcf.wobble"], registry.DEFAULT)
    assert said.startswith("there is no parameter 'kcf.wobble'; kcf has: ")
    assert "good_score" in said


def test_known_parameters_are_not_mentioned():
    known = [
        *("tracker", "heatmap.stride", "silence", "kcf.bad_score", "csrt.good_score", "dimp18.lost_after"),
        *("use_sim_time", "qos_overrides./image_raw.subscription.depth"),
    ]
    assert unknown_parameters(known, registry.DEFAULT) == []


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_files_of_the_package_have_known_names_only(file: Path):
    sections = yaml.safe_load(file.read_text())
    assert unused_files(["x", "--params-file", str(file)], "/tracker") == []

    def names(values: dict, prefix: str = ""):
        for key, value in values.items():
            yield from names(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]

    for section in sections.values():
        assert unknown_parameters(names(section["ros__parameters"]), registry.DEFAULT) == []


@pytest.mark.parametrize(
    ("section", "node", "fits"),
    [
        ("tracker", "/tracker", True),
        ("/tracker", "/tracker", True),
        ("/**", "/drone/tracker", True),
        ("/*/tracker", "/drone/tracker", True),
        ("/**/tracker", "/a/b/tracker", True),
        ("traker", "/tracker", False),
        ("/tracker", "/drone/tracker", False),
        ("camera", "/tracker", False),
    ],
)
def test_a_file_without_a_section_for_the_node_is_named(tmp_path, section, node, fits):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({section: {"ros__parameters": {"tracker": "csrt"}}}))
    said = unused_files(["tracker_node", "--ros-args", "--params-file", str(file)], node)
    assert bool(said) is not fits
    if not fits:
        assert str(file) in said[0]
        assert section in said[0]


def test_a_misspelt_parameter_is_a_warning_in_diagnostics_and_the_node_runs(graph):
    graph.start("/diagnostics", traker="csrt", puppet__gian=1.0)
    report = diagnosis(graph, "there is no parameter 'traker'; did you mean 'tracker'?")
    assert report.level == DiagnosticStatus.WARN
    assert "'puppet.gian'; did you mean 'puppet.gain'?" in report.message
    assert graph.init() is not None


def test_a_params_file_that_is_for_another_node_is_named(graph, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("traker:\n  ros__parameters:\n    tracker: csrt\n")
    graph.start("/diagnostics", cli_arguments=["--ros-args", "--params-file", str(file)])
    assert "'traker' is near" in diagnosis(graph, "has nothing for /tracker").message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("größe 3 µm", "größe 3 µm"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("bell\a nul\0 del\x7f", r"bell\x07 nul\x00 del\x7f"),
        ("\u202ertl \u2028line", r"\u202ertl \u2028line"),
        ("c1 \x9b", r"c1 \x9b"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_nearest_name():
    assert nearest("traker", ["device", "tracker"]) == "tracker"
    assert nearest("TRACKER", ["trackers", "tracker"]) == "tracker"
    assert nearest("zebra", ["device", "tracker"]) == ""
