"""The table of figures: made of reports, kept beside its numbers, and never older than the weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracker_ros import cli
from tracker_ros.evaluation import figures, provenance
from tracker_ros.evaluation import report as reports
from tracker_ros.evaluation.runs import Protocol, Track
from tracker_ros.evaluation.sequences import load_sequence, with_starts
from tracker_ros.evaluation.specs import TrackerSpec

ROOT = Path(__file__).parents[2]
SIZE = f"{(ROOT / 'models' / 'dimp18.safetensors').stat().st_size / 1e6:.1f}"


@pytest.fixture
def report(make_sequence) -> dict[str, Any]:
    """Of `dimp18`, which is right throughout, and `kcf`, which is 50 px off after the first frame and says LOST."""
    sequences = [load_sequence(make_sequence(name, ["10,10,8,8"] * 4)) for name in ("one", "two")]
    tracks = {}
    for label, shift, state in (("kcf", 50, 3), ("dimp18", 0, 1)):
        boxes = np.tile([10.0, 10, 8, 8], (4, 1))
        boxes[1:, 0] += shift
        track = Track(boxes, np.full(4, 0.9), np.full(4, state), np.full(4, 0.01), (64, 48))
        tracks[label] = {s.name: track for s in sequences}
    built = {label: {"device": "cpu", "files": TrackerSpec(label, label, {}).files} for label in tracks}
    made = reports.summarize(tracks, sequences)
    return {**made, "origin": provenance.describe("tracker_ros evaluate /home/somebody", built)}


def benchmark(report: dict[str, Any], ms: float, threads: int | None = None) -> dict[str, Any]:
    numbers = {"dimp18": {"device": "cpu", "ms": {"p50": ms}}}
    return {"source": "a flight", "threads": threads, "trackers": numbers, "origin": report["origin"]}


def rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip("`"): row for row in cells}


def test_the_table_is_made_of_the_reports_and_again_of_what_was_kept(report, tmp_path, capsys) -> None:
    (tmp_path / "report.json").write_text(json.dumps(reports.finite(report)))
    (tmp_path / "benchmark.json").write_text(json.dumps(benchmark(report, 23.456)))
    out = tmp_path / "README.md"
    arguments = ["figures", "--report", str(tmp_path / "report.json"), "--out", str(out)]
    assert cli.main([*arguments, "--benchmark", str(tmp_path / "benchmark.json")]) == 0, capsys.readouterr().err
    made = out.read_text()
    found = rows(made)
    perfect, lost = f"{20 / 21:.3f}", f"{20 / 21 / 4:.3f}"
    dimp = ["`dimp18`", "[dimp18](dimp18.md)", perfect, "1.000", "1.000", "1.000", "", "0.000", "0.000", "0.100"]
    assert found["dimp18"] == [*dimp, "", "", "", "23.5", SIZE], "no target vanished"
    assert found["kcf"][:9] == ["`kcf`", "", lost, "0.250", "0.000", "0.250", "0.000", "0.000", "0.000"]
    assert found["kcf"][13:] == ["", ""], "neither timed nor with a file"
    assert found["siamban"][2:14] == [""] * 12, "not measured, but shipped"
    assert "nano" not in found
    assert list(found)[1:3] == ["dimp18", "siamrpn"], "the register's order"
    kept = (tmp_path / "figures.json").read_text()
    assert "somebody" not in kept + made

    out.unlink()
    assert cli.main(["figures", "--out", str(out)]) == 0
    assert out.read_text() == made
    assert (tmp_path / "figures.json").read_text() == kept


def test_figures_of_other_weights_are_not_shown(report) -> None:
    made = figures.gather([report], [benchmark(report, 20.0)])
    made["trackers"]["dimp18"]["files"] = {"dimp18.safetensors": "0" * 16}
    assert rows(figures.table(made))["dimp18"][2:] == [""] * 12 + [SIZE]


def test_times_of_other_weights_do_not_count(report) -> None:
    other = copy.deepcopy(report)
    other["origin"]["trackers"]["dimp18"]["files"] = {"dimp18.safetensors": "0" * 16}
    assert figures.gather([report], [benchmark(other, 20.0)])["trackers"]["dimp18"]["ms"] is None


def test_starts_are_told_from_sequences(make_sequence, report) -> None:
    starts = with_starts(load_sequence(make_sequence("three", ["20,20,16,16"] * 2)), 3)
    track = Track(np.tile([20.0, 20, 16, 16], (2, 1)), np.ones(2), np.ones(2), np.ones(2), (64, 48))
    made = reports.summarize({"kcf": {s.name: track for s in starts}}, starts)
    text = figures.table(figures.gather([{**made, "origin": report["origin"]}]))
    assert "over 1 real sequences, from 3 starts (6 frames with the target)" in text


def test_what_does_not_compare_is_refused(report) -> None:
    def changed(**fields: Any) -> dict[str, Any]:
        return {**copy.deepcopy(report), **fields}

    def renamed(label: str) -> dict[str, Any]:
        trackers = {label: report["trackers"]["kcf"]}
        return changed(trackers=trackers, origin={**report["origin"], "trackers": {label: {"files": {}}}})

    with pytest.raises(ValueError, match=r"no report\.json"):
        figures.gather([benchmark(report, 1.0)])
    with pytest.raises(ValueError, match="one pass"):
        figures.gather([changed(protocol="vot")])
    with pytest.raises(ValueError, match="against the clock"):
        figures.gather([changed(realtime=30.0)])
    with pytest.raises(ValueError, match="'kcf' is in two"):
        figures.gather([report, report])
    with pytest.raises(ValueError, match="'kcf:fixed=1' is no preset as it is"):
        figures.gather([renamed("kcf:fixed=1")])
    with pytest.raises(ValueError, match="differ in 'seed'"):
        figures.gather([report, {**renamed("csrt"), "seed": 1}])
    one, two = benchmark(report, 1.0), benchmark(report, 1.0, threads=2)
    two["trackers"] = {"kcf": two["trackers"]["dimp18"]}
    with pytest.raises(ValueError, match="differ in 'threads'"):
        figures.gather([report], [one, two])
    with pytest.raises(ValueError, match="none of `tracker_ros benchmark"):
        figures.gather([report], [report["origin"]])


def test_a_report_against_the_clock_says_so(make_sequence) -> None:
    """What `gather` refuses is what `summarize` writes."""
    sequence = load_sequence(make_sequence("four", ["10,10,8,8"] * 2))
    track = Track(np.tile([10.0, 10, 8, 8], (2, 1)), np.ones(2), np.ones(2), np.ones(2), (64, 48))
    made = reports.summarize({"kcf": {"four": track}}, [sequence], Protocol("ope", 30.0, 0))
    with pytest.raises(ValueError, match="against the clock"):
        figures.gather([{**made, "origin": {}}])


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_files_that_hold_no_figures_are_named(tmp_path, capsys, content) -> None:
    path = tmp_path / "figures.json"
    path.write_text(content)
    assert cli.main(["figures", "--out", str(tmp_path / "README.md")]) == 2
    assert str(path) in capsys.readouterr().err
    assert cli.main(["figures", "--benchmark", str(path), "--out", str(tmp_path / "README.md")]) == 2
    assert "--report" in capsys.readouterr().err


def test_the_committed_table_is_what_the_command_makes() -> None:
    kept = json.loads((ROOT / "models" / "figures.json").read_text())
    assert (ROOT / "models" / "README.md").read_text() == figures.table(kept), "run: tracker_ros figures"
    assert (ROOT / "models" / "figures.json").read_text() == figures.text(kept)
