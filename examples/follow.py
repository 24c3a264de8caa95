#!/usr/bin/env python3
"""Follow what is in a box: start a target, print changes of its state, stop on Ctrl-C.

python3 follow.py 410 220 64 48        # x, y, w, h in pixels of the newest image
"""

import argparse

import rclpy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from vision_msgs.msg import Detection2D

from tracker_ros_interfaces.msg import TrackStatus
from tracker_ros_interfaces.srv import InitTarget, StopTarget

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
for side in ("x", "y", "w", "h"):
    parser.add_argument(side, type=float)
box = parser.parse_args(remove_ros_args()[1:])

rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C shall leave the time to stop the track
node = rclpy.create_node("follower")
states = {TrackStatus.TRACKING: "TRACKING", TrackStatus.UNCERTAIN: "UNCERTAIN", TrackStatus.LOST: "LOST"}
last = {"target": "", "state": "", "place": ""}


def call(kind, name, request):
    """Call a service of the tracker node and wait for its answer."""
    client = node.create_client(kind, name)
    if not client.wait_for_service(timeout_sec=10.0):
        raise SystemExit(f"there is no service {node.resolve_service_name(name)}: is the tracker node running?")
    answer = client.call_async(request)
    rclpy.spin_until_future_complete(node, answer)
    return answer.result()


def on_detection(detection):
    """One for every processed image; while the target is LOST its box is the last known one."""
    center = detection.bbox.center.position
    last["place"] = f"at {center.x:.0f}, {center.y:.0f}"


def on_status(status):
    """One for every processed image; another target's would mean that somebody else started one."""
    state = states.get(status.state, "")
    if status.target_id == last["target"] and state and state != last["state"]:
        last["state"] = state
        print(f"{state}, score {status.score:.2f}", last["place"], flush=True)


node.create_subscription(Detection2D, "detection", on_detection, 10)
node.create_subscription(TrackStatus, "status", on_status, 10)
start = InitTarget.Request(target_id="example")  # a stamp in its header would name an older image than the newest
start.bbox.center.position.x, start.bbox.center.position.y = box.x + box.w / 2, box.y + box.h / 2
start.bbox.size_x, start.bbox.size_y = box.w, box.h
answer = call(InitTarget, "init_target", start)
if not answer.success:
    raise SystemExit(f"refused: {answer.message}")
last["target"] = answer.target_id
try:
    while True:
        rclpy.spin_once(node, timeout_sec=0.2)
except KeyboardInterrupt:
    print(call(StopTarget, "stop_target", StopTarget.Request(target_id=last["target"])).message)
