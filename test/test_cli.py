from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import tracker_ros
from tracker_ros import cli

needs_contrib = pytest.mark.skipif(
    not hasattr(cv2, "TrackerKCF_create"),
    reason="this OpenCV has no contrib modules; runs with opencv-contrib-python-headless or Debian's python3-opencv",
)


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """A textured patch that moves two pixels a frame over a dim background."""
    random = np.random.RandomState(0)
    folder = tmp_path / "sequences" / "patch"
    (folder / "img").mkdir(parents=True)
    background = cv2.resize(random.randint(90, 130, (6, 8, 3)).astype(np.uint8), (160, 120))
    patch = cv2.resize(random.randint(0, 255, (8, 8, 3)).astype(np.uint8), (32, 32), interpolation=cv2.INTER_CUBIC)
    for i in range(8):
        frame = background.copy()
        frame[40:72, 40 + 2 * i : 72 + 2 * i] = patch
        cv2.imwrite(str(folder / "img" / f"{i:04d}.png"), frame)
    (folder / "groundtruth.txt").write_text("\n".join(f"{40 + 2 * i},40,32,32" for i in range(8)))
    return folder


def test_usage_lists_the_commands(capsys) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tracker_ros {tracker_ros.__version__}\n"


def test_unknown_commands_are_named(capsys) -> None:
    assert cli.main(["evalute"]) == 2
    assert "did you mean 'evaluate'?" in capsys.readouterr().err


def test_usage_imports_no_command() -> None:
    code = (
        "import sys; from tracker_ros import cli; cli.main([]); "
        "print([m for m in sys.modules if m in ('torch', 'cv2') or m.startswith('tracker_ros.evaluation')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["evaluate", "benchmark", "trackers", "import-weights"])
def test_every_command_explains_itself(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: tracker_ros {command}" in text
    assert "--debug" in text


def test_trackers_and_their_options_are_listed(capsys) -> None:
    assert cli.main(["trackers"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == tracker_ros.tracker_names()
    assert cli.main(["trackers", "csrt"]) == 0
    assert "good_score = 0.6 (0.0, 1.0)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--tracker", "kfc", "--sequences", "/nowhere"], "no tracker 'kfc'; did you mean 'kcf'?"),
        (["evaluate", "--tracker", "kcf", "--sequences", "/nowhere"], "there is no folder '/nowhere'"),
        (["evaluate", "--tracker", "kcf", "--sequences", "/", "--realtime", "0"], "realtime is a frame rate above 0"),
        (["evaluate", "--tracker", "kcf", "--sequences", "/", "--realtime", "9", "--protocol", "vot"], "'ope' only"),
        (["evaluate", "--tracker", "kcf", "--sequences", "/", "--starts", "2", "--protocol", "vot"], "'ope' only"),
        (["evaluate", "--tracker", "kcf", "--sequences", "/", "--jobs", "0"], "--jobs must be at least 1"),
        (["benchmark", "--tracker", "nano"], "'nano' needs your ONNX file"),
        (["benchmark", "--tracker", "kcf", "--size", "big"], "--size is WIDTHxHEIGHT, got 'big'"),
        (["benchmark", "--tracker", "kcf", "--frames", "0"], "--frames must be at least 1"),
        (["trackers", "xyzzy"], "there is no tracker 'xyzzy'"),
    ],
)
def test_mistakes_are_one_clear_line(arguments: list[str], words: str, capsys) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith(f"tracker_ros {arguments[0]}: error: ")
    assert words in lines[0]


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="there is no tracker"):
        cli.main(["trackers", "xyzzy", "--debug"])


@needs_contrib
def test_evaluate_from_the_command_line(sequence: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", "--tracker", "kcf", "csrt", "--sequences", str(sequence.parent), "--out", str(out)]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith("tracker")
    report = json.loads((out / "report.json").read_text())
    assert report["sequences"] == ["patch"]
    assert report["trackers"]["kcf"]["mean"]["auc"] > 0.8
    assert len(np.loadtxt(out / "results" / "csrt" / "patch.txt", delimiter=",")) == 8
    assert (out / "success.png").is_file()
    assert cli.main([*arguments, "--realtime", "30", "--no-strips", "--set", "good_score=0.5"]) == 0
    assert "against the clock: frames came at 30 Hz" in capsys.readouterr().out
    assert f"command: tracker_ros evaluate --tracker kcf csrt --sequences {sequence.parent}" in (
        out / "report.txt"
    ).read_text().replace("'", "")
    assert cli.main([*arguments, "--protocol", "vot"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["trackers"]["kcf"]["failures"] == 0
    assert report["origin"]["trackers"] == {name: {"device": "cpu", "files": {}} for name in ("kcf", "csrt")}
    assert report["origin"]["command"].endswith("--protocol vot")


@needs_contrib
def test_evaluate_starts_only_when_all_trackers_can_be_built(sequence: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", "--tracker", "kcf", "nano", "--sequences", str(sequence.parent), "--out", str(out)]
    assert cli.main(arguments) == 2
    assert "'nano' needs your ONNX file" in capsys.readouterr().err
    assert not out.exists()


@needs_contrib
@pytest.mark.parametrize("source", ["flight", "sequence"])
def test_benchmark_from_the_command_line(source: str, sequence: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "numbers" / "benchmark.json"
    images = ["--sequence", str(sequence)] if source == "sequence" else ["--size", "320x240"]
    options = ["--against", "csrt", "--frames", "12", "--warm-up", "2", "--out", str(file)]
    threads = cv2.getNumThreads()
    assert cli.main(["benchmark", "--tracker", "kcf", *options, *images, "--threads", "1"]) == 0
    cv2.setNumThreads(threads)
    text = capsys.readouterr().out
    assert "kcf takes" in text
    numbers = json.loads(file.read_text())["trackers"]
    assert set(numbers) == {"kcf", "csrt"}
    for own in numbers.values():
        assert own["device"] == "cpu"
        assert 0 < own["ms"]["min"] <= own["ms"]["p50"] <= own["ms"]["p99"]
        assert own["init_ms"] > 0
        assert own["device_memory_mib"] is None
        assert list(own["stages_ms"]) == ["classify", "refine", "update", "other"]
        assert sum(stage["mean"] for stage in own["stages_ms"].values()) == pytest.approx(own["ms"]["mean"], rel=0.05)
