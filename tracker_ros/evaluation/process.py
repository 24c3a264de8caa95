"""What a run asks of its process: seeds, threads, and to wait for a GPU before the clock is read."""

from __future__ import annotations

import random
import sys
from typing import Any

import cv2
import numpy as np

from tracker_ros.trackers.base import Tracker


def set_seeds(seed: int) -> None:
    """Seed every generator that a tracker may draw from (torch's only where it is loaded)."""
    random.seed(seed)
    np.random.seed(seed)
    cv2.setRNGSeed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def set_threads(threads: int) -> None:
    """Set the number of threads of OpenCV, and of torch where it is loaded."""
    cv2.setNumThreads(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def synchronize(tracker: Tracker[Any]) -> None:
    """Wait until the tracker's GPU, if it has one, has done all its work."""
    if tracker.device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(tracker.device)
