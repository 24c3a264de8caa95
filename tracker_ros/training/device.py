"""From plans to pixels: on the host with OpenCV, or on the device that trains, from uint8 images in its memory.

`SetSampler.plan` draws what crops show with numpy; a few hundred numbers a crop then cross to the device, and
everything that touches pixels happens there: affine views from the right pyramid level, pasted look-alikes and
occluders, colours, blur, noise and JPEG artefacts. Nothing is read back, so the host never waits for the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tracker_ros.training.ahead import threaded
from tracker_ros.training.augment import LONGEST_MOTION, FramePlan, Layer, Matrix, Photometric, level_of, render
from tracker_ros.training.data import Image, ImagePool, TrainingImage

#: Kernel that holds every blur that `draw_photometric` draws: OpenCV's kernel of the widest Gaussian is as large.
BLUR_SIZE = LONGEST_MOTION


class Renderer(ABC):
    """Makes the pixels of plans whose layers show images of one pool, for networks on `device`."""

    device: torch.device

    @abstractmethod
    def prepare(self, plans: Sequence[FramePlan], size: int) -> Any:
        """What can be done ahead by another process, without the device; `finish` takes it."""

    @abstractmethod
    def finish(self, prepared: Any) -> Tensor:
        """Bx3x`size`x`size` float32 RGB 0..255 on `device`, channels last."""

    def render(self, plans: Sequence[FramePlan], size: int) -> Tensor:
        """The pixels of `plans`, as `finish` returns them."""
        return self.finish(self.prepare(plans, size))


def choose_renderer(pool: ImagePool, device: torch.device) -> Renderer:
    """`DeviceImages` on a CUDA device that holds the whole pool in half of its free memory, else `HostImages`."""
    if device.type != "cuda":
        return HostImages(pool, device)
    free = torch.cuda.mem_get_info(device)[0] / 2
    for image in {id(image.levels): image for image in pool.images}.values():
        free -= image.size[0] * image.size[1] * 4 * 4 / 3
        if free < 0:
            return HostImages(pool, device)
    return DeviceImages(pool, device)


class HostImages(Renderer):
    """Makes crops with OpenCV: the fastest way on a CPU, and for images that a device's memory does not hold."""

    def __init__(self, pool: ImagePool, device: torch.device | str = "cpu") -> None:
        self.pool, self.device = pool, torch.device(device)

    def prepare(self, plans: Sequence[FramePlan], size: int) -> Tensor:
        """All the work: BxSxSx3 uint8 BGR on the host."""
        return torch.from_numpy(np.stack([render(self.pool.images, plan, size) for plan in plans]))

    def finish(self, prepared: Tensor) -> Tensor:
        """As `Renderer.finish`."""
        return send(prepared, self.device).flip(3).float().permute(0, 3, 1, 2)


def send(values: NDArray[np.generic] | Tensor, device: torch.device) -> Tensor:
    """`values` as a tensor on `device`, without waiting for it."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class DeviceImages(Renderer):
    """All images of a pool and their pyramids as uint8 in a device's memory, and crops from them.

    Four bytes a pixel, and a third more for the pyramid: 1.6 MB for an image of 640 x 480.

    Args:
        pool: the images; every one is decoded once, here.
        device: where they are kept.
    """

    def __init__(self, pool: ImagePool, device: torch.device | str) -> None:
        self.device = torch.device(device)
        # Several images may share their pixels (frames of several targets), which are kept once.
        shared = {id(image.levels): image for image in pool.images}
        # Halving rounds down, so no pyramid has more than 4/3 of its image's pixels.
        bound = sum(image.size[0] * image.size[1] * 4 // 3 + 1 for image in shared.values())
        buffer = torch.empty(bound, dtype=torch.int32, device=self.device)
        rows_of: dict[int, tuple[int, int]] = {}  # of each pyramid: first row of the table, and how many
        table: list[tuple[int, int, int]] = []  # of each level: start in the buffer, width, height
        end = 0
        for key, levels in zip(shared, threaded(_packed_levels, shared.values()), strict=True):
            rows_of[key] = len(table), len(levels)
            for pixels in levels:
                height, width = pixels.shape
                table.append((end, width, height))
                buffer[end : end + height * width] = torch.from_numpy(pixels.ravel()).to(self.device)
                end += height * width
        self._rows = np.array([rows_of[id(image.levels)] for image in pool.images], np.int64).reshape(-1, 2)
        self._sizes = np.array([row[1:] for row in table], np.float64).reshape(-1, 2)
        self._pixels = buffer[:end]
        self._table = torch.tensor(table, dtype=torch.int64, device=self.device).reshape(-1, 3)

    @property
    def megabytes(self) -> float:
        """Memory that the pixels take."""
        return self._pixels.numel() * 4 / 1e6

    def prepare(self, plans: Sequence[FramePlan], size: int) -> tuple[Sequence[FramePlan], int]:
        """Nothing: the device does the work."""
        return plans, size

    def finish(self, prepared: tuple[Sequence[FramePlan], int]) -> Tensor:
        """As `Renderer.finish`; nothing waits for the device."""
        plans, size = prepared
        crops = self._draw_layers(plans, size)
        looks = [plan.look for plan in plans]
        illumination = [plan.illumination for plan in plans]
        if any(matrix is not None for matrix in illumination):
            crops = self._recolour(crops, illumination)
        if any(look.colour is not None for look in looks):
            crops = self._recolour(crops, [look.colour for look in looks])
        for chosen, change in (
            ([i for i, look in enumerate(looks) if look.sigma > 0 or look.motion is not None], self._blur),
            ([i for i, look in enumerate(looks) if look.noise > 0], self._noise),
            ([i for i, look in enumerate(looks) if look.quality > 0], self._compress),
        ):
            if chosen:
                index = send(np.asarray(chosen), self.device)
                crops.index_copy_(0, index, change(crops.index_select(0, index), [looks[i] for i in chosen]))
        return crops.permute(0, 3, 1, 2)

    def _draw_layers(self, plans: Sequence[FramePlan], size: int) -> Tensor:
        """The crops' layers on top of each other, BxSxSx3 float RGB."""
        crops = self._view([plan.layers[0] for plan in plans], size)
        for depth in range(1, max(len(plan.layers) for plan in plans)):
            chosen = [number for number, plan in enumerate(plans) if len(plan.layers) > depth]
            layers = [plans[number].layers[depth] for number in chosen]
            index = send(np.asarray(chosen), self.device)
            under = crops.index_select(0, index)
            crops.index_copy_(0, index, under + self._mask(layers, size) * (self._view(layers, size) - under))
        return crops

    def _view(self, layers: Sequence[Layer], size: int) -> Tensor:
        """Each layer's image all over its crop, bilinear, the image's edge continued: BxSxSx3 float RGB."""
        matrices = np.stack([layer.matrix for layer in layers])
        first, count = self._rows[[layer.image for layer in layers]].T
        rows = first + level_of(matrices, count)
        # From the crop back to the level; pixel i of either covers [i, i + 1], and its centre is sampled.
        back = np.linalg.inv(matrices[:, :, :2])
        shift = (back @ (0.5 - matrices[:, :, 2:]))[..., 0]
        scale = self._sizes[rows] / self._sizes[first]
        numbers = np.hstack([(back * scale[..., None]).reshape(-1, 4), shift * scale - 0.5, rows[:, None]])
        sent = send(numbers.astype(np.float32), self.device)
        start, width, height = (column.reshape(-1, 1, 1) for column in self._table[sent[:, 6].long()].unbind(1))
        steps = torch.arange(size, dtype=torch.float32, device=self.device)
        along, down = steps.reshape(1, 1, -1), steps.reshape(1, -1, 1)
        a, b, c, d, e, f = (column.reshape(-1, 1, 1) for column in sent[:, :6].unbind(1))
        x = torch.minimum((a * along + b * down + e).clamp(min=0), width - 1)
        y = torch.minimum((c * along + d * down + f).clamp(min=0), height - 1)
        left, top = x.long(), y.long()
        right, bottom = torch.minimum(left + 1, width - 1), torch.minimum(top + 1, height - 1)
        x, y = (x - left)[..., None], (y - top)[..., None]
        upper, lower = start + top * width, start + bottom * width
        above = torch.lerp(self._fetch(upper + left), self._fetch(upper + right), x)
        below = torch.lerp(self._fetch(lower + left), self._fetch(lower + right), x)
        return torch.lerp(above, below, y)

    def _fetch(self, index: Tensor) -> Tensor:
        """Pixels at `index` of the buffer: ...x3 float RGB."""
        return self._pixels[index].unsqueeze(-1).view(torch.uint8)[..., :3].float()

    def _mask(self, layers: Sequence[Layer], size: int, power: float = 2.5, edge: float = 0.15) -> Tensor:
        """Weights of layers in their crops, BxSxSx1: 1 in the region, or its `soft_ellipse`."""
        sent = send(np.array([[*layer.region, layer.ellipse] for layer in layers], np.float32), self.device)
        x, y, w, h, ellipse = (column.reshape(-1, 1, 1) for column in sent.unbind(1))
        steps = torch.arange(size, dtype=torch.float32, device=self.device) + 0.5
        across = ((steps.reshape(1, 1, -1) - x) / w * 2 - 1).abs()
        down = ((steps.reshape(1, -1, 1) - y) / h * 2 - 1).abs()
        inside = ((across < 1) & (down < 1)).float()
        soft = ((1 - (across**power + down**power) ** (1 / power)) / edge).clamp(0, 1)
        return torch.where(ellipse > 0, soft, inside)[..., None]

    def _recolour(self, crops: Tensor, matrices: Sequence[Matrix | None]) -> Tensor:
        """Each crop's colours through its 3x4 BGR matrix."""
        keep = np.eye(3, 4)
        stacked = np.stack([keep if matrix is None else matrix for matrix in matrices])
        # The matrices are for BGR, the crops are RGB.
        turned = np.concatenate([stacked[:, ::-1, 2::-1], stacked[:, ::-1, 3:]], 2).astype(np.float32)
        sent = send(turned, self.device)
        mixed = crops.flatten(1, 2) @ sent[:, :, :3].transpose(1, 2) + sent[:, None, :, 3]
        return mixed.reshape(crops.shape).clamp_(0, 255)

    def _blur(self, crops: Tensor, looks: Sequence[Photometric]) -> Tensor:
        """Each crop through its own kernel."""
        count, size = crops.shape[:2]
        weight = send(np.stack([blur_kernel(look) for look in looks]), self.device)
        planes = crops.permute(0, 3, 1, 2).reshape(1, 3 * count, size, size)
        padded = functional.pad(planes, (BLUR_SIZE // 2,) * 4, mode="reflect")
        blurred = functional.conv2d(padded, weight.repeat_interleave(3, 0)[:, None], groups=3 * count)
        return blurred.reshape(count, 3, size, size).permute(0, 2, 3, 1)

    def _noise(self, crops: Tensor, looks: Sequence[Photometric]) -> Tensor:
        """White noise; its values differ from the host's for the same seed."""
        generator = torch.Generator(self.device).manual_seed(looks[0].noise_seed)
        noise = torch.randn(crops.shape, generator=generator, device=self.device)
        deviation = send(np.array([look.noise for look in looks], np.float32), self.device)
        return (crops + noise * deviation.reshape(-1, 1, 1, 1)).clamp_(0, 255)

    def _compress(self, crops: Tensor, looks: Sequence[Photometric]) -> Tensor:
        """What JPEG leaves of crops."""
        tables = send(np.stack([quantisation(look.quality) for look in looks]), self.device)
        return jpeg(crops.permute(0, 3, 1, 2), tables).permute(0, 2, 3, 1)


def _packed_levels(image: TrainingImage) -> list[NDArray[np.int32]]:
    """Every level of an image with a pixel's three bytes, RGB, in the lowest of four."""
    return [_pack(level) for level in image.levels]


def _pack(level: Image) -> NDArray[np.int32]:
    """HxWx3 uint8 BGR to HxW int32."""
    return cv2.cvtColor(level, cv2.COLOR_BGR2RGBA).view(np.int32)[..., 0]


def blur_kernel(look: Photometric) -> NDArray[np.float32]:
    """`BLUR_SIZE` x `BLUR_SIZE` kernel of a look's Gaussian or motion blur."""
    kernel = np.zeros((BLUR_SIZE, BLUR_SIZE), np.float32)
    kernel[BLUR_SIZE // 2, BLUR_SIZE // 2] = 1
    if look.sigma > 0:
        line = cv2.getGaussianKernel(BLUR_SIZE, look.sigma, cv2.CV_32F)[:, 0]
        kernel = np.outer(line, line).astype(np.float32)
    if look.motion is not None:
        margin = (BLUR_SIZE - len(look.motion)) // 2
        moved = np.pad(look.motion, margin).astype(np.float32)
        kernel = moved if look.sigma == 0 else cv2.filter2D(kernel, -1, moved).astype(np.float32)
    return kernel


#: Quantisation of luma and chroma at quality 50 (ITU-T T.81, tables K.1 and K.2).
_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMA = np.full((8, 8), 99)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


def quantisation(quality: int) -> NDArray[np.float32]:
    """Steps of the DCT coefficients of luma and chroma at a JPEG quality of 1 to 100, 2x8x8."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return np.clip(np.floor((np.stack([_LUMA, _CHROMA]) * scale + 50) / 100), 1, 255).astype(np.float32)


def jpeg(images: Tensor, tables: Tensor) -> Tensor:
    """What JPEG compression with halved chroma leaves of images.

    Args:
        images: Bx3xHxW RGB 0..255.
        tables: Bx2x8x8, as `quantisation` makes them.

    Returns:
        Bx3xHxW in 0..255.
    """
    height, width = images.shape[-2:]
    padded = functional.pad(images, (0, -width % 16, 0, -height % 16), mode="replicate")
    red, green, blue = padded.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], 1)
    luma = _quantise(luma[:, None] - 128, tables[:, :1]) + 128
    chroma = _quantise(functional.avg_pool2d(chroma, 2), tables[:, 1:])
    chroma = functional.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    cb, cr = chroma.unbind(1)
    y = luma[:, 0]
    decoded = torch.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 1)
    return decoded.clamp_(0, 255)[..., :height, :width]


def _quantise(planes: Tensor, table: Tensor) -> Tensor:
    """BxCxHxW planes with the coefficients of their 8x8 DCT rounded to multiples of `table`, Bx1x8x8."""
    batch, channels, height, width = planes.shape
    k = torch.arange(8, dtype=planes.dtype, device=planes.device)
    dct = torch.cos(torch.pi / 8 * (k[None] + 0.5) * k[:, None]) / 2
    dct[0] *= 0.5**0.5
    blocks = planes.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    steps = table[:, :, None, None]
    coefficients = torch.round(dct @ blocks @ dct.T / steps) * steps
    return (dct.T @ coefficients @ dct).transpose(3, 4).reshape(planes.shape)


def proposals(
    boxes: Tensor, count: int, generator: torch.Generator | None = None, lowest: float = 0.1
) -> tuple[Tensor, Tensor]:
    """`count` random boxes around each of many (ATOM, section 3.2: IoU of at least `lowest`).

    Args:
        boxes: Nx4 (x, y, w, h) in pixels.
        count: proposals a box.
        generator: on the boxes' device; by default the device's own.
        lowest: smallest IoU of a proposal.

    Returns:
        NxPx4 boxes and NxP IoUs. Four times as many are drawn as are wanted; should still fewer than `count` overlap
        enough, the best of the others follow.
    """
    n, device = len(boxes), boxes.device
    drawn = 4 * count
    low, high = np.log(0.03), np.log(0.7)
    spread = torch.exp(torch.rand(n, drawn, 1, generator=generator, device=device) * (high - low) + low)
    noise = torch.randn(n, drawn, 4, generator=generator, device=device) * spread
    whole = boxes[:, None]
    sides = whole[..., 2:] * noise[..., :2].exp()
    middle = whole[..., :2] + whole[..., 2:] / 2 + noise[..., 2:] * 0.7 * whole[..., 2:].prod(-1, keepdim=True).sqrt()
    candidates = torch.cat([middle - sides / 2, sides], -1)
    near = torch.maximum(candidates[..., :2], whole[..., :2])
    far = torch.minimum(candidates[..., :2] + candidates[..., 2:], whole[..., :2] + whole[..., 2:])
    overlap = (far - near).clamp(min=0).prod(-1)
    values = overlap / (sides.prod(-1) + whole[..., 2:].prod(-1) - overlap)
    # Those that overlap enough first, in the order in which they were drawn; then the others, the best first.
    rank = torch.where(values >= lowest, 2.0, values)
    chosen = rank.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return candidates.gather(1, chosen[..., None].expand(-1, -1, 4)), values.gather(1, chosen)
