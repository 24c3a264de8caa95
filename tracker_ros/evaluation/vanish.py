"""Clips whose target is gone from one frame on, which show whether a tracker says so.

Each sequence is cut. Up to the cut it is as it is; after it, the target is nowhere, in one of two ways (`WAYS`): the
frames are another sequence's, as where a stream is switched, or the target is painted out of its own frames, which is
the harder one, as everything else looks as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.evaluation.runs import Track
from tracker_ros.evaluation.sequences import Images, InvalidSequence, Sequence
from tracker_ros.geometry.boxes import Box
from tracker_ros.trackers.base import Frame, TrackState

#: Name of each way in which a target vanishes -> what a table calls it.
WAYS = {"elsewhere": "other scene", "erased": "erased"}
#: The first frame without the target, and how many follow at most; a shorter sequence is cut in its middle.
CUT, AFTER = 60, 60
#: Frames after the cut in which nobody can know yet.
GRACE = 5
#: What stands between a sequence's name and the way.
MARK = "@"
#: How much larger than its box a target is painted out, and the side in pixels at which that is computed.
_MARGIN, _PAINTED_SIDE = 1.3, 48


@dataclass(frozen=True)
class Elsewhere:
    """`own` up to `cut`, then the frames of `other`, in the size of the own first frame."""

    own: Images
    other: Images
    cut: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Frame:
        if index < self.cut:
            return self.own[index]
        height, width = self.own[0].shape[:2]
        frame = cv2.resize(self.other[index - self.cut], (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(frame, np.uint8)


@dataclass(frozen=True)
class Erased:
    """`own`, from `cut` on without what is in `boxes` (rows of x, y, w, h; NaN: nothing to paint out)."""

    own: Images
    boxes: tuple[tuple[float, float, float, float], ...]
    cut: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Frame:
        frame = self.own[index]
        if index < self.cut or np.isnan(self.boxes[index][0]):
            return frame
        return erase(frame, Box(*self.boxes[index]))


def erase(frame: Frame, box: Box) -> Frame:
    """A copy of `frame` in which what surrounds `box` grows over it (Telea's inpainting, at a small size)."""
    height, width = frame.shape[:2]
    w, h = box.w * _MARGIN, box.h * _MARGIN
    hole = Box.from_center(*box.center, w, h).clip(width, height)
    around = Box.from_center(*box.center, 2 * w, 2 * h).clip(width, height)
    x0, y0, x1, y1 = round(around.x), round(around.y), round(around.x + around.w), round(around.y + around.h)
    if x1 - x0 < 2 or y1 - y0 < 2 or hole.area <= 0:
        return frame
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    left, top = round(hole.x) - x0, round(hole.y) - y0
    mask[top : top + max(1, round(hole.h)), left : left + max(1, round(hole.w))] = 255
    patch = frame[y0:y1, x0:x1]
    scale = min(1.0, _PAINTED_SIDE / max(mask.shape))
    small = max(2, round(mask.shape[1] * scale)), max(2, round(mask.shape[0] * scale))
    painted = cv2.inpaint(
        cv2.resize(patch, small, interpolation=cv2.INTER_AREA), cv2.resize(mask, small), 3, cv2.INPAINT_TELEA
    )
    painted = cv2.resize(painted, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
    found = frame.copy()
    found[y0:y1, x0:x1] = np.where(mask[..., None] > 0, painted, patch)
    return found


def vanish(sequences: SequenceOf[Sequence], seed: int = 0) -> list[Sequence]:
    """Every sequence in both ways, named ``<name>@<way>``; the truth after the cut is "absent".

    Args:
        sequences: two or more, as each takes its other scene from another one.
        seed: of the choice of the other scenes.

    Raises:
        InvalidSequence: there is only one, or one that is too short to be cut (4 frames).
    """
    if len(sequences) < 2:
        raise InvalidSequence("the other scene is another sequence's: give two sequences or more")
    generator = np.random.default_rng(seed)
    made = []
    for number, sequence in enumerate(sequences):
        if len(sequence) < 4:
            raise InvalidSequence(f"sequence '{sequence.name}' has {len(sequence)} frames, too few to be cut")
        cut = CUT if len(sequence) > CUT + GRACE else len(sequence) // 2
        other = sequences[(number + int(generator.integers(1, len(sequences)))) % len(sequences)]
        for way in WAYS:
            length = min(len(sequence), cut + AFTER)
            images: Images
            if way == "elsewhere":
                length = min(cut + AFTER, cut + len(other))
                images = Elsewhere(sequence.images, other.images, cut, length)
            else:
                boxes = tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in sequence.truth)
                images = Erased(sequence.images, boxes, cut, length)
            truth = np.full((length, 4), np.nan)
            truth[:cut] = sequence.truth[:cut]
            made.append(replace(sequence, name=f"{sequence.name}{MARK}{way}", images=images, truth=truth, stamps=()))
    return made


def summarize(tracks: Mapping[str, Track], sequences: SequenceOf[Sequence]) -> dict[str, dict[str, Any]]:
    """What a tracker said after the cuts.

    Args:
        tracks: by the name of the sequence.
        sequences: those of `vanish`.

    Returns:
        way -> ``clips``, ``frames``; ``tracking``, the part of the frames after the cut called TRACKING;
        ``tracking_late``, the same without the first `GRACE` of each clip; ``never_lost``, the clips that were not
        called LOST once after the cut; and ``frames_to_lost``, the median of the frames until then (the clips in
        which it came; NaN where it never did).
    """
    found = {}
    for way in WAYS:
        after: list[NDArray[np.int64]] = []
        for sequence in sequences:
            if sequence.name.endswith(MARK + way):
                cut = int(np.flatnonzero(~sequence.absent)[-1]) + 1
                after.append(tracks[sequence.name].states[cut:])
        lost = [np.flatnonzero(states == TrackState.LOST) for states in after]
        waits = [int(where[0]) for where in lost if len(where)]
        found[way] = {
            "clips": len(after),
            "frames": sum(map(len, after)),
            "tracking": _part(after),
            "tracking_late": _part([states[GRACE:] for states in after]),
            "never_lost": sum(not len(where) for where in lost),
            "frames_to_lost": float(np.median(waits)) if waits else float("nan"),
        }
    return found


def _part(states: SequenceOf[NDArray[np.int64]]) -> float:
    whole = np.concatenate(states)
    return float((whole == TrackState.TRACKING).mean()) if len(whole) else float("nan")
