from __future__ import annotations

import json
import os
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from tracker_ros import checkpoints, registry, weights
from tracker_ros.errors import WeightsError, WeightsMissing


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 7), nn.BatchNorm2d(64), nn.Conv2d(64, 4, 1))


def test_float32_round_trip_is_exact_and_float16_is_close(tmp_path: Path) -> None:
    net = _net()
    for half, tolerance in ((False, 0.0), (True, 1e-3)):
        path = tmp_path / f"{half}.safetensors"
        weights.save(path, net, "toy", "a test", half=half)
        other = nn.Sequential(nn.Conv2d(3, 64, 7), nn.BatchNorm2d(64), nn.Conv2d(64, 4, 1))
        weights.load(path, other, "toy")
        for key, value in other.state_dict().items():
            assert (value - net.state_dict()[key]).abs().max() <= tolerance, key


def test_refusals_name_the_file_and_the_reason(tmp_path: Path) -> None:
    net, path = _net(), tmp_path / "w.safetensors"
    with pytest.raises(WeightsMissing, match=r"nothing\.safetensors does not exist"):
        weights.load(tmp_path / "nothing.safetensors", net, "toy")
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        weights.load(path, net, "toy")
    weights.save(path, net, "toy", "a test")
    with pytest.raises(WeightsError, match="weights of 'toy', not of 'dimp18'"):
        weights.load(path, net, "dimp18")
    with pytest.raises(WeightsError, match="1 tensors missing"):
        weights.load(path, nn.Sequential(*net, nn.Linear(4, 1, bias=False)), "toy")
    with pytest.raises(WeightsError, match="has shape"):
        weights.load(path, nn.Sequential(nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64), nn.Conv2d(64, 4, 1)), "toy")
    with torch.no_grad():
        net[2].weight[0] = torch.nan
    weights.save(path, net, "toy", "a test", half=False)
    with pytest.raises(WeightsError, match="not finite"):
        weights.load(path, _net(), "toy")


def test_a_refused_file_leaves_the_network_alone(tmp_path: Path) -> None:
    net, path = _net(), tmp_path / "w.safetensors"
    weights.save(path, nn.Sequential(nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64), nn.Conv2d(64, 4, 1)), "toy", "a test")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(WeightsError):
        weights.load(path, net, "toy")
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


# What people take for weights: how it is made, and what the message must say of it and of what to do.
_PICTURE = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "LFS pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 42\n"),
        r"Git LFS pointer; .*git lfs pull",
    ),
    "annex pointer": (
        lambda p: p.write_text("/annex/objects/SHA256E-s42--00\n"),
        r"git-annex pointer; .*git annex get",
    ),
    "web page": (lambda p: p.write_text("\n <!DOCTYPE html><html>Sign in"), "web page, not what it links to; download"),
    "error of a server": (lambda p: p.write_text('<?xml version="1.0"?><Error><Code>AccessDenied'), "web page"),
    "JSON": (lambda p: p.write_text('{"message": "Not Found"}'), 'a text that begins with \'{"message"'),
    "empty": (lambda p: p.touch(), "is empty: .* get it again"),
    "folder": (lambda p: (p.mkdir(), (p / "w.safetensors").touch()), r"is a folder; give a .*\(in it: w.safetensors\)"),
    "named pipe": (lambda p: os.mkfifo(p), "is a named pipe; give"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "is a device; give"),
    "socket": (lambda p: socket.socket(socket.AF_UNIX).bind(str(p)), "is a socket; give"),
    "link to nothing": (lambda p: p.symlink_to("gone/w.bin"), r"\(a link to gone/w.bin\) does not exist"),
    "link to itself": (lambda p: p.symlink_to(p.name), "can't be read: Too many levels of symbolic links"),
    "below a file": (lambda p: p.parent.touch(), "does not exist"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(20)), "a gzip archive; unpack it"),
    "tar": (lambda p: p.write_bytes(b"w.pth".ljust(257, b"\0") + b"ustar\x0000" + bytes(300)), "a tar archive; unpack"),
    "picture": (lambda p: p.write_bytes(_PICTURE), r"a picture \(PNG\)"),
    "HDF5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20)), "HDF5"),
    "escape codes": (lambda p: p.write_text("\nhello \u202eworld"), r"text that begins with '\\nhello \\u202eworld'"),
}


@pytest.mark.parametrize("reader", ["weights", "network_of", "checkpoint", "own checkpoint"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_no_weights_file_is_named_with_what_to_do(tmp_path: Path, mistake: str, reader: str) -> None:
    path = tmp_path / ("f/w.bin" if mistake == "below a file" else "w.bin")
    make, said = MISTAKES[mistake]
    make(path)
    with pytest.raises(WeightsError, match=rf"w\.bin.*{said}"):
        {
            "weights": lambda: weights.load(path, _net(), "toy"),
            "network_of": lambda: weights.network_of(path),
            "checkpoint": lambda: checkpoints.read_checkpoint(path),
            "own checkpoint": lambda: checkpoints.read_own(path),
        }[reader]()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "~nobody_of_this_name/w", "\udcff.safetensors"])
def test_paths_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    path = name if name.startswith("~") else tmp_path / name
    if name.startswith("\udcff"):
        weights.save(tmp_path / "w", _net(), "toy", "a test")
        (tmp_path / "w").rename(path)
    with pytest.raises(WeightsError, match="can't be read") as caught:
        weights.load(path, _net(), "toy")
    assert str(caught.value).isprintable()


def test_the_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    weights.save(tmp_path / "w.safetensors", _net(), "toy", "a test")
    assert weights.network_of("~/w.safetensors") == "toy"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, locked: str) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    path = tmp_path / "locked" / "w.safetensors"
    path.parent.mkdir()
    weights.save(path, _net(), "toy", "a test")
    (path if locked == "file" else path.parent).chmod(0)
    code = (
        "import os, sys; from tracker_ros.weight_files import check_file; from tracker_ros.errors import WeightsError\n"
        "os.setuid(65534)\ntry: check_file(sys.argv[1], 'weights')\nexcept WeightsError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "w.safetensors can't be read: Permission denied" in said.stdout, said.stderr


def _claims(path: Path, header: dict[str, Any] | int, size: int = 0) -> Path:
    """A safetensors file with a header of our making and `size` bytes behind it, which take no room on the disk."""
    with path.open("wb") as file:
        if isinstance(header, int):
            file.write(struct.pack("<Q", header) + b"{")
            file.truncate(max(size, 9))
        else:
            text = json.dumps(header).encode()
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + size)
    return path


def _grown(action: Callable[[], Any]) -> int:
    """By how many bytes the peak of this process's memory grows."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    action()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10


GIB = 1 << 30


@pytest.mark.parametrize(
    ("header", "size", "said"),
    [
        (1 << 62, 0, "its header does not fit into it"),
        (4 * GIB, 5 * GIB, r"claims a header of 4\.3 GB"),
        ({"x": {"dtype": "F32", "shape": [GIB], "data_offsets": [0, 4 * GIB]}}, 4 * GIB, "1 unknown"),
        ({"0.weight": {"dtype": "F32", "shape": [GIB], "data_offsets": [0, 4 * GIB]}}, 4 * GIB, "tensors missing"),
        ({"0.weight": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 8]}}, 8, "not a safetensors file"),
        ({"0.weight": {"dtype": "F8_E5M2", "shape": [8], "data_offsets": [0, 8]}}, 8, "of type F8_E5M2"),
        ({"\x1b[2J" * 99: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 4, r"\\x1b\[2J"),
        ({"__metadata__": {"network": "a\nb"}}, 0, r"weights of 'a\\nb'"),
        ({"__metadata__": {"backbone": "../../etc/passwd"}}, 0, "which is no such name"),
        ({"__metadata__": {"backbone": "x" * 5000}}, 0, "which is no such name"),
    ],
)
def test_a_header_is_checked_before_memory_is_taken(tmp_path: Path, header: Any, size: int, said: str) -> None:
    path, net = _claims(tmp_path / "w.safetensors", header, size), _net()

    def load() -> None:
        with pytest.raises(WeightsError, match=said) as caught:
            weights.load(path, net, "toy")
        assert str(caught.value).isprintable()

    assert _grown(load) < 50e6


def test_a_tensor_of_gigabytes_is_named_by_its_shape(tmp_path: Path) -> None:
    net = nn.Linear(1, 1, bias=False)
    path = _claims(tmp_path / "w", {"weight": {"dtype": "F32", "shape": [GIB], "data_offsets": [0, 4 * GIB]}}, 4 * GIB)

    def load() -> None:
        with pytest.raises(WeightsError, match=r"tensor 'weight' has shape \(1073741824,\), expected \(1, 1\)"):
            weights.load(path, net, "toy")

    assert _grown(load) < 50e6


def test_a_backbone_is_checked_like_the_rest(tmp_path: Path) -> None:
    """By its name beside the file, whatever lies there."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

    net = Net()
    weights.save(tmp_path / "w.safetensors", net, "toy", "a test", half=False, backbone="shared")
    weights.save(tmp_path / "shared.safetensors", net.backbone, "shared", "a test", half=False)
    weights.load(tmp_path / "w.safetensors", Net(), "toy")
    huge = {"weight": {"dtype": "F32", "shape": [GIB], "data_offsets": [0, 4 * GIB]}}
    _claims(tmp_path / "shared.safetensors", huge, 4 * GIB)
    with pytest.raises(WeightsError, match="1 tensors missing"):
        weights.load(tmp_path / "w.safetensors", Net(), "toy")
    (tmp_path / "shared.safetensors").unlink()
    os.mkfifo(tmp_path / "shared.safetensors")
    with pytest.raises(WeightsError, match=r"shared\.safetensors is a named pipe"):
        weights.load(tmp_path / "w.safetensors", Net(), "toy")


def test_a_header_of_any_length_is_taken_for_what_it_is(tmp_path: Path) -> None:
    """The first bytes of safetensors are a length, which may look like the sign of another format."""
    net = nn.Linear(1, 1, bias=False)
    for length in (0x8B1F, int.from_bytes(b"BM", "little"), 0x3C):
        text = json.dumps({"weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}).encode().ljust(length)
        (tmp_path / "w").write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<f", 7))
        weights.load(tmp_path / "w", net, "toy")
        assert net.weight.item() == 7


def test_the_option_of_a_tracker_says_the_same(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.safetensors")
    for name in ("dimp18", "siamrpn", "guided_ssd"):
        with pytest.raises(WeightsError, match="is a named pipe"):
            registry.create(name, weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(WeightsError, match=r"option 'model': .* is a named pipe"):
        registry.create("vit", model=str(tmp_path / "w.safetensors"))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    weights.save(path, _net(), "toy", "a test")
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        self.open("wb").write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        weights.save(path, _net(), "other", "a test")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]
