from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pytest

import tracker_ros
from tracker_ros import registry
from tracker_ros.evaluation.specs import parse_specs
from tracker_ros.geometry.boxes import Box
from tracker_ros.registry import Entry, Registry, UnknownTracker
from tracker_ros.trackers.base import Estimate, Frame, InvalidOption, Tracker, TrackerOptions, TrackState, option


class _Still(Tracker):
    """Says that the target stays where it was."""

    def start(self, frame, boxes):
        return list(boxes)

    def step(self, frame, targets):
        return [Estimate(box, 1.0, TrackState.TRACKING, box) for box in targets]


STILL = Entry("still", "stays", _Still, preset=TrackerOptions())


def test_names_are_those_of_the_presets() -> None:
    assert {"dimp18", "dimp50", "csrt", "kcf", "nano", "vit"} <= set(tracker_ros.tracker_names())
    assert tracker_ros.tracker_names()[0] == "dimp18"


def test_looking_up_names_imports_neither_torch_nor_opencv() -> None:
    code = (
        "import sys, tracker_ros; tracker_ros.tracker_names(); "
        "from tracker_ros import registry; registry.get('dimp18'); "
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
        Registry((STILL,)).create("still", size=3)


# A tracker of one's own, whole: its options, its class, its entry.


@dataclass(frozen=True, kw_only=True)
class BrightestOptions(TrackerOptions):
    """Options of `Brightest`."""

    blur: float = option(2.0, "smooths the image; higher: noise matters less", low=0.1, high=20.0)


class Brightest(Tracker[Box]):
    """Follows the brightest spot of the image."""

    options: BrightestOptions

    def start(self, frame: Frame, boxes: Sequence[Box]) -> list[Box]:
        return list(boxes)

    def step(self, frame: Frame, targets: Sequence[Box]) -> list[Estimate]:
        grey = cv2.GaussianBlur(frame.max(2), (0, 0), self.options.blur)
        y, x = np.unravel_index(int(grey.argmax()), grey.shape)
        found = [Box.from_center(float(x), float(y), box.w, box.h) for box in targets]
        return [Estimate(box, float(grey.max()) / 255, TrackState.TRACKING, box) for box in found]


BRIGHTEST = Entry("brightest", "follows what is brightest", Brightest, preset=BrightestOptions())


def test_a_tracker_is_declared_once_and_known_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "DEFAULT", registry.DEFAULT.extended(BRIGHTEST))
    assert "brightest" in tracker_ros.tracker_names()
    (spec,) = parse_specs(["brightest:blur=3"], ["good_score=0.5"])
    tracker = spec.create()
    assert tracker.options == BrightestOptions(blur=3.0, good_score=0.5)
    frame = np.zeros((60, 80, 3), np.uint8)
    tracker.initialize(frame, (10, 10, 8, 8))
    frame[30:40, 50:60] = 255
    assert tracker.track(frame).box.center == pytest.approx((54.5, 34.5), abs=1)
    with pytest.raises(InvalidOption, match=r"'blur' must lie in \[0.1, 20.0\]"):
        tracker_ros.create("brightest", blur=0)


def test_every_entry_names_what_is_there() -> None:
    for entry in registry.DEFAULT:
        assert callable(entry.load()[0])
        if entry.recipe:
            module, _, function = entry.recipe.partition(":")
            assert callable(getattr(importlib.import_module(f"tracker_ros.training.{module}"), function))
        if entry.network is not None:
            assert entry.options.design.network == entry.network.name
            assert not entry.network.converter or callable(entry.network.convert)
        for name in entry.takes:
            assert registry.get(name).tracker == entry.tracker


def test_few_options() -> None:
    """What the owner of a robot turns: about twenty a tracker, each with a description."""
    options = {entry.name: entry.options.options() for entry in registry.DEFAULT}
    assert max(len(fields) for fields in options.values()) <= 20
    assert len({f.name for fields in options.values() for f in fields}) <= 45
    assert all(f.metadata["help"] for fields in options.values() for f in fields)
