"""The rule book: which rules are kept, and what each one decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tracker_ros import registry
from tracker_ros.geometry.boxes import Box
from tracker_ros.trackers import rules
from tracker_ros.trackers.appearance import ColourModel
from tracker_ros.trackers.base import InvalidOption, TrackState
from tracker_ros.trackers.rules import COMMON, RULES, RuleBook
from tracker_ros.trackers.state import ConfidenceMonitor, ConfidenceThresholds, Cues
from tracker_ros.trackers.target import Found, Target

ROOT = Path(__file__).parents[2]
ALL = RuleBook(frozenset(RULES))
NONE = RuleBook(frozenset())


def frame(*boxes: tuple[Box, tuple[int, int, int]]) -> NDArray[np.uint8]:
    image = np.full((240, 320, 3), 90, np.uint8)
    for box, colour in boxes:
        x, y, w, h = map(int, box)
        image[y : y + h, x : x + w] = colour
    return image


HERE, THERE = Box(100, 100, 30, 30), Box(220, 100, 30, 30)
RED, BLUE = (20, 20, 250), (250, 20, 20)


def target(*, lost: bool = False, typical: float = 0.8) -> Target:
    monitor = ConfidenceMonitor(ConfidenceThresholds(0.5, 0.3, regain_score=0.7, lost_after=2))
    monitor.update(Cues(typical))
    for _ in range(2 * lost):
        monitor.update(Cues(0.0))
    assert (monitor.state is TrackState.LOST) == lost
    colours = ColourModel(frame((HERE, RED)), HERE)
    return Target(position=np.array(HERE.center), size=np.array([30.0, 30.0]), monitor=monitor, colours=colours)


def found(box: Box, score: float = 0.9) -> Found:
    center, size = np.array(box.center), np.array(box[2:])
    return Found(box, center, size, center, seen=True, score=score, second=0.1, focus=0.9)


def test_changes_are_read_as_they_are_written() -> None:
    assert RuleBook.read(COMMON, "").kept == set(COMMON)
    assert RuleBook.read(COMMON, "none").kept == set()
    assert RuleBook.read(COMMON, "-scan").kept == {*COMMON} - {"scan"}
    assert RuleBook.read(COMMON, "-scan+median-free").kept == {*COMMON, "median"} - {"scan", "free"}
    assert RuleBook.read(COMMON, "median+smooth").kept == {"median", "smooth"}
    with pytest.raises(InvalidOption, match=r"no rule 'leap' \(there are: scan, .*, and none\)"):
        RuleBook.read(COMMON, "-leap")


def test_the_published_trackers_keep_none_of_our_rules() -> None:
    for entry in registry.DEFAULT:
        names = {f.name for f in entry.options.options()}
        if entry.network is None or "compat" not in names or not _has_weights(entry):
            continue
        tracker = registry.create(entry.name, device="cpu", compat="published")
        assert not tracker.book.kept, entry.name  # type: ignore[attr-defined]
        assert registry.create(entry.name, device="cpu").book.kept  # type: ignore[attr-defined]


def _has_weights(entry: registry.Entry) -> bool:
    return entry.network is not None and (ROOT / "models" / f"{entry.network.name}.safetensors").is_file()


def test_every_rule_is_in_the_document() -> None:
    text = (ROOT / "docs" / "rules.md").read_text()
    for name, why in RULES.items():
        assert f"| `{name}` | {why} |" in text


def test_scan_goes_all_over_the_image_while_the_target_is_lost() -> None:
    image, one = frame(), target(lost=True)
    book = RuleBook(frozenset({"scan"}))
    seen = {tuple(place) for _ in range(20) for place in book.places(image, one, 90.0, 2)}
    assert len(seen) > 6
    assert not NONE.places(image, one, 90.0, 2)
    assert not book.places(image, target(), 90.0, 2)
    one.candidate = True
    assert not book.places(image, one, 90.0, 2), "a candidate is confirmed first"


def test_patience_waits_where_the_target_vanished() -> None:
    book, one = RuleBook(frozenset({"scan", "patience"})), target(lost=True)
    assert not book.places(frame(), one, 90.0, 2)
    one.monitor.frames_lost = rules.PATIENCE + 1
    assert len(book.places(frame(), one, 90.0, 2)) == 2


def test_coloured_looks_where_the_colours_are() -> None:
    book, one = RuleBook(frozenset({"scan", "coloured"})), target(lost=True)
    place, _ = book.places(frame((THERE, RED)), one, 90.0, 2)
    assert np.abs(place - THERE.center).max() < 8


def test_jump_wants_a_high_peak_far_away() -> None:
    book, one = RuleBook(frozenset({"jump"})), target(typical=0.8)
    assert book.refuses(one, found(THERE, 0.5))
    assert not book.refuses(one, found(THERE, 0.7)), "as high as usual"
    assert not book.refuses(one, found(Box(110, 100, 30, 30), 0.5)), "not far"
    assert not NONE.refuses(one, found(THERE, 0.5))


def test_vanished_wants_a_high_peak_after_a_while() -> None:
    book, one = RuleBook(frozenset({"vanished"})), target(typical=0.8)
    assert not book.refuses(one, found(HERE, 0.5))
    one.missing = rules.VANISHED
    assert book.refuses(one, found(HERE, 0.5))


def test_confirm_and_border_hold_scores_back() -> None:
    assert not ALL.regains(target(lost=True), 0.6)
    assert NONE.regains(target(lost=True), 0.6)
    assert ALL.counted(0.9, visible=0.1, bad_score=0.3) == 0.3
    assert ALL.counted(0.9, visible=0.9, bad_score=0.3) == NONE.counted(0.9, visible=0.1, bad_score=0.3) == 0.9


def test_sizes_change_slowly_and_come_back_after_a_cover() -> None:
    old, new = np.array([30.0, 30.0]), np.array([50.0, 10.0])
    np.testing.assert_allclose(ALL.resized(old, new), [37, 23])
    np.testing.assert_allclose(NONE.resized(old, new), new)
    one = target()
    for _ in range(9):
        ALL.trust(frame(), one, HERE)
    one.size = np.array([4.0, 4.0])
    np.testing.assert_allclose(ALL.lost_size(one), [30, 30])
    np.testing.assert_allclose(NONE.lost_size(one), [4, 4])


def test_nothing_is_learned_of_a_lost_target() -> None:
    assert not ALL.may_learn(TrackState.LOST)
    assert ALL.may_learn(TrackState.UNCERTAIN)
    assert NONE.may_learn(TrackState.LOST)
