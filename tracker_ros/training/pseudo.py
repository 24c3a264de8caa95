"""Videos without labels: a teacher tracker finds the same object in several photographs of it.

Stills move only as synthetic motion moves them; photographs of one object from several sides show what it really looks
like from elsewhere. A box is put on one view, the teacher localises its content in the others, and what it finds is
believed where the class score is high and the teacher finds its way back to the start (cycle consistency).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.training.augment import View, cut
from tracker_ros.training.data import ImagePool, TrainingImage

#: Mean colour that the teacher expects to be removed, RGB 0..255.
TEACHER_MEAN = (123.675, 116.28, 103.53)
#: (1x3x128x128) -> template features; (1x3x256x256, template features) -> 1x4x16x16 distances, 1x1x16x16 logits.
Template = Callable[[Tensor], Tensor]
Search = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

TEMPLATE_SIZE, SEARCH_SIZE, STRIDE = 128, 256, 16
#: Shown width and height relative to the box's: grown by 0.2 and by 2.0 on each side.
TEMPLATE_AREA, SEARCH_AREA = 1.4, 5.0
COLUMNS = ("video", "image", "x", "y", "w", "h", "score")


@dataclass(frozen=True)
class PseudoOptions:
    """What is believed.

    Attributes:
        attempts: start boxes tried for each object.
        scales: sides of the search region in another view, relative to the teacher's usual one, in the order of trial.
        sure: probability that needs no further scale.
        score: smallest probability of the class "target" in another view and on the way back.
        snap: smallest IoU of a start box with what the teacher makes of it in the same view.
        cycle: smallest IoU of the start box with where the way back ends.
        distinct: largest IoU of two videos' boxes on their first view of an object.
        smallest: smallest side of a box in pixels.
        largest: largest area of a box as share of the image's.
    """

    attempts: int = 6
    scales: tuple[float, ...] = (1.0, 0.7, 1.4)
    sure: float = 0.9
    score: float = 0.8
    snap: float = 0.5
    cycle: float = 0.65
    distinct: float = 0.6
    smallest: float = 24.0
    largest: float = 0.55


@dataclass(frozen=True)
class Label:
    """One box of one pseudo-labelled video.

    Attributes:
        video: number of the video, from 0.
        image: name of the image.
        box: pixels of the image.
        score: the teacher's probability, in [0, 1].
    """

    video: int
    image: str
    box: Box
    score: float


class Teacher:
    """The teacher's geometry: crops of their own width and height, the mean colour beyond the image.

    Args:
        template: network of the template crop.
        search: network of the search crop.
    """

    def __init__(self, template: Template, search: Search) -> None:
        self._template, self._search = template, search

    @torch.no_grad()
    def embed(self, image: TrainingImage, box: Box) -> Tensor:
        """Template features of `box` (pixels of `image`)."""
        view = _view(box.center, TEMPLATE_AREA * box.w, TEMPLATE_AREA * box.h)
        return self._template(_crop(image, view, TEMPLATE_SIZE))

    @torch.no_grad()
    def find(
        self, image: TrainingImage, template: Tensor, centre: tuple[float, float], width: float, height: float
    ) -> tuple[Box, float]:
        """The best box in a region of `image` of `width` x `height` pixels around `centre`, and its probability."""
        distances, logits = self._search(_crop(image, _view(centre, width, height), SEARCH_SIZE), template)
        best = int(logits.flatten().argmax())
        row, column = divmod(best, logits.shape[-1])
        left, top, right, bottom = distances[0, :, row, column].tolist()
        middle = SEARCH_SIZE / 2
        x, y = ((cell - logits.shape[-1] // 2) * STRIDE + middle for cell in (column, row))
        fx, fy = width / SEARCH_SIZE, height / SEARCH_SIZE
        box = Box(
            centre[0] + (x - left - middle) * fx,
            centre[1] + (y - top - middle) * fy,
            (left + right) * fx,
            (top + bottom) * fy,
        )
        return box, float(logits.flatten()[best].sigmoid())


def add_teacher_pairs(
    pool: ImagePool,
    template: Template,
    search: Search,
    seed: int,
    boxes_per_object: int = 2,
    cache: Path | None = None,
    views: int = 4,
    source: str = "ukbench",
    options: PseudoOptions | None = None,
) -> int:
    """Label images of `source` with the teacher and add them to `pool` as videos of two to `views` frames.

    The images of one object have consecutive numbers as names: `views` * k to `views` * k + `views` - 1. The added
    frames share the pixels of the images that are there.

    Args:
        pool: the images; a split into training and held out comes before.
        template, search: the teacher (`Template`, `Search`).
        seed: of the start boxes.
        boxes_per_object: largest number of videos of an object.
        cache: CSV file (`video,image,x,y,w,h,score`); read instead of labelling where it is there, written otherwise,
            so that a resumed run sees the same boxes.
        views: photographs of an object.
        source: which images.
        options: what is believed.

    Returns:
        The number of videos added.

    Raises:
        ValueError: the cache names an image that the pool does not hold, or is not such a file.
    """
    images = {image.name: image for image in pool.images if image.source == source}
    if cache is not None and cache.is_file():
        labels = read_labels(cache)
        strange = sorted({label.image for label in labels} - set(images))
        if strange:
            raise ValueError(
                f"{cache} has boxes of images that are not in the training data, e.g. {strange[0]}: "
                "it belongs to other data; remove it to label again"
            )
    else:
        objects: dict[int, list[TrainingImage]] = {}
        for name in sorted(images):
            objects.setdefault(int(Path(name).stem) // views, []).append(images[name])
        labels = list(label_views(list(objects.values()), Teacher(template, search), seed, boxes_per_object, options))
        if cache is not None:
            write_labels(cache, labels)
            labels = read_labels(cache)  # what a resumed run sees, rounded as in the file
    videos: dict[int, list[int]] = {}
    for label in labels:
        videos.setdefault(label.video, []).append(len(pool.images))
        pool.images.append(replace(images[label.image], boxes=np.asarray([label.box], np.float32)))
    pool.sequences += videos.values()
    return len(videos)


def label_views(
    objects: Sequence[Sequence[TrainingImage]],
    teacher: Teacher,
    seed: int,
    boxes_per_object: int = 2,
    options: PseudoOptions | None = None,
) -> Iterator[Label]:
    """Labels of the videos that the teacher is sure of; `objects` lists the views of each object."""
    o = options or PseudoOptions()
    video = 0
    for number, views in enumerate(objects):
        if len(views) < 2:
            continue
        rng = np.random.default_rng([seed, number])
        taken: list[tuple[str, Box]] = []
        for _ in range(o.attempts):
            if len(taken) == boxes_per_object:
                break
            first = views[int(rng.integers(len(views)))]
            start = _textured_box(first, rng)
            box, score = start, 1.0
            for _ in range(2):
                template = teacher.embed(first, box)
                box, score = teacher.find(first, template, box.center, SEARCH_AREA * box.w, SEARCH_AREA * box.h)
            if score < o.score or iou(box, start) < o.snap or not _plausible(first, box, o):
                continue
            if any(name == first.name and iou(box, other) > o.distinct for name, other in taken):
                continue
            found = [Label(video, first.name, box, score)]
            template = teacher.embed(first, box)
            for other in views:
                if other is not first and (place := _follow(teacher, first, box, template, other, o)) is not None:
                    found.append(Label(video, other.name, *place))
            if len(found) > 1:
                yield from found
                taken.append((first.name, box))
                video += 1


def _follow(
    teacher: Teacher, first: TrainingImage, box: Box, template: Tensor, other: TrainingImage, o: PseudoOptions
) -> tuple[Box, float] | None:
    """Where `other` shows what `box` shows in `first`; None where that is not sure."""
    middle = other.size[0] / 2, other.size[1] / 2
    place, score = box, -1.0
    for scale in o.scales:
        side = scale * SEARCH_AREA
        found = teacher.find(other, template, middle, side * box.w, side * box.h)
        place, score = max((place, score), found, key=lambda candidate: candidate[1])
        if score > o.sure:
            break
    if score < o.score or not _plausible(other, place, o):
        return None
    middle = first.size[0] / 2, first.size[1] / 2
    back = teacher.embed(other, place)
    end, returned = teacher.find(first, back, middle, SEARCH_AREA * place.w, SEARCH_AREA * place.h)
    if returned < o.score or iou(end, box) < o.cycle:
        return None
    return place, score


def read_labels(path: Path) -> list[Label]:
    """Read a file that `write_labels` wrote.

    Raises:
        ValueError: it is no such file.
    """
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} has the columns {rows.fieldnames}; expected {','.join(COLUMNS)}")
        return [
            Label(
                int(row["video"]),
                row["image"],
                Box(float(row["x"]), float(row["y"]), float(row["w"]), float(row["h"])),
                float(row["score"]),
            )
            for row in rows
        ]


def write_labels(path: Path, labels: Sequence[Label]) -> None:
    """Write labels as CSV (`video,image,x,y,w,h,score`); a killed run never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    with partial.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for label in labels:
            box = [f"{value:.2f}" for value in label.box]
            rows.writerow([label.video, label.image, *box, f"{label.score:.3f}"])
    partial.replace(path)


def _textured_box(image: TrainingImage, rng: np.random.Generator, candidates: int = 4) -> Box:
    """Of a few random boxes around the middle, the one with the most structure for its area."""
    width, height = image.size
    extent = math.sqrt(width * height)
    small = cv2.cvtColor(image.levels[-1], cv2.COLOR_BGR2GRAY).astype(np.float32)
    structure = np.abs(cv2.Laplacian(cv2.GaussianBlur(small, (0, 0), 1.0), cv2.CV_32F))
    fx, fy = small.shape[1] / width, small.shape[0] / height
    best, most = Box(0.0, 0.0, 1.0, 1.0), -1.0
    for _ in range(candidates):
        side = extent * math.exp(rng.uniform(math.log(0.2), math.log(0.6)))
        shape = math.exp(rng.normal(0.0, 0.35))
        w, h = min(side * shape, 0.9 * width), min(side / shape, 0.9 * height)
        x = float(np.clip(width * rng.normal(0.5, 0.12) - w / 2, 0, width - w))
        y = float(np.clip(height * rng.normal(0.5, 0.12) - h / 2, 0, height - h))
        inside = structure[int(y * fy) : math.ceil((y + h) * fy), int(x * fx) : math.ceil((x + w) * fx)]
        if float(inside.mean()) > most:
            best, most = Box(x, y, w, h), float(inside.mean())
    return best


def _plausible(image: TrainingImage, box: Box, o: PseudoOptions) -> bool:
    """Whether a box has a usable size and lies in the image."""
    width, height = image.size
    return (
        min(box.w, box.h) >= o.smallest
        and box.area <= o.largest * width * height
        and 0.25 <= box.w / box.h <= 4.0
        and box.clip(width, height).area >= 0.95 * box.area
    )


def _view(centre: tuple[float, float], width: float, height: float) -> View:
    return View(centre, math.sqrt(width * height), aspect=math.sqrt(width / height))


def _crop(image: TrainingImage, view: View, size: int) -> Tensor:
    """1x3xSxS float, RGB minus the teacher's mean; zero (the mean colour) beyond the image."""
    crop = cut(image, view, size, cv2.BORDER_CONSTANT, fill=TEACHER_MEAN[::-1])
    pixels: NDArray[np.float32] = crop[..., ::-1].astype(np.float32) - np.asarray(TEACHER_MEAN, np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
