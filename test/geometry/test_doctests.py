"""The examples in the docstrings of `tracker_ros.geometry`."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from tracker_ros import geometry

MODULES = [module.name for module in pkgutil.iter_modules(geometry.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"tracker_ros.geometry.{name}"))
    assert result.attempted, "no example"
    assert not result.failed
