"""Work that is done before its result is asked for, by other processes or threads."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

T = TypeVar("T")
S = TypeVar("S")


def threaded(function: Callable[[S], T], items: Iterable[S], most: int = 32) -> Iterator[T]:
    """`map` by threads, for functions that release the GIL (decoding, resizing); at most `most` results wait."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def choose_workers(wanted: int, device: torch.device) -> int:
    """`wanted`, or for -1 as many as help.

    That is none on a CPU, where they would take the cores that train; beside a CUDA device all cores but one, at most
    8, shared out among the processes that train on this machine.
    """
    if wanted >= 0:
        return wanted
    if device.type != "cuda":
        return 0
    return min(8, max((os.cpu_count() or 1) - 1, 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _Steps(IterableDataset[T]):
    """`plan` of the steps from `first` on; several workers take turns."""

    def __init__(self, plan: Callable[[int], T], first: int) -> None:
        self._plan, self._first = plan, first

    def __iter__(self) -> Iterator[T]:
        info = get_worker_info()
        start, step = (info.id, info.num_workers) if info is not None else (0, 1)
        return map(self._plan, itertools.count(self._first + start, step))


class Ahead(Generic[T]):
    """`plan(step)` for one step after the other, computed while a device works on the steps before.

    Args:
        plan: a function of the step alone that leaves devices alone; its results travel between processes.
        workers: processes that compute it; with none it is called when needed.
    """

    def __init__(self, plan: Callable[[int], T], workers: int = 0) -> None:
        self._plan, self._workers = plan, workers
        self._results: Iterator[T] | None = None
        self._expected = 0

    def __call__(self, step: int) -> T:
        """`plan(step)`; asking for another step than the next one starts the workers anew."""
        if self._workers == 0:
            return self._plan(step)
        if self._results is None or step != self._expected:
            # Forked, so that the images are shared and nothing but results is copied.
            loader: DataLoader[T] = DataLoader(
                _Steps(self._plan, step),
                batch_size=None,
                num_workers=self._workers,
                collate_fn=_unchanged,
                multiprocessing_context="fork",
                prefetch_factor=4,
            )
            self._results = iter(loader)
        self._expected = step + 1
        return next(self._results)

    def close(self) -> None:
        """Let the workers go."""
        self._results = None


def _unchanged(value: T) -> T:
    return value
