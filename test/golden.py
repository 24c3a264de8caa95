"""Golden vectors: the published weights' recipe, and comparison with stored stages.

The folder is named by the environment variable TRACKER_ROS_GOLDEN; it holds one sub-folder a network
(``stages.npz``, ``weights_overrides.npz``), ``frame0.png``, ``frame1.png``, and beside it ``../spec/<network>.json``.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

SHARED = Path(os.environ.get("TRACKER_ROS_SHARED", Path(__file__).resolve().parents[2] / "shared"))
GOLDEN = Path(os.environ.get("TRACKER_ROS_GOLDEN", SHARED / "reference" / "golden"))


#: Families of networks that this package implements, and the tests of each.
FAMILIES = ("dimp", "siamrpn", "clnet", "siamban", "siamrn")


def networks() -> list[str]:
    """All network folders."""
    return sorted(p.parent.name for p in GOLDEN.glob("*/stages.npz"))


def of(*families: str) -> list[Any]:
    """The network folders of some families as parameters of a test or fixture; where there are none, one to skip."""
    names = [name for name in networks() if name.startswith(families)]
    if names:
        return names
    wanted = ", ".join(f"'{family}*'" for family in families)
    reason = f"no golden vectors {wanted} in {GOLDEN}; set TRACKER_ROS_GOLDEN to a folder that has them"
    return [pytest.param("none", marks=pytest.mark.skip(reason=reason))]


def parametrize(*families: str) -> pytest.MarkDecorator:
    """Parametrise a test over the network folders of some families, or skip with the reason."""
    return pytest.mark.parametrize("network", of(*families))


def spec(network: str) -> dict:
    """The spec of a folder: that of its own name, or of the longest name that the folder's begins with."""
    found: dict[str, Path] = {}
    for folder in (SHARED / "reference" / "spec", GOLDEN.parent / "spec", GOLDEN / network):
        found |= {p.stem: p for p in folder.glob("*.json") if network.startswith(p.stem)}
    if not found:
        raise FileNotFoundError(f"{network}.json is neither in {GOLDEN / network} nor in {GOLDEN.parent / 'spec'}")
    return json.loads(found[max(found, key=len)].read_text())


def published_state(network: str) -> OrderedDict[str, torch.Tensor]:
    """State dict with the published names and the recipe's values."""
    shapes = spec(network)["state_dict"]
    path = GOLDEN / network / "weights_overrides.npz"
    overrides = dict(np.load(path)) if path.is_file() else {}
    seed = int(overrides.pop("__seed__", 0))
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for key, entry in shapes.items():
        shape, (module, _, leaf) = entry["shape"], key.rpartition(".")
        r = np.random.RandomState((zlib.crc32(key.encode()) ^ (seed * 2654435761)) & 0xFFFFFFFF)
        if f"{module}.running_mean" in shapes and leaf == "weight":
            value = r.uniform(0.7, 1.3, shape)
        elif f"{module}.running_mean" in shapes and leaf == "bias":
            value = r.randn(*shape) * 0.1
        elif len(shape) >= 2:
            value = r.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif leaf == "bias":
            value = r.randn(*shape) * 0.05
        else:
            value = 1 + 0.3 * r.randn(*shape)
        value = np.asarray(value, np.float32)
        if f"{key} *scale" in overrides:
            value = value * np.float32(overrides[f"{key} *scale"])
        if f"{key} @rows" in overrides:
            value[overrides[f"{key} @rows"]] = overrides[f"{key} rows"]
        if key in overrides:
            value = overrides[key]
        state[key] = torch.from_numpy(np.array(value)).reshape(shape)
    return state


class Stages:
    """The stored numbers of one network."""

    def __init__(self, network: str) -> None:
        self._data = np.load(GOLDEN / network / "stages.npz")
        self._sampled = {}
        for name in self._data.files:
            match = re.fullmatch(r"(.*) \[flat::(\d+)\] of ([\dx]+)", name)
            if match:
                self._sampled[match[1]] = (name, int(match[2]))

    def __getitem__(self, name: str) -> NDArray:
        return self._data[name]

    def __contains__(self, name: str) -> bool:
        return name in self._data.files or name in self._sampled

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self._data[name], np.float32))

    def check(self, name: str, value: torch.Tensor | NDArray, tolerance: float = 1e-4) -> None:
        """Assert agreement to `tolerance` of the largest magnitude of the stage."""
        actual = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value, np.float64).reshape(-1)
        if name in self._sampled:
            stored, step = self._sampled[name]
            expected, actual = self._data[stored], actual[::step]
        else:
            expected = self._data[name]
        expected = np.asarray(expected, np.float64).reshape(-1)
        assert actual.shape == expected.shape, f"{name}: {actual.size} values, expected {expected.size}"
        error = np.abs(actual - expected).max() / np.abs(expected).max()
        assert error <= tolerance, f"{name}: off by {error:.2e} of the largest magnitude, allowed {tolerance:g}"
