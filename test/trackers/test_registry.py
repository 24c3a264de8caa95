from __future__ import annotations

import subprocess
import sys

import pytest

import tracker_ros
from tracker_ros.trackers import registry
from tracker_ros.trackers.base import Estimate, InvalidOption, Tracker, TrackerOptions, TrackState
from tracker_ros.trackers.registry import Entry, Registry, UnknownTracker


class _Still(Tracker):
    """Says that the target stays where it was."""

    def start(self, frame, boxes):
        return list(boxes)

    def step(self, frame, targets):
        return [Estimate(box, 1.0, TrackState.TRACKING, box) for box in targets]


STILL = Entry("still", "stays", lambda: (_Still, TrackerOptions()))


def test_names_are_those_of_the_presets() -> None:
    assert {"dimp18", "dimp50", "csrt", "kcf", "nano", "vit"} <= set(tracker_ros.tracker_names())
    assert tracker_ros.tracker_names()[0] == "dimp18"


def test_looking_up_names_imports_neither_torch_nor_opencv() -> None:
    code = (
        "import sys, tracker_ros; tracker_ros.tracker_names(); "
        "from tracker_ros.trackers import registry; registry.get('dimp18'); "
        "print([m for m in ('torch', 'cv2', 'tracker_ros.trackers.dimp') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_entry_has_options_and_a_description() -> None:
    for entry in registry.DEFAULT:
        assert isinstance(entry.options, TrackerOptions)
        assert entry.description


def test_unknown_tracker_names_what_was_meant_and_what_there_is() -> None:
    with pytest.raises(UnknownTracker, match=r"'dimp8'; did you mean 'dimp18'\?.*kcf"):
        tracker_ros.create("dimp8")
    with pytest.raises(UnknownTracker, match=r"'xyzzy' \(there are: dimp18"):
        registry.get("xyzzy")


def test_an_extended_registry_leaves_the_first_alone() -> None:
    mine = registry.DEFAULT.extended(STILL)
    assert mine.names() == [*registry.names(), "still"]
    assert isinstance(mine.create("still", device="cpu"), _Still)
    with pytest.raises(UnknownTracker):
        registry.get("still")


def test_two_trackers_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        Registry((STILL, STILL))


def test_unknown_option_is_refused() -> None:
    with pytest.raises(InvalidOption, match="no option 'size'"):
        STILL.create(size=3)
