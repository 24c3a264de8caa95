"""What is seen to before a program or a launch file starts a node. No ROS in here.

`ros2 launch` takes any argument and any file in silence; Fast DDS as it comes lets few images through.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from pathlib import Path

from tracker_ros.text import nearest, printable

#: Variables that name Fast DDS's profile, up to Jazzy and from Jazzy on.
PROFILES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


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


def config_folder() -> Path:
    """Where `config/` is: in the source tree, or installed."""
    source = Path(__file__).resolve().parents[2] / "config"
    if source.is_dir():
        return source
    try:
        from ament_index_python.packages import get_package_share_directory

        return Path(get_package_share_directory("tracker_ros")) / "config"
    except (ImportError, LookupError):
        return source


def let_images_through(env: MutableMapping[str, str]) -> None:
    """Name our Fast DDS profile in an environment, unless the user has named one. To be called before ROS starts."""
    profile = config_folder() / "fastdds.xml"
    if profile.is_file() and not any(name in env for name in PROFILES):
        env.update(dict.fromkeys(PROFILES, str(profile)))
