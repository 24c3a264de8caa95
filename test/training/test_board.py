"""Curves and pictures: drawn, written for TensorBoard, and read back."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_run import OPTIONS, SmallRun

from tracker_ros import cli
from tracker_ros.training import board
from tracker_ros.training.data import Image
from tracker_ros.training.pictures import crop_picture, draw_box, map_picture, sheet
from tracker_ros.training.run import duration


def test_a_crop_and_its_box_are_drawn_where_they_are() -> None:
    crop = torch.zeros(3, 20, 30)
    crop[0] = 200.0  # red
    picture = crop_picture(crop)
    assert picture.shape == (20, 30, 3)
    assert picture[0, 0].tolist() == [0, 0, 200]
    draw_box(picture, (5.0, 4.0, 10.0, 8.0))
    rows, columns = np.nonzero(picture[..., 1] > 120)
    assert abs(rows.min() - 4) <= 1
    assert abs(rows.max() - 12) <= 1
    assert abs(columns.min() - 5) <= 1
    assert abs(columns.max() - 15) <= 1


def test_a_map_runs_from_blue_to_red_by_its_limits() -> None:
    values = torch.tensor([[-0.2, 1.0], [-9.0, 9.0]])
    picture = map_picture(values, (40, 20), (-0.2, 1.0))
    assert picture.shape == (20, 40, 3)
    assert picture[2, 2, 0] > picture[2, 2, 2]
    assert picture[2, 30, 2] > picture[2, 30, 0]
    assert (picture[:10] == picture[10:]).all()  # beyond the limits nothing changes


def test_a_sheet_holds_pictures_of_any_size() -> None:
    small, large = np.zeros((4, 6, 3), np.uint8), np.full((8, 5, 3), 9, np.uint8)
    picture = sheet([[small, large], [large]], gap=2)
    assert picture.shape == (8 + 2 + 8, 6 + 2 + 5, 3)
    assert (picture[:8, 8:] == 9).all()
    assert (picture[:4, 6:8] == 255).all()


class _Pictured(SmallRun):
    """Has a validation and a picture."""

    picture = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)

    def on_save(self) -> None:
        self.report({"score": 0.25})

    def pictures(self) -> dict[str, Image]:
        return {"picture": self.picture}


def test_what_tensorboard_is_given_can_be_read_back(tmp_path: Path) -> None:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs tensorboard (requirements/dev.txt has it)",
    )
    for steps in (3, 4):
        run = _Pictured(tmp_path, replace(OPTIONS, steps=steps, log_every=1))
        if steps == 4:  # once more from step 2: what was written about step 3 is outdated
            run.load(tmp_path / "two.pt")
        run.board = board.Board(tmp_path / "tensorboard", run.step)
        if steps == 3:
            run.train_step()
            run.train_step()
            torch.save(run.state(), tmp_path / "two.pt")
        run.run()
        run.board.close()

    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss/total", "loss/before", "run/rate", "run/gradient", "run/speed"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss/total")] == [3, 4]
    logged = [json.loads(line) for line in (tmp_path / "small.jsonl").read_text().splitlines()]
    assert events.Scalars("loss/total")[-1].value == pytest.approx(logged[-1]["total"], abs=1e-5)
    assert [(e.step, e.value) for e in events.Scalars("held_out/score")] == [(4, 0.25)]
    (event,) = events.Images("picture")
    pixels = cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert (pixels == _Pictured.picture).all()


def test_tensorboard_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        board.writer_class()
    assert cli.main(["train", "smoke", "--out", str(tmp_path), "--tensorboard"]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # said before anything is done


class _Interrupted(SmallRun):
    """Gets a signal in the middle of its third step."""

    closed = 0

    def close(self) -> None:
        self.closed += 1

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return super().losses(step)


def test_an_interrupted_run_finishes_its_step_and_saves(tmp_path: Path) -> None:
    run, before = _Interrupted(tmp_path, OPTIONS), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert signal.getsignal(signal.SIGTERM) == before
    assert run.closed == 1
    resumed = SmallRun(tmp_path, OPTIONS)
    resumed.load(resumed.checkpoint)
    assert resumed.step == 3
    resumed.run()
    whole = SmallRun(tmp_path / "whole", OPTIONS)
    whole.run()
    assert torch.equal(whole.weight.weight, resumed.weight.weight)


def test_a_loss_that_is_not_finite_ends_the_run_and_not_the_checkpoint(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, OPTIONS)
    run.train_step()
    run.save()
    run.weight.weight.data.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="loss of step 1 is not finite"):
        run.run()
    run.load(run.checkpoint)
    assert run.weight.weight.isfinite().all()


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (7500, "2 h 05 min")]
)
def test_time_left_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
