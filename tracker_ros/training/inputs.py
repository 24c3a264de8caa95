"""What the recipes' builders share: the data and files that the arguments of ``tracker_ros train`` name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tracker_ros import registry, weights
from tracker_ros.checkpoints import read_own
from tracker_ros.errors import WeightsError
from tracker_ros.networks.backbones import SharedBackbone
from tracker_ros.networks.efficientnet import EfficientNet
from tracker_ros.networks.resnet import ResNet
from tracker_ros.text import printable
from tracker_ros.training.data import ImagePool, add_flights, make_pool, split
from tracker_ros.training.layouts import LAYOUTS, open_data
from tracker_ros.training.pseudo import add_teacher_pairs
from tracker_ros.weight_files import check_file

#: Simulated flights are drawn from these seeds on; the ones below are for demonstrations and tests.
FIRST_SEED = 1000
#: Frames of a flight that is added to the training images.
FLIGHT_FRAMES = 40


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name training data, which `read_pool` reads."""
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        metavar="LAYOUT:FOLDER",
        help=f"data sets as they lie on disk, LAYOUT:FOLDER or LAYOUT:FOLDER,step=N for every n-th frame; layouts: "
        f"{', '.join(LAYOUTS)}",
    )
    parser.add_argument("--images", type=Path, help="folder with boxes.csv (image,source,x,y,w,h,label) and jpg/")
    parser.add_argument(
        "--sequences", type=Path, nargs="*", default=[], help="sequence folders with img/ and groundtruth.txt"
    )
    parser.add_argument(
        "--loose-sequences", type=Path, nargs="*", default=[], help="sequence folders whose boxes are loose"
    )
    parser.add_argument("--sequence-step", type=int, default=3, help="take every n-th frame of the sequences")


def require(args: argparse.Namespace, *names: str) -> None:
    """Check that the recipe's arguments `names` (``--teacher``) are given, and that every file and folder named exists.

    ``--images`` stands for training data of any kind: ``--data`` and ``--sequences`` do as well.

    Raises:
        ValueError: an argument is not given.
        FileNotFoundError: names all that is missing, before anything is read.
    """
    given = {name: bool(getattr(args, name.removeprefix("--").replace("-", "_"))) for name in names}
    if "--images" in given and not (given.pop("--images") or args.data or args.sequences):
        given = {"training data (--data or --images)": False} | given
    unset = [name for name, there in given.items() if not there]
    if unset:
        raise ValueError(f"recipe '{args.recipe}' needs {' and '.join(unset)}")
    files: Sequence[Path | None] = (args.teacher, args.backbone, args.base, *(args.teacher_tracker or ()))
    missing = [str(f) for f in files if f is not None and not f.exists()]
    folders: Sequence[Path | None] = (args.images, *args.sequences, *args.loose_sequences)
    missing += [str(d) for d in folders if d is not None and not d.is_dir()]
    if missing:
        raise FileNotFoundError("training data not found: " + ", ".join(missing))


def read_pool(args: argparse.Namespace) -> ImagePool:
    """All the images that the arguments name.

    Raises:
        ValueError: a data set whose layout is not known.
        FileNotFoundError: names what is missing.
    """
    listed = open_data(args.data, args.sequence_step)  # at once, while the others are read whole
    pool = make_pool(args.images, args.sequences, args.loose_sequences, args.sequence_step)
    pool.extend(listed)
    return pool


def read_pools(args: argparse.Namespace) -> tuple[ImagePool, ImagePool]:
    """The images to train on, with the simulated flights, and those held out, which no step ever sees."""
    pool, held_out = split(read_pool(args))
    if args.teacher_tracker is not None:
        template, search = map(_read_program, args.teacher_tracker)
        count = add_teacher_pairs(pool, template, search, seed=1, cache=args.out / "views.csv")
        print(f"{count} objects labelled from several sides by the teacher")
    add_flights(pool, range(FIRST_SEED, FIRST_SEED + args.flights), FLIGHT_FRAMES)
    return pool, held_out


def read_teacher(args: argparse.Namespace) -> nn.Module | None:
    """The TorchScript network that ``--teacher`` names, on the CPU; None where there is no such argument."""
    return None if args.teacher is None else _read_program(args.teacher)


def _read_program(path: Path) -> nn.Module:
    """A TorchScript network on the CPU. It is a program: unlike weights, it runs, so its origin must be trusted.

    Raises:
        WeightsError: it is no such file.
    """
    try:
        module: nn.Module = torch.jit.load(str(check_file(path, "a TorchScript file")), map_location="cpu")
    except RuntimeError as error:
        reason = printable(str(error).strip().splitlines()[0])
        raise WeightsError(f"{printable(str(path))} is not a TorchScript file ({reason})") from error
    return module


def chosen_network(args: argparse.Namespace) -> registry.Network:
    """The network that the recipe of a tracker is to train: ``--network``, else the tracker's own.

    Raises:
        ValueError: the recipe does not train that one; the message lists those that it does.
    """
    entry = registry.get(args.recipe)
    assert entry.network is not None
    known = {network.name: network for network in (entry.network, *entry.others)}
    name = args.network or entry.network.name
    if name not in known:
        raise ValueError(f"recipe '{args.recipe}' does not train '{name}': expected one of {', '.join(known)}")
    return known[name]


def take_backbone(args: argparse.Namespace, backbone: ResNet | EfficientNet | SharedBackbone) -> None:
    """Load the shared backbone that ``--backbone`` distilled, else the shipped one.

    A distilled one is written beside what the run will write, which names it.

    Raises:
        ValueError: the run of ``--backbone`` distilled another backbone.
        WeightsMissing: none is given, and none is shipped.
    """
    name, distilled = backbone.config.shared, read_distilled(args)
    if distilled is None:
        weights.load_backbone(backbone, name)
        return
    try:
        backbone.load_state_dict(distilled["average"])
    except RuntimeError as error:
        raise ValueError(f"{args.backbone} holds another backbone than '{name}', which the network needs") from error
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{name}.safetensors"
    weights.save(file, backbone, name, f"distilled by tracker_ros: step {distilled['step']}")
    weights.load(file, backbone, name)  # as it is stored


def read_distilled(args: argparse.Namespace) -> dict[str, Any] | None:
    """The checkpoint of a `distill` run that ``--backbone`` names; None where there is no such argument."""
    if args.backbone is None:
        return None
    state = read_own(args.backbone)
    if not isinstance(state.get("average"), dict):
        raise ValueError(f"{args.backbone} is no checkpoint of a run of 'tracker_ros train distill'")
    return state
