"""Sequences and trackers made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tracker_ros.evaluation.sequences import Sequence, load_sequence

MakeSequence = Callable[..., Path]


@pytest.fixture
def make_sequence(tmp_path: Path) -> MakeSequence:
    """Writes a sequence whose frame i is grey level i, with the given rows of truth."""

    def make(
        name: str,
        rows: list[str],
        *,
        images: str = "img",
        truth: str = "groundtruth.txt",
        frames: int | None = None,
        size: tuple[int, int] = (64, 48),
    ) -> Path:
        folder = tmp_path / name
        (folder / images).mkdir(parents=True)
        for i in range(len(rows) if frames is None else frames):
            cv2.imwrite(str(folder / images / f"{i + 1:06d}.png"), np.full((size[1], size[0], 3), i, np.uint8))
        if truth:
            (folder / truth).write_text("\n".join(rows) + "\n")
        return folder

    return make


@pytest.fixture
def ten_frames(make_sequence: MakeSequence) -> Sequence:
    """Ten frames in which the target moves one pixel a frame to the right."""
    return load_sequence(make_sequence("ten", [f"{10 + i},10,8,8" for i in range(10)]))
