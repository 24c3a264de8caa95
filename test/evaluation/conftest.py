"""Sequences and trackers made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tracker_ros.evaluation.sequences import Sequence, load_sequence

MakeSequence = Callable[..., Path]


@pytest.fixture
def ten_frames(make_sequence: MakeSequence) -> Sequence:
    """Ten frames in which the target moves one pixel a frame to the right."""
    return load_sequence(make_sequence("ten", [f"{10 + i},10,8,8" for i in range(10)]))


def spoil(path: Path, how: str) -> None:
    """Make an image file one that can't be read."""
    content = path.read_bytes()
    path.unlink()
    if how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif how == "a folder":
        path.mkdir()
    elif how == "text":
        path.write_text("no image")
