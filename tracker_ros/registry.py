"""The register: every tracker is declared once, here.

What can be built, what the launch file and the command line offer, which networks there are, which published
checkpoints are imported and which recipes train come from these entries. Looking up a name imports nothing heavy; a
tracker's module (and torch, for those that need it) is imported when its `Entry` is used. A `Registry` is immutable:
who wants one more tracker builds a registry of their own with `Registry.extended`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracker_ros.text import nearest

if TYPE_CHECKING:
    from torch import nn

    from tracker_ros.networks.published import Converter
    from tracker_ros.trackers.base import Tracker, TrackerOptions

#: Builds a tracker from the name and the options that it goes by.
Factory = Callable[[str, Any], "Tracker[Any]"]


class UnknownTracker(ValueError):
    """A name that no tracker has; the message lists those that there are."""


@dataclass(frozen=True)
class Network:
    """The architecture of a tracker's network.

    Attributes:
        name: of the network, and of its weights file.
        module: ``package.module`` that has the class and its configuration.
        build: names of both, ``Class(CONFIG)``.
        converter: name in `tracker_ros.networks.published` of what reads its published checkpoints; "" where there are
            none.
    """

    name: str
    module: str
    build: str
    converter: str = ""

    def create(self) -> nn.Module:
        """The network with random weights."""
        module = importlib.import_module(f"tracker_ros.networks.{self.module}")
        cls, _, config = self.build.rstrip(")").partition("(")
        network: nn.Module = getattr(module, cls)(getattr(module, config))
        return network

    @property
    def convert(self) -> Converter:
        """What turns the tensors of a published checkpoint into this network's."""
        converter: Converter = getattr(importlib.import_module("tracker_ros.networks.published"), self.converter)
        return converter


@dataclass(frozen=True)
class Entry:
    """One tracker.

    Attributes:
        name: what users call it.
        description: one line for a list of trackers.
        tracker: its class, or ``module:Class`` below `tracker_ros.trackers`, whose ``PRESETS`` has its options.
        network: of its weights; None where it has none.
        others: the same network on other backbones: its recipe trains them too, and it takes their weights.
        recipe: ``module:function`` below `tracker_ros.training` that trains it; "" where none does.
        takes: names of trackers of the same kind, whose weights it takes too, with their options.
        preset: its options, where `tracker` is a class.
    """

    name: str
    description: str
    tracker: str | Factory
    network: Network | None = None
    others: tuple[Network, ...] = ()
    recipe: str = ""
    takes: tuple[str, ...] = ()
    preset: TrackerOptions | None = None

    def load(self) -> tuple[Factory, TrackerOptions]:
        """The tracker's class and the options of this preset (imports its module)."""
        if not isinstance(self.tracker, str):
            assert self.preset is not None, f"{self.name}: a tracker's class needs a preset"
            return self.tracker, self.preset
        name, _, cls = self.tracker.partition(":")
        module = importlib.import_module(f"tracker_ros.trackers.{name}")
        return getattr(module, cls), module.PRESETS[self.name]

    @property
    def options(self) -> TrackerOptions:
        """The options of the preset (imports the tracker's module)."""
        return self.load()[1]


class Registry:
    """Trackers by their names, in the order of their declaration."""

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
        meant = nearest(name, self._entries)
        hint = f"; did you mean '{meant}'?" if meant else ""
        raise UnknownTracker(f"there is no tracker '{name}'{hint} (there are: {', '.join(self._entries)})")

    def create(self, name: str, **options: Any) -> Tracker[Any]:
        """Build the tracker called `name` with some options, or fields of its design, changed.

        Weights of another network of its kind bring the options that belong to it.

        Raises:
            UnknownTracker: no tracker has this name.
            InvalidOption: an option that it does not have, or a value that it does not take.
            WeightsMissing: its weights are not there.
        """
        entry = self.get(name)
        factory, preset = entry.load()
        several = entry.takes or entry.others
        network = options.get("network") or (_network_of(options.get("weights", "")) if several else "")
        for other in map(self.get, entry.takes):
            if other.network is not None and other.network.name == network:
                preset = other.options
        if network in {other.name for other in entry.others}:
            options["network"] = network
        return factory(name, preset.vary(**options))

    def networks(self) -> dict[str, Network]:
        """Every network by its name."""
        found = [entry.network for entry in self if entry.network is not None]
        return {network.name: network for network in [*found, *(other for entry in self for other in entry.others)]}

    def extended(self, *entries: Entry) -> Registry:
        """A new registry with these entries and `entries`."""
        return Registry((*self._entries.values(), *entries))


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


#: The trackers of this package. Those that are named like a published network need its weights (`import-weights`);
#: their short names come with weights of a compact network, and take the published ones too.
DEFAULT = Registry(
    (
        Entry(
            "dimp18",
            "DiMP with a ResNet-18 backbone (Bhat et al., ICCV 2019)",
            "dimp:DiMP",
            Network("dimp18", "dimp", "DiMPNet(DIMP18)", "convert_dimp"),
            others=(Network("dimp_lite0", "dimp", "DiMPNet(DIMP_LITE0)"),),
            recipe="dimp:build",
        ),
        Entry(
            "dimp50",
            "DiMP with a ResNet-50 backbone, with imported weights",
            "dimp:DiMP",
            Network("dimp50", "dimp", "DiMPNet(DIMP50)", "convert_dimp"),
        ),
        Entry(
            "siamrpn",
            "SiamRPN: region proposals by depth-wise correlation (Li et al., CVPR 2018)",
            "siamrpn:SiamRPN",
            Network("siamrpn18", "siamrpn", "SiamRPNNet(SIAMRPN18)"),
            others=(Network("siamrpn_lite0", "siamrpn", "SiamRPNNet(SIAMRPN_LITE0)"),),
            recipe="siamese:build",
            takes=("siamrpn_alex_dw", "siamrpn_alex_up", "siamrpn_big_up"),
        ),
        Entry(
            "siamrpnpp",
            "SiamRPN++: several levels, depth-wise correlation (Li et al., CVPR 2019)",
            "siamrpn:SiamRPN",
            Network("siamrpnpp18", "siamrpn", "SiamRPNNet(SIAMRPNPP18)"),
            others=(Network("siamrpnpp_lite0", "siamrpn", "SiamRPNNet(SIAMRPNPP_LITE0)"),),
            recipe="siamese:build",
            takes=("siamrpnpp_r50",),
        ),
        Entry(
            "clnet",
            "CLNet: SiamRPN++ adjusted to the first frame (Dong et al., ECCV 2020)",
            "clnet:CLNet",
            Network("clnet18", "clnet", "CLNet(CLNET18)"),
            others=(Network("clnet_lite0", "clnet", "CLNet(CLNET_LITE0)"),),
            recipe="clnet:build",
            takes=("clnet_r50",),
        ),
        Entry(
            "siamban",
            "SiamBAN: no anchors (Chen et al., CVPR 2020)",
            "siamban:SiamBAN",
            Network("siamban18", "siamban", "SiamBANNet(SIAMBAN18)"),
            others=(Network("siamban_lite0", "siamban", "SiamBANNet(SIAMBAN_LITE0)"),),
            recipe="siamese:build",
            takes=("siamban_r50",),
        ),
        Entry(
            "siamrn",
            "SiamRN: SiamBAN with a relation detector (Cheng et al., CVPR 2021)",
            "siamrn:SiamRN",
            Network("siamrn18", "siamrn", "SiamRNNet(SIAMRN18)"),
            others=(Network("siamrn_lite0", "siamrn", "SiamRNNet(SIAMRN_LITE0)"),),
            recipe="siamrn:build",
            takes=("siamrn_r50",),
        ),
        Entry(
            "guided_ssd",
            "SSD guided to the target, its head adapted online by MAML (Huang et al., ICCV 2019)",
            "guided:GuidedTracker",
            Network("guided_ssd18", "ssd", "SSD(GUIDED_SSD18)"),
            others=(Network("guided_ssd_lite0", "ssd", "SSD(GUIDED_SSD_LITE0)"),),
            recipe="guided:build",
            takes=("guided_ssd18_single", "guided_ssd_vgg16"),
        ),
        Entry(
            "guided_frcnn",
            "Faster R-CNN guided to the target, its head adapted online by MAML (Huang et al., ICCV 2019)",
            "guided:GuidedTracker",
            Network("guided_frcnn18", "faster_rcnn", "FasterRCNN(GUIDED_FRCNN18)"),
            others=(Network("guided_frcnn_lite0", "faster_rcnn", "FasterRCNN(GUIDED_FRCNN_LITE0)"),),
            recipe="guided:build",
            takes=("guided_frcnn_r50",),
        ),
        Entry(
            "siamrpn_alex_dw",
            "SiamRPN with AlexNet, depth-wise, with imported weights",
            "siamrpn:SiamRPN",
            Network("siamrpn_alex_dw", "siamrpn", "SiamRPNNet(SIAMRPN_ALEX_DW)", "convert_siamrpn_dw"),
        ),
        Entry(
            "siamrpn_alex_up",
            "SiamRPN with AlexNet, up-channel, with imported weights",
            "siamrpn:SiamRPN",
            Network("siamrpn_alex_up", "siamrpn", "SiamRPNNet(SIAMRPN_ALEX_UP)", "convert_siamrpn_up"),
        ),
        Entry(
            "siamrpn_big_up",
            "SiamRPN with the larger AlexNet, with imported weights",
            "siamrpn:SiamRPN",
            Network("siamrpn_big_up", "siamrpn", "SiamRPNNet(SIAMRPN_BIG_UP)", "convert_siamrpn_up"),
        ),
        Entry(
            "siamrpnpp_r50",
            "SiamRPN++ with a ResNet-50, with imported weights",
            "siamrpn:SiamRPN",
            Network("siamrpnpp_r50", "siamrpn", "SiamRPNNet(SIAMRPNPP_R50)", "convert_siamrpnpp"),
        ),
        Entry(
            "clnet_r50",
            "CLNet with a ResNet-50, with imported weights",
            "clnet:CLNet",
            Network("clnet_r50", "clnet", "CLNet(CLNET_R50)", "convert_clnet"),
        ),
        Entry(
            "siamban_r50",
            "SiamBAN with a ResNet-50, with imported weights",
            "siamban:SiamBAN",
            Network("siamban_r50", "siamban", "SiamBANNet(SIAMBAN_R50)", "convert_siamban"),
        ),
        Entry(
            "siamrn_r50",
            "SiamRN with a ResNet-50, with imported weights",
            "siamrn:SiamRN",
            Network("siamrn_r50", "siamrn", "SiamRNNet(SIAMRN_R50)", "convert_siamrn"),
        ),
        Entry(
            "guided_ssd18_single",
            "guided_ssd with one exemplar for all resolutions, with weights of its recipe",
            "guided:GuidedTracker",
            Network("guided_ssd18_single", "ssd", "SSD(GUIDED_SSD18_SINGLE)"),
            recipe="guided:build",
        ),
        Entry(
            "guided_ssd_vgg16",
            "guided_ssd with a VGG-16, with weights of its recipe",
            "guided:GuidedTracker",
            Network("guided_ssd_vgg16", "ssd", "SSD(GUIDED_SSD_VGG16)"),
            recipe="guided:build",
        ),
        Entry(
            "guided_frcnn_r50",
            "guided_frcnn with a ResNet-50, with weights of its recipe",
            "guided:GuidedTracker",
            Network("guided_frcnn_r50", "faster_rcnn", "FasterRCNN(GUIDED_FRCNN_R50)"),
            recipe="guided:build",
        ),
        Entry("csrt", "OpenCV's CSRT: correlation filter with spatial reliability, no weights", "opencv:OpenCVTracker"),
        Entry("kcf", "OpenCV's KCF: kernelized correlation filter, fixed scale, no weights", "opencv:OpenCVTracker"),
        Entry("nano", "OpenCV's NanoTrack with your ONNX files (backbone_model, head_model)", "opencv:OpenCVTracker"),
        Entry("vit", "OpenCV's VitTrack with your ONNX file (model)", "opencv:OpenCVTracker"),
    )
)


def names() -> list[str]:
    """Names of the package's trackers."""
    return DEFAULT.names()


def get(name: str) -> Entry:
    """The package's tracker called `name`; raises `UnknownTracker`."""
    return DEFAULT.get(name)


def create(name: str, **options: Any) -> Tracker[Any]:
    """Build the package's tracker called `name`; see `Registry.create`."""
    return DEFAULT.create(name, **options)


def networks() -> dict[str, Network]:
    """Every network of the package by its name."""
    return DEFAULT.networks()
