"""Single-object tracking for ROS 2: eight learned trackers behind one interface.

>>> tracker = tracker_ros.create("dimp18", device="cuda")
>>> tracker.initialize(frame, box)
>>> estimate = tracker.track(frame)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracker_ros.trackers.base import Tracker

__version__ = "0.1.0"


def create(name: str, **options: Any) -> Tracker[Any]:
    """Build a tracker by its registered name; see `tracker_ros.trackers.registry.create`."""
    # Imported here: `import tracker_ros` alone must not load torch.
    from tracker_ros.trackers import registry

    return registry.create(name, **options)


# Not `trackers`: the package of that name takes this place as soon as it is imported.
def tracker_names() -> list[str]:
    """Names of the registered trackers."""
    from tracker_ros.trackers import registry

    return registry.names()
