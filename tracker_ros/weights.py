"""Weights: load, check and save. Weights are data; nothing in a file is executed. Published ones: `checkpoints`.

A weights file is safetensors with float16 or float32 tensors and, as metadata, the format, the network and where the
weights come from. The file of a compact network names the shared backbone that it was trained on, and holds the rest;
the backbone lies in a file of its own beside it, or among the shipped weights.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from tracker_ros import registry
from tracker_ros.errors import WeightsError, WeightsMissing

FORMAT = "tracker_ros-1"


def models_directory() -> Path:
    """Where the shipped weights lie: ``models/`` of the source tree, else ``share/tracker_ros/models`` of the prefix.

    The environment variable ``TRACKER_ROS_MODELS`` overrides both.
    """
    if os.environ.get("TRACKER_ROS_MODELS"):
        return Path(os.environ["TRACKER_ROS_MODELS"])
    source = Path(__file__).resolve().parent.parent / "models"
    if source.is_dir():
        return source
    try:
        from ament_index_python.packages import get_package_share_directory

        return Path(get_package_share_directory("tracker_ros")) / "models"
    except (ImportError, LookupError):
        return source


def shipped(network: str) -> Path:
    """Path of the shipped weights of a network, whether or not they exist."""
    return models_directory() / f"{network}.safetensors"


def save(
    path: str | Path, module: nn.Module, network: str, origin: str, half: bool = True, backbone: str | None = None
) -> None:
    """Write a module's parameters and buffers.

    Args:
        path: the file to write.
        module: the network.
        network: its name (``dimp18``), checked when the file is loaded.
        origin: where the weights come from, for people.
        half: store float16, which halves the file; values are float32 again when loaded.
        backbone: name of the shared weights (``backbone18``) that ``module.backbone`` has. They are not written; what
            the file keeps of them is a fingerprint.
    """
    tensors = {}
    for key, value in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        value = value.detach().cpu()
        if (
            half
            and value.is_floating_point()
            and value.numel() > 1024
            and not key.endswith(("running_mean", "running_var"))
        ):
            if value.abs().max() > torch.finfo(torch.float16).max:
                raise WeightsError(f"{key} does not fit float16; save with half=False")
            value = value.half()
        tensors[key] = value.contiguous()
    metadata = {"format": FORMAT, "network": network, "origin": origin}
    if backbone is not None:
        shared = {key: value for key, value in tensors.items() if key.startswith(_SHARED)}
        tensors = {key: value for key, value in tensors.items() if key not in shared}
        metadata |= {"backbone": backbone, "fingerprint": _fingerprint(shared)}
    # Written by Python, so that the file has the permissions that people expect; safetensors makes it private.
    Path(path).write_bytes(to_bytes(tensors, metadata=metadata))


#: What the keys of a shared backbone begin with.
_SHARED = "backbone."


def _fingerprint(shared: Mapping[str, Tensor]) -> str:
    """Checksum of a shared backbone as it is stored (keys ``backbone.*``)."""
    digest = hashlib.sha256()
    for key in sorted(shared):
        digest.update(key.encode())
        digest.update(shared[key].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def network_of(path: str | Path) -> str:
    """Name of the network that a weights file belongs to; "" where the file does not say.

    Raises:
        WeightsMissing: no such file.
        WeightsError: not a weights file.
    """
    return _read(Path(path), "NETWORK")[0].get("network", "")


def _read(path: Path, network: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a weights file, as stored."""
    if not path.is_file():
        way = f"give a .safetensors file, or put {network}.safetensors into {models_directory()}"
        known = registry.networks()
        if network in known and known[network].converter:
            way = (
                "give a .safetensors file, or import a published checkpoint with "
                f"'tracker_ros import-weights CHECKPOINT --tracker {network} --out {network}.safetensors'"
            )
        raise WeightsMissing(f"weights missing: {path} does not exist; {way}")
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, struct.error) as error:
        raise WeightsError(
            f"{path} is not a safetensors file ({error}); a published checkpoint must be imported first: "
            f"'tracker_ros import-weights {path} --tracker {network} --out {network}.safetensors'"
        ) from error


def load(path: str | Path, module: nn.Module, network: str) -> None:
    """Load a weights file, and the shared backbone that it names, into a module; all or nothing, every value checked.

    Raises:
        WeightsMissing: no such file, or its backbone is not there.
        WeightsError: not a weights file, another network's, made for another backbone, tensors missing, surplus or of
            another shape, or values that are not finite.
    """
    path = Path(path)
    metadata, tensors = _read(path, network)
    if metadata.get("network", network) != network:
        raise WeightsError(f"{path} holds weights of '{metadata['network']}', not of '{network}'")
    if "backbone" in metadata:
        tensors |= _read_backbone(path, metadata)
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{path}: tensor '{key}' has values that are not finite; the file is damaged")
    load_state(module, {key: value.float() for key, value in tensors.items()}, str(path))


def _read_backbone(path: Path, metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of the backbone that a file's metadata name: beside the file, else among the shipped weights."""
    name = Path(metadata["backbone"]).name
    beside = path.with_name(f"{name}.safetensors")
    file = beside if beside.is_file() else shipped(name)
    if not file.is_file():
        raise WeightsMissing(f"weights missing: {path} needs the backbone '{name}'; put {beside.name} beside it")
    shared = {f"{_SHARED}{key}": value for key, value in _read(file, name)[1].items()}
    if _fingerprint(shared) != metadata.get("fingerprint"):
        raise WeightsError(f"{path} was trained on another backbone than {file}; use the two files of one training")
    return shared


def load_backbone(module: nn.Module, name: str) -> None:
    """Load the shipped backbone called `name`.

    Raises:
        WeightsMissing, WeightsError: see `load`.
    """
    load(shipped(name), module, name)


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load tensors by name into a module; all or nothing.

    Raises:
        WeightsError: tensors missing, surplus or of another shape; the message begins with `source`.
    """
    expected = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        raise WeightsError(
            f"{source} does not fit the network: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(surplus)} unknown {surplus[:3]}"
        )
    for key, value in expected.items():
        if value.shape != tensors[key].shape:
            raise WeightsError(
                f"{source}: tensor '{key}' has shape {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
            )
    module.load_state_dict(dict(tensors), strict=False)
