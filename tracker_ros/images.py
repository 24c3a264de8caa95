"""Images as they travel in ROS, decoded to HxWx3 uint8 BGR.

`decode` and `decode_compressed` work on the plain fields of ``sensor_msgs/Image`` and ``CompressedImage``, so that they
can be used and tested without ROS; `from_message` reads them off a message.
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
    values = np.frombuffer(data, np.uint8)
    check(encoding, height, width, step, values.size)
    if encoding in _PLANAR:
        return _decode_planar(encoding, height, width, step, values)
    layout = _PACKED[encoding]
    pixels: NDArray[Any] = values.reshape(height, step)[:, : width * layout.channels * layout.depth]
    if layout.depth == 2:
        # A padded row is not contiguous, and a step may be odd: copy the rows before they are read as 16-bit values.
        pixels = np.ascontiguousarray(pixels).view(">u2" if is_bigendian else "<u2").astype(np.uint16, copy=False)
    if layout.channels > 1:
        pixels = pixels.reshape(height, width, layout.channels)
    return _run(layout.to_bgr, pixels, encoding)


def check(encoding: str, height: int, width: int, step: int, size: int) -> None:
    """Check the fields of a ``sensor_msgs/Image`` with `size` bytes of data, without decoding it; see `decode`.

    Raises:
        InvalidImage: see `decode`.
    """
    if height <= 0 or width <= 0:
        raise InvalidImage(f"the image is empty: {width}x{height} pixels")
    expected = step * height
    if encoding in _PLANAR:
        even = even_rows = True
        row = width
        expected += 2 * step * height if encoding == "nv24" else step * height // 2
    elif encoding in _PACKED:
        layout = _PACKED[encoding]
        even, even_rows = layout.even, layout.even_rows
        row = width * layout.channels * layout.depth
    else:
        raise UnknownEncoding(f"images of encoding '{encoding}' can't be decoded; known are: {', '.join(ENCODINGS)}")
    if even and width % 2:
        raise InvalidImage(f"an image of encoding {encoding} needs an even width, got {width}x{height}")
    if even_rows and height % 2:
        raise InvalidImage(f"an image of encoding {encoding} needs an even height, got {width}x{height}")
    if step < row:
        raise InvalidImage(
            f"step is {step} bytes, but a row of {width} pixels of encoding {encoding} takes at least {row}"
        )
    if size != expected:
        raise InvalidImage(
            f"the image has {size} bytes of data, but {width}x{height} pixels of encoding {encoding} "
            f"with a step of {step} take {expected}"
        )


def _decode_planar(encoding: str, height: int, width: int, step: int, values: NDArray[np.uint8]) -> Bgr:
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
    check_compressed(format, values)
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


def check_compressed(format: str, data: Any) -> None:
    """Check the fields of a ``sensor_msgs/CompressedImage`` without decoding it; see `decode_compressed`.

    Raises:
        InvalidImage: no data, a compressed depth image, or a JPEG or PNG that is cut short.
    """
    values = np.frombuffer(data, np.uint8)
    if values.size == 0:
        raise InvalidImage(f"the compressed image (format '{format}') has no data")
    if "compresseddepth" in format.replace(" ", "").lower():
        raise InvalidImage(f"format '{format}' is a compressed depth image; a colour or grey image is needed")
    # OpenCV fills the missing part of a cut file with grey and says nothing, so look for the end marker.
    head, tail = values[:8].tobytes(), values[-64:].tobytes()
    if (head.startswith(b"\xff\xd8") and b"\xff\xd9" not in tail) or (
        head == b"\x89PNG\r\n\x1a\n" and b"IEND" not in tail
    ):
        raise InvalidImage(f"the compressed image (format '{format}', {values.size} bytes) is cut short")


def from_message(message: Any) -> Bgr:
    """Decode a ``sensor_msgs/Image`` or ``CompressedImage``.

    cv_bridge, where it is installed, takes encodings that `decode` does not know.

    Raises:
        InvalidImage: see `decode` and `decode_compressed`.
    """
    if hasattr(message, "format"):
        return decode_compressed(message.format, message.data)
    m = message
    try:
        return decode(m.encoding, m.height, m.width, m.step, bool(m.is_bigendian), m.data)
    except UnknownEncoding as unknown:
        bridge = _cv_bridge()
        if bridge is None:
            raise
        try:
            return np.asarray(bridge.imgmsg_to_cv2(message, "bgr8"), np.uint8)
        except Exception as error:
            raise UnknownEncoding(f"{unknown}; cv_bridge says: {error}") from error


def check_message(message: Any) -> None:
    """Check a ``sensor_msgs/Image`` or ``CompressedImage`` without decoding it.

    Raises:
        InvalidImage: see `check` and `check_compressed`.
    """
    if hasattr(message, "format"):
        check_compressed(message.format, message.data)
        return
    try:
        check(message.encoding, message.height, message.width, message.step, len(message.data))
    except UnknownEncoding:
        if _cv_bridge() is None:
            raise


def _cv_bridge() -> Any:
    """cv_bridge's converter, or None where it is not installed."""
    try:
        from cv_bridge import CvBridge
    except Exception:  # Its binary side may also fail to load against another NumPy.
        return None
    return CvBridge()
