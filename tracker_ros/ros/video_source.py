"""An image source that publishes a video file, a folder of images, a camera or a stream; see `source`."""

from __future__ import annotations

import sys

from rclpy.node import Node

from tracker_ros.ros.clips import Clip, InvalidSource, open_clip
from tracker_ros.ros.parameters import Spec
from tracker_ros.ros.source import run_source

SPECS = (
    Spec("video", "", "video file, folder of images, camera (/dev/video0) or address (rtsp://...)", read_only=True),
    Spec("webcam", -1, "number of a webcam to use instead of a video", low=-1, high=1000, read_only=True),
    Spec("truth", "", "true boxes, one row x,y,w,h for each image; none, or empty: the folder's own", read_only=True),
)


def open_video(node: Node) -> Clip:
    """The clip that the node's parameters name.

    Raises:
        InvalidSource: it can't be used.
    """
    webcam = int(node.get_parameter("webcam").value)
    video = str(node.get_parameter("video").value)
    if webcam >= 0 and video:
        raise InvalidSource(f"both a video ('{video}') and webcam {webcam} are given: give one of them")
    return open_clip(video if webcam < 0 else str(webcam), str(node.get_parameter("truth").value))


def main(args: list[str] | None = None) -> int:
    """Run the node until the video ends or it is told to."""
    return run_source("video_source", SPECS, open_video, args)


if __name__ == "__main__":
    sys.exit(main())
