"""What a picture file says of itself, read before it is decoded: its format, its size, whether its end is there.

A few bytes may declare gigabytes of pixels, and OpenCV fills what is missing of a file with grey, so both are looked
at first. Formats are those that OpenCV's usual builds read; data after the end of a picture is no fault.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass


class UnknownFormat(ValueError):
    """The data does not begin as a picture of a known format does, or its header is damaged."""


@dataclass(frozen=True, slots=True)
class Header:
    """What was read.

    Attributes:
        format: its name.
        width, height: declared size in pixels.
        complete: False where the end of the file is missing; True also where the format does not tell.
    """

    format: str
    width: int
    height: int
    complete: bool = True


def read_header(data: bytes) -> Header:
    """Read the header of a picture file.

    Raises:
        UnknownFormat: no picture of a known format, or without a size.
    """
    for name, start, read in _FORMATS:
        if start.match(data):
            try:
                width, height, complete = read(data)
            except (struct.error, IndexError):
                return Header(name, 1, 1, complete=False)  # It ends within the header.
            if complete and (width <= 0 or height <= 0):
                raise UnknownFormat(f"the header of this {name} is damaged")
            return Header(name, width, height, complete)
    known = ", ".join(name for name, _, _ in _FORMATS)
    raise UnknownFormat(f"it begins with {data[:8]!r}, as no picture does that is known: {known}")


_Read = tuple[int, int, bool]
#: The next marker after compressed data, in which 0xff is followed by 0, by a restart marker, or by itself.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def _jpeg(data: bytes) -> _Read:
    width = height = 0
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker == 0xD9:
            return width, height, True
        if marker <= 0x01 or 0xD0 <= marker <= 0xD8:
            continue  # These stand alone, without a length.
        (length,) = struct.unpack_from(">H", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and not width:
            height, width = struct.unpack_from(">HH", data, at + 3)
        at += max(length, 2)
        if marker == 0xDA:
            end = _MARKER.search(data, at)
            if end is None:
                break
            at = end.start()
    return width, height, False


def _png(data: bytes) -> _Read:
    width, height = struct.unpack_from(">II", data, 16)
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if kind == b"IEND" or data[12:16] != b"IHDR":
            return width, height, True
    return width, height, False


def _bmp(data: bytes) -> _Read:
    (start, size) = struct.unpack_from("<II", data, 10)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        packed = 0
    else:
        width, height, _, bits, packed = struct.unpack_from("<iiHHI", data, 18)
    width, height = abs(width), abs(height)
    plain = packed in (0, 3)
    return width, height, not plain or start + (width * bits + 31) // 32 * 4 * height <= len(data)


def _tiff(data: bytes) -> _Read:
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    # A directory is a count, then entries of tag, type, count and value.
    (at,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, 8 if big else 4)
    (count,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, at)
    at += 8 if big else 2
    sizes = {256: 0, 257: 0}
    for entry in range(at, at + min(count, 1000) * (20 if big else 12), 20 if big else 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, entry)
        if tag in sizes:
            form = {3: "H", 4: "I", 16: "Q"}.get(kind, "I")
            (sizes[tag],) = struct.unpack_from(f"{order}{form}", data, entry + (12 if big else 8))
    return sizes[256], sizes[257], True


def _webp(data: bytes) -> _Read:
    (size,) = struct.unpack_from("<I", data, 4)
    complete = len(data) >= 8 + size
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"), complete
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), complete
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF, complete


def _pnm(data: bytes) -> _Read:
    between = rb"(?:\s|#[^\n]*\n)+"
    found = re.match(rb"P[1-6fF]" + between + rb"(\d{1,9})" + between + rb"(\d{1,9})", data)
    return (int(found[1]), int(found[2]), True) if found else (0, 0, True)


def _pam(data: bytes) -> _Read:
    head = data[: max(0, data.find(b"ENDHDR"))]
    sizes = [re.search(rb"^" + name + rb"\s+(\d{1,9})", head, re.MULTILINE) for name in (b"WIDTH", b"HEIGHT")]
    width, height = (int(found[1]) if found else 0 for found in sizes)
    return width, height, True


def _radiance(data: bytes) -> _Read:
    found = re.search(rb"\n[+-]Y (\d{1,9}) [+-]X (\d{1,9})\n", data[: 1 << 16])
    return (int(found[2]), int(found[1]), True) if found else (0, 0, True)


def _at(form: str, offset: int) -> Callable[[bytes], _Read]:
    """Width and height as two numbers at `offset`."""

    def read(data: bytes) -> _Read:
        width, height = struct.unpack_from(form, data, offset)
        return width, height, True

    return read


def _largest(mark: bytes, offset: int) -> Callable[[bytes], _Read]:
    """The largest of the sizes that stand `offset` bytes after a mark, of which a file may have several."""

    def read(data: bytes) -> _Read:
        found = [struct.unpack_from(">II", data, m.end() + offset) for m in re.finditer(re.escape(mark), data)]
        width, height = max(found, key=lambda size: size[0] * size[1], default=(0, 0))
        return width, height, True

    return read


#: Name, how it begins, and what reads its width, its height and whether its end is there.
_FORMATS: tuple[tuple[str, re.Pattern[bytes], Callable[[bytes], _Read]], ...] = tuple(
    (name, re.compile(start, re.DOTALL), read)
    for name, start, read in (
        ("JPEG", rb"\xff\xd8\xff", _jpeg),
        ("PNG", rb"\x89PNG\r\n\x1a\n", _png),
        ("BMP", rb"BM", _bmp),
        ("TIFF", rb"II[*+]\x00|MM\x00[*+]", _tiff),
        ("WebP", rb"RIFF.{4}WEBP", _webp),
        ("GIF", rb"GIF8[79]a", _at("<HH", 6)),
        ("PNM", rb"P[1-6fF]\s", _pnm),
        ("PAM", rb"P7\s", _pam),
        ("JPEG 2000", rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", _largest(b"\xff\x4f\xff\x51", 4)),
        ("AVIF", rb".{4}ftypavi[fs]", _largest(b"ispe", 4)),
        ("Sun raster", rb"\x59\xa6\x6a\x95", _at(">II", 4)),
        ("Radiance", rb"#\?R(?:ADIANCE|GBE)\n", _radiance),
    )
)
