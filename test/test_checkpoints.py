"""Published checkpoints: read without running anything, refused where damaged, imported by one command."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from tracker_ros import checkpoints, weights
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


def test_import_command_writes_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Published names are made from ours, so this runs without any published file."""
    torch.manual_seed(0)
    net = DiMPNet(DIMP18)
    state = {}
    for key, value in net.state_dict().items():
        published = next(p + key[len(ours) :] for p, ours in DIMP_NAMES if ours is not None and key.startswith(ours))
        state[published] = value.reshape(1, -1, 1, 1) if key.endswith("coefficients") else value
    state["feature_extractor.layer4.0.conv1.weight"] = torch.ones(1)
    source, out = tmp_path / "dimp18.pth", tmp_path / "dimp18.safetensors"
    torch.save({"net": state, "epoch": 50}, source)
    parser = argparse.ArgumentParser()
    checkpoints.add_arguments(parser)
    assert checkpoints.run(parser.parse_args([str(source), "--tracker", "dimp18", "--out", str(out)])) == 0
    assert "10.7 M parameters" in capsys.readouterr().out
    loaded = DiMPNet(DIMP18)
    weights.load(out, loaded, "dimp18")
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in loaded.state_dict().items() if "num_batches" not in k)
