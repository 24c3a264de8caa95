"""Files of weights before they are read: what a path is that can't be one, and what to do about it.

Downloads that went wrong leave pages, pointers and halves where weights should be; each is said by its name. Nothing
here needs torch.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from tracker_ros.errors import WeightsError, WeightsMissing
from tracker_ros.headers import UnknownFormat, read_header
from tracker_ros.text import printable

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
#: How files begin that people take for weights: (offset, bytes, what it is, what to do).
_SIGNS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer", "fetch the file that it stands for with 'git lfs pull'"),
    (0, b"/annex/objects/", "a git-annex pointer", "fetch the file that it stands for with 'git annex get'"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it and give the file in it"),
    (0, b"BZh", "a bzip2 archive", "unpack it and give the file in it"),
    (0, b"\xfd7zXZ\x00", "an xz archive", "unpack it and give the file in it"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it and give the file in it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it and give the file in it"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it and give the file in it"),
    (257, b"ustar", "a tar archive", "unpack it and give the file in it"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them", "give the PyTorch weights"),
    (0, b"GGUF", "a GGUF file, of a language model", "give the tracker's weights"),
    (0, b"\x93NUMPY", "a NumPy array", "give the file that holds the whole network"),
    (0, b"%PDF", "a PDF document", "give the file of the weights itself"),
    (0, b"\x7fELF", "a program", "give the file of the weights itself"),
    (0, b"SQLite format 3\x00", "a database", "give the file of the weights itself"),
)
_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar")
_PAGES = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<svg", b"<!--", b"<script")


def check_file(path: str | Path, expected: str, missing: str = "") -> Path:
    """Check that a path is a file with content that may be read, and no common mistake.

    Args:
        path: as a user gave it; ``~`` is their home.
        expected: what it should be (``a safetensors file``), for the message.
        missing: what to do if it is not there.

    Returns:
        The path, to be opened.

    Raises:
        WeightsMissing: there is no such file.
        WeightsError: it is a folder, pipe, socket or device, empty, not readable, or something else than weights.
    """
    shown = printable(str(path))
    try:
        path = Path(path).expanduser()
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        target = f" (a link to {printable(os.readlink(path))})" if Path(path).is_symlink() else ""
        way = missing and f"; {missing}"
        raise WeightsMissing(f"weights missing: {shown}{target} does not exist{way}") from None
    except (OSError, ValueError, RuntimeError) as error:  # Also what no path can be: a zero byte, the home of nobody.
        raise WeightsError(f"{shown} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(found.st_mode):
        raise WeightsError(f"{shown} is a folder; give {expected}{_in_folder(path)}")
    for test, kind in _KINDS:
        if test(found.st_mode):
            raise WeightsError(f"{shown} is {kind}; give {expected}")
    if found.st_size == 0:
        raise WeightsError(f"{shown} is empty: a download or copy that did not finish; get it again")
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise WeightsError(
            f"{shown} can't be read: {error.strerror or error}; its owner and mode must let this user read it"
        ) from error
    kind, remedy = sniff(start)
    if kind:
        raise WeightsError(f"{shown} is {kind}; {remedy}")
    return path


def _in_folder(path: Path) -> str:
    """What lies in a folder that may have been meant."""
    try:
        names = sorted(
            entry.name for entry in path.iterdir() if entry.suffix in (".safetensors", ".pth", ".pt", ".tar")
        )
    except OSError:
        return ""
    more = ", ..." if len(names) > 3 else ""
    return f" (in it: {', '.join(map(printable, names[:3]))}{more})" if names else ""


def sniff(start: bytes) -> tuple[str, str]:
    """What a file that begins with `start` is, if surely no weights, and what to do; empty where it may be weights."""
    if start[4:9] == b"\0\0\0\0{":
        return "", ""  # safetensors, of which the header's length may look like anything
    for offset, sign, kind, remedy in _SIGNS:
        if start.startswith(sign, offset):
            return kind, remedy
    itself = "give the file of the weights itself"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_PAGES):
        return "a web page, not what it links to", "download the file itself, with a browser if it asks something"
    with contextlib.suppress(UnknownFormat):
        picture = read_header(start).format
        if picture in ("JPEG", "PNG", "GIF", "WebP", "AVIF", "JPEG 2000"):
            return f"a picture ({picture})", itself
    if _is_text(start):
        return f"a text that begins with '{printable(start[:40].decode(errors='replace'))}'", itself
    return "", ""


def _is_text(data: bytes) -> bool:
    """Whether there are no control characters but blanks and line ends; pickles and safetensors have others."""
    return not any(byte == 0x7F or (byte < 0x20 and byte not in b"\t\n\v\f\r") for byte in data)


def gigabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"
