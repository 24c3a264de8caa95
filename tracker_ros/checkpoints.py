"""Published checkpoints: read them, and import them as weights files.

They are pickles. They are read by an unpickler that can build tensors and plain containers and nothing else, so nothing
in a file is executed.
"""

from __future__ import annotations

import argparse
import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tracker_ros import registry, weights
from tracker_ros.errors import WeightsError, WeightsMissing
from tracker_ros.networks.published import Converter


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
    weights.load_state(module, tensors, str(path))
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
    weights.save(args.out, module, args.tracker, f"imported from {args.checkpoint.name}", half=args.half)
    size = args.out.stat().st_size / 1e6
    count = sum(p.numel() for p in module.parameters()) / 1e6
    print(f"{args.out}: {args.tracker}, {count:.1f} M parameters, {size:.1f} MB")
    return 0
