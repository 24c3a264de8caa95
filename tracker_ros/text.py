"""Text that comes from outside, made fit to be read: no control characters, and the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def printable(text: str) -> str:
    r"""`text` with everything that a terminal would act on escaped (``\n``, ``\x1b``), so that it cannot forge a line.

    Line and paragraph separators, text direction marks and lone surrogates count as such too.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of `known` that `name` was probably meant to be; empty where none is like it."""
    names = list(known)
    exact = next((other for other in names if other.lower() == name.lower()), "")
    return exact or next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.6)), "")
