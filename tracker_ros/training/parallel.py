"""Several processes that train one network together, as ``torchrun`` starts them, seen from one of them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import distributed

from tracker_ros.networks.inference import choose_device


class Ranks(NamedTuple):
    """Which process this is.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1


def ranks() -> Ranks:
    """Which of the processes that it has joined this one is; `Ranks(0, 1)` where it has joined none."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    return Ranks()


def choose_own_device(name: str) -> torch.device:
    """The device called `name`; of several processes on one machine each gets a CUDA device of its own.

    Raises:
        ValueError: no such device, or one device for several processes.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("LOCAL_RANK", "0")
    if size == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return choose_device(name)
    if name not in ("auto", "cuda"):
        raise ValueError(f"device '{name}' cannot serve {size} processes: with torchrun use auto, cuda or cpu")
    return choose_device(f"cuda:{local}")


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started, for the time of the block; does nothing for a single process.

    Gradients travel by NCCL between CUDA devices and by gloo between CPUs; what is on the host always by gloo, so that
    agreeing on it waits for no device, and for half an hour while the first process validates.

    Raises:
        ValueError: the device cannot be used.
        RuntimeError: another process has ended early, or what the block raises.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    chosen = choose_own_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield ranks()
    except RuntimeError as error:
        if "closed by peer" in str(error):
            raise RuntimeError("another process of this run has ended; what it said last tells why") from error
        raise
    except KeyboardInterrupt:
        distributed.destroy_process_group()  # all have agreed to stop
        raise
    # After an error there is no orderly farewell, which would wait for the others: that this process ends is what ends
    # their next exchange with an error, and what makes torchrun stop those that do not notice.
    distributed.barrier()
    # A run and what wraps its losses refer to each other: left to the interpreter's end, the wrapper would keep the
    # group's threads beyond the group, and ending them then can abort the process.
    gc.collect()
    distributed.destroy_process_group()


@contextmanager
def first_ahead() -> Iterator[None]:
    """The first process goes through the block before the others do, which then find the files that it has made."""
    rank, size = ranks()
    if rank > 0:
        _meet()
    yield
    if rank == 0 and size > 1:
        _meet()


def _meet() -> None:
    distributed.all_reduce(torch.zeros(1))  # a barrier on the host, whatever the devices
