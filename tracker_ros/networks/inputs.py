"""What a network sees of an image: RGB with a fixed mean and deviation removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

#: Mean and standard deviation of ImageNet's RGB in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalising(nn.Module):
    """A network that knows the mean and the deviation of its input.

    They lie on its device, so that no frame takes them there, and stay float32 whatever the parameters become.

    Attributes:
        mean, std: of RGB in [0, 255], 1x3x1x1; ImageNet's, unless a derived class has other ones.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in zip(("mean", "std"), self.input_statistics(), strict=True):
            self.register_buffer(name, values, persistent=False)

    @staticmethod
    def input_statistics() -> tuple[Tensor, Tensor]:
        """Mean and deviation of RGB in [0, 255] that `preprocess` removes, 1x3x1x1 each."""
        mean, deviation = (255 * torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return mean, deviation

    def preprocess(self, image: Tensor) -> Tensor:
        """RGB in [0, 255], Bx3xHxW of any real type, to the float32 input of `forward`."""
        return (image.float() - self.mean) / self.std

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        exact = self.mean, self.std
        super()._apply(fn, recurse)
        self.mean, self.std = (
            value.to(moved.device) for value, moved in zip(exact, (self.mean, self.std), strict=True)
        )
        return self
