"""Training data in a few compact files: ``tracker_ros pack``.

A pack is a folder with `manifest.json` and parts of limited size, so that it can be stored and sent where large files
cannot. A part is a safetensors file: its images as JPEG, one after the other, and their boxes; the manifest has the
videos and each part's SHA-256. Everything is data; nothing in a pack is executed.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tracker_ros.training.ahead import threaded
from tracker_ros.training.data import Image, ImagePool, LazyLevels, PixelStore, TrainingImage

FORMAT = "tracker_ros-pack-1"
MANIFEST = "manifest.json"
#: Bytes of a part for every image beside its JPEG, its boxes and its names, and for the part itself, at most.
_IMAGE_OVERHEAD, _PART_OVERHEAD = 32, 4096


@dataclass(frozen=True)
class PackOptions:
    """How images are packed.

    Attributes:
        longest: longest side in pixels; larger images are shrunk to it, smaller ones stay as they are.
        quality: of JPEG, 1 to 100.
        part_megabytes: largest size of a part, 1 MB = 10^6 bytes.

    Raises:
        ValueError: a value that makes no sense.
    """

    longest: int = 640
    quality: int = 90
    part_megabytes: float = 60.0

    def __post_init__(self) -> None:
        if self.longest < 32:
            raise ValueError(f"longest side of {self.longest} pixels: expected at least 32")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"JPEG quality {self.quality}: expected 1 to 100")
        if self.part_megabytes <= 0:
            raise ValueError(f"parts of {self.part_megabytes} MB: expected more than 0")


class PackedLevels(LazyLevels):
    """The pyramid of an image of a pack, decoded through a `PixelStore` when a level is asked for.

    Args:
        store: keeps the pixels.
        jpeg: the encoded image.
        size: width and height in pixels.
        name: for messages.
    """

    __slots__ = ("_jpeg", "_name", "_size", "_store")

    def __init__(self, store: PixelStore, jpeg: NDArray[np.uint8], size: tuple[int, int], name: str) -> None:
        self._store, self._jpeg, self._size, self._name = store, jpeg, size, name

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self._size

    def read(self) -> list[Image]:
        """All levels.

        Raises:
            ValueError: the image is damaged.
        """
        return self._store.keep(self, self._decode)

    def _decode(self) -> Image:
        picture = cv2.imdecode(self._jpeg, cv2.IMREAD_COLOR)
        if picture is None or picture.shape[1::-1] != self._size:
            raise ValueError(f"image {self._name} of the pack is damaged")
        return picture.astype(np.uint8, copy=False)


class _Entry(NamedTuple):
    """One packed image: JPEG bytes, width and height, Nx4 float32 boxes in its pixels, source and name."""

    jpeg: NDArray[np.uint8]
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    source: str
    name: str

    @property
    def bytes(self) -> int:
        """What it takes of a part, at most."""
        return len(self.jpeg) + self.boxes.nbytes + len(json.dumps([self.source, self.name])) * 2 + _IMAGE_OVERHEAD


def write_pack(pool: ImagePool, directory: Path, options: PackOptions | None = None) -> dict[str, Any]:
    """Write `pool` as a pack and return its manifest. The manifest is written last: without it a pack is not finished.

    Raises:
        ValueError: the pool is empty, or one image alone exceeds a part.
        FileExistsError: the folder already holds a pack.
    """
    options = options or PackOptions()
    if not len(pool):
        raise ValueError("there are no images to pack")
    if (directory / MANIFEST).exists():
        raise FileExistsError(f"{directory} already holds a pack: remove it, or choose another folder")
    directory.mkdir(parents=True, exist_ok=True)
    limit = int(options.part_megabytes * 1e6)
    parts: list[dict[str, Any]] = []
    entries: list[_Entry] = []
    size = _PART_OVERHEAD
    for entry in threaded(lambda image: _encode(image, options), pool.images):
        if entry.bytes + _PART_OVERHEAD > limit:
            raise ValueError(
                f"image {entry.name} takes {entry.bytes / 1e6:.2f} MB, more than a part of "
                f"{options.part_megabytes} MB: allow larger parts, or a smaller longest side"
            )
        if size + entry.bytes > limit:
            parts.append(_write_part(entries, directory, len(parts)))
            entries, size = [], _PART_OVERHEAD
        entries.append(entry)
        size += entry.bytes
    parts.append(_write_part(entries, directory, len(parts)))
    manifest = {
        "format": FORMAT,
        "images": len(pool),
        "longest": options.longest,
        "quality": options.quality,
        "parts": parts,
        "loose": sorted(pool.loose),
        "sequences": pool.sequences,
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _encode(image: TrainingImage, options: PackOptions) -> _Entry:
    picture = image.levels[0]
    height, width = picture.shape[:2]
    scale = min(1.0, options.longest / max(width, height))
    boxes = np.asarray(image.boxes, np.float32).reshape(-1, 4)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        boxes = boxes * np.array([size[0] / width, size[1] / height] * 2, np.float32)
    jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, options.quality])[1].astype(np.uint8, copy=False)
    return _Entry(jpeg.ravel(), (picture.shape[1], picture.shape[0]), boxes, image.source, image.name)


def _write_part(entries: list[_Entry], directory: Path, number: int) -> dict[str, Any]:
    path = directory / f"part-{number:03d}.safetensors"
    tensors: dict[str, NDArray[Any]] = {
        "jpeg": np.concatenate([entry.jpeg for entry in entries]),
        "jpeg_ends": np.cumsum([len(entry.jpeg) for entry in entries], dtype=np.int64),
        "sizes": np.array([entry.size for entry in entries], np.int32),
        "boxes": np.concatenate([entry.boxes for entry in entries]),
        "box_ends": np.cumsum([len(entry.boxes) for entry in entries], dtype=np.int64),
    }
    labels = {
        "format": FORMAT,
        "sources": json.dumps([entry.source for entry in entries]),
        "names": json.dumps([entry.name for entry in entries]),
    }
    path.write_bytes(save(tensors, metadata=labels))
    return {"file": path.name, "images": len(entries), "bytes": path.stat().st_size, "sha256": sha256(path)}


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def split_file(path: Path, directory: Path, megabytes: float) -> list[Path]:
    """Split a file for where large ones cannot go: `directory`/<name>.part00, part01, ... and <name>.sha256.

    In that folder ``cat NAME.part* > NAME && sha256sum -c NAME.sha256`` puts it together again and checks it.

    Args:
        path: the file.
        directory: where the parts go; parts of a file of that name that lie there are replaced.
        megabytes: largest size of a part, 1 MB = 10^6 bytes.

    Raises:
        ValueError: the parts would be more than a hundred.
    """
    limit = int(megabytes * 1e6)
    size = path.stat().st_size
    if limit < 1 or size > 100 * limit:
        raise ValueError(f"{path.name} of {size / 1e6:.0f} MB makes more than 100 parts of {megabytes} MB")
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / f"{path.name}.sha256").is_file():  # which is written last
        for old in directory.glob(f"{glob.escape(path.name)}.part[0-9][0-9]"):
            old.unlink()
    parts: list[Path] = []
    with path.open("rb") as file:
        while block := file.read(limit):
            parts.append(directory / f"{path.name}.part{len(parts):02d}")
            parts[-1].write_bytes(block)
    (directory / f"{path.name}.sha256").write_text(f"{sha256(path)}  {path.name}\n")
    return parts


def read_pack(directory: Path, store: PixelStore | None = None) -> ImagePool:
    """Read a pack; its parts are checked against the manifest, and held in memory as they are.

    Args:
        directory: the pack.
        store: keeps decoded pixels; by default one of 4 GiB.

    Raises:
        FileNotFoundError: no pack, or parts of it are missing; names them.
        ValueError: a manifest of another format, or damaged parts.
    """
    manifest = _read_manifest(directory)
    parts = [(directory / str(part["file"]), part) for part in manifest["parts"]]
    missing = [path.name for path, _ in parts if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{directory}: parts of the pack are missing: {', '.join(missing)}")
    for path, part in parts:
        if path.stat().st_size != part["bytes"] or sha256(path) != part["sha256"]:
            raise ValueError(f"{path} is not the file that {MANIFEST} describes (SHA-256 differs): copy it again")
    store = store or PixelStore(4 << 30)
    images = [
        TrainingImage(PackedLevels(store, entry.jpeg, entry.size, entry.name), entry.boxes, entry.source, entry.name)
        for path, _ in parts
        for entry in _read_part(path)
    ]
    sequences = [[int(index) for index in sequence] for sequence in manifest["sequences"]]
    if len(images) != manifest["images"] or any(not 0 <= i < len(images) for video in sequences for i in video):
        raise ValueError(f"{directory / MANIFEST} does not fit its parts: they hold {len(images)} images")
    return ImagePool(images, sequences, set(manifest["loose"]))


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: a pack is a folder that 'tracker_ros pack' has written to its end")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"{path} has the format '{manifest['format']}', expected '{FORMAT}'")
        _ = manifest["images"], manifest["loose"], manifest["sequences"]
        if any(Path(part["file"]).name != part["file"] for part in manifest["parts"]):
            raise ValueError(f"{path} names parts outside of its folder")
        return manifest
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the manifest of a pack ({type(error).__name__}: {error})") from error


def _read_part(path: Path) -> Iterator[_Entry]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            jpeg, boxes = file.get_tensor("jpeg"), file.get_tensor("boxes")
            ends, box_ends = file.get_tensor("jpeg_ends"), file.get_tensor("box_ends")
            sizes = file.get_tensor("sizes")
            labels = file.metadata() or {}
        sources, names = json.loads(labels["sources"]), json.loads(labels["names"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a part of a pack ({error})") from error
    start = box_start = 0
    rows = zip(ends.tolist(), box_ends.tolist(), sizes.tolist(), sources, names, strict=True)
    for end, box_end, (width, height), source, name in rows:
        yield _Entry(jpeg[start:end], (width, height), boxes[box_start:box_end], source, name)
        start, box_start = end, box_end
