"""``python -m tracker_ros``: the command line."""

from __future__ import annotations

import sys

from tracker_ros.cli import main

if __name__ == "__main__":
    sys.exit(main())
