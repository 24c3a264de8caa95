"""Files of weights made up by a fuzzer: each is read or refused by name, in bounded memory, and runs nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tracker_ros import checkpoints, weights
from tracker_ros.errors import WeightsError
from tracker_ros.networks.published import convert_dimp, convert_siamrpnpp

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed; runs after `make setup`")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

#: Bytes that a file of at most a few kilobytes may make its reader take.
MEMORY = 400 << 20
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=CHECKS)

numbers = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([1 << 31, (1 << 32) - 1, 1 << 40, (1 << 62) - 1, 1 << 63, (1 << 64) - 1, 1 << 90]),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
tensor_entries = st.fixed_dictionaries(
    {
        "dtype": st.one_of(
            st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "C64"]), json_values
        ),
        "shape": st.one_of(st.lists(numbers, max_size=4), json_values),
        "data_offsets": st.one_of(st.tuples(numbers, numbers), json_values),
    }
)
names = st.one_of(
    st.sampled_from(["0.weight", "0.bias", "backbone.0.weight", "__metadata__", ""]), st.text(max_size=12)
)
metadata = st.dictionaries(
    st.one_of(st.sampled_from(["network", "backbone", "fingerprint", "format"]), st.text(max_size=5)),
    st.one_of(st.sampled_from(["toy", "backbone18", "..", "/dev/zero", "a\0b"]), json_values),
    max_size=4,
)


@st.composite
def safetensors_files(draw: Callable) -> bytes:
    """Headers of our form with values that claim anything, a length that may be another, and some data."""
    header = draw(st.dictionaries(names, st.one_of(tensor_entries, json_values), max_size=4))
    if draw(st.booleans()):
        header["__metadata__"] = draw(metadata)
    text = json.dumps(header).encode()
    if draw(st.booleans()):
        text = _changed(draw, text)
    length = draw(st.one_of(st.just(len(text)), numbers.map(lambda n: n % (1 << 64))))
    return struct.pack("<Q", length) + text + draw(st.binary(max_size=64))


def _changed(draw: Callable, data: bytes) -> bytes:
    """Some bytes of `data` changed, left out or put in."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        found[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(found)


def _saved(legacy: bool) -> bytes:
    state = OrderedDict({"backbone.conv1.weight": torch.arange(6.0).reshape(2, 3)[:, ::2], "n": torch.tensor(3)})
    content = {"net": state, "state_dict": state, "epoch": 5, "lr": (0.1, None), "names": ["a", b"b"]}
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


_CODES = [
    op[0:1] for op in (v for k, v in vars(pickle).items() if k.isupper() and isinstance(v, bytes) and len(v) == 1)
]
#: Parts of pickles: instructions with what belongs to them, and any others.
opcodes = st.one_of(
    st.sampled_from(_CODES),
    st.sampled_from(
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n",
            b"cos\nsystem\n", b"cbuiltins\neval\n", b"X\x07\x00\x00\x00storage", b"X\x01\x00\x00\x000",
            b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00net", b"K\x01", b"}", b"]", b")", b"(", b"t", b"R", b"Q", b"s",
            b"u", b"b", b"\x81", b"\x86", b"\x87", b"2",
        ]
    ),
    numbers.map(lambda n: b"\x8a\x0c" + (n % (1 << 95)).to_bytes(12, "little")),
    numbers.map(lambda n: b"r" + struct.pack("<I", n % (1 << 32))),
    st.tuples(st.sampled_from([b"\x8d", b"\x8e", b"\x95", b"\x96"]), numbers).map(
        lambda given: given[0] + struct.pack("<Q", given[1] % (1 << 64))
    ),
    st.tuples(st.sampled_from([b"X", b"B", b"T", b"\x8b"]), numbers).map(
        lambda given: given[0] + struct.pack("<I", given[1] % (1 << 32))
    ),
    st.binary(max_size=4),
)  # fmt: skip
pickles = st.lists(opcodes, max_size=40).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")


@st.composite
def checkpoint_files(draw: Callable) -> bytes:
    """torch.save files with changed bytes, or with pickles and data of any making."""
    kind = draw(st.sampled_from(["zip", "legacy", "archive", "stream"]))
    if kind in ("zip", "legacy"):
        return _changed(draw, _saved(kind == "legacy"))
    if kind == "stream":
        start = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
        return (
            start
            + draw(pickles)
            + draw(st.one_of(st.just(pickle.dumps(["0"], 2)), pickles))
            + draw(st.binary(max_size=40))
        )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        with zipfile.ZipFile(io.BytesIO(_saved(False))) as source:
            content = {name.split("/", 1)[1]: source.read(name) for name in source.namelist()}
        content["data.pkl"] = draw(st.one_of(pickles, st.just(content["data.pkl"])))
        content["data/0"] = draw(st.one_of(st.binary(max_size=64), st.just(content["data/0"])))
        for name in content:
            archive.writestr(f"x/{name}", content[name])
    data = file.getvalue()
    return _changed(draw, data) if draw(st.booleans()) else data


class _Watched:
    """Fails where a block takes memory, runs something or takes long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        for module, name in ((os, "system"), (os, "popen"), (os, "posix_spawn")):
            monkeypatch.setattr(module, name, lambda *args, name=name: self.ran.append(name))

    def __enter__(self) -> None:
        self._memory, self._time = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()

    def __exit__(self, *_: object) -> None:
        assert not self.ran
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._memory) << 10 < MEMORY
        assert time.process_time() - self._time < 10


def _refused(error: WeightsError, name: str = "w.bin") -> None:
    assert name in str(error)
    assert str(error).isprintable(), str(error)


def _try_safetensors(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for read in (weights.network_of, lambda path: weights.load(path, nn.Sequential(nn.Linear(2, 2)), "toy")):
        try:
            read(path)
        except WeightsError as error:
            _refused(error)


def _try_checkpoint(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for outline in (True, False):
        try:
            found = checkpoints.read_checkpoint(path, outline=outline)
        except WeightsError as error:
            _refused(error)
            continue
        for convert in (convert_dimp, convert_siamrpnpp):
            try:
                convert(found)
            except WeightsError as error:
                _refused(error, "")
    try:
        checkpoints.read_own(path)
    except WeightsError as error:
        _refused(error)


@QUICK
@given(data=safetensors_files())
def test_any_safetensors_file_is_read_or_refused(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _Watched(monkeypatch):
        _try_safetensors(tmp_path / "w.bin", data)


@QUICK
@given(data=checkpoint_files())
def test_any_checkpoint_is_read_or_refused(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _Watched(monkeypatch):
        _try_checkpoint(tmp_path / "w.bin", data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "checkpoints"])
def test_minutes_of_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of ``TRACKER_ROS_FUZZ_MINUTES`` (10, of this process) each, from new seeds, which a failure prints."""
    end = time.process_time() + 30 * float(os.environ.get("TRACKER_ROS_FUZZ_MINUTES") or 10)
    made = safetensors_files() if kind == "safetensors" else checkpoint_files()
    attempt = _try_safetensors if kind == "safetensors" else _try_checkpoint
    watched, count = _Watched(monkeypatch), 0

    @settings(QUICK, max_examples=200, derandomize=False, print_blob=True)
    @given(data=made)
    def some(data: bytes) -> None:
        nonlocal count
        if time.process_time() < end:
            count += 1
            with watched:
                attempt(tmp_path / "w.bin", data)

    while time.process_time() < end:
        some()
    print(f"{count} files of {kind}")
    assert count > 100
