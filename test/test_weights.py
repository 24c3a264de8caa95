from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tracker_ros import weights
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
