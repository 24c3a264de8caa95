"""Trackers by their plain names.

Looking up a name imports nothing heavy; a tracker's module (and torch, for those that need it) is imported when its
`Entry` is used. A `Registry` is immutable: who wants one more tracker builds a registry of their own with
`Registry.extended`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tracker_ros.trackers.base import Tracker, TrackerOptions

#: Builds a tracker from the name and the options that it goes by.
Factory = Callable[[str, Any], Tracker[Any]]


class UnknownTracker(ValueError):
    """A name that no tracker has; the message lists those that there are."""


@dataclass(frozen=True)
class Entry:
    """One tracker of a registry.

    Attributes:
        name: what users call it.
        description: one line for a list of trackers.
        load: imports the tracker's module; returns its factory and the options of this preset.
    """

    name: str
    description: str
    load: Callable[[], tuple[Factory, TrackerOptions]]

    @property
    def options(self) -> TrackerOptions:
        """The options of the preset (imports the tracker's module)."""
        return self.load()[1]

    def create(self, **options: Any) -> Tracker[Any]:
        """Build the tracker with some options changed.

        Raises:
            InvalidOption: an option that it does not have, or a value that it does not take.
            WeightsMissing: its weights are not there.
        """
        factory, preset = self.load()
        return factory(self.name, preset.replace(**options))


class Registry:
    """Names and what they build, in the order of their registration."""

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self._entries = {entry.name: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise ValueError(f"two trackers have the same name: {', '.join(entry.name for entry in entries)}")

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def names(self) -> list[str]:
        """The names, in order."""
        return list(self._entries)

    def get(self, name: str) -> Entry:
        """The entry called `name`.

        Raises:
            UnknownTracker: there is none.
        """
        if name in self._entries:
            return self._entries[name]
        close = difflib.get_close_matches(name.lower(), self._entries, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UnknownTracker(f"there is no tracker '{name}'{hint} (there are: {', '.join(self._entries)})")

    def create(self, name: str, **options: Any) -> Tracker[Any]:
        """Build the tracker called `name`; see `Entry.create`."""
        return self.get(name).create(**options)

    def extended(self, *entries: Entry) -> Registry:
        """A new registry with these entries and `entries`."""
        return Registry((*self._entries.values(), *entries))


def _dimp(name: str) -> tuple[Factory, TrackerOptions]:
    from tracker_ros.trackers import dimp

    return dimp.DiMP, dimp.PRESETS[name]


def _opencv(name: str) -> tuple[Factory, TrackerOptions]:
    from tracker_ros.trackers import opencv

    return opencv.OpenCVTracker, opencv.PRESETS[name]


def _siamrpn(name: str) -> tuple[Factory, TrackerOptions]:
    from tracker_ros.trackers import siamrpn

    return siamrpn.SiamRPN, siamrpn.PRESETS[name]


def _clnet(name: str) -> tuple[Factory, TrackerOptions]:
    from tracker_ros.trackers import clnet

    return clnet.CLNet, clnet.PRESETS[name]


def _siamban(name: str) -> tuple[Factory, TrackerOptions]:
    from tracker_ros.trackers import siamban

    return siamban.SiamBAN, siamban.PRESETS[name]


def _siamrn(name: str) -> tuple[Factory, TrackerOptions]:
    from tracker_ros.trackers import siamrn

    return siamrn.SiamRN, siamrn.PRESETS[name]


def _entry(name: str, description: str, load: Callable[[str], tuple[Factory, TrackerOptions]]) -> Entry:
    return Entry(name, description, lambda: load(name))


#: The trackers of this package.
DEFAULT = Registry(
    (
        _entry("dimp18", "DiMP with a ResNet-18 backbone (Bhat et al., ICCV 2019)", _dimp),
        _entry("dimp50", "DiMP with a ResNet-50 backbone (Bhat et al., ICCV 2019)", _dimp),
        _entry("siamrpn", "SiamRPN with AlexNet (Li et al., CVPR 2018), with imported weights", _siamrpn),
        _entry("siamrpnpp", "SiamRPN++ with a ResNet-50 (Li et al., CVPR 2019), with imported weights", _siamrpn),
        _entry("clnet", "CLNet: SiamRPN++ adjusted to the first frame (Dong et al., ECCV 2020)", _clnet),
        _entry("siamban", "SiamBAN with a ResNet-50 (Chen et al., CVPR 2020), with imported weights", _siamban),
        _entry("siamrn", "SiamRN: SiamBAN with a relation detector (Cheng et al., CVPR 2021)", _siamrn),
        _entry("csrt", "OpenCV's CSRT: correlation filter with spatial reliability, no weights", _opencv),
        _entry("kcf", "OpenCV's KCF: kernelized correlation filter, fixed scale, no weights", _opencv),
        _entry("nano", "OpenCV's NanoTrack with your ONNX files (backbone_model, head_model)", _opencv),
        _entry("vit", "OpenCV's VitTrack with your ONNX file (model)", _opencv),
    )
)


def names() -> list[str]:
    """Names of the package's trackers."""
    return DEFAULT.names()


def get(name: str) -> Entry:
    """The package's tracker called `name`; raises `UnknownTracker`."""
    return DEFAULT.get(name)


def create(name: str, **options: Any) -> Tracker[Any]:
    """Build the package's tracker called `name` with some of its options changed.

    Raises:
        UnknownTracker: no tracker has this name.
        InvalidOption: an option that it does not have, or a value that it does not take.
        WeightsMissing: its weights are not there.
    """
    return DEFAULT.create(name, **options)
