"""Simulated flights as sequences: rendered when they are asked for, with exact truth and a target that leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tracker_ros.evaluation.sequences import Sequence as FrameSequence
from tracker_ros.simulation.flight import Flight, FlightOptions
from tracker_ros.trackers.base import Frame

#: Part of the target under trees or a bridge from which on it is absent (LaSOT's full occlusion).
FULLY_HIDDEN = 0.9


@dataclass(frozen=True)
class FlightImages:
    """The frames of a flight. Of all flights only the world of the last one looked at is kept, as it takes 100 MB."""

    options: FlightOptions

    def __len__(self) -> int:
        return len(_flight(self.options))

    def __getitem__(self, index: int) -> Frame:
        return _flight(self.options).render(index)[0]


@lru_cache(maxsize=1)
def _flight(options: FlightOptions) -> Flight:
    return Flight(options)


def load_flights(seeds: Sequence[int], seconds: float = 20.0) -> list[FrameSequence]:
    """Flights as sequences ``flight_<seed>``.

    The truth is the part of the target inside the picture; frames in which nothing of it is in view, or trees or a
    bridge hide it (`FULLY_HIDDEN`), show no target.

    Args:
        seeds: of the flights.
        seconds: length of each.

    Raises:
        ValueError: a seed or length that no flight has, or a seed twice.
    """
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"a flight is named twice: {' '.join(map(str, seeds))}")
    sequences = []
    for seed in seeds:
        options = FlightOptions(seed=seed, duration=seconds)
        flight = _flight(options)
        boxes = flight.boxes()
        boxes[[t.hidden >= FULLY_HIDDEN for t in flight.truth()]] = np.nan
        sequences.append(FrameSequence(f"flight_{seed}", FlightImages(options), boxes))
    return sequences
