from __future__ import annotations

from typing import Any

import pytest
import torch

from tracker_ros import cli
from tracker_ros.evaluation import gpu_check, provenance


def _result(**changes: Any) -> dict[str, Any]:
    own = {
        "overlap": 0.9991,
        "ms": {"mean": 2.5, "p50": 2.25, "p99": 4.5, "min": 2.0},
        "stages_ms": {"backbone": {"mean": 1.125, "p50": 1.0}},
        "device_memory_mib": 512.0,
        "a_frame": {"waits": 1.0, "launches": 321.0, "copies": 4.0},
    }
    other = {**own, "stages_ms": {"head": {"mean": 0.5, "p50": 0.5}}}
    result = {
        "device": "Some GPU",
        "tests": 0,
        "trackers": {"dimp18": own, "siamban": other},
        "origin": provenance.describe("tracker_ros gpu-check", {}),
    }
    return result | changes


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_fails(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpu-check", "--out", str(tmp_path / "out")]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_table_has_a_row_a_tracker_and_its_stages() -> None:
    lines = gpu_check.table(_result()).splitlines()
    assert lines[0] == "device: Some GPU"
    row = next(line for line in lines if line.startswith("dimp18"))
    assert row.split() == ["dimp18", "2.25", "4.50", "1.0", "321.0", "4.0", "0.9991", "512"]
    stages = [line.split() for line in lines if line.startswith(("dimp18", "siamban"))][2:]
    assert stages == [["dimp18", "1.12", "-"], ["siamban", "-", "0.50"]]
    assert not any("WRONG" in line for line in lines)


def test_what_is_wrong_is_said() -> None:
    result = _result(tests=1)
    result["trackers"]["dimp18"] = {
        **result["trackers"]["dimp18"],
        "overlap": float("nan"),
        "a_frame": {"waits": 7.0, "launches": 1.0, "copies": 1.0},
    }
    said = [line for line in gpu_check.table(result).splitlines() if line.startswith("WRONG")]
    assert len(said) == 3
    assert "7.0 waits a frame" in said[2]
    assert gpu_check.faults(_result(trackers={})) == ["no tracker was checked"]


def test_calls_of_the_runtime_are_counted_a_frame() -> None:
    names = ["cudaLaunchKernel"] * 6 + ["cudaStreamSynchronize"] * 2 + ["cudaMemcpyAsync", "aten::add", "Memcpy HtoD"]
    assert gpu_check.count(names, 2) == {"waits": 1.0, "launches": 3.0, "copies": 0.5}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_tracker_on_a_gpu_waits_once_a_frame_and_finds_the_boxes_of_the_cpu() -> None:
    frames, box = gpu_check.flight(12)
    found = gpu_check.check("dimp18", "cuda", frames, box)
    assert found["overlap"] >= gpu_check.LEAST_OVERLAP
    assert found["a_frame"]["waits"] <= gpu_check.ALLOWED_WAITS
