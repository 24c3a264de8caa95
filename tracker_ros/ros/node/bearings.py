"""Where the target is in the world: the topics that it is said on, and the calibration and depth that it takes.

What is needed is subscribed to while somebody listens, and not otherwise.
"""

from __future__ import annotations

import math
from typing import Any

from geometry_msgs.msg import PoseStamped, TransformStamped, Vector3Stamped
from rclpy.callback_groups import CallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from tracker_ros.geometry.boxes import Box
from tracker_ros.geometry.camera import NoDirection
from tracker_ros.ros.direction import Direction, Directions
from tracker_ros.ros.parameters import NodeOptions


class Bearings:
    """Publishers of `target_ray`, `target_pose` and TF, and the subscriptions behind them.

    `of` and `publish` may be called from any thread, the rest from the executor's.

    Args:
        node: is given publishers and subscriptions.
        group: callback group of the subscriptions.
    """

    def __init__(self, node: LifecycleNode, group: CallbackGroup) -> None:
        self._node = node
        self._group = group
        create = node.create_lifecycle_publisher
        self._ray = create(Vector3Stamped, "target_ray", QoSProfile(depth=10))
        self._pose = create(PoseStamped, "target_pose", QoSProfile(depth=10))
        self._frames = create(TFMessage, "/tf", QoSProfile(depth=100))
        self._directions = Directions()
        self._info: Any = None
        self._depth: Any = None
        self._broadcasts = False
        self._said = ""

    @property
    def inputs(self) -> list[Any]:
        """The subscriptions of the moment; that of `camera_info` as long as nothing has come on it."""
        return [None if self._directions.informed else self._info, self._depth]

    def look(self, options: NodeOptions, images: str, status_wanted: bool) -> None:
        """Subscribe to what somebody needs now, and to nothing else.

        Args:
            options: of the node.
            images: resolved topic of the images, without the transport's ending: `camera_info` lies beside it, as
                image_transport has it.
            status_wanted: whether anybody reads the status, which has the direction too.
        """
        self._broadcasts = options.publish_tf
        placed = options.publish_tf or _heard(self._pose)
        info = f"{images.rpartition('/')[0]}/camera_info" if placed or status_wanted or _heard(self._ray) else ""
        self._info = self._follow(self._info, CameraInfo, info, self._directions.on_camera_info)
        depth = options.depth_topic if placed else ""
        self._depth = self._follow(self._depth, Image, depth, self._directions.on_depth)
        if self._info is None and self._depth is None:
            self._said = ""

    def close(self) -> None:
        """Unsubscribe, and forget what is known of the camera."""
        for subscription in filter(None, (self._info, self._depth)):
            self._node.destroy_subscription(subscription)
        self._info = self._depth = None
        self._directions = Directions()
        self._said = ""

    def _follow(self, subscription: Any, kind: Any, topic: str, take: Any) -> Any:
        """The subscription to `topic` (empty: none); the one that there is if it is that one."""
        if topic and subscription is not None and subscription.topic_name == self._node.resolve_topic_name(topic):
            return subscription
        if subscription is not None:
            self._node.destroy_subscription(subscription)
            self._directions.forget(kind)
        if not topic:
            return None
        quality = (
            qos_profile_sensor_data
            if kind is Image
            else QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability)
        )
        return self._node.create_subscription(kind, topic, take, quality, callback_group=self._group)

    def of(self, header: Header, box: Box, size: tuple[int, int]) -> Direction | None:
        """Where the target in `box` is; None where nobody wants to know, or nobody can tell.

        Args:
            header: of the image.
            box: x, y, w, h in pixels.
            size: width and height of the image.
        """
        if self._info is None:
            return None
        try:
            direction = self._directions.of(header, box, size)
        except NoDirection as error:
            self._said = str(error)
            return None
        self._said = direction.no_pose
        return direction

    def publish(self, direction: Direction, target_id: str, selected: bool) -> None:
        """Publish what somebody listens to: ray and pose of the selected target, and every target's TF frame."""
        if selected and _heard(self._ray):
            self._ray.publish(direction.ray)
        if direction.pose is None:
            return
        if selected and _heard(self._pose):
            self._pose.publish(direction.pose)
        if self._broadcasts:
            self._frames.publish(TFMessage(transforms=[transform(direction.pose, target_id)]))

    def remarks(self) -> list[str]:
        """Why what somebody listens to is not published, if it is so: as of the last call."""
        last, self._said = self._said, ""
        placed = self._broadcasts or _heard(self._pose)
        if not placed and not _heard(self._ray):
            return []
        said = []
        if self._directions.problem and self._info is not None:
            said.append(f"no target_ray: {self._directions.problem} on {self._info.topic_name}")
        elif last:
            said.append(f"no direction or place of the target: {last}")
        elif placed and self._depth is None:
            said.append("no target_pose: depth_topic is not set")
        elif placed and not self._directions.deep:
            said.append(f"no target_pose: no depth image has come on {self._depth.topic_name}")
        return said


def transform(pose: PoseStamped, target_id: str) -> TransformStamped:
    """A pose as the frame ``target_<id>`` (without an id ``target``)."""
    message = TransformStamped(header=pose.header, child_frame_id=f"target_{target_id}" if target_id else "target")
    place = pose.pose.position
    to = message.transform.translation
    to.x, to.y, to.z = place.x, place.y, place.z
    message.transform.rotation = pose.pose.orientation
    return message


def angles(direction: Direction | None) -> dict[str, float]:
    """The fields `azimuth` and `elevation` of a status; NaN where nothing is known."""
    if direction is None:
        return {"azimuth": math.nan, "elevation": math.nan}
    return {"azimuth": direction.azimuth, "elevation": direction.elevation}


def _heard(publisher: Any) -> bool:
    return bool(publisher.get_subscription_count() > 0)
