"""``tracker_ros pack``: gather training data of any layout in a few compact files."""

from __future__ import annotations

import argparse
from pathlib import Path

from tracker_ros.training.inputs import add_data_arguments, read_pool
from tracker_ros.training.pack import PackOptions, write_pack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tracker_ros pack``."""
    add_data_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pack")
    parser.add_argument("--longest", type=int, default=PackOptions.longest, help="longest side of an image in pixels")
    parser.add_argument("--quality", type=int, default=PackOptions.quality, help="JPEG quality")
    parser.add_argument(
        "--part-megabytes", type=float, default=PackOptions.part_megabytes, help="largest size of a file"
    )


def run(args: argparse.Namespace) -> int:
    """Pack what the arguments name.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: as `write_pack`, or training data that is not there.
    """
    options = PackOptions(args.longest, args.quality, args.part_megabytes)
    pool = read_pool(args)
    if not len(pool):
        raise ValueError("nothing to pack: name training data, for example with --images or --sequences")
    manifest = write_pack(pool, args.out, options)
    total = sum(part["bytes"] for part in manifest["parts"]) / 1e6
    boxes = sum(len(image.boxes) for image in pool.images)
    print(
        f"{args.out}: {len(pool)} images with {boxes} boxes, {len(pool.sequences)} videos, "
        f"{total:.1f} MB in {len(manifest['parts'])} parts"
    )
    return 0
