"""``tracker_ros train RECIPE``: turn images and sequences into weights.

Recipes:
    distill: a ResNet-18 learns the features of a teacher network (TorchScript) on unlabelled images.
    dimp18: DiMP's objective on boxes, from the backbone that `distill` left.
    smoke: `dimp18` on simulated flights from random weights; needs no files and shows that training works.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import torch

from tracker_ros.training.data import ImagePool, add_flights, make_pool, split
from tracker_ros.training.dimp import DiMPOptions, DiMPTraining
from tracker_ros.training.distill import Distillation, DistillOptions
from tracker_ros.training.run import Run, with_settings

#: Simulated flights are drawn from these seeds on; the ones below are for demonstrations and tests.
FIRST_SEED = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tracker_ros train``."""
    parser.add_argument("recipe", choices=("distill", "dimp18", "smoke"), help="what to train")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and weights")
    parser.add_argument("--images", type=Path, help="folder with boxes.csv (image,source,x,y,w,h,label) and jpg/")
    parser.add_argument(
        "--sequences", type=Path, nargs="*", default=[], help="sequence folders with img/ and groundtruth.txt"
    )
    parser.add_argument(
        "--loose-sequences", type=Path, nargs="*", default=[], help="sequence folders whose boxes are loose"
    )
    parser.add_argument("--sequence-step", type=int, default=3, help="take every n-th frame of the sequences")
    parser.add_argument("--flights", type=int, default=0, help="simulated flights to add (dimp18)")
    parser.add_argument("--teacher", type=Path, help="TorchScript feature network (distill; dimp18: keeps stage 3)")
    parser.add_argument("--backbone", type=Path, help="distill.pt of a distill run (dimp18)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change an option of the recipe"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")


def run(args: argparse.Namespace) -> int:
    """Check that everything is there, build the run, train.

    Raises:
        FileNotFoundError: names all that is missing, before anything is read.
        ValueError: an option that does not exist, or a recipe without the data that it needs.
    """
    cv2.setNumThreads(1)
    trainer = build(args)
    if args.resume:
        trainer.load(trainer.checkpoint)
        print(f"resuming at step {trainer.step}")
    trainer.run()
    return 0


def build(args: argparse.Namespace) -> Run:
    """The run that the arguments describe, at its start."""
    if args.recipe == "smoke":
        options = with_settings(
            DiMPOptions(minutes=2.0, sets=2, box_sets=2, backbone_rate=0.0, validation=4, log_every=5), args.set
        )
        pool, held_out = ImagePool(), ImagePool()
        add_flights(pool, range(FIRST_SEED, FIRST_SEED + 2), 12)
        add_flights(held_out, range(FIRST_SEED + 2, FIRST_SEED + 3), 12)
        return DiMPTraining(pool, held_out, args.out, options)
    needed = {"--images": args.images}
    if args.recipe == "distill":
        needed["--teacher"] = args.teacher
    unset = [name for name, value in needed.items() if value is None]
    if unset:
        raise ValueError(f"recipe '{args.recipe}' needs {' and '.join(unset)}")
    missing = [str(f) for f in (args.teacher, args.backbone) if f is not None and not f.is_file()]
    missing += [
        str(d) for d in (args.images, *args.sequences, *args.loose_sequences) if d is not None and not d.is_dir()
    ]
    if missing:
        raise FileNotFoundError("training data not found: " + ", ".join(missing))
    if args.recipe == "distill":
        distill_options = with_settings(DistillOptions(), args.set)
        pool = make_pool(args.images, args.sequences, args.loose_sequences, args.sequence_step)
        teacher = torch.jit.load(str(args.teacher), map_location="cpu")
        return Distillation(pool, teacher, args.out, distill_options)
    options = with_settings(DiMPOptions(), args.set)
    pool, held_out = split(make_pool(args.images, args.sequences, args.loose_sequences, args.sequence_step))
    add_flights(pool, range(FIRST_SEED, FIRST_SEED + args.flights), 40)
    distilled = None
    if args.backbone is not None:
        distilled = torch.load(args.backbone, map_location="cpu", weights_only=True)
    teacher = None if args.teacher is None else torch.jit.load(str(args.teacher), map_location="cpu")
    return DiMPTraining(pool, held_out, args.out, options, distilled, teacher)
