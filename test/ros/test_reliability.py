"""`make reliability`, a little of it: the report holds what its table says, and the node bears it all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

pytestmark = [pytest.mark.ros, pytest.mark.slow]
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")


def test_the_report_is_written_by_one_command(tmp_path: Path) -> None:
    (tmp_path / "vanish.json").write_text('{"dimp18": {"never LOST": 0}}')
    command = [sys.executable, "tools/reliability.py", "--quick", "--trackers", "kcf", "--switch", "kcf", "csrt"]
    command += ["--out", str(tmp_path / "docs" / "r.md"), "--numbers", str(tmp_path / "r.json")]
    done = subprocess.run(
        [*command, "--vanish", str(tmp_path / "vanish.json")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    text, found = (tmp_path / "docs" / "r.md").read_text(), json.loads((tmp_path / "r.json").read_text())
    headings = ("Bad inputs", "A camera that fails", "Load", "Memory", "Again and again", "Targets that vanish")
    assert [f"## {heading}" in text for heading in headings] == [True] * 6
    assert str(tmp_path) not in text
    assert len(found["matrix"]) > 40
    assert [row for row in found["matrix"] if not (row["survived"] and row["named"])] == []
    faults = {row["fault"]: row for row in found["faults"]}
    assert all(row["survived"] and row["again"] for row in faults.values())
    assert faults["none"]["level"] == "OK"
    assert set(faults["silent"]["states"]) == {"STALE"}
    assert all(
        row["level"] != "OK" for name, row in faults.items() if name not in ("none", "pictures of half the size")
    )
    assert [row["fast"] for row in found["load"]] == [False, False, False, True]
    assert all(row["processed"] > 0 and row["p50"] <= row["p99"] <= row["p99.9"] for row in found["load"])
    assert all(row["survived"] and set(row["answers"]) <= {"done", "started"} for row in found["repeated"])
