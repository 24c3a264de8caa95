"""Arguments of the launch file that nothing reads, and files that are not there."""

import pytest

from tracker_ros.ros.launching import LaunchRefused, check_file, unknown_arguments

DECLARED = ["tracker", "params_file", "namespace", "image_topic", "device", "use_sim_time"]


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("traker", "tracker"),
        ("image_topci", "image_topic"),
        ("use_simtime", "use_sim_time"),
        ("Tracker", "tracker"),
        ("rate", ""),
    ],
)
def test_an_unknown_argument_is_named_with_the_nearest(name, guess):
    (said,) = unknown_arguments([name, "tracker"], DECLARED)
    assert f"'{name}'" in said
    assert (f"did you mean '{guess}'?" if guess else "there are: tracker, ") in said


def test_declared_arguments_are_not_mentioned():
    assert unknown_arguments(DECLARED, DECLARED) == []


def test_a_file_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("")
    check_file("params_file", "")
    check_file("params_file", str(tmp_path / "mine.yaml"))
    with pytest.raises(LaunchRefused, match=r"params_file: '.*mien\.yaml' does not exist; did you mean '.*mine\.yaml'"):
        check_file("params_file", str(tmp_path / "mien.yaml"))
    with pytest.raises(LaunchRefused, match="is not a file"):
        check_file("params_file", str(tmp_path))
    with pytest.raises(LaunchRefused, match=r"does not exist$"):
        check_file("params_file", str(tmp_path / "no" / "such.yaml"))
