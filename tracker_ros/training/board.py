"""Curves and pictures of a run for TensorBoard, which is optional."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tracker_ros.training.data import Image


def writer_class() -> Any:
    """`SummaryWriter`.

    Raises:
        ImportError: TensorBoard is not installed; the message says how to install it.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(f"--tensorboard needs a package that is missing ({error}): pip install tensorboard") from None
    return SummaryWriter


class Board:
    """Writes event files that ``tensorboard --logdir`` shows.

    Args:
        directory: where they go.
        step: steps that a resumed run has done: what an earlier one wrote beyond them is no longer shown.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, directory: Path, step: int = 0) -> None:
        self._writer = writer_class()(str(directory), purge_step=step + 1 if step else None)

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """One point of each curve `group`/name."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def pictures(self, pictures: Mapping[str, Image], step: int) -> None:
        """Pictures, HxWx3 uint8 BGR, by name."""
        for name, picture in pictures.items():
            self._writer.add_image(name, np.ascontiguousarray(picture[..., ::-1]), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Write what is still buffered."""
        self._writer.close()
