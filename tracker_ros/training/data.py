"""Training images: still images with boxes, sequence folders and rendered frames.

Pixels are uint8 BGR together with their half-size copies, so that a crop never needs to shrink an image by more than
two with bilinear interpolation. Small sets are decoded once and held; the images of large ones (`layouts`) stay on
disk, and a `PixelStore` keeps those that were used last.
"""

from __future__ import annotations

import csv
import re
import struct
import threading
import zlib
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.images import InvalidImage, read_file
from tracker_ros.simulation.flight import Flight, FlightOptions

Image = NDArray[np.uint8]

#: A pyramid ends at the last level whose shorter side is below twice this, in pixels.
SMALLEST = 96


def pyramid(image: Image) -> list[Image]:
    """`image` and its successive halves, down to a shorter side of about `SMALLEST` pixels."""
    levels = [image]
    while min(levels[-1].shape[:2]) >= 2 * SMALLEST:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA).astype(np.uint8))
    return levels


class PixelStore:
    """Pyramids of image files, decoded when they are asked for; keeps those used last. Threads may share one.

    Args:
        limit: bytes of pixels to keep; the image that was read last stays even where it alone is larger.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[Hashable, list[Image]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}  # a process that gets a copy reads for itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limit"])  # type: ignore[misc]

    @property
    def bytes(self) -> int:
        """Bytes of the pixels that are kept now."""
        return self._bytes

    def read(self, path: str) -> list[Image]:
        """The pyramid of the image file `path`.

        Raises:
            FileNotFoundError: it is missing or no image.
        """
        # Annotations count the stored pixels, whatever rotation EXIF asks for.
        return self.keep(path, lambda: read_image(Path(path), oriented=False))

    def keep(self, key: Hashable, decode: Callable[[], Image]) -> list[Image]:
        """The pyramid of the image that is known as `key`, decoded if it is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        levels = pyramid(decode())
        with self._lock:
            if key not in self._kept:
                self._kept[key] = levels
                self._bytes += _bytes_of(levels)
                while self._bytes > self.limit and len(self._kept) > 1:
                    self._bytes -= _bytes_of(self._kept.popitem(last=False)[1])
        return levels


def _bytes_of(levels: list[Image]) -> int:
    return sum(level.nbytes for level in levels)


class LazyLevels(Sequence[Image]):
    """A pyramid that is decoded when a level is asked for; its size is known before."""

    __slots__ = ()

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; nothing is decoded for it."""

    @abstractmethod
    def read(self) -> list[Image]:
        """All levels."""

    def __len__(self) -> int:
        side, count = min(self.size), 1
        while side >= 2 * SMALLEST:
            side, count = side // 2, count + 1
        return count

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...

    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        return self.read()[index]

    def __iter__(self) -> Iterator[Image]:
        return iter(self.read())


class FileLevels(LazyLevels):
    """The pyramid of an image file, read through a `PixelStore` when a level is asked for.

    Args:
        store: keeps the pixels.
        folder, name: the file; two strings, since the images of a video share the first.
        size: width and height in pixels where they are known; read from the file's header otherwise.
    """

    __slots__ = ("_folder", "_name", "_size", "_store")

    def __init__(self, store: PixelStore, folder: str, name: str, size: tuple[int, int] | None = None) -> None:
        self._store, self._folder, self._name, self._size = store, folder, name, size

    @property
    def path(self) -> str:
        """The file."""
        return f"{self._folder}/{self._name}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; nothing is decoded for it."""
        if self._size is None:
            self._size = image_size(Path(self.path))
        return self._size

    def read(self) -> list[Image]:
        """All levels."""
        return self._store.read(self.path)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file, from its header where it is a JPEG or PNG.

    Raises:
        FileNotFoundError: it is missing or no image.
    """
    try:
        with path.open("rb") as file:
            size = _header_size(file)
    except (OSError, struct.error):
        size = None
    if size is None:
        height, width = read_image(path, oriented=False).shape[:2]
        size = width, height
    return size


def _header_size(file: BinaryIO) -> tuple[int, int] | None:
    """Width and height from the IHDR chunk of a PNG or the frame header of a JPEG; None for anything else."""
    start = file.read(24)
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        width, height = struct.unpack(">II", start[16:24])
        return width, height
    if start[:2] != b"\xff\xd8":
        return None
    file.seek(2)
    while True:
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF:
            return None
        if marker[1] == 0xFF:  # padding before a marker
            file.seek(-1, 1)
            continue
        (length,) = struct.unpack(">H", file.read(2))
        # SOF0 to SOF15 without DHT, JPG and DAC, which lie among them.
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">xHH", file.read(5))
            return width, height
        file.seek(length - 2, 1)


@dataclass(slots=True)
class TrainingImage:
    """One image.

    Attributes:
        levels: HxWx3 uint8 BGR, then the same image at 1/2, 1/4, ... of its size; pixels in memory or `LazyLevels`.
        boxes: Nx4 float32 (x, y, w, h), pixels of `levels[0]`, 0-based top-left; N may be 0.
        source: name of the data set, e.g. "coco" or "drone_drone_035".
        name: file name, for messages.
    """

    levels: Sequence[Image]
    boxes: NDArray[np.float32]
    source: str
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        if isinstance(self.levels, LazyLevels):
            return self.levels.size
        return self.levels[0].shape[1], self.levels[0].shape[0]


@dataclass
class ImagePool:
    """All training images.

    Attributes:
        images: stills and frames.
        sequences: indices of the consecutive frames of each video.
        loose: sources whose boxes are too loose to learn sizes from; they still say where the target is.
    """

    images: list[TrainingImage] = field(default_factory=list)
    sequences: list[list[int]] = field(default_factory=list)
    loose: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.images)

    def extend(self, other: ImagePool) -> None:
        """Add the images and videos of another pool."""
        start = len(self.images)
        self.images += other.images
        self.sequences += [[start + index for index in sequence] for sequence in other.sequences]
        self.loose |= other.loose


def read_boxes(directory: Path) -> dict[str, tuple[str, NDArray[np.float32]]]:
    """Source and boxes (Nx4) of each image that `directory`/boxes.csv names (`image,source,x,y,w,h,label`).

    Raises:
        FileNotFoundError: the table or images in `directory`/jpg are missing.
    """
    table = directory / "boxes.csv"
    if not table.is_file():
        raise FileNotFoundError(f"{table} not found: --images needs a folder with boxes.csv and jpg/")
    boxes: dict[str, list[list[float]]] = {}
    sources: dict[str, str] = {}
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            sources[row["image"]] = row["source"]
            found = boxes.setdefault(row["image"], [])
            if row["x"]:
                found.append([float(row[key]) for key in ("x", "y", "w", "h")])
    missing = [name for name in sources if not (directory / "jpg" / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(sources)} images of {table} are not in {directory / 'jpg'}, e.g. {missing[0]}"
        )
    return {name: (sources[name], _array(boxes[name])) for name in sorted(sources)}


def read_images(directory: Path) -> list[TrainingImage]:
    """Read `directory`/boxes.csv (see `read_boxes`) and the images in `directory`/jpg.

    Raises:
        FileNotFoundError: names what is missing.
    """
    return [
        TrainingImage(pyramid(read_image(directory / "jpg" / name)), boxes, source, name)
        for name, (source, boxes) in read_boxes(directory).items()
    ]


def read_sequence(directory: Path, step: int = 1) -> list[TrainingImage]:
    """Every `step`-th frame of `directory`/img with its row of groundtruth.txt (nan: target not in view, no box)."""
    truth = directory / "groundtruth.txt"
    if not truth.is_file():
        raise FileNotFoundError(f"{truth} not found: a sequence is a folder with img/ and groundtruth.txt")
    rows = np.loadtxt(truth, delimiter=",", dtype=np.float32, ndmin=2)
    frames = sorted((directory / "img").glob("*.jpg"))
    if len(frames) < len(rows):
        raise FileNotFoundError(f"{directory / 'img'} holds {len(frames)} frames, {truth} has {len(rows)} rows")
    result = []
    for frame, row in list(zip(frames, rows, strict=False))[::step]:
        boxes = [row.tolist()] if np.isfinite(row).all() else []
        result.append(TrainingImage(pyramid(read_image(frame)), _array(boxes), directory.name, frame.name))
    return result


def make_pool(
    images: Path | None, sequences: Sequence[Path] = (), loose: Sequence[Path] = (), sequence_step: int = 2
) -> ImagePool:
    """Read everything once; missing data is named before anything is decoded for long.

    Args:
        images: folder for `read_images`.
        sequences: folders for `read_sequence`.
        loose: more such folders, whose boxes are loose.
        sequence_step: take every n-th frame.

    Raises:
        FileNotFoundError: names every folder or file that is missing.
    """
    missing = [str(path) for path in [images, *sequences, *loose] if path is not None and not path.is_dir()]
    if missing:
        raise FileNotFoundError("training data not found: " + ", ".join(missing))
    pool = ImagePool(loose={directory.name for directory in loose})
    for directory in [*sequences, *loose]:
        start = len(pool.images)
        pool.images += read_sequence(directory, sequence_step)
        pool.sequences.append(list(range(start, len(pool.images))))
    if images is not None:
        pool.images += read_images(images)
    return pool


#: A pool of at least this many scenes has enough to hold a tenth of them out.
MANY_SCENES = 20


def split(pool: ImagePool, every: int = 12) -> tuple[ImagePool, ImagePool]:
    """Hold out images and videos, which no step of a training may see: (for training, held out).

    Of the stills it is every `every`-th. Of many videos it is a tenth of the scenes (`scenes`), chosen by a checksum of
    their names, so that every recipe holds out the same ones whatever else it reads; of a few videos it is the last.
    """
    last = len(pool.sequences) - 1
    names = scenes(pool)
    if len(set(names)) < MANY_SCENES:
        return _divide(pool, lambda video: 0 < video == last, lambda image: image % every == 0)
    held = [zlib.crc32(name.encode()) % 10 == 9 for name in names]
    return _divide(pool, lambda video: held[video], lambda image: image % every == 0)


def scenes(pool: ImagePool) -> list[str]:
    """The scene of each video of a pool.

    It is the source where that names the video, without a number at its end: `uav123_group1_1` and `uav123_group1_3`
    show one scene. Videos whose source does not are scenes of their own.
    """
    sources = [pool.images[sequence[0]].source for sequence in pool.sequences]
    numbered = [re.fullmatch(r"(.+?_.+)_\d+", source) for source in sources]
    return [
        match[1] if match else source if "_" in source else f"{source} {number}"
        for number, (source, match) in enumerate(zip(sources, numbered, strict=True))
    ]


def apart(pool: ImagePool, every: int = 3) -> tuple[ImagePool, ImagePool]:
    """Two parts for trainings on different images: every `every`-th of `image_groups` is in the second."""
    second = image_groups(pool) % every == 0
    return _divide(pool, lambda video: bool(second[pool.sequences[video][0]]), lambda image: bool(second[image]))


def image_groups(pool: ImagePool) -> NDArray[np.int64]:
    """A number for each image of a pool; images of one video or one file, and videos that share a file, have the same.

    Videos are counted before stills.
    """
    keys = [(image.source, getattr(image.levels, "path", image.name)) for image in pool.images]
    groups: dict[tuple[str, str], int] = {}
    stills = [[index] for index in range(len(keys))]
    for number, members in enumerate([*pool.sequences, *stills]):
        linked = {groups[keys[index]] for index in members if keys[index] in groups}
        group = min(linked, default=number)
        if len(linked) > 1:
            groups = {key: group if value in linked else value for key, value in groups.items()}
        groups.update(dict.fromkeys((keys[index] for index in members), group))
    order = {group: number for number, group in enumerate(sorted(set(groups.values())))}
    return np.array([order[groups[key]] for key in keys], np.int64)


def _divide(
    pool: ImagePool, video_second: Callable[[int], bool], still_second: Callable[[int], bool]
) -> tuple[ImagePool, ImagePool]:
    """Put the videos and the stills of which the two functions say so into a second pool."""
    videos = {index for sequence in pool.sequences for index in sequence}
    parts = ImagePool(loose=pool.loose), ImagePool(loose=pool.loose)
    for number, sequence in enumerate(pool.sequences):
        part = parts[video_second(number)]
        start = len(part.images)
        part.images += [pool.images[index] for index in sequence]
        part.sequences.append(list(range(start, len(part.images))))
    for index, image in enumerate(pool.images):
        if index not in videos:
            parts[still_second(index)].images.append(image)
    return parts


def read_image(path: Path, *, oriented: bool = True) -> Image:
    """Read an image file as HxWx3 uint8 BGR, turned as its orientation tag says if `oriented`.

    Raises:
        FileNotFoundError: it is missing or no image.
    """
    try:
        return read_file(path, oriented=oriented)
    except InvalidImage as error:
        raise FileNotFoundError(str(error)) from error


def _array(boxes: Iterable[Sequence[float]]) -> NDArray[np.float32]:
    return np.asarray(list(boxes), np.float32).reshape(-1, 4)


def add_flights(pool: ImagePool, seeds: Sequence[int], frames: int, step: int = 6) -> None:
    """Add simulated flights as videos: `frames` frames each, `step` flight frames apart.

    Frames that show less than 60 % of the target or hide half of it have no box.
    """
    for seed in seeds:
        flight = Flight(FlightOptions(seed=seed))
        start = len(pool.images)
        for number in range(frames):
            picture, truth = flight.render(number * step)
            visible = truth.box is not None and truth.in_view > 0.6 and truth.hidden < 0.5
            boxes = [list(truth.extent)] if visible else []
            pool.images.append(TrainingImage(pyramid(picture), _array(boxes), f"flight_{seed}", f"{number * step:06d}"))
        pool.sequences.append(list(range(start, len(pool.images))))
