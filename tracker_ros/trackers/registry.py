"""Trackers by their plain names.

Looking up a name imports nothing heavy; a tracker's module (and torch, for those that need it) is imported when its
`Entry` is used. A `Registry` is immutable: who wants one more tracker builds a registry of their own with
`Registry.extended`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
        variants: loads presets of the same tracker for other networks.
    """

    name: str
    description: str
    load: Callable[[], tuple[Factory, TrackerOptions]]
    variants: tuple[Callable[[], tuple[Factory, TrackerOptions]], ...] = ()

    @property
    def options(self) -> TrackerOptions:
        """The options of the preset (imports the tracker's module)."""
        return self.load()[1]

    def create(self, **options: Any) -> Tracker[Any]:
        """Build the tracker with some options changed.

        Another network than the preset's, named or the one of the weights file, brings the preset that belongs to it.

        Raises:
            InvalidOption: an option that it does not have, or a value that it does not take.
            WeightsMissing: its weights are not there.
        """
        factory, preset = self.load()
        if self.variants:
            network = options.get("network") or _network_of(options.get("weights", ""))
            others = [load()[1] for load in self.variants]
            preset = next((other for other in others if getattr(other, "network", None) == network), preset)
        return factory(self.name, preset.replace(**options))


def _network_of(file: str) -> str:
    """Name of the network of a weights file; "" where it cannot be read, of which loading it will tell."""
    if not file:
        return ""
    from tracker_ros import weights
    from tracker_ros.errors import WeightsError

    try:
        return weights.network_of(file)
    except WeightsError:
        return ""


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


def _guided(name: str) -> tuple[Factory, TrackerOptions]:
    from tracker_ros.trackers import guided

    return guided.GuidedTracker, guided.PRESETS[name]


def _entry(
    name: str, description: str, load: Callable[[str], tuple[Factory, TrackerOptions]], variants: tuple[str, ...] = ()
) -> Entry:
    return Entry(name, description, lambda: load(name), tuple(partial(load, variant) for variant in variants))


#: The trackers of this package. Those that are named like a published network need its weights (`import-weights`);
#: their short names come with weights of a compact network, and take the published ones too.
DEFAULT = Registry(
    (
        _entry("dimp18", "DiMP with a ResNet-18 backbone (Bhat et al., ICCV 2019)", _dimp),
        _entry("dimp50", "DiMP with a ResNet-50 backbone, with imported weights", _dimp),
        _entry(
            "siamrpn",
            "SiamRPN: region proposals by up-channel correlation (Li et al., CVPR 2018)",
            _siamrpn,
            ("siamrpn_alex_dw", "siamrpn_alex_up", "siamrpn_big_up"),
        ),
        _entry(
            "siamrpnpp",
            "SiamRPN++: several levels, depth-wise correlation (Li et al., CVPR 2019)",
            _siamrpn,
            ("siamrpnpp_r50",),
        ),
        _entry(
            "clnet", "CLNet: SiamRPN++ adjusted to the first frame (Dong et al., ECCV 2020)", _clnet, ("clnet_r50",)
        ),
        _entry("siamban", "SiamBAN: no anchors (Chen et al., CVPR 2020)", _siamban, ("siamban_r50",)),
        _entry(
            "siamrn", "SiamRN: SiamBAN with a relation detector (Cheng et al., CVPR 2021)", _siamrn, ("siamrn_r50",)
        ),
        _entry(
            "guided_ssd",
            "SSD guided to the target, its head adapted online by MAML (Huang et al., ICCV 2019)",
            _guided,
            ("guided_ssd18_single", "guided_ssd_vgg16"),
        ),
        _entry(
            "guided_frcnn",
            "Faster R-CNN guided to the target, its head adapted online by MAML (Huang et al., ICCV 2019)",
            _guided,
            ("guided_frcnn_r50",),
        ),
        _entry("siamrpn_alex_dw", "SiamRPN with AlexNet, depth-wise, with imported weights", _siamrpn),
        _entry("siamrpn_alex_up", "SiamRPN with AlexNet, up-channel, with imported weights", _siamrpn),
        _entry("siamrpn_big_up", "SiamRPN with the larger AlexNet, with imported weights", _siamrpn),
        _entry("siamrpnpp_r50", "SiamRPN++ with a ResNet-50, with imported weights", _siamrpn),
        _entry("clnet_r50", "CLNet with a ResNet-50, with imported weights", _clnet),
        _entry("siamban_r50", "SiamBAN with a ResNet-50, with imported weights", _siamban),
        _entry("siamrn_r50", "SiamRN with a ResNet-50, with imported weights", _siamrn),
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
