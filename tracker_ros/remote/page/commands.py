"""What the browser may say, as one JSON object a message, checked before anything else sees it.

``{"do": "start", "id": 7, "stamp": "1700000000123456789", "box": [x, y, w, h], "target": "car"}``, with ``"point":
[x, y]`` instead of the box for a tap; ``stop`` (``target``, empty: all), ``pause`` (``paused``), ``tracker``
(``name``), ``heatmap`` (``on``), each with an ``id`` that the answer repeats; and ``seen`` (``n``) for each picture.
Stamps are strings, because JavaScript's numbers do not hold nanoseconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from tracker_ros.geometry.boxes import Box

#: Most bytes of a message, and most characters of a name.
MAX_BYTES = 4096
MAX_NAME = 64
#: No camera's pixel lies beyond.
_MAX_PIXEL = 1e5


class InvalidMessage(ValueError):
    """A message that is none of the known ones.

    Attributes:
        request: the message's ``id``, None where it has none that can be read.
    """

    def __init__(self, text: str, request: int | None = None) -> None:
        super().__init__(text)
        self.request = request


@dataclass(frozen=True, slots=True)
class Seen:
    """Picture number `n` is on the screen."""

    n: int


@dataclass(frozen=True, slots=True)
class Start:
    """Track what is in `box` (pixels), or around `point`, on the image with this stamp (nanoseconds)."""

    stamp: int
    target_id: str
    box: Box | None = None
    point: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop one target, or all where the name is empty."""

    target_id: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Pause, or go on."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Select:
    """Go on with another tracker."""

    tracker: str


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Show the heatmap in this browser's picture, or don't."""

    on: bool


Command = Start | Stop | Pause | Select | Heatmap


def parse(text: str) -> Seen | tuple[int, Command]:
    """Read a message.

    Returns:
        `Seen`, or the request's number and its command.

    Raises:
        InvalidMessage: says what is wrong with the message.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise InvalidMessage(f"the message is longer than {MAX_BYTES} bytes")
    try:
        fields = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"the message is not JSON: {str(error) or 'nested too deeply'}") from error
    if not isinstance(fields, dict):
        raise InvalidMessage(f"the message must be a JSON object, got {_shown(fields)}")
    what = fields.get("do")
    if what == "seen":
        return Seen(_whole(fields, "n", 2**53))
    request = _whole(fields, "id", 2**53)
    try:
        read = _READERS.get(what) if isinstance(what, str) else None
        if read is None:
            raise InvalidMessage(f"'do' must be one of {', '.join([*_READERS, 'seen'])}; got {_shown(what)}")
        return request, read(fields)
    except InvalidMessage as error:
        raise InvalidMessage(str(error), request) from None


def _start(fields: dict[str, Any]) -> Start:
    stamp = fields.get("stamp")
    if not isinstance(stamp, str) or not (stamp.isascii() and stamp.isdigit()) or int(stamp[:20]) >= 2**63:
        raise InvalidMessage(f"'stamp' must be the picture's stamp, nanoseconds as a string; got {_shown(stamp)}")
    target = _name(fields, "target")
    if ("box" in fields) == ("point" in fields):
        raise InvalidMessage("a start needs either 'box' or 'point'")
    if "point" in fields:
        x, y = _pixels(fields, "point", 2)
        return Start(int(stamp), target, point=(x, y))
    return Start(int(stamp), target, box=Box(*_pixels(fields, "box", 4)))


_READERS: dict[str, Callable[[dict[str, Any]], Command]] = {
    "start": _start,
    "stop": lambda fields: Stop(_name(fields, "target")),
    "pause": lambda fields: Pause(_switch(fields, "paused")),
    "tracker": lambda fields: Select(_name(fields, "name")),
    "heatmap": lambda fields: Heatmap(_switch(fields, "on")),
}


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _whole(fields: dict[str, Any], key: str, limit: int) -> int:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise InvalidMessage(f"'{key}' must be a whole number from 0 on, got {_shown(value)}")
    return value


def _switch(fields: dict[str, Any], key: str) -> bool:
    value = fields.get(key)
    if not isinstance(value, bool):
        raise InvalidMessage(f"'{key}' must be true or false, got {_shown(value)}")
    return value


def _name(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or len(value) > MAX_NAME or not (value.isprintable() or not value):
        raise InvalidMessage(f"'{key}' must be a name of at most {MAX_NAME} printable characters, got {_shown(value)}")
    return value


def _pixels(fields: dict[str, Any], key: str, count: int) -> list[float]:
    values = fields[key]
    numbers = isinstance(values, list) and len(values) == count
    # The bound comes first: a whole number of any length is JSON, but not every one becomes a float.
    if not numbers or not all(
        type(v) in (int, float) and -_MAX_PIXEL <= v <= _MAX_PIXEL and math.isfinite(v) for v in values
    ):
        raise InvalidMessage(f"'{key}' must be {count} finite numbers of pixels, got {_shown(values)}")
    return [float(v) for v in values]


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = "something that can't be shown"
    return text if len(text) <= 60 else f"{text[:57]}…"
