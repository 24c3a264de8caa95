"""Notices targets whose boxes have become one: two tracks that have drifted onto the same object. No ROS in here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from tracker_ros.geometry.boxes import Box, iou

#: Overlap (intersection over union) from which two boxes are of one object, below which they no longer are, and the
#: frames in a row that it takes: targets that merely pass each other overlap for less, or by less.
_ONE, _TWO, _FRAMES = 0.5, 0.3, 5


class Drift:
    """Counts, frame by frame, how long each two targets have been in one place."""

    def __init__(self) -> None:
        self._frames: dict[tuple[str, str], int] = {}

    def update(self, boxes: Mapping[str, Box]) -> dict[str, str]:
        """Take in one frame.

        Args:
            boxes: of the targets that are seen, by their names, the oldest target first.

        Returns:
            For each target that has drifted onto an older one, the name of that one.
        """
        frames: dict[tuple[str, str], int] = {}
        drifted: dict[str, str] = {}
        for (older, box), (younger, other) in itertools.combinations(boxes.items(), 2):
            count = self._frames.get((older, younger), 0)
            if iou(box, other) >= (_TWO if count >= _FRAMES else _ONE):
                frames[older, younger] = count + 1
                if count + 1 >= _FRAMES:
                    drifted.setdefault(younger, older)
        self._frames = frames
        return drifted
