"""Who else is on the node's topics, and what of it can't work: said by name, as neither DDS nor ROS say it aloud."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

#: Publishers of a topic as `Node.get_publishers_info_by_topic` gives them.
Publishers = list[Any]


class Endpoints:
    """Looks at the publishers of the topics that the node listens to.

    Args:
        node: has the subscriptions.
        inputs: the subscriptions of the moment, the images' first; None for one that there is not.
    """

    def __init__(self, node: Node, inputs: Callable[[], list[Any]]) -> None:
        self._node = node
        self._inputs = inputs

    def remarks(self) -> list[str]:
        """What is wrong with the publishers, each by its name; empty where all is well."""
        said: list[str] = []
        for index, subscription in enumerate(self._inputs()):
            if subscription is None:
                continue
            topic = str(subscription.topic_name)
            publishers = self._node.get_publishers_info_by_topic(topic)
            kind = type_name(subscription.msg_type)
            fitting = [publisher for publisher in publishers if publisher.topic_type == kind]
            said += [
                f"{name_of(publisher)} publishes {publisher.topic_type} on {topic}, where {kind} is expected"
                for publisher in publishers
                if publisher.topic_type != kind
            ]
            said += [
                f"{name_of(publisher)} publishes {topic} as best effort, which a reliable subscription does not hear"
                for publisher in fitting
                if subscription.qos_profile.reliability == ReliabilityPolicy.RELIABLE
                and publisher.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
            ]
            if index == 0 and len(fitting) > 1:
                names = ", ".join(sorted(map(name_of, fitting)))
                said.append(f"{len(fitting)} publish images on {topic}: {names}; they will be taken for one camera")
            if index > 0:
                said += [
                    f"{name_of(publisher)} publishes {topic} latched (transient local); what it sent before this node "
                    "listened is not heard"
                    for publisher in fitting
                    if publisher.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
                ]
        return said


def name_of(publisher: Any) -> str:
    """The full name of the node that a publisher belongs to."""
    return f"{publisher.node_namespace.rstrip('/')}/{publisher.node_name}"


def type_name(kind: Any) -> str:
    """A message class's name as the graph has it: ``sensor_msgs/msg/Image``."""
    package, _, _ = kind.__module__.partition(".")
    return f"{package}/msg/{kind.__name__}"
