"""The rule book: what this package adds to the papers' methods, and nothing else.

Every rule has a name, a reason and a switch. A tracker's design says which ones it keeps (``rules``), an evaluation
changes that: ``dimp18:rules=-median`` leaves one out, ``rules=median+smooth`` keeps no others, ``rules=none`` is the
paper's tracker alone, which is what ``compat=published`` means too. What each is worth is measured by
``tracker_ros rules`` (docs/rules.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import Box
from tracker_ros.geometry.scan import scan_places
from tracker_ros.trackers.appearance import ColourModel
from tracker_ros.trackers.base import Frame, InvalidOption, TrackState
from tracker_ros.trackers.target import Found, Target

#: Name of each rule -> why it is there.
RULES = {
    "scan": "a lost target may be anywhere, so the whole image is looked through, a few windows a frame",
    "patience": "a hidden target comes back where it vanished; elsewhere there are only look-alikes at first",
    "coloured": "half of the windows of a scan go to where the target's colours are",
    "free": "a lost target can be anywhere in a window, so its middle is not preferred",
    "confirm": "a lost target must look right for some frames; a place that fails is left for where it was lost",
    "jump": "a peak further away than a target moves in a frame must be as high as a lost target's",
    "vanished": "after two frames without it, a target must look as it used to in order to be seen",
    "smooth": "a target's size changes slowly, and a box's error in one frame does not",
    "median": "a target that is being covered shrinks to what shows of it; a lost one has the size it had before",
    "border": "of a target that leaves the view, what is left at the border proves little",
    "gate": "nothing is learned of a target that is LOST, whatever its score",
    "calibrate": "a score is the chance that the box is right, so log-odds are scaled and shifted for each network",
}

#: Those that every tracker keeps.
COMMON = ("scan", "free", "confirm", "gate", "calibrate")

#: Frames LOST until the whole image is searched (patience).
PATIENCE = 15
#: Distance from which a peak is suspicious, in target sizes (jump).
JUMP = 1.5
#: Frames in a row without the target after which it must look as it used to (vanished).
VANISHED = 2
#: Share of the typical score that a suspicious peak, and a lost target's, must reach (jump, vanished, confirm).
TYPICAL = 0.8
#: The rate at which recent colours follow (coloured).
COLOUR_RATE = 0.02
#: How much of a change in size a frame makes (smooth).
SIZE_RATE = 0.35
#: Part of the target that must be in view for a score to count in full (border).
VISIBLE = 0.25


@dataclass(frozen=True)
class RuleBook:
    """The rules that one tracker keeps.

    Attributes:
        kept: their names.
    """

    kept: frozenset[str]

    @classmethod
    def read(cls, default: Iterable[str], changes: str) -> RuleBook:
        """The rules of `default` with the changes of an evaluation.

        Args:
            default: names that the tracker keeps by itself.
            changes: empty; ``none``; ``-name-name`` to leave some out; ``+name+name`` to add some; ``name+name`` to
                keep no others.

        Raises:
            InvalidOption: a name that no rule has.
        """
        if changes == "none":
            return cls(frozenset())
        kept = set(default) if not changes or changes[0] in "+-" else set()
        text = changes if changes[:1] in ("+", "-") or not changes else f"+{changes}"
        for sign, name in _signed(text):
            if name not in RULES:
                raise InvalidOption(f"there is no rule '{name}' (there are: {', '.join(RULES)}, and none)")
            kept = kept | {name} if sign == "+" else kept - {name}
        return cls(frozenset(kept))

    def __contains__(self, name: str) -> bool:
        return name in self.kept

    # --- where to look -------------------------------------------------------------------------------------------

    def start(self, frame: Frame, box: Box) -> ColourModel | None:
        """The colours of a target in its first frame, if a rule asks for them (coloured)."""
        return ColourModel(frame, box) if "coloured" in self else None

    def places(self, frame: Frame, target: Target, side: float, windows: int) -> list[NDArray[np.float64]]:
        """Centres (x, y) of further windows of `side` pixels in which a lost target is looked for (scan).

        Args:
            frame: HxWx3 uint8.
            target: `Target.scan` counts on.
            side: of a window, pixels of the image.
            windows: most of them.
        """
        if "scan" not in self or not windows or not target.lost or target.candidate:
            return []
        if "patience" in self and target.monitor.frames_lost <= PATIENCE:
            return []
        height, width = frame.shape[:2]
        places: list[NDArray[np.float64]] = []
        if "coloured" in self and target.colours is not None:
            size = float(target.size[0]), float(target.size[1])
            coloured = target.colours.propose(frame, size, windows - windows // 2)
            places += [np.array(place) for place in coloured]
            windows //= 2
        grid = scan_places(width, height, side, float(target.size.max()), target.position)
        for _ in range(min(windows, len(grid))):
            places.append(grid[target.scan % len(grid)])
            target.scan += 1
        return places

    def free(self, target: Target, windows: int) -> bool:
        """Whether nothing speaks for the middle of a target's windows (free)."""
        return "free" in self and target.lost and windows > 0

    # --- what to believe -----------------------------------------------------------------------------------------

    def refuses(self, target: Target, found: Found) -> bool:
        """Whether what was found is a look-alike: where a target is covered or leaves, the next best peak is one's."""
        suspicious = not target.lost and (
            ("jump" in self and moved(target, found) > JUMP) or ("vanished" in self and target.missing >= VANISHED)
        )
        return suspicious and float(np.clip(found.score, 0, 1)) < TYPICAL * target.monitor.typical

    @property
    def typical_share(self) -> float:
        """Share of its typical score that a lost target must reach (confirm)."""
        return TYPICAL if "confirm" in self else 0.0

    def regains(self, target: Target, score: float) -> bool:
        """Whether a lost target may be at the place that has `score` (confirm)."""
        return "confirm" not in self or score >= target.monitor.needed

    def counted(self, score: float, visible: float, bad_score: float) -> float:
        """The score that the state is decided on, where `visible` of the target lies in the image (border)."""
        return score if "border" not in self or visible > VISIBLE else min(score, bad_score)

    # --- what becomes of the track -------------------------------------------------------------------------------

    def resized(self, old: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
        """The size (w, h) of a target of size `old` that was found with size `new` (smooth)."""
        return old + (SIZE_RATE if "smooth" in self else 1.0) * (new - old)

    def trust(self, frame: Frame, target: Target, box: Box) -> None:
        """Take note of a frame that surely shows the target in `box` (median, coloured)."""
        target.sizes.append(target.size)
        if target.colours is not None:
            target.colours.learn(frame, box, COLOUR_RATE)

    def lost_size(self, target: Target) -> NDArray[np.float64]:
        """The size (w, h) at which a target that has just been lost is looked for (median)."""
        if "median" not in self or not target.sizes:
            return target.size
        median: NDArray[np.float64] = np.median(target.sizes, 0)
        return median

    def may_learn(self, state: TrackState) -> bool:
        """Whether a frame of a track in `state` may be learned from (gate)."""
        return "gate" not in self or state is not TrackState.LOST


def moved(target: Target, found: Found) -> float:
    """How far the peak lies from where the target was, in target sizes."""
    return float(np.linalg.norm(found.peak - target.position)) / math.sqrt(target.size.prod())


def _signed(text: str) -> list[tuple[str, str]]:
    """``+a-b`` as [("+", "a"), ("-", "b")]."""
    pairs, name, sign = [], "", ""
    for letter in f"{text}+":
        if letter in "+-":
            if sign:
                pairs.append((sign, name.strip()))
            name, sign = "", letter
        else:
            name += letter
    return pairs
