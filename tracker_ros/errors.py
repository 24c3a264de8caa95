"""Errors that several layers raise and their users catch."""

from __future__ import annotations


class WeightsError(ValueError):
    """A weights file that cannot be used; the message names the file, the reason and the way out."""


class WeightsMissing(WeightsError, FileNotFoundError):
    """There is no such weights file."""

    __str__ = Exception.__str__  # OSError's would show the message as an errno pair
