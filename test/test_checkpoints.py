"""Published checkpoints: read without running anything, refused where damaged, imported by one command."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import resource
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tracker_ros import checkpoints, weights
from tracker_ros.cli import main
from tracker_ros.errors import WeightsError
from tracker_ros.networks.dimp import DIMP18, DiMPNet
from tracker_ros.networks.published import DIMP_NAMES


class Foreign:
    """A class of the program that wrote the checkpoint."""

    def __init__(self) -> None:
        self.settings = {"lr": 0.1}


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_read_without_the_classes_they_name(tmp_path: Path, legacy: bool) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    content = {
        "net": OrderedDict(a=shared, b=shared[1:, ::2], c=torch.tensor(3), d=nn.Parameter(torch.ones(2).half())),
        "settings": Foreign(),
        "epoch": 7,
    }
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    read = checkpoints.read_checkpoint(path)
    assert read["epoch"] == 7
    for key in "abcd":
        assert torch.equal(read["net"][key], content["net"][key].detach()), key


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_checkpoint_runs_nothing(tmp_path: Path, legacy: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "x.pth"
    state = {"net": {"a": torch.ones(2)}, "settings": Attack(marker)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    read = checkpoints.read_checkpoint(path)
    assert torch.equal(read["net"]["a"], torch.ones(2))
    assert not marker.exists()
    with pytest.raises(WeightsError):
        checkpoints.import_checkpoint(path, "dimp18")
    assert not marker.exists()


def test_a_tensor_that_claims_more_than_its_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"net": {"a": torch.ones(1).expand(10**6, 10**6)}}, path)
    with pytest.raises(WeightsError, match="beyond its data"):
        checkpoints.read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps({"net": 1}), b"PK\x03\x04" + b"\x00" * 64])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.pth"):
        checkpoints.read_checkpoint(path)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"net": {"a": torch.ones(1000)}}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(cut, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data[:100] if name.endswith("data/0") else data)
    with pytest.raises(WeightsError, match="100 bytes, expected 4000"):
        checkpoints.read_checkpoint(cut)


def test_another_networks_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"net": {"layer1.weight": torch.ones(2)}}, path)
    with pytest.raises(WeightsError, match="not one of DiMP's"):
        checkpoints.import_checkpoint(path, "dimp18")
    with pytest.raises(WeightsError, match="no importer for 'yolo'"):
        checkpoints.import_checkpoint(path, "yolo")


def _published() -> tuple[DiMPNet, dict[str, torch.Tensor]]:
    """A network, and its state under the published names, made from ours: this runs without any published file."""
    torch.manual_seed(0)
    net = DiMPNet(DIMP18)
    state = {}
    for key, value in net.state_dict().items():
        published = next(p + key[len(ours) :] for p, ours in DIMP_NAMES if ours is not None and key.startswith(ours))
        state[published] = value.reshape(1, -1, 1, 1) if key.endswith("coefficients") else value
    state["feature_extractor.layer4.0.conv1.weight"] = torch.ones(1)
    return net, state


def test_import_command_writes_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, state = _published()
    source, out = tmp_path / "dimp18.pth", tmp_path / "dimp18.safetensors"
    torch.save({"net": state, "epoch": 50}, source)
    parser = argparse.ArgumentParser()
    checkpoints.add_arguments(parser)
    assert checkpoints.run(parser.parse_args([str(source), "--tracker", "dimp18", "--out", str(out)])) == 0
    assert "10.7 M parameters" in capsys.readouterr().out
    loaded = DiMPNet(DIMP18)
    weights.load(out, loaded, "dimp18")
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in loaded.state_dict().items() if "num_batches" not in k)


def _wrapped(state: dict[str, Any], how: str) -> dict[str, Any]:
    return {
        "DataParallel": lambda: {"net": {f"module.{key}": value for key, value in state.items()}},
        "twice": lambda: {"net": {f"module.module.{key}": value for key, value in state.items()}},
        "compiled": lambda: {"state_dict": {f"_orig_mod.{key}": value for key, value in state.items()}},
        "a part": lambda: {
            "net": {k.replace("feature_extractor.", "feature_extractor.module.", 1): v for k, v in state.items()}
        },
        "bare": lambda: {f"module.{key}": value for key, value in state.items()},
    }[how]()


@pytest.mark.parametrize("how", ["DataParallel", "twice", "compiled", "a part", "bare"])
def test_names_of_wrappers_are_no_obstacle(tmp_path: Path, how: str) -> None:
    net, state = _published()
    torch.save(_wrapped(state, how), tmp_path / "x.pth")
    found = checkpoints.import_checkpoint(tmp_path / "x.pth", "dimp18").state_dict()
    assert all(torch.equal(found[k], v) for k, v in net.state_dict().items() if "num_batches" not in k)


def test_names_that_fall_together_are_refused(tmp_path: Path) -> None:
    _, state = _published()
    torch.save({"net": state | {f"module.{key}": value for key, value in state.items()}}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="with and without the prefix"):
        checkpoints.import_checkpoint(tmp_path / "x.pth", "dimp18")


@pytest.mark.parametrize("link", ["itself", "symlink", "hardlink", "folder's link", "dots"])
def test_import_over_the_checkpoint_is_refused(tmp_path: Path, link: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in" / "x.pth"
    source.parent.mkdir()
    torch.save({"net": {"a": torch.ones(1)}}, source)
    before, out = source.read_bytes(), tmp_path / "out.safetensors"
    if link == "symlink":
        out.symlink_to(source)
    elif link == "hardlink":
        out.hardlink_to(source)
    elif link == "folder's link":
        (tmp_path / "other").symlink_to(source.parent)
        out = tmp_path / "other" / "x.pth"
    else:
        out = source if link == "itself" else tmp_path / "in" / ".." / "in" / "x.pth"
    assert main(["import-weights", str(source), "--tracker", "dimp18", "--out", str(out)]) == 2
    assert "is an input" in capsys.readouterr().err
    assert source.read_bytes() == before


def _rewritten(path: Path, change: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with other content of some entries."""
    other = path.with_suffix(".changed")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w", compression) as target:
        for name in source.namelist():
            inner = name.split("/", 1)[1]
            target.writestr(name, change.get(inner, source.read(name)))
    return other


def _sparse(path: Path, values: int, dtype: str = "FloatStorage", bytes_each: int = 4, legacy: bool = False) -> Path:
    """A checkpoint with a tensor of gigabytes that takes no room on the disk."""

    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj: object) -> Any:
            return ("storage", Global(f"ctorch\n{dtype}\n"), "0", "cpu", values) if isinstance(obj, Storage) else None

    class Global:
        def __init__(self, code: str) -> None:
            self.code = code

    def save_global(pickler: Any, obj: Global) -> None:
        pickler.write(obj.code.encode())

    class Rebuilt:
        def __reduce__(self) -> Any:
            return call, (Storage(), 0, (values,), (1,), False, OrderedDict())

    call = Global("ctorch._utils\n_rebuild_tensor_v2\n")
    Pickler.dispatch = pickle._Pickler.dispatch | {Global: save_global}

    def reduce(self: Any, func: Any, args: Any, *_: Any, **__: Any) -> None:
        self.save(func)
        self.save(args)
        self.write(pickle.REDUCE)

    Pickler.save_reduce = reduce
    text = io.BytesIO()
    Pickler(text, 2).dump({"net": {"feature_extractor.conv1.weight": Rebuilt()}})
    with path.open("wb") as file:
        if legacy:
            for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                file.write(pickle.dumps(part, 2))
            file.write(text.getvalue() + pickle.dumps(["0"], 2) + struct.pack("<q", values))
            file.truncate(file.tell() + values * bytes_each)
        else:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("x/data.pkl", text.getvalue())
                size = values * bytes_each
                info = zipfile.ZipInfo("x/data/0")
                info.CRC = 0
                info.file_size = info.compress_size = size
                archive.fp.seek(archive.start_dir)
                info.header_offset = archive.fp.tell()
                archive.fp.write(info.FileHeader(zip64=True))
                archive.fp.seek(size, os.SEEK_CUR)
                archive.filelist.append(info)
                archive.NameToInfo[info.filename] = info
                archive.start_dir = archive.fp.tell()
                archive._didModify = True
    return path


def _grown(action: Any) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    action()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("dtype", "size"), [("FloatStorage", 4), ("ByteStorage", 1)])
def test_a_tensor_of_gigabytes_that_does_not_fit_is_named_at_once(
    tmp_path: Path, legacy: bool, dtype: str, size: int
) -> None:
    path = _sparse(tmp_path / "x.pth", 4 * 10**9 // size, dtype, size, legacy)
    assert path.stat().st_size > 4e9

    def load() -> None:
        with pytest.raises(WeightsError, match="tensors missing"):
            checkpoints.import_checkpoint(path, "dimp18")

    checkpoints.importers()["dimp18"][0]()  # what the network itself takes
    assert _grown(load) < 300e6


def test_a_checkpoint_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "x.pth"
    torch.save({"net": {"a": torch.ones(1000)}}, whole)
    bomb = _rewritten(whole, {"data/0": bytes(200_000_000)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1e6
    for read in (checkpoints.read_checkpoint, checkpoints.read_own):
        with pytest.raises(WeightsError, match=r"entries are compressed \(0\.2 GB in .*unpack it"):
            read(bomb)
    pickled = _rewritten(whole, {"data.pkl": bytes(9_000_000)})
    with pytest.raises(WeightsError, match=r"list of tensors takes more than 8\.4 MB"):
        checkpoints.read_checkpoint(pickled)


def test_damage_within_the_data_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"net": {"a": torch.arange(1000.0)}}, path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 500.0))] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="checksum"):
        checkpoints.read_checkpoint(path)


def test_other_archives_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday/beach.jpg", b"")
    with pytest.raises(WeightsError, match=r"not a torch.save file \(in it: holiday/beach.jpg\)"):
        checkpoints.read_checkpoint(path)
    with pytest.raises(WeightsError, match=r"not a safetensors file .it is a zip archive.*import-weights"):
        weights.network_of(path)
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path)
    with pytest.raises(WeightsError, match="TorchScript program"):
        checkpoints.read_checkpoint(path)
    weights.save(path, nn.Linear(1, 1), "toy", "a test")
    with pytest.raises(WeightsError, match="safetensors file, which needs no import"):
        checkpoints.read_checkpoint(path)
    torch.save(nn.Linear(1, 1), path)
    with pytest.raises(WeightsError, match=r"a whole network: save its state_dict"):
        checkpoints.import_checkpoint(path, "dimp18")


def _legacy(pickled: bytes) -> bytes:
    parts = (0x1950A86A20F9469CFC6C, 1001, {})
    return b"".join(pickle.dumps(part, 2) for part in parts) + pickled + pickle.dumps([], 2)


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"\x80\x05\x96" + struct.pack("<Q", 8 << 30) + b".",  # a bytearray of gigabytes
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}.",  # a frame
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",  # bytes
        b"\x80\x02}" + b"()" + b"".join(b"q\x01h\x01\x86" for _ in range(60)) + b"K\x01s.",  # a key of 2^60 parts
        b"\x80\x04\x8f(" + b")" + b"".join(b"q\x01h\x01\x86" for _ in range(60)) + b"\x90.",  # a set of such
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__K\x01sb.",  # changes a function
    ],
    ids=["memo", "bytearray", "frame", "bytes", "key", "set", "build"],
)
def test_a_pickle_takes_no_more_than_it_has(tmp_path: Path, code: bytes) -> None:
    before = checkpoints._rebuild_tensor.__defaults__
    path = tmp_path / "x.pth"
    path.write_bytes(_legacy(code))

    def read() -> None:
        with contextlib.suppress(WeightsError):  # Some are harmless once what they want is left out.
            checkpoints.read_checkpoint(path)

    assert _grown(read) < 1e9
    assert checkpoints._rebuild_tensor.__defaults__ is before


def test_a_pickle_of_more_than_a_list_of_tensors_is_not_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_MAX_PICKLE", 1000)
    for code in (b"\x80\x02" + b"}" * 1000 + b".", b"V" + b"x" * 1000 + b"\n.", b"V" + b"x" * 1000):
        (tmp_path / "x.pth").write_bytes(_legacy(code))
        with pytest.raises(WeightsError, match="list of tensors takes more than 1000 bytes"):
            checkpoints.read_checkpoint(tmp_path / "x.pth")


def test_only_training_reads_its_own_checkpoints_and_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"net": Foreign()}, path)
    with pytest.raises(WeightsError, match="not a checkpoint that can be read"):
        checkpoints.read_own(path)
    torch.save([1], path)
    with pytest.raises(WeightsError, match="holds a list"):
        checkpoints.read_own(path)
    torch.save({"net": torch.ones(3)}, path)
    assert torch.equal(checkpoints.read_own(path)["net"], torch.ones(3))
