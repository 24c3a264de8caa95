"""Parameters that nobody asked for: a misspelt name is accepted by ROS in silence, and its value never used."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rclpy.node import Node

from tracker_ros import registry
from tracker_ros.ros import parameters
from tracker_ros.text import nearest

#: What ROS itself takes from a node's parameters.
_OF_ROS = ("use_sim_time", "start_type_description_service", "automatically_declare_parameters_from_overrides")
_OF_ROS_PREFIXES = ("qos_overrides.", "diagnostic_updater.")


def unknown_parameters(given: Iterable[str], trackers: registry.Registry) -> list[str]:
    """A sentence for every name of `given` that no parameter has, with the nearest known one.

    Args:
        given: names of the parameters that were set on the command line or in files.
        trackers: their names are prefixes of their options.
    """
    own = [*(spec.name for spec in parameters.NODE_SPECS.values()), *_OF_ROS]
    said = []
    for name in given:
        if name in own or name.startswith(_OF_ROS_PREFIXES):
            continue
        prefix, _, option = name.partition(".")
        tracker = prefix if prefix in trackers.names() else nearest(prefix, trackers.names()) if option else ""
        options = _options(tracker, trackers) if tracker else []
        if tracker == prefix and option in options:
            continue
        meant = option if option in options else nearest(option, options)
        guess = f"{tracker}.{meant}" if meant else nearest(name, own)
        hint = f"; did you mean '{guess}'?" if guess else f"; {tracker} has: {', '.join(options)}" if options else ""
        said.append(f"there is no parameter '{name}'{hint}")
    return said


def _options(tracker: str, trackers: registry.Registry) -> list[str]:
    """Names of the parameters that a tracker has of its own; none where its module can't be imported."""
    try:
        specs = parameters.tracker_specs(tracker, trackers.get(tracker).options)
    except Exception:  # Then it can't be used either, which is said where it is asked for.
        return []
    return [spec.name.removeprefix(f"{tracker}.") for spec in specs.values()]


def overrides(node: Node) -> list[str]:
    """Names of all parameters that the command line and its files set for `node`, declared or not."""
    given: dict[str, Any] = getattr(node, "_parameter_overrides", {})
    return list(given)


def unused_files(arguments: Sequence[str], node_name: str) -> list[str]:
    """A sentence for every ``--params-file`` of a command line that has nothing for a node.

    Args:
        arguments: of the process.
        node_name: the node's full name.
    """
    files = [after for before, after in itertools.pairwise(arguments) if before == "--params-file"]
    said = []
    for file in dict.fromkeys(files):
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # rcl has refused it, or read what we can't.
        if not isinstance(content, dict):
            continue
        sections = [str(name) for name in content]
        if not any(_matches(section, node_name) for section in sections):
            base = node_name.rpartition("/")[2]
            guess = nearest(base, [section.rpartition("/")[2] for section in sections])
            hint = f" ('{guess}' is near)" if guess else ""
            said.append(f"{file} has nothing for {node_name}{hint}; it has: {', '.join(sections) or 'nothing'}")
    return said


def _matches(section: str, node_name: str) -> bool:
    """Whether a section of a parameter file is meant for a node: by its name, or by ``*`` and ``**``."""
    pattern = section.strip("/").split("/")
    name = node_name.strip("/").split("/")

    def match(p: list[str], n: list[str]) -> bool:
        if not p:
            return not n
        if p[0] == "**":
            return any(match(p[1:], n[k:]) for k in range(len(n) + 1))
        return bool(n) and p[0] in ("*", n[0]) and match(p[1:], n[1:])

    return match(pattern, name)
