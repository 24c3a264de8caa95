"""``tracker_ros train RECIPE``: turn images and sequences into weights."""

from __future__ import annotations

import argparse
import importlib
import os
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2

from tracker_ros import registry
from tracker_ros.training import parallel
from tracker_ros.training.board import Board, writer_class
from tracker_ros.training.inputs import add_data_arguments


class Training(Protocol):
    """What a recipe builds: a `Run`, or several that follow each other (`budget`)."""

    board: Board | None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        ...

    @property
    def checkpoint(self) -> Path:
        """The file to continue from."""
        ...

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        ...

    def run(self) -> None:
        """Train to the end."""
        ...


@dataclass(frozen=True)
class Recipe:
    """One thing that can be trained.

    Attributes:
        builder: ``package.module:function``, imported when the recipe is chosen. The function takes the parsed
            arguments and returns the run at its start; it raises ValueError or FileNotFoundError where something that
            it needs is not given or not there.
        description: one line for the list.
    """

    builder: str
    description: str

    def build(self, args: argparse.Namespace) -> Training:
        """The run that the arguments describe, at its start."""
        module, _, function = self.builder.partition(":")
        run: Training = getattr(importlib.import_module(module), function)(args)
        return run


#: Recipes of what no tracker is by itself.
_OTHERS = {
    "distill": Recipe(
        "tracker_ros.training.distill:build", "a backbone learns a teacher network's features on unlabelled images"
    ),
    "budget": Recipe(
        "tracker_ros.training.budget:build", "`distill` and `dimp18` one after the other, within --set minutes=25"
    ),
    "smoke": Recipe(
        "tracker_ros.training.dimp:build_smoke", "`dimp18` on simulated flights, from random weights; needs no files"
    ),
}
#: Every recipe by its name; a tracker's has the tracker's name.
RECIPES = {
    entry.name: Recipe(f"tracker_ros.training.{entry.recipe}", entry.description)
    for entry in registry.DEFAULT
    if entry.recipe
} | _OTHERS


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the list of recipes as it is laid out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tracker_ros train``."""
    parser.formatter_class = _Help
    width = max(map(len, RECIPES)) + 2
    parser.epilog = "recipes:\n" + "\n".join(f"  {name:<{width}}{r.description}" for name, r in RECIPES.items())
    parser.add_argument("recipe", choices=tuple(RECIPES), metavar="RECIPE", help="what to train, see below")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and weights")
    add_data_arguments(parser)
    parser.add_argument("--flights", type=int, default=0, help="simulated flights to add")
    parser.add_argument("--teacher", type=Path, help="TorchScript feature network (distill; dimp18: keeps stage 3)")
    parser.add_argument(
        "--teacher-tracker",
        type=Path,
        nargs=2,
        metavar=("TEMPLATE", "SEARCH"),
        help="TorchScript tracker that labels photographs of one object from several sides, cached in OUT/views.csv "
        "(heads on the shared backbone)",
    )
    parser.add_argument(
        "--base",
        type=Path,
        help="weights of the tracker that a recipe builds on (clnet, siamrn), else the shipped ones; "
        "weights to go on from (distill, guided detectors, siamrpn, siamrpnpp, siamban)",
    )
    parser.add_argument(
        "--network",
        default="",
        help="network that the recipe trains, of those of its kind (siamban_lite0 instead of siamban18, for example)",
    )
    parser.add_argument(
        "--backbone",
        type=Path,
        help="distill.pt of a distill run; without it heads stand on the shipped backbone (dimp18: on a random one)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change an option of the recipe"
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N")
    parser.add_argument(
        "--tensorboard", action="store_true", help="write curves and pictures to OUT/tensorboard for TensorBoard"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")


def outputs(args: argparse.Namespace) -> list[Path]:
    """What a run with these arguments would write to, as far as it is there."""
    return [args.out, *(path for kind in ("pt", "safetensors") for path in args.out.glob(f"{args.recipe}*.{kind}"))]


def run(args: argparse.Namespace) -> int:
    """Check that everything is there, build the run, train.

    Raises:
        FileNotFoundError: names all that is missing, before anything is read.
        ValueError: an option that does not exist, or a recipe without the data that it needs.
        ImportError: TensorBoard is wanted and not installed.
        KeyboardInterrupt: interrupted; a checkpoint was saved.
    """
    cv2.setNumThreads(1)
    if args.tensorboard:
        writer_class()
    args.set = [f"device={args.device}", *args.set]
    with parallel.joined(args.device) as ranks:
        if ranks.rank == 0:
            _train(args, ranks)
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                _train(args, ranks)
    return 0


def _train(args: argparse.Namespace, ranks: parallel.Ranks) -> None:
    with parallel.first_ahead():
        trainer = RECIPES[args.recipe].build(args)
    if args.resume:
        trainer.load(trainer.checkpoint)
        print(f"resuming at step {trainer.step}")
    if ranks.size > 1:
        print(f"{ranks.size} processes; each draws its own batches")
    if args.tensorboard and ranks.rank == 0:
        trainer.board = Board(args.out / "tensorboard", trainer.step)
    try:
        trainer.run()
    except KeyboardInterrupt:
        again = args.command_line if args.resume else f"{args.command_line} --resume"
        launcher = f"torchrun --nproc-per-node={ranks.size} -m " if ranks.size > 1 else ""
        print(f"stopped after step {trainer.step}, which {trainer.checkpoint} holds; to go on: {launcher}{again}")
        raise
    finally:
        if trainer.board is not None:
            trainer.board.close()
