"""Tiny networks as ONNX files, written byte by byte (protocol buffers), so that tests need no ONNX package.

They find what is bright: enough to see that OpenCV's trackers get the right files and that their scores come through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _data(field: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw


def _tensor(name: str, values: np.ndarray) -> bytes:
    kind = 7 if values.dtype == np.int64 else 1
    return (
        b"".join(_number(1, n) for n in values.shape) + _number(2, kind) + _data(8, name) + _data(9, values.tobytes())
    )


def _value(name: str, shape: Sequence[int]) -> bytes:
    dims = b"".join(_data(1, _number(1, n)) for n in shape)
    return _data(1, name) + _data(2, _data(1, _number(1, 1) + _data(2, dims)))


def _node(kind: str, inputs: Sequence[str], output: str, **ints: Sequence[int]) -> bytes:
    attributes = b"".join(
        _data(5, _data(1, key) + b"".join(_number(8, n) for n in values) + _number(20, 7))
        for key, values in ints.items()
    )
    return (
        b"".join(_data(1, name) for name in inputs) + _data(2, output) + _data(3, output) + _data(4, kind) + attributes
    )


def _conv(inputs: Sequence[str], output: str) -> bytes:
    return _node("Conv", inputs, output, kernel_shape=[1, 1])


def _write(
    path: Path,
    nodes: Sequence[bytes],
    constants: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int]],
) -> Path:
    graph = b"".join(_data(1, node) for node in nodes) + _data(2, "graph")
    graph += b"".join(_data(5, _tensor(name, values)) for name, values in constants.items())
    graph += b"".join(_data(11, _value(name, shape)) for name, shape in inputs.items())
    graph += b"".join(_data(12, _value(name, shape)) for name, shape in outputs.items())
    path.write_bytes(_number(1, 7) + _data(8, _data(1, "") + _number(2, 11)) + _data(7, graph))
    return path


def _channels(*rows: float, depth: int = 3) -> np.ndarray:
    """A 1x1 convolution that gives the mean of the input times each of `rows`."""
    return np.array(rows, np.float32)[:, None, None, None] / depth * np.ones((1, depth, 1, 1), np.float32)


def write_nano(folder: Path) -> tuple[Path, Path]:
    """NanoTrack's backbone (grey levels on a grid of 16 px) and its head (the brightest cell; boxes of 32 px)."""
    backbone = _write(
        folder / "backbone.onnx",
        [_node("AveragePool", ["input"], "output", kernel_shape=[15, 15], strides=[16, 16])],
        {},
        {"input": [1, 3, 255, 255]},
        {"output": [1, 3, 16, 16]},
    )
    constants = {
        "w1": _channels(-0.05, 0.05),
        "b1": np.array([5, -5], np.float32),
        "w2": _channels(0, 0, 0, 0),
        "b2": np.full(4, 32, np.float32),
    }
    head = _write(
        folder / "head.onnx",
        [
            _conv(["input2", "w1", "b1"], "score"),
            _conv(["input2", "w2", "b2"], "box"),
            # The template is taken in, and changes nothing: the mean times 0, through a sigmoid, is a half.
            _node("GlobalAveragePool", ["input1"], "mean"),
            _conv(["mean", "w2"], "zero"),
            _node("Sigmoid", ["zero"], "half"),
            _node("Mul", ["box", "half"], "output2"),
            _node("Identity", ["score"], "output1"),
        ],
        constants,
        {"input1": [1, 3, 8, 8], "input2": [1, 3, 16, 16]},
        {"output1": [1, 2, 16, 16], "output2": [1, 4, 16, 16]},
    )
    return backbone, head


def write_vit(folder: Path) -> Path:
    """VitTrack's network: a score map of 16x16 cells (bright is 1), boxes of a quarter of the region's size."""
    constants = {
        "w1": _channels(4),
        "w2": _channels(0, 0),
        "b2": np.full(2, 0.5, np.float32),
        "b3": np.full(2, 1, np.float32),
    }
    return _write(
        folder / "vit.onnx",
        [
            _node("AveragePool", ["search"], "cells", kernel_shape=[16, 16], strides=[16, 16]),
            _conv(["cells", "w1"], "grey"),
            _node("Sigmoid", ["grey"], "bright"),
            _node("GlobalAveragePool", ["template"], "mean"),
            _conv(["mean", "w2"], "zero"),
            _node("Sigmoid", ["zero"], "half"),
            _conv(["cells", "w2", "b2"], "size"),
            _node("Identity", ["bright"], "output1"),
            _node("Mul", ["size", "half"], "output2"),
            _conv(["cells", "w2", "b3"], "output3"),
        ],
        constants,
        {"template": [1, 3, 128, 128], "search": [1, 3, 256, 256]},
        {"output1": [1, 1, 16, 16], "output2": [1, 2, 16, 16], "output3": [1, 2, 16, 16]},
    )
