"""The command line: ``tracker_ros <command> ...``, also ``python -m tracker_ros <command> ...``.

A command's module is imported when it is called, so that no command waits for what another one needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import tracker_ros
from tracker_ros import registry
from tracker_ros.files import refuse_overwriting
from tracker_ros.text import nearest, printable

#: Command -> the module that has its `add_arguments` and `run`, and one line on what it does.
COMMANDS = {
    "demo": ("tracker_ros.demo", "track a target in a simulated flight, a video, images or a webcam"),
    "evaluate": ("tracker_ros.evaluation.command", "measure trackers on sequences with known boxes"),
    "rules": ("tracker_ros.evaluation.rules", "measure what each of our own rules is worth to a tracker"),
    "long-run": ("tracker_ros.evaluation.long_run", "measure whether trackers get worse the longer they track"),
    "benchmark": ("tracker_ros.evaluation.benchmark", "measure the time and memory that a tracker takes"),
    "gpu-check": (
        "tracker_ros.evaluation.gpu_check",
        "check every tracker on a CUDA device: boxes, time, waits a frame",
    ),
    "figures": ("tracker_ros.evaluation.figures", "make the table of the shipped trackers' figures of reports"),
    "train": ("tracker_ros.training.command", "train a tracker's network"),
    "pack": ("tracker_ros.training.pack_command", "gather training data in a few compact files"),
    "import-weights": ("tracker_ros.checkpoints", "convert a published checkpoint to safetensors"),
    "trackers": ("tracker_ros.cli", "list the trackers, or the options of one"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code (2 for a mistake in the call, 130 when interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(f"tracker_ros {tracker_ros.__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        meant = nearest(name, COMMANDS)
        hint = f"; did you mean '{meant}'?" if meant else ""
        print(f"tracker_ros: there is no command '{name}'{hint} (there are: {', '.join(COMMANDS)})", file=sys.stderr)
        return 2

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # A path may hold bytes that no encoding knows.
    debug = "--debug" in arguments
    try:
        module = importlib.import_module(COMMANDS[name][0])
        parser = argparse.ArgumentParser(
            prog=f"tracker_ros {name}",
            description=COMMANDS[name][1],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_arguments(parser)
        parser.set_defaults(command_line=printable(shlex.join(["tracker_ros", *arguments])))
        args = parser.parse_args(arguments[1:])
        if getattr(args, "out", None) is not None:
            written = module.outputs(args) if hasattr(module, "outputs") else [args.out]
            refuse_overwriting(written, _paths(value for name, value in vars(args).items() if name != "out"))
        code = int(module.run(args) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever reads has seen enough (`| head`); what Python flushes at its end must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"tracker_ros {name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        # What is meant for users says it all; anything else is a fault of ours and needs its type to be understood.
        for_people = isinstance(error, ValueError | OSError | ImportError | RuntimeError)
        text = str(error) if for_people and str(error) else f"{type(error).__name__}: {error} (--debug shows where)"
        print(f"tracker_ros {name}: error: {text}", file=sys.stderr)
        return 2


def _paths(values: Iterable[object]) -> list[Path]:
    """The values of arguments that name files or folders, or would if they were there."""
    found: list[Path] = []
    for value in values:
        if isinstance(value, Path):
            found.append(value)
        elif isinstance(value, str):
            found += map(Path, filter(None, (value, *re.split("[:,=]", value))))  # LAYOUT:FOLDER, NAME:weights=FILE
        elif isinstance(value, list | tuple):
            found += _paths(value)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tracker_ros trackers``."""
    parser.add_argument("name", nargs="?", help="show the options of this tracker")


def run(args: argparse.Namespace) -> int:
    """Print the trackers, or the options of one."""
    if args.name is None:
        width = max(len(name) for name in registry.names()) + 2
        for entry in registry.DEFAULT:
            print(f"{entry.name:<{width}}{entry.description}")
        return 0
    options = registry.get(args.name).options
    for f in options.options():
        limits = f.metadata.get("choices") or tuple(f.metadata.get(k) for k in ("low", "high"))
        allowed = "" if limits == (None, None) else f" {limits}"
        print(f"{f.name} = {getattr(options, f.name)!r}{allowed}\n    {f.metadata.get('help', '')}")
    studied = ", ".join(f"{f.name}={getattr(options.design, f.name)!r}" for f in dataclasses.fields(options.design))
    if studied:
        print(f"\nfor evaluations only: {studied}")
    return 0


def _usage() -> str:
    lines = [f"    {name:<16}{text}" for name, (_, text) in COMMANDS.items()]
    head = ["usage: tracker_ros [--version] COMMAND ...", "", "commands:"]
    return "\n".join([*head, *lines, "", "tracker_ros COMMAND --help tells more"])


if __name__ == "__main__":
    sys.exit(main())
