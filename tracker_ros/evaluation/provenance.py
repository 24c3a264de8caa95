"""Where numbers come from: the machine, the versions and the call that made them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import tracker_ros


def describe(command: str, trackers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a reader needs to judge or repeat a run, as JSON takes it.

    Args:
        command: the command line.
        trackers: label -> ``device`` and ``files`` (name -> digest) of each tracker.

    Returns:
        ``command``, ``trackers``, ``date`` (UTC), ``machine`` (``system``, ``processor``, ``cores``, ``gpus``) and
        ``versions``; torch and its GPUs only where torch is loaded.
    """
    versions = {
        "tracker_ros": tracker_ros.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
    gpus = []
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        versions["torch"] = torch.__version__
        gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    machine = {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count(), "gpus": gpus}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {
        "command": command,
        "trackers": {label: dict(own) for label, own in trackers.items()},
        "date": date,
        "machine": machine,
        "versions": versions,
    }


def text(origin: Mapping[str, Any]) -> str:
    """The result of `describe` as lines of text."""
    machine = origin["machine"]
    parts = [machine["processor"], f"{machine['cores']} cores", *machine["gpus"], machine["system"]]
    files = [f"{name} {digest}" for own in origin["trackers"].values() for name, digest in own["files"].items()]
    lines = {
        "command": origin["command"],
        "devices": ", ".join(f"{label} on {own['device']}" for label, own in origin["trackers"].items()),
        "weights (SHA-256)": ", ".join(dict.fromkeys(files)) or "none",
        "machine": ", ".join(parts),
        "versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
        "date": origin["date"],
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def _processor() -> str:
    """The processor's name; its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
