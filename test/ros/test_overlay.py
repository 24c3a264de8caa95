"""Drawing a track on its image."""

import numpy as np
import pytest

from tracker_ros.geometry.boxes import Box
from tracker_ros.ros.overlay import COLOURS, PALETTE, Caption, Mark, draw, draw_targets_on
from tracker_ros.trackers.base import Estimate, TrackState

SIZES = [(128, 96), (640, 480), (480, 640), (3840, 2160)]
CAPTION = Caption("dimp18", "vehicle", 23.4, 0.041)


def estimate(width: int, height: int, state=TrackState.TRACKING, heat=None) -> Estimate:
    box = Box(width * 0.4, height * 0.5, width * 0.15, height * 0.2)
    return Estimate(box, 0.87, state, Box.from_center(*box.center, width * 0.5, height * 0.6), heat)


def ground(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def bar(image: np.ndarray) -> int:
    """Rows of the dark strip at the top, told by its right edge, where no text is."""
    return int(np.argmax(image[:, -1, 0] >= 100))


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("state", list(TrackState))
def test_every_state_at_every_size(width, height, state):
    frame = ground(width, height)
    seen = None if state is TrackState.IDLE else estimate(width, height, state, np.ones((19, 19), np.float32))
    out = draw(frame, seen, CAPTION)
    assert out.shape == frame.shape
    assert out.dtype == np.uint8
    assert (frame == 100).all()
    assert 0 < bar(out) < 0.25 * height
    # The dot and the text are in the state's colour.
    strip = out[: bar(out)].reshape(-1, 3).astype(int)
    assert (np.abs(strip - COLOURS[state]).max(1) <= 12).sum() > 20


def test_the_box_is_drawn_where_it_is_in_the_colour_of_the_state():
    for state in (TrackState.TRACKING, TrackState.UNCERTAIN, TrackState.LOST):
        seen = estimate(640, 480, state)
        out = draw(ground(640, 480), seen).astype(int)
        coloured = np.abs(out[60:] - COLOURS[state]).max(2) <= 12
        rows, columns = np.nonzero(coloured)
        assert columns.min() == pytest.approx(seen.box.x, abs=3)
        assert columns.max() == pytest.approx(seen.box.x + seen.box.w, abs=3)
        assert rows.min() + 60 == pytest.approx(seen.box.y, abs=3)
        assert rows.max() + 60 == pytest.approx(seen.box.y + seen.box.h, abs=3)


def test_heat_colours_its_place_and_nothing_else():
    heat = np.zeros((20, 20), np.float32)
    heat[:, :10] = 1
    seen = estimate(640, 480, heat=heat)
    plain, hot = draw(ground(640, 480), estimate(640, 480)), draw(ground(640, 480), seen)
    changed = np.nonzero((plain != hot).any(2))
    region = seen.search_region
    assert changed[1].min() >= region.x - 1
    assert changed[1].max() <= region.center[0] + region.w / 20
    assert changed[0].size > 0.3 * region.area
    assert np.array_equal(draw(ground(640, 480), seen, heat=0), plain)


@pytest.mark.parametrize(
    "box", [Box(-50, -50, 80, 80), Box(600, 450, 500, 500), Box(-9e5, 10, 2e6, 50), Box(5000, 5000, 10, 10)]
)
def test_boxes_beyond_the_image_are_no_problem(box):
    heat = np.full((7, 9), np.nan, np.float32)
    for state in (TrackState.TRACKING, TrackState.LOST):
        out = draw(ground(640, 480), Estimate(box, 0.5, state, box, heat), CAPTION)
        assert out.shape == (480, 640, 3)


def test_narrow_images_leave_out_what_has_no_room():
    full, bare = (draw(ground(128, 96), estimate(128, 96), caption) for caption in (CAPTION, Caption("dimp18")))
    assert np.array_equal(full[: bar(full)], bare[: bar(bare)])
    wide = draw(ground(640, 480), estimate(640, 480), CAPTION)
    assert not np.array_equal(wide, draw(ground(640, 480), estimate(640, 480), Caption("dimp18")))


def test_a_note_takes_the_place_of_the_state():
    assert not np.array_equal(
        draw(ground(640, 480), None, Caption(note="TRACKER FAILED")), draw(ground(640, 480), None, Caption())
    )


def several(width: int, height: int, slots: list[int], states: list[TrackState]) -> np.ndarray:
    """Targets in these slots and states, in a row."""
    image, marks = ground(width, height), []
    for k, (slot, state) in enumerate(zip(slots, states, strict=True)):
        box = Box(width * (0.05 + 0.3 * k), height * 0.5, width * 0.15, height * 0.2)
        seen = Estimate(box, 0.87, state, Box.from_center(*box.center, width, height), np.ones((19, 19), np.float32))
        marks.append(Mark(seen, f"target {slot}", slot))
    draw_targets_on(image, marks, CAPTION)
    return image


def columns_of(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The columns in which this colour is, below the line at the top."""
    return np.nonzero((np.abs(image[bar(image) :].astype(int) - colour).max(2) <= 12).any(0))[0]


def test_each_of_several_targets_keeps_its_colour_whatever_becomes_of_the_others():
    tracked = [TrackState.TRACKING, TrackState.UNCERTAIN, TrackState.LOST]
    for slots in ([0, 1, 2], [2, 0, 9], [5, 4, 3]):
        image = several(640, 480, slots, tracked)
        for k, slot in enumerate(slots):
            columns = columns_of(image, PALETTE[slot % len(PALETTE)])
            left = 640 * (0.05 + 0.3 * k)
            assert columns.min() == pytest.approx(left, abs=3)
            assert columns.max() == pytest.approx(left + 640 * 0.15, abs=3)
        for state in tracked:
            assert columns_of(image, COLOURS[state]).size, "the state is written in its own colour"
    assert not {*PALETTE} & {*COLOURS.values()}


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_several_targets_at_every_size_and_beyond_the_image(width, height):
    states = [TrackState.TRACKING, TrackState.LOST, TrackState.UNCERTAIN]
    assert several(width, height, [0, 1, 2], states).shape == (height, width, 3)
    for box in (Box(-500, -500, 30, 30), Box(width - 3, height - 3, 400, 400), Box(-9e5, 10, 2e6, 50)):
        image = ground(width, height)
        far = Estimate(box, 0.5, TrackState.UNCERTAIN, box, np.full((7, 9), np.nan, np.float32))
        draw_targets_on(image, [Mark(far, "a name that is far too long " * 9, 3, "TRACKER FAILED", True)], CAPTION)
        empty = ground(width, height)
        draw_targets_on(empty, [], CAPTION)
        said = image[bar(empty) :].astype(int)
        assert (said.max(2) - said.min(2) > 60).any(), "what is said of it is in the image"
    image = ground(width, height)
    draw_targets_on(image, [], CAPTION)
    assert bar(image) > 0


def test_the_response_is_drawn_for_the_selected_target_alone():
    image, heat = ground(640, 480), np.ones((19, 19), np.float32)
    marks = [
        Mark(
            Estimate(box, 0.9, TrackState.TRACKING, Box.from_center(*box.center, 200, 200), heat), "car", slot, "", sel
        )
        for slot, (box, sel) in enumerate([(Box(100, 200, 40, 40), True), (Box(500, 200, 40, 40), False)])
    ]
    draw_targets_on(image, marks)
    assert (image[290, 60] != 100).any()
    assert (image[290, 460] == 100).all()
