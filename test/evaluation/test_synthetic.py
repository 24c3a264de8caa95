"""Sequences that are drawn: simulated flights, and clips made of still images."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from tracker_ros.evaluation.flights import load_flights
from tracker_ros.evaluation.sequences import InvalidSequence, Sequence
from tracker_ros.evaluation.stills import held_out, load_stills
from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.simulation.flight import Flight, FlightOptions
from tracker_ros.training.data import ImagePool, read_images, split

COLOURS = {"target": (0, 0, 250), "cover": (0, 250, 0), "plain": (90, 90, 90)}


@pytest.fixture
def stills(tmp_path: Path) -> Path:
    """36 grey images, of which three are held out: one with a red object, one with a green one, one without."""
    (tmp_path / "jpg").mkdir()
    rows = ["image,source,x,y,w,h,label"]
    for i in range(36):
        image = np.full((240, 320, 3), 90, np.uint8)
        if i in (0, 12):
            image[80:140, 100:180] = COLOURS["target" if i == 0 else "cover"]
            rows.append(f"{i:03d}.jpg,made,100,80,80,60,1")
            rows += [f"{i:03d}.jpg,made,5,5,10,10,2"]  # too small to be tracked
        else:
            rows.append(f"{i:03d}.jpg,made,,,,,")
        cv2.imwrite(str(tmp_path / "jpg" / f"{i:03d}.jpg"), image)
    (tmp_path / "boxes.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def _box_of(frame: np.ndarray, colour: tuple[int, int, int]) -> Box | None:
    mask = (np.abs(frame.astype(int) - np.array(colour)) < 70).all(2)
    mask = cv2.medianBlur(mask.astype(np.uint8), 5)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return Box(columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])


def _red(stills: Path) -> Sequence:
    """A clip of the red object, without a double."""
    first = (load_stills(stills, 1, seed=seed)[0] for seed in range(20))
    return next(s for s in first if s.images.clip.image.name == "000.jpg")


def test_the_images_are_those_that_training_leaves_out(stills: Path) -> None:
    images = held_out(stills)
    assert list(images) == ["000.jpg", "012.jpg", "024.jpg"]
    assert images["012.jpg"] == [Box(100, 80, 80, 60), Box(5, 5, 10, 10)]
    _, validation = split(ImagePool(read_images(stills)))
    assert [image.name for image in validation.images] == list(images)
    # Training counts the frames of its videos first.
    video = read_images(stills)[:5]
    _, validation = split(ImagePool([*video, *read_images(stills)], sequences=[list(range(5))]))
    assert [image.name for image in validation.images] == list(held_out(stills, first=-5 % 12))


def test_the_truth_is_where_the_object_is(stills: Path) -> None:
    red = _red(stills)
    overlaps = []
    for i in np.flatnonzero(~red.absent):
        found = _box_of(red.frame(i), COLOURS["target"])
        if found is not None and _box_of(red.frame(i), COLOURS["cover"]) is None:
            overlaps.append(iou(found, Box(*red.truth[i])))
    assert len(overlaps) > 15
    assert min(overlaps) > 0.6
    assert np.median(overlaps) > 0.8, "boxes of turned ellipses, so a rectangle is a little larger"


def test_a_clip_loses_its_target_twice_and_gets_it_back(stills: Path) -> None:
    for sequence in load_stills(stills, 8, frames=60, seed=5):
        assert len(sequence) == len(sequence.truth) == 60
        edges = np.diff(np.concatenate([[0], sequence.absent.astype(int), [0]]))
        assert (edges == 1).sum() == 2, "the camera loses it once, and it is covered once"
        assert 8 <= sequence.absent.sum() <= 24
        assert not sequence.absent[:8].any()
        assert not sequence.absent[-2:].any()
        assert sequence.frame(0).shape == (360, 480, 3)


def test_what_is_covered_is_absent(stills: Path) -> None:
    red = _red(stills)
    gone = np.flatnonzero(red.absent)
    whole = red.first_box.area
    assert all((_box_of(red.frame(i), COLOURS["target"]) or Box(0, 0, 0, 0)).area < 0.3 * whole for i in gone)
    assert any(_box_of(red.frame(i), COLOURS["cover"]) for i in gone)


def test_clips_follow_from_the_seed(stills: Path) -> None:
    one, same, other = (load_stills(stills, 3, seed=seed)[2] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.truth, same.truth)
    np.testing.assert_array_equal(one.frame(7), same.frame(7))
    assert not np.array_equal(one.truth, other.truth)
    # A frame does not depend on those before it, nor on the process.
    copy: Sequence = pickle.loads(pickle.dumps(one))
    later = one.frame(30)
    np.testing.assert_array_equal(copy.frame(30), later)


def test_wrong_folders_are_named(stills: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSequence, match=r"there is no .*boxes.csv"):
        load_stills(tmp_path / "nowhere")
    with pytest.raises(InvalidSequence, match="at least 24 frames"):
        load_stills(stills, frames=10)
    (stills / "boxes.csv").write_text("image,source,x,y,w,h,label\na.jpg,made,1,2,x,4,1\n")
    with pytest.raises(InvalidSequence, match="row that is not image,source,x,y,w,h"):
        load_stills(stills)
    (stills / "boxes.csv").write_text("image,source,x,y,w,h,label\na.jpg,made,1,2,50,50,1\n")
    with pytest.raises(InvalidSequence, match="1 objects in 1 images"):
        load_stills(stills)


def test_flights_are_sequences_with_absent_frames() -> None:
    (sequence,) = load_flights([3], seconds=12)
    flight = Flight(FlightOptions(seed=3, duration=12))
    truth = flight.truth()
    assert (sequence.name, len(sequence)) == ("flight_3", 360)
    away = [t.box is None for t in truth]
    hidden = [t.hidden >= 0.9 for t in truth]
    assert any(away)
    assert sequence.absent.tolist() == [a or h for a, h in zip(away, hidden, strict=True)]
    assert sequence.first_box == truth[0].box
    np.testing.assert_array_equal(sequence.frame(40), flight.render(40)[0])
    with pytest.raises(ValueError, match="named twice"):
        load_flights([1, 1])
