from __future__ import annotations

import math

import numpy as np
import pytest

from tracker_ros.geometry.boxes import Box
from tracker_ros.trackers.appearance import ColourModel


@pytest.fixture
def scene() -> np.ndarray:
    """Grey ground, an orange target at (40, 30), a blue thing of its size at (200, 150)."""
    frame = np.random.RandomState(0).normal(90, 6, (240, 320, 3)).clip(0, 255).astype(np.uint8)
    frame[30:60, 40:80] = (20, 120, 240)
    frame[150:180, 200:240] = (220, 90, 30)
    return frame


TARGET, OTHER = Box(40, 30, 40, 30), Box(200, 150, 40, 30)


def test_the_same_colours_are_alike_and_others_are_not(scene: np.ndarray) -> None:
    model = ColourModel(scene, TARGET)
    assert model.similarity(scene, TARGET) == pytest.approx(1, abs=1e-4)
    assert model.similarity(scene, OTHER) < 0.1
    assert model.similarity(scene, Box(120, 100, 40, 30)) < 0.1
    assert model.similarity(scene, Box(-500, -500, 40, 30)) == 0, "a box outside the image looks like nothing"


def test_it_follows_a_target_that_changes_but_remembers_the_first(scene: np.ndarray) -> None:
    model = ColourModel(scene, TARGET)
    for _ in range(60):
        model.learn(scene, OTHER, 0.1)
    assert model.similarity(scene, OTHER) > 0.9
    assert model.similarity(scene, TARGET) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_the_best_proposal_is_the_target(scene: np.ndarray, count: int) -> None:
    model = ColourModel(scene, TARGET)
    moved = np.roll(scene, (90, 130), (0, 1))
    centers = model.propose(moved, (40, 30), count)
    assert len(centers) == count
    assert math.dist(centers[0], (60 + 130, 45 + 90)) < 6
