"""Images as they travel in ROS and lie on disk, decoded to HxWx3 uint8 BGR.

`decode` and `decode_compressed` work on the plain fields of ``sensor_msgs/Image`` and ``CompressedImage``, so that they
can be used and tested without ROS; `from_message` reads them off a message, `read_file` off a disk.
Encodings are those of ``sensor_msgs/image_encodings.hpp`` and, in addition, ``nv12``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.headers import UnknownFormat, read_header

Bgr = NDArray[np.uint8]

#: Most pixels of a compressed picture that is decoded, unless another limit is given.
MAX_PIXELS = 64_000_000


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
        to_bgr: HxW or HxWxC uint8 to HxWx3 uint8.
        even: pixels come in pairs, so the width must be even; with `even_rows` the height too.
    """

    channels: int
    depth: int
    to_bgr: Callable[[NDArray[Any]], Bgr]
    even: bool = False
    even_rows: bool = False


def _convert(code: int) -> Callable[[NDArray[Any]], Bgr]:
    return lambda image: cv2.cvtColor(image, code)


class GreyScale:
    """How values of more than 8 bits become 8-bit ones: `low` becomes 0 and `high` 255, what lies beyond is cut off.

    A target must look alike all along a track, so there is one scale a track. Without limits (``auto``) the first
    picture sets them: to its own values, with an eighth of their span to spare on either side, where the whole range
    would leave it less than half of the grey levels (a thermal camera's 7400 to 7655); else to the whole range.

    Attributes:
        limits: `low` and `high`; None while no picture has set them.
        pictures: how many it was given, with 8 bits or more.

    Raises:
        ValueError: one limit without the other, or `low` is not below `high`.
    """

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        self.limits: tuple[float, float] | None = None
        self.pictures = 0
        if low is not None or high is not None:
            if low is None or high is None or not low < high:
                raise ValueError(f"the limits of a grey scale are two numbers, the lower one first; got {low}, {high}")
            self.limits = float(low), float(high)

    @classmethod
    def parse(cls, text: str) -> GreyScale:
        """``auto`` or ``low,high``.

        Raises:
            ValueError: it is neither.
        """
        if text.strip() == "auto":
            return cls()
        try:
            low, high = (float(v) for v in text.split(","))
            return cls(low, high)
        except ValueError:
            raise ValueError(f"a grey scale is 'auto' or 'low,high' with low below high, got '{text}'") from None

    def __str__(self) -> str:
        """For a log."""
        if self.limits is None:
            return "values of more than 8 bits: the first picture sets which of them become grey levels"
        return "values from {:g} to {:g} become the grey levels 0 to 255".format(*self.limits)

    def __call__(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """The image (any shape) with 8-bit values; one that is uint8 is returned as it is."""
        self.pictures += 1
        if image.dtype == np.uint8:
            return image
        if self.limits is None:
            self.limits = _limits(image)
        low, high = self.limits
        scale = 255 / (high - low)
        if image.dtype == np.uint16 and low == int(low) and 0 <= low <= 65535:
            # OpenCV's difference stops at 0, and its conversion rounds and stops at 255.
            return cv2.convertScaleAbs(cv2.subtract(image, int(low)) if low else image, alpha=scale)
        with np.errstate(invalid="ignore", over="ignore"):
            values = np.nan_to_num((image.astype(np.float32) - low) * scale, nan=0.0)
            return values.clip(0, 255).round().astype(np.uint8)


def _limits(image: NDArray[Any]) -> tuple[float, float]:
    values = image.ravel()[:: max(1, image.size // 100_000)]
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 65535.0
    # Dead and hot pixels say nothing of the scene.
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9)))
    whole = np.issubdtype(image.dtype, np.integer)
    if image.dtype == np.uint16 and high - low >= 65535 / 2:
        return 0.0, 65535.0
    # Whole numbers need no more than a grey level each; in a flat picture that would make noise of nothing.
    margin = max((high - low) / 8, (255 - (high - low)) / 2 if whole else 0.0, 1e-6)
    low, high = low - margin, high + margin
    return (float(max(0, int(low))), float(int(high) + 1)) if whole else (low, high)


#: The whole range of 16 bits: 65535 -> 255 and 257 k -> k, so that an 8-bit image widened to 16 bits is unchanged.
WHOLE_RANGE = GreyScale(0, 65535)


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
    "mono16": _Packed(1, 2, _convert(cv2.COLOR_GRAY2BGR)),
    "16UC1": _Packed(1, 2, _convert(cv2.COLOR_GRAY2BGR)),
    "bgr16": _Packed(3, 2, lambda image: image),
    "rgb16": _Packed(3, 2, _convert(cv2.COLOR_RGB2BGR)),
    "bgra16": _Packed(4, 2, _convert(cv2.COLOR_BGRA2BGR)),
    "rgba16": _Packed(4, 2, _convert(cv2.COLOR_RGBA2BGR)),
    "yuv422": _Packed(2, 1, _convert(cv2.COLOR_YUV2BGR_UYVY), even=True),
    "uyvy": _Packed(2, 1, _convert(cv2.COLOR_YUV2BGR_UYVY), even=True),
    "yuv422_yuy2": _Packed(2, 1, _convert(cv2.COLOR_YUV2BGR_YUY2), even=True),
    "yuyv": _Packed(2, 1, _convert(cv2.COLOR_YUV2BGR_YUY2), even=True),
    **{f"{name}8": _Packed(1, 1, _convert(code), even=True, even_rows=True) for name, code in _BAYER.items()},
    **{f"{name}16": _Packed(1, 2, _convert(code), even=True, even_rows=True) for name, code in _BAYER.items()},
}

#: Encodings with a full plane of Y (`step` bytes a row) followed by a plane of interleaved U and V.
_PLANAR = {"nv12": cv2.COLOR_YUV2BGR_NV12, "nv21": cv2.COLOR_YUV2BGR_NV21, "nv24": cv2.COLOR_YUV2BGR_NV12}

#: Every encoding that `decode` takes.
ENCODINGS: tuple[str, ...] = (*_PACKED, *_PLANAR)


def decode(
    encoding: str,
    height: int,
    width: int,
    step: int,
    is_bigendian: bool,
    data: Any,
    scale: GreyScale = WHOLE_RANGE,
) -> Bgr:
    """Decode the fields of a ``sensor_msgs/Image``.

    Args:
        encoding: one of `ENCODINGS`.
        height, width: size in pixels.
        step: bytes from one row to the next; rows may be padded.
        is_bigendian: byte order of 16-bit values.
        data: the bytes, anything with the buffer protocol; ``step * height`` of them (``nv12`` and ``nv21``: one and a
            half times as many, ``nv24``: three times).
        scale: of 16-bit values.

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
        pixels = scale(pixels)
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


def decode_compressed(format: str, data: Any, scale: GreyScale = WHOLE_RANGE, max_pixels: int = MAX_PIXELS) -> Bgr:
    """Decode the fields of a ``sensor_msgs/CompressedImage``.

    Args:
        format: as image_transport writes it: ``jpeg``, ``png``, ``rgb8; jpeg compressed bgr8`` …
        data: the bytes of the file; what follows the end of the picture is left alone.
        scale: of values of more than 8 bits.
        max_pixels: most pixels that are decoded.

    Returns:
        HxWx3 uint8, BGR. An alpha channel is dropped, orientation tags are ignored (a camera's pixels are where its
        calibration says they are).

    Raises:
        InvalidImage: see `check_compressed`, or OpenCV can't read it.
    """
    content = check_compressed(format, data, max_pixels)
    source, _, target = (part.strip() for part in format.partition(";"))
    bayer = _BAYER.get(source.rstrip("0123456789")) if target else None
    written = target.rpartition("compressed")[2].strip()
    # A mosaic may have been made a colour image before it was compressed.
    mosaic = bayer is not None and not written.startswith(("bgr", "rgb", "mono"))
    colour = cv2.IMREAD_GRAYSCALE if mosaic else cv2.IMREAD_COLOR
    image = _decode_file(content, colour | cv2.IMREAD_IGNORE_ORIENTATION, scale, _named(format, len(content)))
    if bayer is not None and mosaic:
        return _run(_convert(bayer), image, source)
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if written.startswith("rgb") else image


def check_compressed(format: str, data: Any, max_pixels: int = MAX_PIXELS) -> bytes:
    """Check the fields of a ``sensor_msgs/CompressedImage`` without decoding it; see `decode_compressed`.

    Returns:
        the data.

    Raises:
        InvalidImage: no data, a compressed depth image, no picture of a known format, one that is cut short, or one
            of more than `max_pixels`.
    """
    content = bytes(data)
    if not content:
        raise InvalidImage(f"the compressed image (format '{format}') has no data")
    if "compresseddepth" in format.replace(" ", "").lower():
        raise InvalidImage(f"format '{format}' is a compressed depth image; a colour or grey image is needed")
    _check_file(content, _named(format, len(content)), max_pixels)
    return content


def read_file(
    path: Path, scale: GreyScale = WHOLE_RANGE, max_pixels: int = MAX_PIXELS, *, oriented: bool = True
) -> Bgr:
    """Read a picture file.

    Args:
        path: of a regular file; its name may hold any bytes.
        scale: of values of more than 8 bits.
        max_pixels: most pixels that are decoded.
        oriented: turn the picture as its orientation tag says.

    Returns:
        HxWx3 uint8, BGR.

    Raises:
        InvalidImage: it can't be read, is no picture of a known format, is cut short, or has more than `max_pixels`.
    """
    name = f"'{path}'"
    try:
        # A pipe would be waited for, and a device may have no end.
        if not path.is_file():
            raise InvalidImage(f"{name} can't be read as an image: it is {'no file' if path.exists() else 'not there'}")
        if path.stat().st_size > 8 * max_pixels:
            size = path.stat().st_size / 1e6
            raise InvalidImage(f"{name} can't be read as an image: no {max_pixels / 1e6:g} Mpx fill {size:.0f} MB")
        content = path.read_bytes()
    except OSError as error:
        raise InvalidImage(f"{name} can't be read as an image: {error.strerror or error}") from error
    _check_file(content, name, max_pixels)
    flags = cv2.IMREAD_COLOR if oriented else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return _decode_file(content, flags, scale, name)


def write_file(path: Path, image: NDArray[Any]) -> None:
    """Write a picture file in the format that the name's suffix tells.

    Raises:
        OSError: it can't be written.
    """
    good, content = cv2.imencode(path.suffix, image)
    if not good:
        raise OSError(f"OpenCV can't make a {path.suffix} of '{path}'")
    path.write_bytes(content.tobytes())


def _named(format: str, size: int) -> str:
    return f"the compressed image (format '{format}', {size} bytes)"


def _check_file(content: bytes, name: str, max_pixels: int) -> None:
    try:
        header = read_header(content)
    except UnknownFormat as error:
        raise InvalidImage(f"{name} can't be read as an image: {error}") from error
    # OpenCV fills the missing part of a cut file with grey and says nothing.
    if not header.complete:
        raise InvalidImage(f"{name} is cut short: the end of the {header.format} is missing")
    if header.width * header.height > max_pixels:
        raise InvalidImage(
            f"{name} is a {header.format} of {header.width}x{header.height}, {header.width * header.height / 1e6:.0f} "
            f"Mpx; at most {max_pixels / 1e6:g} Mpx are read"
        )


def _decode_file(content: bytes, flags: int, scale: GreyScale, name: str) -> Bgr:
    values = np.frombuffer(content, np.uint8)
    try:
        image = cv2.imdecode(values, flags | cv2.IMREAD_ANYDEPTH)
        if image is None and flags & cv2.IMREAD_COLOR:
            # OpenCV makes no colour image of a TIFF with one floating-point value a pixel.
            single = cv2.imdecode(values, cv2.IMREAD_ANYDEPTH)
            image = None if single is None else cv2.cvtColor(single, cv2.COLOR_GRAY2BGR)
    except cv2.error as error:
        raise InvalidImage(f"OpenCV can't read {name}: {error}") from error
    if image is None:
        raise InvalidImage(f"OpenCV can't read {name}")
    return scale(image)


def from_message(message: Any, scale: GreyScale = WHOLE_RANGE, max_pixels: int = MAX_PIXELS) -> Bgr:
    """Decode a ``sensor_msgs/Image`` or ``CompressedImage``.

    cv_bridge, where it is installed, takes encodings that `decode` does not know.

    Args:
        message: the message.
        scale: of values of more than 8 bits; give each track one of its own.
        max_pixels: most pixels of a compressed picture that are decoded.

    Raises:
        InvalidImage: see `decode` and `decode_compressed`.
    """
    if hasattr(message, "format"):
        return decode_compressed(message.format, message.data, scale, max_pixels)
    m = message
    try:
        return decode(m.encoding, m.height, m.width, m.step, bool(m.is_bigendian), m.data, scale)
    except UnknownEncoding as unknown:
        bridge = _cv_bridge()
        if bridge is None:
            raise
        try:
            return np.asarray(bridge.imgmsg_to_cv2(message, "bgr8"), np.uint8)
        except Exception as error:
            raise UnknownEncoding(f"{unknown}; cv_bridge says: {error}") from error


def check_message(message: Any, max_pixels: int = MAX_PIXELS) -> None:
    """Check a ``sensor_msgs/Image`` or ``CompressedImage`` without decoding it.

    Raises:
        InvalidImage: see `check` and `check_compressed`.
    """
    if hasattr(message, "format"):
        check_compressed(message.format, message.data, max_pixels)
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
