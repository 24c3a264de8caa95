"""Fixtures that all tests share."""

from __future__ import annotations

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
    import cv2

    r = np.random.RandomState(0)
    layers = [cv2.resize(r.randint(0, 255, (h, w, 3)).astype(np.float32), (320, 240)) for h, w in ((6, 8), (24, 32))]
    return np.clip(0.6 * layers[0] + 0.4 * layers[1], 0, 255).astype(np.uint8)
