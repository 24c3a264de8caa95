"""Training images in memory: still images with boxes, sequence folders and rendered frames.

Everything is decoded once and held as uint8 BGR together with its half-size copies, so that a crop never needs to
shrink an image by more than two with bilinear interpolation.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.simulation.flight import Flight, FlightOptions

Image = NDArray[np.uint8]


@dataclass
class TrainingImage:
    """One decoded image.

    Attributes:
        levels: HxWx3 uint8 BGR, then the same image at 1/2, 1/4, ... of its size.
        boxes: Nx4 float32 (x, y, w, h), pixels of `levels[0]`, 0-based top-left; N may be 0.
        source: name of the data set, e.g. "coco" or "drone_drone_035".
        name: file name, for messages.
    """

    levels: list[Image]
    boxes: NDArray[np.float32]
    source: str
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
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


def pyramid(image: Image, smallest: int = 96) -> list[Image]:
    """`image` and its successive halves, down to a shorter side of about `smallest` pixels."""
    levels = [image]
    while min(levels[-1].shape[:2]) >= 2 * smallest:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA).astype(np.uint8))
    return levels


def read_images(directory: Path) -> list[TrainingImage]:
    """Read `directory`/boxes.csv (`image,source,x,y,w,h,label`) and the images in `directory`/jpg.

    Raises:
        FileNotFoundError: names what is missing.
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
    return [
        TrainingImage(pyramid(_read(directory / "jpg" / name)), _array(boxes[name]), sources[name], name)
        for name in sorted(sources)
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
        result.append(TrainingImage(pyramid(_read(frame)), _array(boxes), directory.name, frame.name))
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


def split(pool: ImagePool, every: int = 12) -> tuple[ImagePool, ImagePool]:
    """Hold out every `every`-th image and, of several videos, the last: (for training, held out)."""
    videos = {index for sequence in pool.sequences for index in sequence}
    parts = ImagePool(loose=pool.loose), ImagePool(loose=pool.loose)
    for number, sequence in enumerate(pool.sequences):
        part = parts[number > 0 and number == len(pool.sequences) - 1]
        start = len(part.images)
        part.images += [pool.images[index] for index in sequence]
        part.sequences.append(list(range(start, len(part.images))))
    for index, image in enumerate(pool.images):
        if index not in videos:
            parts[index % every == 0].images.append(image)
    return parts


def _read(path: Path) -> Image:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(f"{path} is not an image that OpenCV can read")
    return image.astype(np.uint8, copy=False)


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
