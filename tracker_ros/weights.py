"""Weights: load, check, save, and import published checkpoints. Weights are data; nothing in a file is executed.

A weights file is safetensors with float16 or float32 tensors and, as metadata, the format, the network and where the
weights come from. The file of a compact network names the shared backbone that it was trained on, and holds the rest;
the backbone lies in a file of its own beside it, or among the shipped weights.

Published checkpoints are pickles; they are read by an unpickler that can build tensors and plain containers and
nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from tracker_ros import registry
from tracker_ros.errors import WeightsError, WeightsMissing
from tracker_ros.networks.published import Converter

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
    _load_state(module, {key: value.float() for key, value in tensors.items()}, str(path))


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
    """Load the shipped backbone called `name` into a ResNet.

    Raises:
        WeightsMissing, WeightsError: see `load`.
    """
    load(shipped(name), module, name)


def _load_state(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
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


# --- published checkpoints -------------------------------------------------------------------------------------------


class _Inert:
    """Stands for any class that a pickle names: takes whatever it is given and runs nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None: ...

    def extend(self, values: object) -> None: ...


#: Storage classes of torch, and the element type of each.
_STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _StorageType:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A tensor on a flat storage; refuses views that reach beyond it."""
    ok = isinstance(storage, Tensor) and len(size) == len(stride) and offset >= 0
    if not ok or any(s < 0 for s in size) or any(s < 0 for s in stride):
        raise WeightsError("the checkpoint describes a tensor that cannot exist")
    reach = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else 0
    # The count of elements is bounded too: a stride of zero would let a few bytes claim any amount of memory.
    if reach >= max(storage.numel(), 1) or math.prod(size) > storage.numel():
        raise WeightsError("the checkpoint describes a tensor that reaches beyond its data")
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


class RestrictedUnpickler(pickle.Unpickler):
    """Builds tensors, numbers, strings and containers. Every other class becomes an inert object; no code runs."""

    def __init__(self, file: io.BufferedIOBase | io.BytesIO, load_storage: Callable[[Any], Tensor]) -> None:
        super().__init__(file, encoding="utf-8")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        """The few callables that a state dict needs; `_Inert` for anything else."""
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _rebuild_parameter
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        return _Inert

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage: ("storage", type, key, location, size)."""
        return self._load_storage(pid)


def read_checkpoint(path: str | Path) -> Any:
    """Read a ``torch.save`` file, zip or legacy format, by the restricted unpickler.

    Raises:
        WeightsMissing: no such file.
        WeightsError: not a checkpoint, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsMissing(f"checkpoint missing: {path} does not exist")
    try:
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way; all mean the same to the user
        raise WeightsError(f"{path} is not a checkpoint that can be read ({type(error).__name__}: {error})") from error


def _storage_fields(pid: Any) -> tuple[torch.dtype, str, int]:
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], _StorageType)):
        raise WeightsError("the checkpoint refers to something that is not a tensor's storage")
    return pid[1].dtype, str(pid[2]), int(pid[4])


def _from_bytes(data: bytes, dtype: torch.dtype, count: int) -> Tensor:
    if len(data) != count * dtype.itemsize:
        raise WeightsError(f"a storage has {len(data)} bytes, expected {count * dtype.itemsize}")
    return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
        if len(pickles) != 1:
            raise WeightsError("there is no data.pkl in the archive: this is not a torch.save file")
        prefix = pickles[0][: -len("data.pkl")]
        orders = [archive.read(n) for n in archive.namelist() if n == prefix + "byteorder"]
        if orders and orders[0] != b"little":
            raise WeightsError("the tensors are stored big-endian, which is not supported")
        cache: dict[str, Tensor] = {}

        def storage(pid: Any) -> Tensor:
            dtype, key, count = _storage_fields(pid)
            if key not in cache:
                cache[key] = _from_bytes(archive.read(f"{prefix}data/{key}"), dtype, count)
            return cache[key]

        return RestrictedUnpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def _read_legacy(path: Path) -> Any:
    """Format of torch before 1.6: magic number, protocol, system info, object, storage keys, raw storages."""
    storages: dict[str, Tensor] = {}

    def storage(pid: Any) -> Tensor:
        dtype, key, count = _storage_fields(pid)
        if len(pid) > 5 and pid[5] is not None:
            raise WeightsError("storage views are not supported; save the checkpoint again with a newer torch")
        if count > path.stat().st_size:
            raise WeightsError("a storage is larger than the file")
        if key not in storages:
            storages[key] = torch.zeros(count, dtype=dtype)
        return storages[key]

    class Unpickler(RestrictedUnpickler):
        """Tensors are built before their data is read, so they must stay views until then."""

        def find_class(self, module: str, name: str) -> Any:
            found = super().find_class(module, name)
            return _view if found is _rebuild_tensor else found

    def _view(data: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
        _rebuild_tensor(data, offset, size, stride)  # checks
        return torch.as_strided(data, tuple(size), tuple(stride), offset)

    with open(path, "rb") as file:
        if RestrictedUnpickler(file, storage).load() != 0x1950A86A20F9469CFC6C:
            raise WeightsError("this is neither a zip nor a legacy torch.save file")
        if RestrictedUnpickler(file, storage).load() != 1001:
            raise WeightsError("unknown legacy protocol")
        RestrictedUnpickler(file, storage).load()  # system info
        result = Unpickler(file, storage).load()
        for key in RestrictedUnpickler(file, storage).load():
            count = struct.unpack("<q", file.read(8))[0]
            target = storages[str(key)]
            target.copy_(_from_bytes(file.read(count * target.dtype.itemsize), target.dtype, count))
    return result


def builders() -> dict[str, Callable[[], nn.Module]]:
    """Network name to what builds the module, with random weights."""
    return {name: network.create for name, network in registry.networks().items()}


def importers() -> dict[str, tuple[Callable[[], nn.Module], Converter]]:
    """Network name to (builder of the module, converter of a published checkpoint), for those that were published."""
    return {
        name: (network.create, network.convert) for name, network in registry.networks().items() if network.converter
    }


def import_checkpoint(path: str | Path, network: str) -> nn.Module:
    """A network with the weights of a published checkpoint.

    Raises:
        WeightsError: unknown network name, unreadable file, or tensors that do not fit.
    """
    known = importers()
    if network not in known:
        raise WeightsError(f"no importer for '{network}'; there are: {', '.join(known)}")
    build, convert = known[network]
    checkpoint = read_checkpoint(path)
    module = build()
    try:
        tensors = convert(checkpoint)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{path}: tensor '{key}' has values that are not finite")
    _load_state(module, tensors, str(path))
    return module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tracker_ros import-weights``."""
    parser.add_argument("checkpoint", type=Path, help="published checkpoint (.pth, .pth.tar)")
    parser.add_argument("--tracker", required=True, help=f"network that it belongs to: {', '.join(importers())}")
    parser.add_argument("--out", type=Path, required=True, help="weights file to write (.safetensors)")
    parser.add_argument("--half", action="store_true", help="store float16: half the size, results within 1e-3")


def run(args: argparse.Namespace) -> int:
    """Import a published checkpoint and write a weights file."""
    module = import_checkpoint(args.checkpoint, args.tracker)
    save(args.out, module, args.tracker, f"imported from {args.checkpoint.name}", half=args.half)
    size = args.out.stat().st_size / 1e6
    count = sum(p.numel() for p in module.parameters()) / 1e6
    print(f"{args.out}: {args.tracker}, {count:.1f} M parameters, {size:.1f} MB")
    return 0
