"""Weights: load, check and save. Weights are data; nothing in a file is executed. Published ones: `checkpoints`.

A weights file is safetensors with float16 or float32 tensors and, as metadata, the format, the network and where the
weights come from. The file of a compact network names the shared backbone that it was trained on, and holds the rest;
the backbone lies in a file of its own beside it, or among the shipped weights.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from tracker_ros import registry
from tracker_ros.errors import WeightsError, WeightsMissing
from tracker_ros.text import printable
from tracker_ros.weight_files import check_file, gigabytes

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
    # Written by Python, so that the file has the permissions that people expect; safetensors makes it private. A disk
    # that fills up leaves what was there.
    target = Path(path).resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_bytes(to_bytes(tensors, metadata=metadata))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


#: What the keys of a shared backbone begin with.
_SHARED = "backbone."


def _fingerprint(shared: Mapping[str, Tensor]) -> str:
    """Checksum of a shared backbone as it is stored (keys ``backbone.*``)."""
    digest = hashlib.sha256()
    for key in sorted(shared):
        digest.update(key.encode())
        digest.update(shared[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def network_of(path: str | Path) -> str:
    """Name of the network that a weights file belongs to; "" where the file does not say.

    Raises:
        WeightsMissing: no such file.
        WeightsError: not a weights file.
    """
    with _opened(path, "NETWORK") as file:
        return file.metadata.get("network", "")


#: Most bytes of a header; that of the largest network takes a tenth of a megabyte.
_MAX_HEADER = 4 << 20
#: Element types that tensors of a network have, as safetensors calls them.
_DTYPES = frozenset(("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"))


@dataclass(frozen=True)
class _File:
    """An open weights file of which the header has been read, and nothing else.

    Attributes:
        path: where it lies.
        metadata: what it says of itself.
        shapes: of its tensors.
        read: reads a tensor, as stored.
    """

    path: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]


@contextmanager
def _opened(path: str | Path, network: str) -> Iterator[_File]:
    """Open a weights file of `network`; its header is checked before it is read, and no tensor is."""
    known = registry.networks()
    if network in known and known[network].converter:
        into = f"'tracker_ros import-weights CHECKPOINT --tracker {network} --out {network}.safetensors'"
        way = f"give a .safetensors file, or import a published checkpoint with {into}"
    else:
        way = f"give a .safetensors file, or put {network}.safetensors into {models_directory()}"
    path = check_file(path, "a .safetensors file", way)
    shown = printable(str(path))
    _check_header(path, shown, network)
    try:
        with safe_open(str(path), framework="pt") as file:
            shapes = {}
            for key in file.keys():  # noqa: SIM118
                kept = file.get_slice(key)
                if kept.get_dtype() not in _DTYPES:
                    raise WeightsError(
                        f"{shown}: tensor '{_name(key)}' is of type {kept.get_dtype()}, which no network here has"
                    )
                shapes[key] = tuple(kept.get_shape())
            yield _File(path, file.metadata() or {}, shapes, file.get_tensor)
    except WeightsError:
        raise  # one of them is an OSError too: what another file lacks is not this one's fault
    except (SafetensorError, OSError, struct.error) as error:
        raise WeightsError(_not_safetensors(shown, network, printable(str(error)))) from error


def _check_header(path: Path, shown: str, network: str) -> None:
    """Check that the header is as long as it may be, and lies in the file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise WeightsError(f"{shown} can't be read: its name is not UTF-8, so rename it") from None
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        why = "it is a zip archive" if start[:2] == b"PK" else "its header does not fit into it, or it was cut short"
        raise WeightsError(_not_safetensors(shown, network, why))
    if length > _MAX_HEADER:
        raise WeightsError(
            f"{shown} claims a header of {gigabytes(length)}; no network's takes {gigabytes(_MAX_HEADER)}"
        )


def _not_safetensors(shown: str, network: str, why: str) -> str:
    return (
        f"{shown} is not a safetensors file ({why}); a published checkpoint must be imported first: "
        f"'tracker_ros import-weights {shown} --tracker {network} --out {network}.safetensors'"
    )


def _name(text: str) -> str:
    """A name out of a file, fit to be printed."""
    shown = printable(text[:100])
    return shown if len(text) <= 100 else f"{shown}..."


def load(path: str | Path, module: nn.Module, network: str) -> None:
    """Load a weights file, and the shared backbone that it names, into a module; all or nothing, every value checked.

    Names and shapes are compared before any tensor is read, so that a file takes no memory but what the network has.

    Raises:
        WeightsMissing: no such file, or its backbone is not there.
        WeightsError: not a weights file, another network's, made for another backbone, tensors missing, surplus or of
            another shape, or values that are not finite.
    """
    with ExitStack() as files:
        file = files.enter_context(_opened(path, network))
        source = printable(str(file.path))
        if file.metadata.get("network", network) != network:
            raise WeightsError(f"{source} holds weights of '{_name(file.metadata['network'])}', not of '{network}'")
        shapes, backbone = dict(file.shapes), None
        if "backbone" in file.metadata:
            beside = _backbone_of(file)
            backbone = files.enter_context(_opened(beside, beside.stem))
            shapes |= {f"{_SHARED}{key}": shape for key, shape in backbone.shapes.items()}
        check_shapes(module, shapes, source)
        tensors = {key: file.read(key) for key in file.shapes}
        if backbone is not None:
            shared = {f"{_SHARED}{key}": backbone.read(key) for key in backbone.shapes}
            if _fingerprint(shared) != file.metadata.get("fingerprint"):
                raise WeightsError(
                    f"{source} was trained on another backbone than {printable(str(backbone.path))}; "
                    "use the two files of one training"
                )
            tensors |= shared
    check_finite(tensors, source)
    load_state(module, {key: value.float() for key, value in tensors.items()}, source)


def _backbone_of(file: _File) -> Path:
    """The file of the backbone that a file's metadata name: beside it, else among the shipped weights."""
    name = file.metadata["backbone"]
    source = printable(str(file.path))
    if not re.fullmatch(r"[\w-]{1,64}", name):
        raise WeightsError(f"{source} names '{_name(name)}' as its backbone, which is no such name")
    beside = file.path.with_name(f"{name}.safetensors")
    found = beside if beside.exists() else shipped(name)
    if not found.exists():
        raise WeightsMissing(f"weights missing: {source} needs the backbone '{name}'; put {beside.name} beside it")
    return found


def load_backbone(module: nn.Module, name: str) -> None:
    """Load the shipped backbone called `name`.

    Raises:
        WeightsMissing, WeightsError: see `load`.
    """
    load(shipped(name), module, name)


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load tensors by name into a module; all or nothing.

    Raises:
        WeightsError: see `check_shapes`.
    """
    check_shapes(module, {key: tuple(value.shape) for key, value in tensors.items()}, source)
    module.load_state_dict(dict(tensors), strict=False)


def check_shapes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Check that tensors of these names and shapes fit a module.

    Raises:
        WeightsError: tensors missing, surplus or of another shape; the message begins with `source`.
    """
    expected = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    missing, surplus = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or surplus:
        raise WeightsError(
            f"{source} does not fit the network: {len(missing)} tensors missing {list(map(_name, missing[:3]))}, "
            f"{len(surplus)} unknown {list(map(_name, surplus[:3]))}"
        )
    for key, value in expected.items():
        if tuple(value.shape) != shapes[key]:
            raise WeightsError(f"{source}: tensor '{key}' has shape {shapes[key]}, expected {tuple(value.shape)}")


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Check every value.

    Raises:
        WeightsError: some are not finite.
    """
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{source}: tensor '{_name(key)}' has values that are not finite; the file is damaged")
