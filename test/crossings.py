"""Counts what goes from the host to the device and back, on a machine that has a CPU only.

On a CPU nothing crosses, so everything that would on a GPU is refused unless it takes the tracker's `Link`: tensors
made of Python's numbers or NumPy's arrays, and operators whose results the host must see to go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tracker_ros.networks.inference import Link


class Crossing(AssertionError):
    """Something went between host and device beside the tracker's link."""


#: Operators that the host waits for: their result is a number of Python's, or its shape depends on the values.
_READ = (
    *("_local_scalar_dense", "is_nonzero", "equal", "item", "nonzero", "nonzero_numpy", "masked_select", "unique_dim"),
    *("_unique", "_unique2", "unique_consecutive", "unique_dim_consecutive", "bincount", "histc", "_assert_async"),
    *("allclose", "is_pinned", "segment_reduce", "_linalg_check_errors"),
)
#: Makers of tensors out of Python's numbers or NumPy's arrays.
_MADE = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.frombuffer, Tensor.new_tensor)
#: What brings a tensor to the host.
_TAKEN = (
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.cuda, Tensor.__array__),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
)


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _READ or (name == "repeat_interleave" and func._overloadname != "self_int"):
            raise Crossing(f"the host waits for {func}")
        if name in ("index", "index_put", "index_put_", "_unsafe_index"):
            masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]
            if masks:
                raise Crossing(f"{func} by a mask, of which the host must know how much it holds")
        if name == "lift_fresh":
            raise Crossing("a tensor is made of Python's numbers")
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _MADE:
            raise Crossing(f"{func.__name__} makes a tensor of the host's numbers")
        if func in _TAKEN:
            raise Crossing(f"{func.__name__} takes a tensor to the host")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and _lists(args[1]):
            raise Crossing("a list or an array as index goes to the device first")
        return func(*args, **(kwargs or {}))


def _lists(index: Any) -> bool:
    return any(isinstance(part, list | np.ndarray) for part in (index if isinstance(index, tuple) else (index,)))


class CountingLink(Link):
    """A link that counts, and the only place where anything may cross while `watch` is on."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.uploads = self.downloads = 0

    def upload(self, values: Tensor) -> Tensor:
        self.uploads += 1
        with _unwatched():
            return super().upload(values)

    def download(self, values: Tensor) -> Any:
        self.downloads += 1
        with _unwatched():
            return super().download(values)


@contextmanager
def _unwatched() -> Iterator[None]:
    with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
        yield


@contextmanager
def watch() -> Iterator[None]:
    """Refuse every crossing that takes no `CountingLink`; raises `Crossing` where it happens."""
    with _Functions(), _Operators():
        yield
