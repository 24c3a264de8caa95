from __future__ import annotations

import numpy as np

from tracker_ros.geometry.scan import scan_axis, scan_places


def test_windows_cover_the_extent() -> None:
    positions = scan_axis(640, 200, 120)
    assert positions[0] == 100
    assert positions[-1] == 540
    assert max(np.diff(positions)) <= 120
    assert scan_axis(150, 200, 120) == [75]


def test_places_cover_the_image_and_start_near_the_last_one() -> None:
    near = np.array([500.0, 300.0])
    places = scan_places(640, 480, 200, 40, near)
    distances = [np.abs(p - near).max() for p in places]
    assert distances == sorted(distances)
    y, x = np.mgrid[:480:5, :640:5]
    seen = [(np.abs(x - p[0]) <= 100) & (np.abs(y - p[1]) <= 100) for p in places]
    assert np.any(seen, 0).all()
    # Wherever a target of 40 pixels lies, one window holds all of it.
    whole = [(np.abs(x - p[0]) <= 80) & (np.abs(y - p[1]) <= 80) for p in places]
    assert np.any(whole, 0)[20:-20, 20:-20][4:-4, 4:-4].all()
