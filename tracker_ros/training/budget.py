"""The recipe `budget`: from nothing to the weights of DiMP-18 within a given time.

Distillation of the backbone, then DiMP's heads on it, as the recipes `distill` and `dimp18` do it. On a CUDA device all
images lie in its memory, crops are made there, and batches are large; on a CPU the same runs with small ones.
"""

from __future__ import annotations

import argparse
import gc
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from tracker_ros.training import parallel
from tracker_ros.training.board import Board
from tracker_ros.training.data import ImagePool
from tracker_ros.training.device import DeviceImages, choose_renderer
from tracker_ros.training.dimp import DiMPOptions, DiMPTraining
from tracker_ros.training.distill import Distillation, DistillOptions
from tracker_ros.training.inputs import read_pools, read_teacher, require
from tracker_ros.training.pack import split_file
from tracker_ros.training.run import RunOptions, with_settings
from tracker_ros.training.sets import SetOptions


@dataclass(frozen=True)
class BudgetOptions(RunOptions):
    """Options of the `budget` recipe. `steps`, where not zero, is the length of each of its two runs.

    Attributes:
        minutes: from reading the data to the finished weights.
        rate: highest learning rate of the distillation.
        head_rate: highest learning rate of DiMP's heads.
        distill_share: share of the time for the distillation.
        reserve: share of the time for the last validation and for writing.
        pairs, sets, box_sets: batch sizes (see `distill` and `dimp18`); 0 takes 128, 32 and 64 on CUDA, 8, 4 and 8 on
            a CPU.
        workers: processes that draw what the next steps show; -1 chooses (`choose_workers`).
        validation: held-out sets that the heads are judged on.
        compile: compile the backbone with torch.compile.
        part_megabytes: largest size of a part of the weights.
    """

    minutes: float = 25.0
    rate: float = 1.5e-3
    head_rate: float = 1e-3
    distill_share: float = 0.45
    reserve: float = 0.04
    pairs: int = 0
    sets: int = 0
    box_sets: int = 0
    workers: int = -1
    validation: int = 64
    compile: bool = False
    part_megabytes: float = 16.0


def schedule(options: BudgetOptions, device: torch.device) -> tuple[DistillOptions, DiMPOptions]:
    """The options of the two runs that a budget allows on a device."""
    large = device.type == "cuda"
    common = {
        "steps": options.steps,
        "warm_up": options.warm_up,
        "average": options.average,
        "clip": options.clip,
        "seed": options.seed,
        "threads": options.threads,
        "bf16": options.bf16,
        "save_minutes": options.save_minutes,
        "log_every": options.log_every,
        "device": options.device,
        "workers": options.workers,
    }
    useful = options.minutes * (1 - options.reserve)
    distill = DistillOptions(
        **common,  # type: ignore[arg-type]
        minutes=useful * options.distill_share,
        rate=options.rate,
        pairs=options.pairs or (128 if large else 8),
    )
    heads = DiMPOptions(
        **common,  # type: ignore[arg-type]
        minutes=useful * (1 - options.distill_share),
        rate=options.head_rate,
        sets=options.sets or (32 if large else 4),
        box_sets=options.box_sets or (64 if large else 8),
        backbone_rate=0.0,
        validation=options.validation,
    )
    return distill, heads


class Budget:
    """The two runs, one after the other.

    Args:
        pool, held_out: images to train on and to validate on.
        teacher: the network whose features the backbone learns.
        out: folder for everything.
        options: of the whole.
        parts: options of the two runs, as `schedule` makes them.
        layout: how DiMP's sets are drawn.
        started: `time.monotonic()` when the budget began, the present by default.
    """

    def __init__(
        self,
        pool: ImagePool,
        held_out: ImagePool,
        teacher: nn.Module,
        out: Path,
        options: BudgetOptions,
        parts: tuple[DistillOptions, DiMPOptions],
        layout: SetOptions | None = None,
        started: float | None = None,
    ) -> None:
        self.pool, self.held_out, self.out = pool, held_out, out
        self.options, self.layout = options, layout
        self.distill_options, self.head_options = parts
        self.started = time.monotonic() if started is None else started
        self.board: Board | None = None
        self._resume = False
        self.device = parallel.choose_own_device(options.device)
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        self.images = choose_renderer(pool, self.device)
        if isinstance(self.images, DeviceImages):
            print(f"{len(pool)} images take {self.images.megabytes:.0f} MB of the device's memory")
        self.first = Distillation(pool, teacher, out, self.distill_options, self.images)
        if options.compile:
            self.first.student.compile()
        self.active: Distillation | DiMPTraining = self.first

    @property
    def step(self) -> int:
        """Steps done of the run that is under way."""
        return self.active.step

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint: of the heads where there is one, else of the distillation."""
        heads = self.out / f"{DiMPTraining.name}.pt"
        return heads if self.active is not self.first or heads.is_file() else self.first.checkpoint

    def load(self, path: Path) -> None:
        """Continue from `path`, a checkpoint of either run; what has not begun keeps its share of the time.

        Raises:
            FileNotFoundError: there is none.
        """
        self.first.load(self.first.checkpoint)
        self._resume = path != self.first.checkpoint
        self.started = time.monotonic() - self.first.elapsed
        if self._resume:
            self.active = self._heads()
            self.active.load(path)

    def run(self) -> None:
        """Train to the end of the budget, and write the weights.

        Raises:
            KeyboardInterrupt: interrupted; the run that was under way has saved its checkpoint.
        """
        if self.active is self.first:
            (self.out / f"{DiMPTraining.name}.pt").unlink(missing_ok=True)  # of an earlier budget
            self.first.board = self.board
            self.first.run()
            self.active = self._heads()
        self.active.board = self.board
        self.active.run()
        if self.active.ranks.rank:
            return
        path = self.out / f"{DiMPTraining.name}.safetensors"
        parts = split_file(path, self.out / "parts", self.options.part_megabytes)
        minutes = (time.monotonic() - self.started) / 60
        print(f"{path}, and in {len(parts)} parts in {parts[0].parent}; took {minutes:.1f} minutes")

    def _heads(self) -> DiMPTraining:
        """The second run, on the backbone of the first, in the time that is left."""
        distilled = {
            "average": self.first.average.state_dict(),
            "heads": self.first.heads.state_dict(),
            "statistics": self.first.statistics,
        }
        self.first.ahead.close()
        options = self.head_options
        if not self._resume and self.first.ranks.size == 1:  # clocks of several processes differ, their plans must not
            left = self.options.minutes * (1 - self.options.reserve) - (time.monotonic() - self.started) / 60
            options = replace(options, minutes=max(left, 0.1))
        heads = DiMPTraining(
            self.pool, self.held_out, self.out, options, distilled, layout=self.layout, images=self.images
        )
        # What the first run holds of the device's memory is not needed any more.
        self.first.optimizer.state.clear()
        gc.collect()
        if self.options.compile:
            for name in ("layer1", "layer2", "layer3"):
                heads.net.backbone.get_submodule(name).compile()
        return heads


def build(args: argparse.Namespace) -> Budget:
    """The recipe `budget`.

    Raises:
        ValueError: no training data, or no teacher.
    """
    started = time.monotonic()
    require(args, "--teacher")
    options = with_settings(BudgetOptions(), args.set)
    pool, held_out = read_pools(args)
    if not len(pool):
        raise ValueError(f"recipe '{args.recipe}' needs training data, for example --images DIR or --data pack:DIR")
    teacher = read_teacher(args)
    assert teacher is not None
    parts = schedule(options, parallel.choose_own_device(options.device))
    return Budget(pool, held_out, teacher, args.out, options, parts, started=started)
