"""The simulated flight: what it shows, that it is always the same, and that its truth is where the pixels are."""

from __future__ import annotations

import itertools
from functools import cache, lru_cache

import numpy as np
import pytest

from tracker_ros.simulation import Episode, Flight, FlightOptions, Truth
from tracker_ros.simulation.flight import _turn


@lru_cache(maxsize=3)  # about 100 MB each
def flight(seed: int = 0, **changes: float) -> Flight:
    return Flight(FlightOptions(seed=seed, **changes))  # type: ignore[arg-type]


@cache
def story(seed: int) -> tuple[list[Truth], list[Episode]]:
    f = flight(seed)
    return f.truth(), f.episodes()


def plain(seed: int) -> Flight:
    """A flight whose pictures hold nothing but the ground and the vehicles."""
    return flight(seed, noise=0, shutter=0, light=False, shadows=False)


def test_frames_are_bgr_images_of_the_asked_size() -> None:
    small = Flight(FlightOptions(width=320, height=200, fps=15, duration=2))
    assert len(small) == 30
    frame, truth = small.render(7)
    assert frame.shape == (200, 320, 3)
    assert frame.dtype == np.uint8
    assert truth.index == 7
    assert sum(1 for _ in itertools.islice(small, 3)) == 3


def test_same_seed_same_pixels_in_any_order() -> None:
    options = FlightOptions(seed=11, duration=5)
    a, b = Flight(options), Flight(options)
    forward = {i: a.render(i) for i in (0, 40, 149)}
    for i in (149, 0, 40):
        frame, truth = b.render(i)
        assert np.array_equal(frame, forward[i][0])
        assert truth == forward[i][1]


def test_other_seed_other_flight() -> None:
    a, b = flight(0).render(0), flight(1).render(0)
    assert not np.array_equal(a[0], b[0])
    assert a[1].box != b[1].box


def test_truth_does_not_depend_on_rendering() -> None:
    f = flight(0)
    assert f.render(33)[1] == f.truth_at(33) == f.truth()[33]


def test_flight_goes_on_after_its_duration() -> None:
    frame, truth = flight(0).render(10_000)
    assert frame.shape == (480, 640, 3)
    assert np.isfinite(truth.extent).all()


def test_negative_frame_is_refused() -> None:
    with pytest.raises(IndexError, match="-1"):
        flight(0).render(-1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("width", 10), ("height", 10**5), ("fps", 0), ("zoom", 100), ("duration", float("nan")), ("seed", -1)],
)
def test_bad_option_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        FlightOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_target_is_drawn_exactly_where_the_truth_says(seed: int) -> None:
    f = plain(seed)
    compared = 0
    for i in range(0, 600, 12):
        truth = f.truth_at(i)
        drawn = np.abs(f.render(i)[0].astype(int) - f.render(i, target=False)[0]).max(2) > 12
        if truth.box is None:
            assert not drawn.any()
            continue
        rows, columns = np.nonzero(drawn)
        if truth.hidden > 0 or truth.in_view < 1 or len(rows) == 0:
            if len(rows):
                x, y, w, h = truth.box
                assert columns.min() >= x - 1.5
                assert rows.min() >= y - 1.5
                assert columns.max() + 1 <= x + w + 1.5
                assert rows.max() + 1 <= y + h + 1.5
            continue
        measured = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        x, y, w, h = truth.box
        assert np.abs(np.array(measured) - [x, y, x + w, y + h]).max() <= 2.0, f"frame {i}"
        compared += 1
    assert compared > 15


def test_truth_is_not_biased() -> None:
    f = plain(3)
    errors = []
    for i in range(0, 120, 4):
        truth = f.truth_at(i)
        if truth.hidden > 0 or truth.in_view < 1:
            continue
        change = np.abs(f.render(i)[0].astype(float) - f.render(i, target=False)[0]).max(2) > 12
        rows, columns = np.nonzero(change)
        assert truth.box is not None
        cx, cy = truth.box.center
        errors.append(
            [(columns.min() + columns.max() + 1) / 2 - cx, (rows.min() + rows.max() + 1) / 2 - cy],
        )
    assert len(errors) > 10
    assert np.abs(np.mean(errors, 0)).max() < 0.25


@pytest.mark.parametrize("seed", range(10))
def test_every_flight_hides_loses_and_returns_the_target(seed: int) -> None:
    truth, episodes = story(seed)
    assert truth[0].in_view == 1
    assert truth[0].hidden == 0
    assert all(t.in_view == 1 and t.hidden == 0 for t in truth[:45]), "the track needs a quiet start"
    sides = [max(t.extent.w, t.extent.h) for t in truth]
    assert 30 <= min(sides) <= max(sides) <= 75
    assert max(sides) > 1.3 * min(sides), "the scale must change"
    hidden = [e for e in episodes if e.kind == "hidden"]
    away = [e for e in episodes if e.kind == "away"]
    assert len(hidden) >= 2
    assert any(all(t.hidden > 0.97 for t in truth[e.first + 12 : e.first + 15]) for e in hidden)
    assert len(away) >= 1
    for e in away:
        assert 1.9 <= (e.last - e.first + 1) / 30 <= 3.1
        assert e.last < 360
        # back for good: seen entirely, and in the open for a second at least
        assert all(t.in_view == 1 for t in truth[e.last + 25 : e.last + 40])
        assert all(t.hidden < 0.1 for t in truth[e.last + 1 : e.last + 31])
        assert all(t.hidden < 0.5 for t in truth[e.first - 15 : e.first])


def test_absent_frames_are_rows_of_nan() -> None:
    f = flight(0)
    truth, boxes = f.truth(), f.boxes()
    assert boxes.shape == (600, 4)
    assert 50 < sum(t.box is None for t in truth) < 100
    for t, row in zip(truth, boxes, strict=True):
        if t.box is None:
            assert np.isnan(row).all()
            assert t.in_view == 0
        else:
            assert tuple(row) == t.box


def test_target_comes_back_over_all_sides() -> None:
    sides = set()
    for seed in range(10):
        truth, episodes = story(seed)
        away = next(e for e in episodes if e.kind == "away")
        box = truth[away.last + 1].box
        assert box is not None
        gaps = {"left": box.x, "top": box.y, "right": 640 - box.x - box.w, "bottom": 480 - box.y - box.h}
        sides.add(min(gaps, key=lambda side: gaps[side]))
    assert len(sides) >= 3


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_look_alikes_come_close_and_never_touch(seed: int) -> None:
    f = flight(seed)
    nearest, company = np.inf, 0
    for i in range(0, 600, 5):
        t = i / f.options.fps
        vehicles = zip(f._vehicles, *f._places(t), strict=True)
        shapes = [_turn(vehicle.outline, heading) + place for vehicle, place, heading in vehicles]
        gaps = [np.hypot(*(shapes[0][:, None] - s[None]).transpose(2, 0, 1)).min() for s in shapes[1:]]
        nearest = min(nearest, *gaps)
        company += len(f.others(i)) > 0
    assert 0.3 < nearest < 4.0
    assert company > 60
    target, twin = f._vehicles[0].looks.paint, f._vehicles[1].looks.paint
    assert 0 < np.abs(np.subtract(target, twin)).max() < 70


def test_without_leaving_the_target_stays_in_view() -> None:
    f = Flight(FlightOptions(seed=0, leaves_view=False, duration=20))
    assert all(t.in_view == 1 for t in f.truth())


def test_the_ground_is_textured() -> None:
    frame, _ = plain(0).render(0)
    tiles = frame[:480, :640].reshape(12, 40, 16, 40, 3).std((1, 3)).max(-1)
    assert (tiles > 4).mean() > 0.9
