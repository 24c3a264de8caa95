"""What a launch file checks before it starts the node: `ros2 launch` takes any argument and any file in silence."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tracker_ros.text import nearest, printable


class LaunchRefused(RuntimeError):
    """The launch can't do what its arguments ask for; the message says which one and what to do."""


def check_file(argument: str, path: str) -> None:
    """See to it that the file that a launch argument names is there; an empty name asks for none.

    Raises:
        LaunchRefused: it is missing, or not a file; with the nearest name in its folder.
    """
    if not path or Path(path).is_file():
        return
    folder = Path(path).parent
    names = [other.name for other in folder.iterdir()] if folder.is_dir() else []
    guess = nearest(Path(path).name, names)
    hint = f"; did you mean '{folder / guess}'?" if guess else ""
    what = "is not a file" if Path(path).exists() else "does not exist"
    raise LaunchRefused(printable(f"{argument}: '{path}' {what}{hint}"))


def unknown_arguments(given: Iterable[str], declared: Iterable[str]) -> list[str]:
    """A sentence for every launch argument that nothing declares, with the nearest one that is.

    They can't be refused: a launch file that is included sees the arguments of the one that includes it.
    """
    known = list(declared)
    said = []
    for name in given:
        if name not in known:
            guess = nearest(name, known)
            hint = f"; did you mean '{guess}'?" if guess else f" (there are: {', '.join(known)})"
            said.append(printable(f"there is no launch argument '{name}'{hint}"))
    return said
