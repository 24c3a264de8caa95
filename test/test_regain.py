"""DiMP-18 with the shipped weights on the simulated flight: given up when it leaves, found when it returns."""

from __future__ import annotations

import pytest

from tracker_ros import registry, weights
from tracker_ros.simulation import Flight, FlightOptions
from tracker_ros.simulation.score import Absence, track_flight

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not weights.shipped("dimp18").is_file(), reason="models/dimp18.safetensors is not there"),
]


def test_lost_when_out_of_view_and_regained_in_most_flights() -> None:
    """LOST within 15 frames of leaving, regained within 30 frames of the return: at least 8 of 10 seeds."""
    tracker = registry.create("dimp18", device="cpu")
    absences: dict[int, tuple[Absence, ...]] = {}
    for seed in range(10):
        absences[seed] = track_flight(tracker, Flight(FlightOptions(seed=seed)))[1].absences
        print(f"seed {seed}: {absences[seed]}")
    assert all(absences.values()), "the target leaves the view in every flight"
    good = [seed for seed, found in absences.items() if all(_in_time(a) for a in found)]
    assert len(good) >= 8, absences


def _in_time(a: Absence) -> bool:
    lost = a.lost_after is not None and a.lost_after <= 15
    return lost and a.regained_after is not None and a.regained_after <= 30
