"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Two threads a process: the tests must run beside other work on two cores."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture
def texture() -> NDArray[np.uint8]:
    """A 320x240 BGR image with structure at several scales."""
    r = np.random.RandomState(0)
    layers = [cv2.resize(r.randint(0, 255, (h, w, 3)).astype(np.float32), (320, 240)) for h, w in ((6, 8), (24, 32))]
    return np.clip(0.6 * layers[0] + 0.4 * layers[1], 0, 255).astype(np.uint8)


@pytest.fixture
def make_sequence(tmp_path: Path) -> Callable[..., Path]:
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
