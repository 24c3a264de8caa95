"""Start the tracker node; the simulated camera, the page and rviz if wanted.

ros2 launch tracker_ros track.launch.py tracker:=dimp18 image_topic:=/camera/image_raw rviz:=true
ros2 launch tracker_ros track.launch.py simulated:=true page:=true
"""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, SetEnvironmentVariable
from launch_ros.actions import Node

from tracker_ros import registry
from tracker_ros.ros.launching import PROFILES, check_file, unknown_arguments

CONFIG = Path(get_package_share_directory("tracker_ros")) / "config"

#: Arguments that are parameters of the node: name, description, choices. An empty one is not set here, so that what
#: config/track.yaml and params_file say holds.
PARAMETERS = [
    ("tracker", "which tracker follows the target", ["", *registry.names()]),
    ("device", "where the tracker runs: auto, cpu, cuda or cuda:N", None),
    ("weights", "weights file (.safetensors) to use instead of the ones that the package ships", None),
    ("update", "how the tracker learns online, where it does, such as none or maml", None),
    ("image_transport", "compressed subscribes to <image_topic>/compressed", ["", "raw", "compressed"]),
    ("depth_topic", "depth images aligned with the camera's, for target_pose", None),
    ("autostart", "configure and activate the node; false leaves that to a lifecycle manager", ["", "true", "false"]),
    ("use_sim_time", "take the time from /clock, for bags and simulations", ["", "true", "false"]),
]

ARGUMENTS = [
    DeclareLaunchArgument(
        "params_file",
        default_value="",
        description="parameters (YAML) to set on top of config/track.yaml",
    ),
    DeclareLaunchArgument("namespace", default_value="", description="namespace of the node, its topics and services"),
    DeclareLaunchArgument("image_topic", default_value="image_raw", description="topic of the images to track in"),
    *[
        DeclareLaunchArgument(name, default_value="", choices=choices, description=f"{text} (empty: as the YAML says)")
        for name, text, choices in PARAMETERS
    ],
    *[
        DeclareLaunchArgument(name, default_value="false", choices=["true", "false"], description=text)
        for name, text in [
            ("simulated", "start the simulated camera as well: it flies on as soon as something is followed"),
            ("page", "start the page to draw the box on as well: http://localhost:8080/"),
            ("rviz", "start rviz2 as well"),
        ]
    ],
    DeclareLaunchArgument(
        "log_level",
        default_value="info",
        choices=["debug", "info", "warn", "error", "fatal"],
        description="least severe log messages to show",
    ),
]


def launch_nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the actions that the arguments ask for.

    Raises:
        LaunchRefused: there is no such params_file.
    """
    given = context.launch_configurations
    check_file("params_file", given["params_file"])
    unknown = unknown_arguments(given, [argument.name for argument in ARGUMENTS])
    image_topic = given["image_topic"]
    settings = {name: given[name] for name, _, _ in PARAMETERS if given[name]}
    for name in ("autostart", "use_sim_time"):
        if name in settings:
            settings[name] = settings[name] == "true"
    files = [str(CONFIG / "track.yaml"), *([given["params_file"]] if given["params_file"] else [])]

    actions: list[LaunchDescriptionEntity] = [LogInfo(msg=f"warning: {text}") for text in unknown]
    if not any(name in os.environ for name in PROFILES):
        actions += [SetEnvironmentVariable(name, str(CONFIG / "fastdds.xml")) for name in PROFILES]
    # Remapping goes by whole names, so the compressed topic needs one of its own.
    camera = [("image_raw", image_topic), ("image_raw/compressed", f"{image_topic}/compressed")]
    actions.append(
        Node(
            package="tracker_ros",
            executable="tracker_node",
            name="tracker",
            namespace=given["namespace"],
            parameters=[*files, settings],
            remappings=camera,
            ros_arguments=["--log-level", given["log_level"]],
            output="screen",
        )
    )
    shared = {name: settings[name] for name in ("image_transport", "use_sim_time") if name in settings}
    programs = [("simulated", "simulated_camera", {}), ("page", "page", shared)]
    actions += [
        Node(
            package="tracker_ros",
            executable=program,
            name=program,
            namespace=given["namespace"],
            parameters=[values] if values else [],
            remappings=camera,
            output="screen",
        )
        for argument, program, values in programs
        if given[argument] == "true"
    ]
    if given["rviz"] == "true":
        actions.append(
            Node(
                package="rviz2",
                executable="rviz2",
                namespace=given["namespace"],
                arguments=["-d", str(CONFIG / "track.rviz")],
                output="screen",
            )
        )
    return actions


def generate_launch_description() -> LaunchDescription:
    """Return the description that ``ros2 launch`` runs."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=launch_nodes)])
