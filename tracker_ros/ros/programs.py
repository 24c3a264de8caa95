"""What the programs beside the tracker share: their command line, and parameters that nothing reads."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rclpy.node import Node
from rclpy.utilities import remove_ros_args

from tracker_ros.ros.node.names import overrides
from tracker_ros.ros.parameters import Spec
from tracker_ros.text import nearest, printable


def answered(name: str, about: str, specs: Sequence[Spec], args: list[str] | None) -> int | None:
    """Look at a program's own arguments, of which there is only ``--help``.

    Args:
        name: of the program.
        about: what it does.
        specs: its parameters.
        args: the command line without the program; None: the process's.

    Returns:
        The exit code where there is nothing more to do, else None.
    """
    own = remove_ros_args(["", *(sys.argv[1:] if args is None else args)])[1:]
    if {"-h", "--help"} & set(own):
        usage = f"usage: ros2 run tracker_ros {name} [--ros-args -p PARAMETER:=VALUE ...]"
        print(f"{usage}\n\n{about.strip()}\n\nparameters:")
        for spec in specs:
            print(f"  {spec.name} = {spec.default!r}{_limits(spec)}\n      {spec.help}")
        return 0
    if own:
        first = f"'{printable(own[0])}' is no argument"
        print(f"{name}: error: {first}; parameters are set with --ros-args -p NAME:=VALUE, see --help", file=sys.stderr)
        return 2
    return None


def _limits(spec: Spec) -> str:
    if spec.choices:
        return f" ({', '.join(spec.choices)})"
    return "" if spec.low is None or spec.high is None else f" [{spec.low:g}, {spec.high:g}]"


def warn_of_unread(node: Node, specs: Iterable[Spec]) -> None:
    """Warn of every parameter that was set for `node` and that it does not have, with the nearest one that it has."""
    known = [spec.name for spec in specs]
    for name in overrides(node):
        if not node.has_parameter(name) and not name.startswith("qos_overrides."):
            guess = nearest(name, known)
            hint = f"; did you mean '{guess}'?" if guess else f"; there are: {', '.join(known)}"
            node.get_logger().warning(f"there is no parameter '{printable(name)}'{hint}")
