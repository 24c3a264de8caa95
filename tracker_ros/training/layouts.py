"""Published data sets from disk, in the folders that they unpack to: ``--data got10k:/data/GOT-10k/train``.

Only the annotations are read here; all that is missing is gathered and named in one message before any pixel is
decoded. The images are `FileLevels` and share one `PixelStore`.

Boxes become x, y, w, h in pixels, 0-based. What the sets count from:

- 1: GOT-10k ("all coordinate values are 1-based", got-10k/toolkit issue 6), LaSOT (HengLan/LaSOT_Evaluation_Toolkit
  issue 14), OTB and UAV123 (Matlab);
- 0: COCO (cocodataset.org, "Data format") and TrackingNet, whose boxes come from YouTube-BB's;
- YouTube-BB has shares of the frame's width and height;
- ImageNet VID does not say; its corners are read as they are.

A frame has no box where the set says that the target is absent, out of view or fully covered, and where its row has a
NaN or no area.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracker_ros.training.data import FileLevels, ImagePool, PixelStore, TrainingImage, read_boxes
from tracker_ros.training.pack import read_pack

#: Bytes of decoded pixels that are kept in memory.
CACHE_BYTES = 4 << 30
#: Missing things that a message lists; the rest is counted.
LISTED = 12

Boxes = NDArray[np.float64]


class Collector:
    """Gathers the images of one data set, and what of it is missing.

    Args:
        layout: name of the layout; becomes the images' source.
        store: reads the pixels.
        step: take every n-th frame of a video.
        only, skip: patterns of names of videos (`fnmatch`): those to take, all if there is none, and to leave out.
    """

    def __init__(
        self, layout: str, store: PixelStore, step: int = 1, only: Sequence[str] = (), skip: Sequence[str] = ()
    ) -> None:
        self.layout, self.store, self.step, self.only, self.skip = layout, store, step, only, skip
        self.pool = ImagePool()
        self.problems: list[str] = []
        self._none = np.zeros((0, 4), np.float32)

    def problem(self, text: str) -> None:
        """Note something that is missing or wrong."""
        self.problems.append(f"{self.layout}: {text}")

    def chosen(self, video: str) -> bool:
        """Whether a video of this name is wanted."""
        wanted = not self.only or any(fnmatch(video, pattern) for pattern in self.only)
        return wanted and not any(fnmatch(video, pattern) for pattern in self.skip)

    def files(self, folder: Path) -> set[str]:
        """Names in a folder; empty, and a problem, where there is no such folder."""
        try:
            return set(os.listdir(folder))
        except OSError:
            self.problem(f"folder {folder} not found")
            return set()

    def numbers(self, path: Path, expected: str) -> NDArray[np.float64] | None:
        """Rows of numbers separated by commas, tabs or blanks; None, and a problem, where that is not what it has."""
        try:
            lines = path.read_text().replace(",", " ").replace(";", " ").splitlines()
        except OSError:
            self.problem(f"{path} not found: expected {expected}")
            return None
        rows = [line.split() for line in lines if line.strip()]
        try:
            return np.array(rows, np.float64).reshape(len(rows), -1)
        except ValueError:
            self.problem(f"{path} is not rows of equally many numbers: expected {expected}")
            return None

    def boxes(self, path: Path, one_based: bool) -> Boxes | None:
        """Nx4 boxes, 0-based, rows of NaN where there is none; None, and a problem, where the file has no such rows."""
        rows = self.numbers(path, "one row x,y,w,h a frame")
        if rows is None:
            return None
        if rows.shape[1] != 4:
            self.problem(f"{path} has {rows.shape[1]} numbers a row: expected x,y,w,h")
            return None
        rows[~np.isfinite(rows).all(1) | (rows[:, 2:] <= 0).any(1)] = np.nan
        rows[:, :2] -= one_based
        return rows

    def hide(self, boxes: Boxes, path: Path, hidden: Callable[[NDArray[np.float64]], NDArray[np.bool_]]) -> None:
        """Set the rows of `boxes` to NaN for which `hidden` of the numbers in `path` (one a frame) is true."""
        flags = self.numbers(path, "one number a frame")
        if flags is None:
            return
        if flags.size != len(boxes):
            self.problem(f"{path} has {flags.size} numbers for {len(boxes)} frames")
            return
        boxes[hidden(flags.ravel())] = np.nan

    def video(self, folder: Path, names: Sequence[str], boxes: Boxes, source: str = "") -> None:
        """Add the frames `folder`/`names` with one row of `boxes` each; missing files are a problem."""
        if len(names) < len(boxes):
            self.problem(f"{folder} holds {len(names)} images, but its truth has {len(boxes)} rows")
            return
        names, boxes = names[: len(boxes) : self.step], boxes[:: self.step]
        there = self.files(folder)
        if not there:
            return
        lost = [name for name in names if name not in there]
        if lost:
            self.problem(f"{len(lost)} of {len(names)} frames are not in {folder}, e.g. {lost[0]}")
            return
        self.frames([self.levels(folder, name) for name in names], names, boxes, source)

    def levels(self, folder: Path, name: str, size: tuple[int, int] | None = None) -> FileLevels:
        """The pixels of a file; `size` is width and height where they are known."""
        return FileLevels(self.store, sys.intern(str(folder)), sys.intern(name), size)

    def frames(self, levels: Sequence[FileLevels], names: Sequence[str], boxes: Boxes, source: str = "") -> None:
        """Add a video of these frames, unless it never shows its target; the layout is its source if none is given."""
        seen = ~np.isnan(boxes[:, 0])
        if not seen.any():
            return
        rows = boxes.astype(np.float32)
        start = len(self.pool.images)
        for index, (pixels, name) in enumerate(zip(levels, names, strict=True)):
            box = rows[index : index + 1] if seen[index] else self._none
            self.pool.images.append(TrainingImage(pixels, box, source or self.layout, sys.intern(name)))
        self.pool.sequences.append(list(range(start, len(self.pool.images))))

    def still(self, levels: FileLevels, name: str, source: str, boxes: NDArray[np.float32]) -> None:
        """Add an image that belongs to no video."""
        self.pool.images.append(TrainingImage(levels, boxes, source, name))


def read_got10k(root: Path, found: Collector) -> None:
    """GOT-10k: `root` is a split; `list.txt`, `<video>/{00000001.jpg,groundtruth.txt,absence.label,cover.label}`.

    `absence.label` is 1 where the target is absent; `cover.label` is 0 to 8 for the visible share in eighths.
    """
    videos = _listed(root / "list.txt") or _below(root, "*/groundtruth.txt")
    if not videos:
        found.problem(f"{root} has neither list.txt nor <video>/groundtruth.txt: expected a split's folder, as train/")
    for video in videos:
        folder = root / video
        boxes = found.boxes(folder / "groundtruth.txt", one_based=True)
        if boxes is not None:
            found.hide(boxes, folder / "absence.label", lambda flags: flags > 0)
            found.hide(boxes, folder / "cover.label", lambda eighths: eighths <= 0)
            found.video(folder, _numbered("{:08d}.jpg", 1, len(boxes)), boxes)


def read_lasot(root: Path, found: Collector) -> None:
    """LaSOT: `<class>/<class>-<n>/{img/00000001.jpg,groundtruth.txt,full_occlusion.txt,out_of_view.txt}`.

    Where `root` has `training_set.txt` (names, one a line), only those are read; where it has `testing_set.txt`, all
    but those.
    """
    folders = {Path(video).name: root / video for video in _below(root, "*/*/groundtruth.txt", "*/groundtruth.txt")}
    if not folders:
        found.problem(f"{root} has no <class>/<class>-<n>/groundtruth.txt")
    chosen = _listed(root / "training_set.txt")
    left_out = set(_listed(root / "testing_set.txt"))
    for name in chosen or [name for name in folders if name not in left_out]:
        folder = folders.get(name)
        if folder is None:
            found.problem(f"{root / 'training_set.txt'} names {name}, which is not in {root}")
            continue
        boxes = found.boxes(folder / "groundtruth.txt", one_based=True)
        if boxes is not None:
            found.hide(boxes, folder / "full_occlusion.txt", lambda flags: flags > 0)
            found.hide(boxes, folder / "out_of_view.txt", lambda flags: flags > 0)
            found.video(folder / "img", _numbered("{:08d}.jpg", 1, len(boxes)), boxes)


def read_trackingnet(root: Path, found: Collector) -> None:
    """TrackingNet: `TRAIN_<n>/anno/<video>.txt` and `TRAIN_<n>/frames/<video>/0.jpg`; `root` may be one such chunk."""
    chunks = [root] if (root / "anno").is_dir() else sorted(p for p in _folders(root) if p.name.upper()[:6] == "TRAIN_")
    if not any((chunk / "anno").is_dir() for chunk in chunks):
        found.problem(f"{root} has no TRAIN_<n>/anno: expected the folder of the chunks, or one chunk")
    for chunk in chunks:
        for truth in sorted((chunk / "anno").glob("*.txt")):
            boxes = found.boxes(truth, one_based=False)
            if boxes is not None:
                found.video(chunk / "frames" / truth.stem, _numbered("{}.jpg", 0, len(boxes)), boxes)


def read_coco(root: Path, found: Collector) -> None:
    """COCO: `annotations/instances_train2017.json` and `train2017/` (or another year); crowds are left out."""
    tables = sorted((root / "annotations").glob("instances_train*.json"))
    if not tables:
        found.problem(f"{root / 'annotations'} has no instances_train2017.json")
        return
    folder = root / tables[-1].stem.removeprefix("instances_")
    there = found.files(folder)
    try:
        content = json.loads(tables[-1].read_bytes())
        boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in content["images"]}
        for entry in content["annotations"]:
            if not entry.get("iscrowd") and min(entry["bbox"][2:]) > 0:
                boxes[entry["image_id"]].append(entry["bbox"])
        images = [(image["id"], image["file_name"], (image["width"], image["height"])) for image in content["images"]]
    except (ValueError, KeyError, TypeError) as error:
        found.problem(f"{tables[-1]} is no table of COCO's instances: {type(error).__name__} {error}")
        return
    lost = [name for _, name, _ in images if name not in there] if there else []
    if lost:
        found.problem(f"{len(lost)} of {len(images)} images of {tables[-1]} are not in {folder}, e.g. {lost[0]}")
    for number, name, size in images:
        rows = np.asarray(boxes[number], np.float32).reshape(-1, 4)
        found.still(found.levels(folder, name, size), name, found.layout, rows)


def read_vid(root: Path, found: Collector) -> None:
    """ImageNet VID: `Annotations/VID/train/**/<video>/000000.xml` and `Data/VID/train/**/<video>/000000.JPEG`.

    Every `trackid` of a video becomes a video of its own, from its first to its last frame.
    """
    truths, pictures = root / "Annotations" / "VID" / "train", root / "Data" / "VID" / "train"
    videos = [Path(folder) for folder, _, names in sorted(os.walk(truths)) if any(n.endswith(".xml") for n in names)]
    if not videos:
        found.problem(f"{truths} has no <video>/000000.xml: expected the folder that holds Annotations/ and Data/")
    for video in videos:
        folder = pictures / video.relative_to(truths)
        stems = sorted(path.stem for path in video.glob("*.xml"))[:: found.step]
        there = found.files(folder)
        lost = [f"{stem}.JPEG" for stem in stems if f"{stem}.JPEG" not in there] if there else []
        if lost:
            found.problem(f"{len(lost)} of {len(stems)} frames are not in {folder}, e.g. {lost[0]}")
        frames: list[FileLevels] = []
        tracks: dict[str, dict[int, list[float]]] = {}
        for index, stem in enumerate(stems):
            size, boxes = _vid_boxes(video / f"{stem}.xml", found)
            frames.append(found.levels(folder, f"{stem}.JPEG", size))
            for track, box in boxes.items():
                tracks.setdefault(track, {})[index] = box
        for places in tracks.values():
            first, last = min(places), max(places) + 1
            rows = np.array([places.get(index, [np.nan] * 4) for index in range(first, last)])
            found.frames(frames[first:last], [f"{stem}.JPEG" for stem in stems[first:last]], rows)


def _vid_boxes(path: Path, found: Collector) -> tuple[tuple[int, int] | None, dict[str, list[float]]]:
    """Size of the frame, and the box of each track in it."""
    try:
        tree = ET.parse(path).getroot()
        size = int(tree.findtext("size/width", "")), int(tree.findtext("size/height", ""))
        boxes = {}
        for item in tree.iter("object"):
            x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
            if x2 > x1 and y2 > y1:
                boxes[item.findtext("trackid", "")] = [x1, y1, x2 - x1, y2 - y1]
    except (ET.ParseError, ValueError) as error:
        found.problem(f"{path} is no annotation of ImageNet VID: {error}")
        return None, {}
    return size, boxes


def read_ytbb(root: Path, found: Collector) -> None:
    """YouTube-BB: `yt_bb_detection_train.csv` as published, and `frames/<youtube_id>/<timestamp_ms>.jpg`.

    One frame a second is annotated. Videos have vanished from YouTube, so rows without a file are left out. A video is
    what has one youtube_id, class_id and object_id. All frames of a youtube_id have the size of the first.
    """
    table = root / "yt_bb_detection_train.csv"
    if not table.is_file():
        found.problem(f"{table} not found")
        return
    clips = found.files(root / "frames")
    rows: dict[tuple[str, str, str], list[tuple[int, list[float]]]] = {}
    with table.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            try:
                clip, time, kind, _, target, presence, *corners = row
                x1, x2, y1, y2 = (float(value) for value in corners) if presence == "present" else (np.nan,) * 4
                if clip in clips:
                    rows.setdefault((clip, kind, target), []).append((int(time), [x1, y1, x2 - x1, y2 - y1]))
            except ValueError:
                found.problem(
                    f"{table} line {number} is '{','.join(row)}': expected youtube_id,timestamp_ms,class_id,class_name,"
                    "object_id,object_presence,xmin,xmax,ymin,ymax"
                )
                return
    there: dict[str, set[str]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for (clip, _, _), entries in rows.items():
        folder = root / "frames" / clip
        if clip not in there:
            there[clip] = found.files(folder)
        kept = sorted((e for e in entries if f"{e[0]}.jpg" in there[clip]), key=lambda e: e[0])[:: found.step]
        if not kept:
            continue
        names = [f"{at}.jpg" for at, _ in kept]
        if clip not in sizes:
            try:
                sizes[clip] = found.levels(folder, names[0]).size
            except FileNotFoundError as error:
                found.problem(str(error))
                continue
        shares = np.array([box for _, box in kept])
        shares[~(shares[:, 2:] > 0).all(1)] = np.nan
        found.frames(
            [found.levels(folder, n, sizes[clip]) for n in names], names, shares * (*sizes[clip], *sizes[clip])
        )
    if clips and not found.pool.images:
        found.problem(f"{root / 'frames'} has no <youtube_id>/<timestamp_ms>.jpg that {table} names")


#: Number of the first annotated image of OTB's videos whose truth does not begin with the first image.
OTB_FIRST = {"David": 300}


def read_otb(root: Path, found: Collector) -> None:
    """OTB: `<video>/img/0001.jpg` and `<video>/groundtruth_rect.txt`, with several targets `groundtruth_rect.1.txt`."""
    truths = [root / name for name in _below(root, "*/groundtruth_rect*.txt", "groundtruth_rect*.txt", parents=False)]
    if not truths:
        found.problem(f"{root} has no <video>/groundtruth_rect.txt")
    for truth in truths:
        folder = truth.parent / "img"
        names = sorted(name for name in found.files(folder) if re.fullmatch(r"\d+\.(jpg|png)", name))
        names = [name for name in names if int(name[:-4]) >= OTB_FIRST.get(truth.parent.name, 0)]
        boxes = found.boxes(truth, one_based=True)
        if boxes is not None:
            found.video(folder, names, boxes)


#: First image of UAV123's parts of a longer video; parts that are not here begin with image 1.
UAV123_FIRST = {
    "bird1_2": 775, "bird1_3": 1573, "car1_2": 751, "car1_3": 1627, "car6_2": 487, "car6_3": 1807, "car6_4": 2953,
    "car6_5": 3925, "car8_2": 1357, "car16_2": 415, "group1_2": 1333, "group1_3": 2515, "group1_4": 3925,
    "group2_2": 907, "group2_3": 1771, "group3_2": 1567, "group3_3": 2827, "group3_4": 4369, "person2_2": 1189,
    "person4_2": 1501, "person5_2": 877, "person7_2": 1249, "person8_2": 1075, "person12_2": 601, "person14_2": 847,
    "person14_3": 1813, "person17_2": 1501, "person19_2": 1243, "person19_3": 2791, "truck4_2": 577, "uav1_2": 1555,
    "uav1_3": 2473,
}  # fmt: skip


def read_uav123(root: Path, found: Collector) -> None:
    """UAV123 at 30 frames a second: `anno/UAV123/<video>.txt` and `data_seq/UAV123/<video>/000001.jpg`.

    The images of `car6_2` lie in `car6`, among those of the video's other parts.
    """
    truths = sorted((root / "anno" / "UAV123").glob("*.txt"))
    if not truths:
        found.problem(f"{root / 'anno' / 'UAV123'} has no <video>.txt")
    for truth in truths:
        boxes = found.boxes(truth, one_based=True)
        if boxes is None:
            continue
        name, first = truth.stem, 1
        whole = re.sub(r"_\d+$", "", name)
        if whole != name and not (root / "data_seq" / "UAV123" / name).is_dir():
            if name not in UAV123_FIRST and not name.endswith("_1"):
                found.problem(f"{truth} is no part of a video that UAV123 has, so its first image is not known")
                continue
            name, first = whole, UAV123_FIRST.get(name, 1)
        found.video(root / "data_seq" / "UAV123" / name, _numbered("{:06d}.jpg", first, len(boxes)), boxes)


def read_images(root: Path, found: Collector) -> None:
    """Plain images: `boxes.csv` (`image,source,x,y,w,h,label`; 0-based) and `jpg/`."""
    try:
        table = read_boxes(root)
    except FileNotFoundError as error:
        found.problem(str(error))
        return
    for name, (source, boxes) in table.items():
        found.still(found.levels(root / "jpg", name), name, source, boxes)


def read_packed(root: Path, found: Collector) -> None:
    """What `tracker_ros pack` has written."""
    try:
        found.pool.extend(read_pack(root, found.store))
    except (FileNotFoundError, ValueError) as error:
        found.problem(str(error))


def read_sequences(root: Path, found: Collector) -> None:
    """Plain videos: `<video>/img/` in the order of the names, `<video>/groundtruth.txt`, 0-based, nan where absent.

    `groundtruth_2.txt` and so on are further targets, each of them a video of its own. The videos' names are the
    images' sources.
    """
    videos = _below(root, "*/groundtruth.txt", "groundtruth.txt")
    if not videos:
        found.problem(f"{root} has no <video>/groundtruth.txt")
    chosen = {video: (root / video).resolve().name for video in videos}
    chosen = {video: name for video, name in chosen.items() if found.chosen(name)}
    if videos and not chosen:
        found.problem(f"none of the {len(videos)} videos in {root} is chosen by only= and skip=")
    for video, source in chosen.items():
        folder = root / video / "img"
        names = sorted(name for name in found.files(folder) if name.lower().endswith((".jpg", ".jpeg", ".png")))
        for truth in ["groundtruth.txt", *_below(root / video, "groundtruth_*.txt", parents=False)]:
            boxes = found.boxes(root / video / truth, one_based=False)
            if boxes is not None:
                found.video(folder, names, boxes, sys.intern(source))


@dataclass(frozen=True)
class Layout:
    """How one data set lies on disk.

    Attributes:
        read: reads the annotations below a folder into a `Collector`.
        help: what is expected, one line.
        dense: every frame of its videos is annotated, so that taking every n-th is sensible.
        named: its videos have names that a spec can choose from.
    """

    read: Callable[[Path, Collector], None]
    help: str
    dense: bool = True
    named: bool = False


LAYOUTS = {
    "got10k": Layout(read_got10k, "a split of GOT-10k: GOT-10k_Train_000001/{00000001.jpg,groundtruth.txt,*.label}"),
    "lasot": Layout(read_lasot, "airplane/airplane-1/{img/00000001.jpg,groundtruth.txt,full_occlusion.txt,...}"),
    "trackingnet": Layout(read_trackingnet, "TRAIN_0/{anno/VIDEO.txt,frames/VIDEO/0.jpg}"),
    "coco": Layout(read_coco, "annotations/instances_train2017.json, train2017/", dense=False),
    "vid": Layout(read_vid, "ImageNet VID: Annotations/VID/train/**/VIDEO/000000.xml, Data/VID/train/..."),
    "ytbb": Layout(read_ytbb, "yt_bb_detection_train.csv, frames/YOUTUBE_ID/TIMESTAMP_MS.jpg", dense=False),
    "otb": Layout(read_otb, "Basketball/{img/0001.jpg,groundtruth_rect.txt}"),
    "uav123": Layout(read_uav123, "data_seq/UAV123/VIDEO/000001.jpg, anno/UAV123/VIDEO.txt"),
    "images": Layout(read_images, "boxes.csv (image,source,x,y,w,h,label), jpg/", dense=False),
    "pack": Layout(read_packed, "manifest.json, part-000.safetensors, ... of 'tracker_ros pack'", dense=False),
    "sequences": Layout(read_sequences, "VIDEO/{img/,groundtruth.txt}, 0-based", named=True),
}


def describe_layouts() -> str:
    """The layouts with what they expect, a line each."""
    return "\n".join(f"{name}: {layout.help}" for name, layout in LAYOUTS.items())


def open_data(specs: Sequence[str], step: int = 1, cache_bytes: int = CACHE_BYTES) -> ImagePool:
    """The images of data sets on disk.

    Args:
        specs: `LAYOUT:FOLDER` each, with a layout of `LAYOUTS`; behind it may stand `,step=N` and, of a layout whose
            videos have names, `,only=PATTERN+PATTERN`, `,skip=PATTERN` and `,loose` (their boxes are loose).
        step: take every n-th frame of densely annotated videos, where a spec does not say.
        cache_bytes: bytes of decoded pixels that are kept in memory, all sets together; every process that draws
            crops keeps as many.

    Returns:
        A pool whose images read their pixels when `levels` is indexed.

    Raises:
        ValueError: a spec that is none.
        FileNotFoundError: names what is missing in all the sets.
    """
    parsed = [_parse(spec) for spec in specs]
    store = PixelStore(cache_bytes)
    pool, problems = ImagePool(), []
    for name, root, choice in parsed:
        layout = LAYOUTS[name]
        own_step = int(choice.get("step", 0)) or (step if layout.dense else 1)
        only, skip = (choice[key].split("+") if key in choice else () for key in ("only", "skip"))
        found = Collector(name, store, own_step, only, skip)
        if not root.is_dir():
            found.problem(f"folder {root} not found: expected {layout.help}")
        else:
            layout.read(root, found)
            if not found.problems and not found.pool.images:
                found.problem(f"{root} has no image with a box")
        problems += found.problems
        if "loose" in choice:
            found.pool.loose |= {image.source for image in found.pool.images}
        pool.extend(found.pool)
    if problems:
        more = [f"... and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        raise FileNotFoundError("\n".join(["training data is not complete:", *problems[:LISTED], *more]))
    return pool


#: What may stand behind a folder in a spec.
_CHOICE = re.compile(r",(step=\d+|only=[^,=]+|skip=[^,=]+|loose)$")


def _parse(spec: str) -> tuple[str, Path, dict[str, str]]:
    """Layout, folder and what stands behind it, of `LAYOUT:FOLDER[,step=N][,only=PATTERN][,skip=PATTERN][,loose]`."""
    choice: dict[str, str] = {}
    rest = spec
    while match := _CHOICE.search(rest):
        key, _, value = match[1].partition("=")
        choice[key] = value
        rest = rest[: match.start()]
    name, colon, folder = rest.partition(":")
    if not colon or not folder or name not in LAYOUTS or choice.get("step", "1").strip("0") == "":
        raise ValueError(
            f"'{spec}' names no data: expected LAYOUT:FOLDER or LAYOUT:FOLDER,step=N (N at least 1) with one of\n"
            + describe_layouts()
        )
    if not LAYOUTS[name].named and choice.keys() - {"step"}:
        raise ValueError(f"'{spec}': only=, skip= and loose are for layouts whose videos have names, not for '{name}'")
    return name, Path(folder).expanduser(), choice


def _numbered(form: str, first: int, count: int) -> list[str]:
    return [form.format(number) for number in range(first, first + count)]


def _listed(path: Path) -> list[str]:
    """The lines of a list of names; none where there is no such file."""
    return path.read_text().split() if path.is_file() else []


def _folders(root: Path) -> Iterable[Path]:
    return (path for path in root.iterdir() if path.is_dir())


def _below(root: Path, *patterns: str, parents: bool = True) -> list[str]:
    """What matches the patterns below `root`, sorted: the folders of the files, or with `parents` off the files."""
    paths = {path for pattern in patterns for path in root.glob(pattern)}
    return sorted(str((path.parent if parents else path).relative_to(root)) for path in paths)
