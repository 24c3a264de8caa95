"""Device, arithmetic and layout of networks that are only evaluated, and the way between host and device."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class DeviceError(ValueError):
    """A device that is not there or cannot be used; the message says which and what there is."""


def choose_device(name: str) -> torch.device:
    """The device called `name`; ``auto`` is the first CUDA device, or the CPU where there is none.

    Raises:
        DeviceError: no such device.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"'{name}' is not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index or 0
        if index >= count:
            raise DeviceError(f"device '{name}' is not there: {count} CUDA devices found; use device 'auto' or 'cpu'")
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise DeviceError(f"device '{name}' is not supported; use auto, cpu, cuda or cuda:N")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Element type called `name`; ``auto`` is the fastest one that the device computes natively.

    Raises:
        DeviceError: float16 on the CPU, which is slower than float32 there.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    if device.type == "cpu" and name == "float16":
        raise DeviceError("float16 is for CUDA devices; on the CPU use auto, float32 or bfloat16")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` computes bfloat16 natively; one that emulates it is far slower with it than with float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return any(getattr(torch.cpu, f"_is_{unit}_supported", bool)() for unit in ("avx512_bf16", "amx_tile"))


def asking_is_free(device: torch.device) -> bool:
    """Whether the host may look at what was computed on `device` without waiting for it: it is the host itself.

    Only then work may be saved by looking at numbers first.
    """
    return device.type == "cpu"


class Link:
    """The way between the host and a device, which every number of a frame takes.

    Uploads are copied to page-locked memory first (torch keeps what it has locked, and uses it again once the copy is
    done), so none of them waits for the device's work. A download waits for all of it; a tracker makes one a frame.

    Args:
        device: the other end.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def upload(self, values: Tensor | NDArray[Any]) -> Tensor:
        """Values of the host on the device; on the CPU these very values."""
        host = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
        return host if self.device.type == "cpu" else host.pin_memory().to(self.device, non_blocking=True)

    def download(self, values: Tensor) -> NDArray[np.float64]:
        """Values of the device on the host."""
        found: NDArray[np.float64] = values.double().cpu().numpy()
        return found


def prepare(module: ModuleT, device: torch.device) -> ModuleT:
    """Put a network into evaluation: no gradients, batch norms folded away, channels last, on `device`."""
    module.eval().requires_grad_(False)
    _fold(module)
    module.to(device=device)
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            child.weight.data = child.weight.data.contiguous(memory_format=torch.channels_last)
    return module


def _fold(module: nn.Module) -> None:
    """Fold every batch norm into the convolution or linear layer that runs right before it, in place."""
    previous: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        # In this package's modules children are registered in the order in which they run.
        if isinstance(child, nn.BatchNorm2d) and previous and isinstance(previous[1], nn.Conv2d):
            setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, nn.Identity())
        elif isinstance(child, nn.BatchNorm1d) and previous and isinstance(previous[1], nn.Linear):
            setattr(module, previous[0], fuse_linear_bn_eval(previous[1], child))
            setattr(module, name, nn.Identity())
        else:
            _fold(child)
        previous = (name, child)
