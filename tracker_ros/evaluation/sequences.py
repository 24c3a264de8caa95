"""Sequences on disk: frames and the target's true boxes, in the layouts that tracking benchmarks use.

Each sequence is a folder with its images in ``img/``, in ``color/`` or beside the truth file, which is one of

- ``groundtruth.txt``: LaSOT, GOT-10k and VOT (rows of 8 numbers are corners of a polygon; its bounding box is taken);
- ``groundtruth_rect.txt``: OTB.

UAV123 keeps its truth apart: images in ``data_seq/**/<name>/``, boxes in ``anno/**/<name>.txt``.

A row is ``x, y, w, h`` in pixels, separated by commas, tabs or blanks; VOT's masks stand for their bounding boxes. The
target is absent where a row has a NaN or no area, where GOT-10k's ``absence.label`` says 1, or LaSOT's
``full_occlusion.txt`` or ``out_of_view.txt`` do.
"""

from __future__ import annotations

import codecs
import contextlib
import fnmatch
import itertools
import math
import re
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import Box, InvalidBox, validate_init_box
from tracker_ros.images import GreyScale, InvalidImage, read_file
from tracker_ros.text import printable
from tracker_ros.trackers.base import Frame

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
TRUTH_NAMES = ("groundtruth.txt", "groundtruth_rect.txt")
_IMAGE_FOLDERS = ("img", "color")
_ABSENCE_NAMES = ("absence.label", "full_occlusion.txt", "out_of_view.txt")


class InvalidSequence(ValueError):
    """A folder that is no sequence; the message names the file and what is wrong with it."""


class Images(Protocol):
    """Where a sequence's frames come from; one that processes are to share must be picklable."""

    def __len__(self) -> int:
        """Number of frames."""
        ...

    def __getitem__(self, index: int) -> Frame:
        """Read frame `index`: HxWx3 uint8, BGR."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Frames that are image files, one a frame; the first one sets the grey scale of them all."""

    paths: tuple[Path, ...]
    scale: GreyScale = field(default_factory=GreyScale, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Frame:
        if index and not self.scale.pictures:
            read_image(self.paths[0], self.scale)
        return read_image(self.paths[index], self.scale)


@dataclass(frozen=True)
class Sequence:
    """Images and the target's box in each.

    Attributes:
        name: name of the folder or bag.
        images: the frames.
        truth: Nx4 float64, x, y, w, h in pixels, 0-based; rows of NaN where the target is absent. Where `known` is
            False, the first row is the box to start on and the others are NaN.
        known: there is a truth to measure against.
        stamps: when the images were taken, in nanoseconds; empty where nothing tells.
        start: the box that trackers start on where it is not the first true one, see `with_starts`.
        sources: files and folders that it is read from.
    """

    name: str
    images: Images
    truth: NDArray[np.float64]
    known: bool = True
    stamps: tuple[int, ...] = ()
    start: Box | None = None
    sources: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def absent(self) -> NDArray[np.bool_]:
        """N booleans: the target is not in view."""
        absent: NDArray[np.bool_] = np.isnan(self.truth[:, 0])
        return absent

    @property
    def first_box(self) -> Box:
        """The box that trackers start on."""
        return self.start or Box(*(float(v) for v in self.truth[0]))

    def frame(self, index: int) -> Frame:
        """Read frame `index`: HxWx3 uint8, BGR.

        Raises:
            InvalidSequence: it is no image.
        """
        return self.images[index]


#: What stands between a sequence's name and that of a changed start.
START_MARK = "~"
#: How a first box is changed for another start, in the order of `with_starts`: shift over its size, and scale.
STARTS: dict[str, tuple[float, float, float]] = {
    **{"left": (-0.1, 0, 1), "right": (0.1, 0, 1), "up": (0, -0.1, 1), "down": (0, 0.1, 1)},
    **{"smaller": (0, 0, 0.8), "larger": (0, 0, 1.2), "small": (0, 0, 0.9), "large": (0, 0, 1.1)},
    **{"left-up": (-0.1, -0.1, 1), "right-down": (0.1, 0.1, 1)},
    **{"right-up": (0.1, -0.1, 1), "left-down": (-0.1, 0.1, 1)},
}


def with_starts(sequence: Sequence, count: int) -> list[Sequence]:
    """A sequence with `count` starts: from its first true box, and from boxes that are a little off.

    The others are those of OTB's spatial robustness evaluation (Wu et al., "Online Object Tracking: A Benchmark", CVPR
    2013, section 4): shifted by a tenth of the target's size, or scaled by 0.8 to 1.2 around its middle.

    Args:
        sequence: as it is.
        count: 1 to 13.

    Returns:
        the sequence, and others named ``<name>~<change>``, whose truth is the same. A change that leaves a box on which
        no track can start (too small, larger than the image, its centre outside) is left out.

    Raises:
        ValueError: no such count.
        InvalidSequence: the first frame is no image.
    """
    if not 1 <= count <= 1 + len(STARTS):
        raise ValueError(f"a sequence has 1 to {1 + len(STARTS)} starts, got {count}")
    found = [sequence]
    if count == 1:
        return found
    x, y, w, h = sequence.first_box
    height, width = sequence.frame(0).shape[:2]
    for name, (right, down, scale) in itertools.islice(STARTS.items(), count - 1):
        box = Box.from_center(x + w * (0.5 + right), y + h * (0.5 + down), w * scale, h * scale)
        try:
            validate_init_box(box, width, height)
        except InvalidBox:
            continue
        found.append(replace(sequence, name=f"{sequence.name}{START_MARK}{name}", start=box))
    return found


def read_image(path: Path, scale: GreyScale | None = None) -> Frame:
    """Read an image file as HxWx3 uint8, BGR; `scale` is that of the track, None for a picture that stands alone.

    Raises:
        InvalidSequence: see `images.read_file`.
    """
    try:
        return read_file(path, scale or GreyScale())
    except InvalidImage as error:
        raise InvalidSequence(str(error)) from error


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder, in the order of the numbers in their names (``9.jpg`` before ``10.jpg``).

    Files with a dot in front are none: what some systems leave beside a file they copy (``._9.jpg``) is no image.
    """
    found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and _seen(path)]
    return sorted((path for path in found if not path.is_dir()), key=_by_number)


def _by_number(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], path.name


def _seen(path: Path) -> bool:
    return not path.name.startswith(".")


def image_folder(folder: Path) -> Path:
    """Where the images of the sequence in `folder` are: ``img/``, ``color/`` or the folder itself."""
    return next(filter(Path.is_dir, (folder / name for name in _IMAGE_FOLDERS)), folder)


def truth_in(folder: Path) -> Path | None:
    """The truth file of the sequence in `folder`."""
    return next((folder / name for name in TRUTH_NAMES if (folder / name).is_file()), None)


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, UTF-16 or Latin-1, with or without a byte-order mark.

    Raises:
        InvalidSequence: it can't be read, or is no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidSequence(f"'{path}' can't be read: {error.strerror or error}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings: tuple[str, ...] = ("utf-16",)
    elif b"\0" in content[:2]:
        encodings = ("utf-16-le",) if content[:1] != b"\0" else ("utf-16-be",)
    else:
        encodings = ("utf-8", "latin-1")
    for encoding in encodings:
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode(encoding)
            if "\0" not in text:
                return text.removeprefix("\ufeff")
    raise InvalidSequence(f"'{path}' is no text file")


def read_boxes(path: Path) -> NDArray[np.float64]:
    """Read a truth file: Nx4 float64 (x, y, w, h in pixels); rows of NaN where it has no box.

    Raises:
        InvalidSequence: it is no text, or has a row that is not 4 (box) or 8 (polygon) numbers, nor a mask of VOT.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        row = line.strip()
        if not row:
            continue
        try:
            rows.append(_mask_box(row) if row.startswith("m") else _row_box(row))
        except ValueError as error:
            raise InvalidSequence(f"'{path}' line {number}: {error}") from None
    boxes = np.array(rows, np.float64).reshape(-1, 4)
    boxes[~np.isfinite(boxes).all(1) | (boxes[:, 2:] <= 0).any(1)] = np.nan
    return boxes


def _row_box(row: str) -> list[float]:
    """x, y, w, h of a row of 4 or 8 numbers, which commas, semicolons or blanks separate."""
    if ";" in row and "," in row:
        raise ValueError(
            f"'{printable(row[:80])}' has both commas and semicolons; expected one of them between numbers"
        )
    try:
        values = [float(v) for v in re.split(r"\s*[,;]\s*|\s+", row.rstrip(",; \t"))]
    except ValueError:
        raise ValueError(f"'{printable(row[:80])}' is not a row of numbers") from None
    if len(values) == 8:
        xs, ys = values[0::2], values[1::2]
        values = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    if len(values) != 4:
        raise ValueError(f"{len(values)} numbers; expected x, y, w, h or 8 for a polygon")
    return values


def _mask_box(row: str) -> list[float]:
    """The bounding box of a mask as VOT writes it since 2020: ``m`` x, y, w, h and the lengths of runs of 0 and 1."""
    try:
        x, y, w, h, *runs = (int(v) for v in row[1:].rstrip(", \t").split(","))
        if min(w, h, *runs, 0) < 0 or sum(runs) > w * h:
            raise ValueError
    except ValueError:
        raise ValueError(f"'{printable(row[:80])}' is not a mask: m, then x, y, w, h and the lengths of runs") from None
    ends = np.cumsum([0, *runs])
    left, top, right, bottom = w, h, 0, 0
    for first, end in zip(ends[1::2], ends[2::2], strict=False):
        if end > first:
            last = int(end) - 1
            several = last // w > int(first) // w
            left = min(left, 0 if several else int(first) % w)
            right = max(right, w if several else last % w + 1)
            top, bottom = min(top, int(first) // w), max(bottom, last // w + 1)
    if right <= left:
        return [math.nan] * 4
    return [float(x + left), float(y + top), float(right - left), float(bottom - top)]


def _read_flags(path: Path) -> NDArray[np.bool_]:
    """A file of numbers, of which those above 0 are True."""
    text = read_text(path).strip().rstrip(",; \t")
    try:
        return np.array([float(v) for v in re.split(r"[,;\s]+", text)]) > 0
    except ValueError as error:
        raise InvalidSequence(f"'{path}' is not a list of numbers: {error}") from None


def load_sequence(folder: Path, truth_file: Path | None = None, *, one_based: bool = False) -> Sequence:
    """Load the sequence in `folder`.

    Args:
        folder: has the images, in itself, ``img/`` or ``color/``, and the truth file. One with a single box for
            several images says where to start, and nothing more (GOT-10k's test set): `Sequence.known` is False.
        truth_file: the truth file, where it lies elsewhere.
        one_based: the first pixel of the truth is 1, as in Matlab's data sets (OTB, UAV123).

    Raises:
        InvalidSequence: no images, no truth, another number of boxes than images, or no box in the first frame.
    """
    if not folder.is_dir():
        raise InvalidSequence(f"there is no folder '{folder}'")
    images = list_images(image_folder(folder))
    if not images:
        raise InvalidSequence(f"'{folder}' has no images ({', '.join(sorted(IMAGE_SUFFIXES))}), nor has its img/")
    if truth_file is None:
        truth_file = truth_in(folder)
    if truth_file is None:
        raise InvalidSequence(f"'{folder}' has no {' or '.join(TRUTH_NAMES)}")
    truth = read_boxes(truth_file)
    known = len(truth) != 1 or len(images) == 1
    if not known:
        truth = np.concatenate([truth, np.full((len(images) - 1, 4), np.nan)])
    if len(truth) != len(images):
        raise InvalidSequence(f"'{folder}' has {len(images)} images, but '{truth_file.name}' has {len(truth)} boxes")
    for path in (folder / name for name in _ABSENCE_NAMES if known and (folder / name).is_file()):
        flags = _read_flags(path)
        if len(flags) != len(truth):
            raise InvalidSequence(f"'{path}' has {len(flags)} flags for {len(truth)} frames")
        truth[flags] = np.nan
    if np.isnan(truth[0]).any():
        raise InvalidSequence(f"'{truth_file}' has no box for the first frame, so no track can start")
    if one_based:
        truth[:, :2] -= 1
    sources = (folder, images[0].parent, truth_file)
    return Sequence(printable(folder.resolve().name), ImageFiles(tuple(images)), truth, known, sources=sources)


def check_start(sequence: Sequence) -> None:
    """Read the first frame, and check that a track can start on the first box.

    Raises:
        InvalidSequence: it can't.
    """
    height, width = sequence.frame(0).shape[:2]
    try:
        validate_init_box(sequence.first_box, width, height)
    except InvalidBox as error:
        raise InvalidSequence(f"no track can start on sequence '{sequence.name}': {error}") from error


def find_sequences(
    root: Path,
    only: SequenceOf[str] = (),
    exclude: SequenceOf[str] = (),
    *,
    one_based: bool = False,
    on_problem: Callable[[str], object] | None = None,
) -> list[Sequence]:
    """Load the sequences below `root`, sorted by name.

    Args:
        root: a folder of sequences or of folders of them (LaSOT's categories), UAV123's root, or one sequence.
        only: shell patterns (``otb_*``) of which a name must match one; empty: all names.
        exclude: patterns of which a name may match none.
        one_based: see `load_sequence`.
        on_problem: called with what is wrong with a sequence, which is left out; None: every one must do.

    Raises:
        InvalidSequence: nothing found or nothing left, two of one name, or sequences that are broken or on whose first
            box no track can start; all of them are named.
    """
    if not root.is_dir():
        raise InvalidSequence(f"there is no folder '{root}'")
    found = dict(_candidates(root))
    if not found:
        raise InvalidSequence(f"no folder below '{root}' has a {' or '.join(TRUTH_NAMES)} (nor is it UAV123's root)")
    folders = [
        folder
        for folder in sorted(found, key=lambda folder: folder.name)
        if (not only or _matches(folder.name, only)) and not _matches(folder.name, exclude)
    ]
    if not folders:
        raise InvalidSequence(
            f"none of the {len(found)} sequences in '{root}' is left by --only {list(only)} --exclude {list(exclude)}"
        )
    for one, other in itertools.pairwise(folders):
        if one.name == other.name:
            raise InvalidSequence(f"'{one}' and '{other}' have one name; results need different ones")
    sequences, problems = [], []
    for folder in folders:
        try:
            if len(found[folder]) > 1:
                names = " and ".join(f"'{path}'" for path in found[folder])
                raise InvalidSequence(f"'{folder}' has several truth files: {names}; keep one of them")
            sequence = load_sequence(folder, found[folder][0], one_based=one_based)
            check_start(sequence)
        except (InvalidSequence, OSError) as error:
            problems.append(str(error))
        else:
            sequences.append(sequence)
    if problems and (on_problem is None or not sequences):
        more = f"\n{len(problems)} of {len(folders)} sequences can't be used" if len(folders) > 1 else ""
        raise InvalidSequence("\n".join(problems) + more)
    for problem in problems:
        if on_problem is not None:
            on_problem(problem)
    return sequences


def _matches(name: str, patterns: SequenceOf[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _candidates(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Folders that look like sequences, with the truth files that may be theirs."""
    annotations = root / "anno"
    if not annotations.is_dir():
        yield from _folders_with_truth(root, 2)
        return
    truths: dict[str, list[Path]] = {}
    for path in filter(_seen, annotations.rglob("*.txt")):
        if path.parent.name != "att":  # The attributes of sequences, in files of the same names.
            truths.setdefault(path.stem, []).append(path)
    for folder in filter(Path.is_dir, (root / "data_seq").rglob("*")):
        own = truths.get(folder.name, [])
        # The images of UAV20L are among those of UAV123: each set has its truth in a folder of its name.
        chosen = [path for path in own if path.parent.name == folder.parent.name] or own
        if chosen:
            yield folder, chosen


def _folders_with_truth(folder: Path, depth: int) -> Iterator[tuple[Path, list[Path]]]:
    """`folder` itself if it has a truth file, else such folders down to `depth` below it."""
    truth = truth_in(folder)
    if truth is not None:
        yield folder, [truth]
    elif depth > 0:
        for path in filter(_seen, folder.iterdir()):
            if path.is_dir():
                yield from _folders_with_truth(path, depth - 1)
