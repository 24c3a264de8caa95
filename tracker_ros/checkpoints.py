"""Published checkpoints: read them, and import them as weights files.

They are pickles. They are read by an unpickler that can build tensors and plain containers and nothing else, so nothing
in a file is executed.
"""

from __future__ import annotations

import argparse
import io
import math
import mmap
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tracker_ros import registry, weights
from tracker_ros.errors import WeightsError
from tracker_ros.networks.published import Converter
from tracker_ros.text import printable
from tracker_ros.weight_files import check_file, gigabytes


class _Inert:
    """Stands for any class that a pickle names, and what is made of it: takes whatever it is given and runs nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

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
    """A view of a flat storage; refuses those that reach beyond it."""
    ok = isinstance(storage, Tensor) and len(size) == len(stride) and offset >= 0
    if not ok or any(s < 0 for s in size) or any(s < 0 for s in stride):
        raise WeightsError("the checkpoint describes a tensor that cannot exist")
    reach = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else 0
    # The count of elements is bounded too: a stride of zero would let a few bytes claim any amount of memory.
    if reach >= max(storage.numel(), 1) or math.prod(size) > storage.numel():
        raise WeightsError("the checkpoint describes a tensor that reaches beyond its data")
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _ordered(*pairs: Any) -> OrderedDict[Any, Any]:
    """An OrderedDict, of a list of pairs as Python 2 pickled it."""
    found: OrderedDict[Any, Any] = OrderedDict()
    for key, value in pairs[0] if pairs else ():
        if _is_key(key):
            found[key] = value
    return found


def _is_key(key: object) -> bool:
    """Whether a dictionary takes it as a key: tuples of tuples may take forever to hash."""
    return isinstance(key, str | bytes | int | float | None)


#: The C implementation reserves, and fills, memory by numbers that a file claims; this one does not.
_Base = pickle._Unpickler


class RestrictedUnpickler(_Base):
    """Builds tensors, numbers, strings and containers. Every other class becomes an inert object; no code runs.

    What the built objects would do themselves when they are restored (`__setstate__`, `__setitem__`) is left out; sets
    are inert too.
    """

    def __init__(self, file: Any, load_storage: Callable[[Any], Tensor]) -> None:
        super().__init__(file, encoding="utf-8")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        """The few callables that a state dict needs; `_Inert` for anything else."""
        if module == "collections" and name == "OrderedDict":
            return _ordered
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

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def _set_items(self, target: object, items: list[Any]) -> None:
        if isinstance(target, dict):
            target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if _is_key(key))
        elif not isinstance(target, _Inert):
            raise WeightsError("the checkpoint puts items into something that takes none")

    def _load_set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items(self.stack[-1], [key, value])

    def _load_set_items(self) -> None:
        items = self.pop_mark()
        self._set_items(self.stack[-1], items)

    def _load_dict(self) -> None:
        items, found = self.pop_mark(), dict[Any, Any]()
        self._set_items(found, items)
        self.append(found)

    def _load_build(self) -> None:
        self.stack.pop()

    def _load_set(self) -> None:
        self.append(_Inert())

    def _load_marked_set(self) -> None:
        self.pop_mark()
        self.append(_Inert())

    def _load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        known = any(function is own for own in (_ordered, _rebuild_tensor, _rebuild_parameter))
        self.append(function(*arguments) if known else _Inert())

    def _load_unknown(self) -> None:
        raise WeightsError("the checkpoint has an instruction that no state dict needs")

    dispatch = _Base.dispatch | {
        pickle.SETITEM[0]: _load_set_item,
        pickle.SETITEMS[0]: _load_set_items,
        pickle.DICT[0]: _load_dict,
        pickle.BUILD[0]: _load_build,
        pickle.REDUCE[0]: _load_reduce,
        pickle.EMPTY_SET[0]: _load_set,
        pickle.ADDITEMS[0]: lambda self: self.pop_mark(),
        pickle.FROZENSET[0]: _load_marked_set,
        pickle.EXT1[0]: _load_unknown,
        pickle.EXT2[0]: _load_unknown,
        pickle.EXT4[0]: _load_unknown,
        pickle.BYTEARRAY8[0]: _load_unknown,
        pickle.NEXT_BUFFER[0]: _load_unknown,
        pickle.READONLY_BUFFER[0]: _load_unknown,
    }


#: Most bytes of a checkpoint; of a pickle in one, which has a few hundred a tensor; of an archive's table of contents.
_MAX_FILE = 8 << 30
_MAX_PICKLE = 8 << 20
_MAX_TABLE = 4 << 20


class _Reader:
    """What an unpickler reads of a mapped file, up to `_MAX_PICKLE` bytes."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._left = _MAX_PICKLE

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or what there is."""
        return self._count(self._data.read(max(0, min(size, self._left + 1))))

    def readline(self) -> bytes:
        """The next line."""
        end = self._data.find(b"\n", self._data.tell(), self._data.tell() + self._left + 1)
        return self.read(self._left + 1 if end < 0 else end + 1 - self._data.tell())

    def _count(self, found: bytes) -> bytes:
        self._left -= len(found)
        if self._left < 0:
            raise WeightsError(f"its list of tensors takes more than {gigabytes(_MAX_PICKLE)}, which are not read")
        return found


class _Archive(io.FileIO):
    """A file of which `zipfile` reads no more at once than a table of contents takes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_TABLE:
            raise WeightsError(f"the archive claims a table of contents of {gigabytes(size)}")
        return super().read(size)


def read_checkpoint(path: str | Path, *, outline: bool = False) -> Any:
    """Read a ``torch.save`` file, zip or legacy format, by the restricted unpickler.

    The tensors are views of the file, which takes memory only where they are read: it must stay as it is meanwhile.

    Args:
        path: the file.
        outline: tensors have shapes and no data (device ``meta``).

    Raises:
        WeightsMissing: no such file.
        WeightsError: not a checkpoint, or a damaged one.
    """
    path = check_file(path, "a checkpoint (.pth, .pth.tar)")
    shown = printable(str(path))
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_FILE:
                raise WeightsError(f"it has {gigabytes(size)}, more than any checkpoint of these networks")
            if file.read(9)[8:9] == b"{":
                raise WeightsError("this is a safetensors file, which needs no import: give it as the option 'weights'")
            # A copy where it is written, which nothing does.
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        return _read_zip(path, data, outline) if data[:2] == b"PK" else _read_legacy(data, outline)
    except WeightsError as error:
        raise WeightsError(f"{shown}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way; all mean the same to the user
        why = f"{type(error).__name__}: {printable(str(error)[:200])}"
        raise WeightsError(f"{shown} is not a checkpoint that can be read ({why})") from error


def _storage_fields(pid: Any) -> tuple[torch.dtype, str, int]:
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], _StorageType)):
        raise WeightsError("the checkpoint refers to something that is not a tensor's storage")
    count = int(pid[4])
    if not 0 <= count <= _MAX_FILE:
        raise WeightsError(f"a storage claims {count} values")
    return pid[1].dtype, str(pid[2]), count


def _from_bytes(data: mmap.mmap, begin: int, size: int, dtype: torch.dtype, count: int, outline: bool) -> Tensor:
    """A storage of `count` values, which are the `size` bytes of a file from `begin` on."""
    if size != count * dtype.itemsize or begin + size > len(data):
        there = min(size, max(0, len(data) - begin))
        raise WeightsError(f"a storage has {there} bytes, expected {count * dtype.itemsize}")
    if outline:
        return torch.empty(count, dtype=dtype, device="meta")
    return torch.frombuffer(data, dtype=dtype, count=count, offset=begin) if count else torch.empty(0, dtype=dtype)


def zip_entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries of a ``torch.save`` file of today by their names within its folder.

    Raises:
        WeightsError: another archive, or one whose entries are compressed or claim more than the file has.
        zipfile.BadZipFile: a damaged archive.
    """
    with _Archive(path) as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    pickles = [e.filename for e in entries if e.filename.endswith("/data.pkl") or e.filename == "data.pkl"]
    if len(pickles) != 1:
        names = ", ".join(printable(e.filename[:40]) for e in entries[:3]) or "nothing"
        raise WeightsError(f"there is no data.pkl in the archive: this is not a torch.save file (in it: {names})")
    prefix = pickles[0][: -len("data.pkl")]
    found = {e.filename.removeprefix(prefix): e for e in entries if e.filename.startswith(prefix)}
    if "constants.pkl" in found:
        raise WeightsError("this is a TorchScript program, which is not read as weights: save its state_dict()")
    total, size = sum(e.file_size for e in entries), path.stat().st_size
    if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in entries) or total > size:
        raise WeightsError(
            f"its entries are compressed ({gigabytes(total)} in {gigabytes(size)}), as torch.save does not do: "
            "unpack it and save it again"
        )
    if found["data.pkl"].file_size > _MAX_PICKLE:
        raise WeightsError(f"its list of tensors takes more than {gigabytes(_MAX_PICKLE)}, which are not read")
    return found


def _read_zip(path: Path, data: mmap.mmap, outline: bool) -> Any:
    entries = zip_entries(path)

    def place(name: str) -> tuple[int, int]:
        """Where the data of an entry begin, and how many there are."""
        entry = entries.get(name)
        if entry is None:
            raise WeightsError(f"the archive has no '{printable(name[:40])}'")
        mark, names, extra = struct.unpack_from("<4s22xHH", data, entry.header_offset)
        begin = entry.header_offset + 30 + names + extra
        if mark != b"PK\x03\x04" or begin + entry.file_size > len(data):
            raise WeightsError(f"the archive's '{printable(name[:40])}' is damaged")
        return begin, entry.file_size

    def content(name: str) -> bytes:
        begin, size = place(name)
        return data[begin : begin + size]

    if "byteorder" in entries and content("byteorder")[:16] != b"little":
        raise WeightsError("the tensors are stored big-endian, which is not supported")
    cache: dict[str, Tensor] = {}

    def storage(pid: Any) -> Tensor:
        dtype, key, count = _storage_fields(pid)
        if key not in cache:
            name = f"data/{key}"
            begin, size = place(name)
            cache[key] = _from_bytes(data, begin, size, dtype, count, outline)
            if not outline and size and zlib.crc32(memoryview(data)[begin : begin + size]) != entries[name].CRC:
                raise WeightsError(f"the data of '{printable(name[:40])}' are damaged (their checksum is another)")
        return cache[key]

    return RestrictedUnpickler(io.BytesIO(content("data.pkl")), storage).load()


def _read_legacy(data: mmap.mmap, outline: bool) -> Any:
    """Format of torch before 1.6: magic number, protocol, system info, object, storage keys, raw storages."""

    def none(pid: Any) -> Tensor:
        raise WeightsError("the checkpoint refers to something that is not a tensor's storage")

    claimed: dict[str, tuple[torch.dtype, int]] = {}

    def claim(pid: Any) -> Tensor:
        dtype, key, count = _storage_fields(pid)
        if len(pid) > 5 and pid[5] is not None:
            raise WeightsError("storage views are not supported; save the checkpoint again with a newer torch")
        if count * dtype.itemsize > len(data):
            raise WeightsError("a storage is larger than the file")
        claimed.setdefault(key, (dtype, count))
        return torch.empty(claimed[key][1], dtype=claimed[key][0], device="meta")

    data.seek(0)
    if RestrictedUnpickler(_Reader(data), none).load() != 0x1950A86A20F9469CFC6C:
        raise WeightsError("this is neither a zip nor a legacy torch.save file")
    if RestrictedUnpickler(_Reader(data), none).load() != 1001:
        raise WeightsError("unknown legacy protocol")
    RestrictedUnpickler(_Reader(data), none).load()  # system info
    begin = data.tell()
    result = RestrictedUnpickler(_Reader(data), claim).load()
    # The storages lie behind the object that refers to them, so it is read again with their places known.
    storages: dict[str, Tensor] = {}
    for key in map(str, RestrictedUnpickler(_Reader(data), none).load()):
        if key not in claimed:
            raise WeightsError("the checkpoint has data that no tensor refers to")
        dtype, count = claimed[key]
        (stored,) = struct.unpack("<q", data.read(8))
        if stored != count:
            raise WeightsError(f"a storage has {stored} values, expected {count}")
        storages[key] = _from_bytes(data, data.tell(), count * dtype.itemsize, dtype, count, outline)
        data.seek(count * dtype.itemsize, os.SEEK_CUR)
    if claimed.keys() - storages.keys():
        raise WeightsError("the data of some tensors are missing")
    if outline:
        return result
    data.seek(begin)
    return RestrictedUnpickler(_Reader(data), lambda pid: storages[_storage_fields(pid)[1]]).load()


def read_own(path: str | Path) -> dict[str, Any]:
    """The checkpoint of a run of ``tracker_ros train``, or another ``torch.save`` file of tensors and plain values.

    Its tensors are read from the file where they are used.

    Raises:
        WeightsMissing: no such file.
        WeightsError: not such a file, a damaged one, or one that needs more than tensors and plain values.
    """
    path = check_file(path, "a checkpoint (.pt, .pth)")
    shown = printable(str(path))
    try:
        zip_entries(path)
        state = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except WeightsError as error:
        raise WeightsError(f"{shown}: {error}") from error
    except Exception as error:
        why = f"{type(error).__name__}: {printable(str(error)[:200])}"
        raise WeightsError(f"{shown} is not a checkpoint that can be read ({why})") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{shown} holds a {type(state).__name__} and no state")
    return state


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
    source = printable(str(path))

    def converted(checkpoint: Any) -> dict[str, Tensor]:
        try:
            return convert(checkpoint)
        except (WeightsError, RuntimeError, IndexError) as error:
            raise WeightsError(f"{source}: {error}") from error

    module = build()
    # What does not fit is known by its shapes, before any data are read.
    outline = converted(read_checkpoint(path, outline=True))
    weights.check_shapes(module, {key: tuple(value.shape) for key, value in outline.items()}, source)
    tensors = converted(read_checkpoint(path))
    weights.check_finite(tensors, source)
    weights.load_state(module, tensors, source)
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
