"""Images as they travel in ROS, decoded to HxWx3 uint8 BGR.

`decode` and `decode_compressed` work on the plain fields of ``sensor_msgs/Image`` and ``CompressedImage``, so that they
can be used and tested without ROS; `from_message` and `from_compressed_message` read the fields off a message.
Encodings are those of ``sensor_msgs/image_encodings.hpp`` and, in addition, ``nv12``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Bgr = NDArray[np.uint8]


class InvalidImage(ValueError):
    """An image that cannot be decoded; the message says what is wrong with it and what was expected."""


class UnknownEncoding(InvalidImage):
    """An encoding that neither this module nor cv_bridge knows; the message lists the known ones."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """An encoding whose pixels lie one after the other in each row.

    Attributes:
        channels: values a pixel.
        depth: bytes a value.
        to_bgr: HxW or HxWxC, uint8 or native uint16, to HxWx3 uint8.
        even: pixels come in pairs, so the width must be even; with `even_rows` the height too.
    """

    channels: int
    depth: int
    to_bgr: Callable[[NDArray[Any]], Bgr]
    even: bool = False
    even_rows: bool = False


def _convert(code: int) -> Callable[[NDArray[Any]], Bgr]:
    return lambda image: cv2.cvtColor(image, code)


def _to_8_bit(image: NDArray[np.uint16]) -> NDArray[np.uint8]:
    # 65535 -> 255 and 257 k -> k exactly, so that an 8-bit image widened to 16 bits comes back unchanged.
    return cv2.convertScaleAbs(image, alpha=1 / 257)


def _convert_16(code: int) -> Callable[[NDArray[Any]], Bgr]:
    return lambda image: cv2.cvtColor(_to_8_bit(image), code)


# OpenCV names a Bayer pattern by the second row's second and third pixel, ROS by the first row's first two.
_BAYER = {
    "bayer_rggb": cv2.COLOR_BayerBG2BGR,
    "bayer_bggr": cv2.COLOR_BayerRG2BGR,
    "bayer_gbrg": cv2.COLOR_BayerGR2BGR,
    "bayer_grbg": cv2.COLOR_BayerGB2BGR,
}

_PACKED: dict[str, _Packed] = {
    "bgr8": _Packed(3, 1, lambda image: image),
    "8UC3": _Packed(3, 1, lambda image: image),
    "rgb8": _Packed(3, 1, _convert(cv2.COLOR_RGB2BGR)),
    "bgra8": _Packed(4, 1, _convert(cv2.COLOR_BGRA2BGR)),
    "8UC4": _Packed(4, 1, _convert(cv2.COLOR_BGRA2BGR)),
    "rgba8": _Packed(4, 1, _convert(cv2.COLOR_RGBA2BGR)),
    "mono8": _Packed(1, 1, _convert(cv2.COLOR_GRAY2BGR)),
    "8UC1": _Packed(1, 1, _convert(cv2.COLOR_GRAY2BGR)),
    "mono16": _Packed(1, 2, _convert_16(cv2.COLOR_GRAY2BGR)),
    "16UC1": _Packed(1, 2, _convert_16(cv2.COLOR_GRAY2BGR)),
    "bgr16": _Packed(3, 2, _to_8_bit),
    "rgb16": _Packed(3, 2, _convert_16(cv2.COLOR_RGB2BGR)),
    "bgra16": _Packed(4, 2, _convert_16(cv2.COLOR_BGRA2BGR)),
    "rgba16": _Packed(4, 2, _convert_16(cv2.COLOR_RGBA2BGR)),
    "yuv422": _Packed(2, 1, _convert(cv2.COLOR_YUV2BGR_UYVY), even=True),
    "uyvy": _Packed(2, 1, _convert(cv2.COLOR_YUV2BGR_UYVY), even=True),
    "yuv422_yuy2": _Packed(2, 1, _convert(cv2.COLOR_YUV2BGR_YUY2), even=True),
    "yuyv": _Packed(2, 1, _convert(cv2.COLOR_YUV2BGR_YUY2), even=True),
    **{f"{name}8": _Packed(1, 1, _convert(code), even=True, even_rows=True) for name, code in _BAYER.items()},
    **{f"{name}16": _Packed(1, 2, _convert_16(code), even=True, even_rows=True) for name, code in _BAYER.items()},
}

#: Encodings with a full plane of Y (`step` bytes a row) followed by a plane of interleaved U and V.
_PLANAR = {"nv12": cv2.COLOR_YUV2BGR_NV12, "nv21": cv2.COLOR_YUV2BGR_NV21, "nv24": cv2.COLOR_YUV2BGR_NV12}

#: Every encoding that `decode` takes.
ENCODINGS: tuple[str, ...] = (*_PACKED, *_PLANAR)


def decode(encoding: str, height: int, width: int, step: int, is_bigendian: bool, data: Any) -> Bgr:
    """Decode the fields of a ``sensor_msgs/Image``.

    Args:
        encoding: one of `ENCODINGS`. 16-bit values are scaled linearly, 65535 becoming 255.
        height, width: size in pixels.
        step: bytes from one row to the next; rows may be padded.
        is_bigendian: byte order of 16-bit values.
        data: the bytes, anything with the buffer protocol; ``step * height`` of them (``nv12`` and ``nv21``: one and a
            half times as many, ``nv24``: three times).

    Returns:
        height x width x 3 uint8, BGR. For ``bgr8`` and ``8UC3`` a view on `data`, so treat it as read-only.

    Raises:
        UnknownEncoding: not one of `ENCODINGS`.
        InvalidImage: a size of zero, a step too small for the width, data of another length than the size asks for,
            an odd size where pixels come in pairs.
    """
    if height <= 0 or width <= 0:
        raise InvalidImage(f"the image is empty: {width}x{height} pixels")
    values = np.frombuffer(data, np.uint8)
    if encoding in _PLANAR:
        return _decode_planar(encoding, height, width, step, values)
    layout = _PACKED.get(encoding)
    if layout is None:
        raise UnknownEncoding(f"images of encoding '{encoding}' can't be decoded; known are: {', '.join(ENCODINGS)}")
    _check_even(encoding, height, width, layout.even, layout.even_rows)
    row = width * layout.channels * layout.depth
    _check_size(encoding, height, width, step, row, step * height, values.size)
    pixels: NDArray[Any] = values.reshape(height, step)[:, :row]
    if layout.depth == 2:
        # A padded row is not contiguous, and a step may be odd: copy the rows before they are read as 16-bit values.
        pixels = np.ascontiguousarray(pixels).view(">u2" if is_bigendian else "<u2").astype(np.uint16, copy=False)
    if layout.channels > 1:
        pixels = pixels.reshape(height, width, layout.channels)
    return _run(layout.to_bgr, pixels, encoding)


def _decode_planar(encoding: str, height: int, width: int, step: int, values: NDArray[np.uint8]) -> Bgr:
    _check_even(encoding, height, width, True, True)
    chroma = 2 * step * height if encoding == "nv24" else step * height // 2
    _check_size(encoding, height, width, step, width, step * height + chroma, values.size)
    if encoding == "nv24":
        # Every second row and pair of the full-size chroma makes it an nv12, which OpenCV converts.
        pairs = values[step * height :].reshape(height, step, 2)[::2, :width:2]
        luma = values[: step * height].reshape(height, step)[:, :width]
        both = np.concatenate([luma, pairs.reshape(height // 2, width)])
    else:
        both = values.reshape(height + height // 2, step)[:, :width]
    return _run(_convert(_PLANAR[encoding]), np.ascontiguousarray(both), encoding)


def _run(convert: Callable[[NDArray[Any]], Bgr], pixels: NDArray[Any], encoding: str) -> Bgr:
    try:
        return convert(pixels)
    except cv2.error as error:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise InvalidImage(f"OpenCV can't convert this {size} image of encoding {encoding}: {error}") from error


def _check_even(encoding: str, height: int, width: int, even: bool, even_rows: bool) -> None:
    if even and width % 2:
        raise InvalidImage(f"an image of encoding {encoding} needs an even width, got {width}x{height}")
    if even_rows and height % 2:
        raise InvalidImage(f"an image of encoding {encoding} needs an even height, got {width}x{height}")


def _check_size(encoding: str, height: int, width: int, step: int, row: int, expected: int, size: int) -> None:
    if step < row:
        raise InvalidImage(
            f"step is {step} bytes, but a row of {width} pixels of encoding {encoding} takes at least {row}"
        )
    if size != expected:
        raise InvalidImage(
            f"the image has {size} bytes of data, but {width}x{height} pixels of encoding {encoding} "
            f"with a step of {step} take {expected}"
        )


def decode_compressed(format: str, data: Any) -> Bgr:
    """Decode the fields of a ``sensor_msgs/CompressedImage``.

    Args:
        format: as image_transport writes it: ``jpeg``, ``png``, ``rgb8; jpeg compressed bgr8`` …
        data: the bytes of the file.

    Returns:
        HxWx3 uint8, BGR. 16-bit images are scaled to 8 bits, an alpha channel is dropped, orientation tags are ignored
        (a camera's pixels are where its calibration says they are).

    Raises:
        InvalidImage: no data, a compressed depth image, a file that is cut short, or one that OpenCV can't read.
    """
    values = np.frombuffer(data, np.uint8)
    if values.size == 0:
        raise InvalidImage(f"the compressed image (format '{format}') has no data")
    if "compresseddepth" in format.replace(" ", "").lower():
        raise InvalidImage(f"format '{format}' is a compressed depth image; a colour or grey image is needed")
    _check_complete(format, values)
    source, _, target = (part.strip() for part in format.partition(";"))
    bayer = _BAYER.get(source.rstrip("0123456789")) if target else None
    colour = cv2.IMREAD_COLOR if bayer is None else cv2.IMREAD_GRAYSCALE
    try:
        image = cv2.imdecode(values, colour | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise InvalidImage(f"OpenCV can't read the compressed image (format '{format}'): {error}") from error
    if image is None:
        raise InvalidImage(f"OpenCV can't read the compressed image (format '{format}', {values.size} bytes)")
    written = target.rpartition("compressed")[2].strip()
    if bayer is not None and not written.startswith(("bgr", "rgb", "mono")):
        return _run(_convert(bayer), image, source)
    if bayer is not None:  # It was made a colour image before it was compressed.
        image = cv2.imdecode(values, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if written.startswith("rgb") else image


def _check_complete(format: str, values: NDArray[np.uint8]) -> None:
    """OpenCV fills the missing part of a cut JPEG or PNG with grey and says nothing, so look for the end marker."""
    head, tail = values[:8].tobytes(), values[-64:].tobytes()
    if head.startswith(b"\xff\xd8"):
        complete = b"\xff\xd9" in tail
    elif head == b"\x89PNG\r\n\x1a\n":
        complete = b"IEND" in tail
    else:
        return
    if not complete:
        raise InvalidImage(f"the compressed image (format '{format}', {values.size} bytes) is cut short")


def from_message(message: Any) -> Bgr:
    """Decode a ``sensor_msgs/Image``; cv_bridge, where it is installed, takes encodings that `decode` does not know.

    Raises:
        InvalidImage: see `decode`.
    """
    try:
        return decode(
            message.encoding,
            message.height,
            message.width,
            message.step,
            bool(message.is_bigendian),
            message.data,
        )
    except UnknownEncoding as unknown:
        try:
            from cv_bridge import CvBridge
        except Exception:  # Its binary side may also fail to load against another NumPy.
            raise unknown from None
        try:
            return np.asarray(CvBridge().imgmsg_to_cv2(message, "bgr8"), np.uint8)
        except Exception as error:
            raise UnknownEncoding(f"{unknown}; cv_bridge says: {error}") from error


def from_compressed_message(message: Any) -> Bgr:
    """Decode a ``sensor_msgs/CompressedImage``; raises `InvalidImage`, see `decode_compressed`."""
    return decode_compressed(message.format, message.data)
