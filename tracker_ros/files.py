"""Files that users name: inputs are not overwritten, files of others not deleted, names that break OpenCV not given."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from tracker_ros.text import printable

#: Where a folder's `clear` and `note` keep what was made there: name -> SHA-256, null while it is being made.
_NOTE = ".made_by_tracker_ros.json"


class NotOurs(ValueError):
    """An output would replace an input, or a file that somebody else made; the message names it."""


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Check that writing the outputs of a command leaves its inputs as they are.

    Args:
        outputs: files that will be written, and folders that will be filled.
        inputs: files that are read, and folders whose files are read; what does not exist is left out.

    Raises:
        NotOurs: an output is an input (links of any kind included), or a file that lies in a folder that is read.
    """
    read = {key: path for path in inputs if (key := _key(path)) is not None}
    folders = {key for key, path in read.items() if path.expanduser().is_dir()}
    for output in outputs:
        key = _key(output)
        if key in read:
            raise NotOurs(f"'{output}' is an input ('{read[key]}') and would be overwritten: choose another --out")
        parent = None if key is None else _key(output.expanduser().resolve().parent)
        if key is not None and not output.expanduser().is_dir() and parent in folders:
            raise NotOurs(
                f"'{output}' lies in the folder '{read[parent]}', which is read, and would be overwritten: "
                "choose another --out"
            )


def _key(path: Path) -> tuple[int, int] | None:
    """What is the same for all names of one file; None where there is none."""
    try:
        stat = path.expanduser().stat()
    except (OSError, ValueError, RuntimeError):  # Also what no path can be: a zero byte, the home of nobody.
        return None
    return stat.st_dev, stat.st_ino


def clear(folder: Path, names: Iterable[str]) -> None:
    """Make room in `folder` for files of these names: those that an earlier run made and noted are deleted.

    Raises:
        NotOurs: a file that nobody noted, or that was changed since, bears one of the names; nothing was deleted.
        OSError: the folder can't be made or written.
    """
    names, noted = tuple(names), _noted(folder)
    present = [name for name in names if os.path.lexists(folder / name)]
    for name in present:
        digest = _digest(folder / name)
        if name not in noted or digest is None or noted[name] not in (None, digest):
            raise NotOurs(
                f"'{folder / name}' would be replaced, but was not made by an earlier run, or was changed since: "
                "move it, or choose another --out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name in present:
        (folder / name).unlink()
    (folder / _NOTE).write_text(json.dumps({**noted, **dict.fromkeys(names)}, indent=1) + "\n")


def note(folder: Path, names: Iterable[str]) -> None:
    """Note the files of these names in `folder` as made, in the form that they have now; see `clear`."""
    noted = {**_noted(folder), **{name: _digest(folder / name) for name in names}}
    there = {name: digest for name, digest in noted.items() if os.path.lexists(folder / name)}
    (folder / _NOTE).write_text(json.dumps(there, indent=1) + "\n")


def _noted(folder: Path) -> dict[str, str | None]:
    try:
        found = json.loads((folder / _NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(path: Path) -> str | None:
    """SHA-256 of a regular file; None for anything else."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def opencv_path(path: Path | str) -> str:
    """The path as OpenCV takes it.

    Raises:
        ValueError: it is not UTF-8, at which OpenCV crashes, or holds a zero byte.
    """
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"'{printable(text)}' can't be used: OpenCV takes names in UTF-8 only, so rename it") from None
    if "\0" in text:
        raise ValueError(f"'{printable(text)}' can't be used: a name has no zero byte")
    return text
