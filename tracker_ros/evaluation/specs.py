"""Trackers as they are written on the command line: ``dimp18`` or ``dimp18:update=none,optimizer=gradient``.

An evaluation may change a tracker's design and the rules that it keeps, too, not only its options.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tracker_ros import registry
from tracker_ros.text import printable
from tracker_ros.trackers.base import InvalidOption, Tracker, TrackerOptions


@dataclass(frozen=True)
class TrackerSpec:
    """A tracker with options changed.

    Attributes:
        label: how it was written; what reports call it.
        name: its name in the registry.
        options: the options, and fields of the design, that differ from its preset.
    """

    label: str
    name: str
    options: dict[str, Any]

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        return re.sub(r"[^\w.=,+-]+", "_", self.label)

    @cached_property
    def files(self) -> dict[str, str]:
        """Name -> start of the SHA-256 of each file that it reads networks from."""
        options = registry.get(self.name).options.vary(**self.options)
        values = [getattr(options, f.name) for f in options.options()]
        paths = [Path(value) for value in values if isinstance(value, str) and Path(value).is_file()]
        network = getattr(options.design, "network", None)
        if network is not None and not options.weights:
            from tracker_ros import weights  # it loads torch, which not every tracker needs

            paths += filter(Path.is_file, [weights.shipped(network)])
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}

    def create(self) -> Tracker[Any]:
        """Build the tracker."""
        return registry.create(self.name, **self.options)


def parse_specs(labels: Sequence[str], settings: Sequence[str] = (), device: str | None = None) -> list[TrackerSpec]:
    """Read tracker specifications.

    Args:
        labels: ``name`` or ``name:field=value,...``.
        settings: ``field=value`` for every tracker that has the field, or ``name.field=value`` for one.
        device: value of the option ``device``.

    Raises:
        InvalidOption: not of this form, a field that no tracker has, a value that it does not take, a label twice.
        UnknownTracker: no tracker of this name.
    """
    if len(set(labels)) != len(labels):
        raise InvalidOption(f"a tracker is named twice: {' '.join(labels)}")
    specs, used = [], set()
    for label in labels:
        name, _, own = label.partition(":")
        preset = registry.get(name).options
        fields = {f.name for f in (*preset.options(), *dataclasses.fields(preset.design))}
        options: dict[str, Any] = {} if device is None else {"device": device}
        for setting in settings:
            field, value = _split(setting)
            owner, _, bare = field.rpartition(".")
            if owner in ("", name) and bare in fields:
                options[bare] = _value(preset, bare, value)
                used.add(setting)
        for setting in filter(None, own.split(",")):
            field, value = _split(setting)
            options[field] = _value(preset, field, value)
        preset.vary(**options)
        specs.append(TrackerSpec(printable(label), name, options))
    for setting in settings:
        if setting not in used:
            raise InvalidOption(f"none of the trackers {', '.join(labels)} has the option in '{setting}'")
    return specs


def _split(setting: str) -> tuple[str, str]:
    field, equals, value = setting.partition("=")
    if not equals or not field:
        raise InvalidOption(f"'{setting}' is not of the form field=value")
    return field.strip(), value.strip()


def _value(preset: TrackerOptions, field: str, text: str) -> Any:
    """The text of an option's value as the type of that option."""
    default = getattr(preset, field, getattr(preset.design, field, None))
    if default is None or isinstance(default, str):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise InvalidOption(f"option '{field}' takes a {type(default).__name__}, got '{text}'") from None
    return tuple(value) if isinstance(value, list) else value
