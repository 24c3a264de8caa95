"""What README.md, docs and cards tell people to type, and the files that they name."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from documented import PAGES, ROOT, Command, commands

from tracker_ros import cli, registry
from tracker_ros.evaluation.specs import parse_specs

#: Programs of others, whose arguments are not checked here.
FOREIGN = {"cat", "cd", "export", "git", "mkdir", "rosdep", "sha256sum", "source", "sudo", "vot", "vot/bin/pip", "ssh"}


class Mistake(AssertionError):
    """A command that would not do."""


def check(command: Command) -> None:
    """Raises `Mistake` where a command names what is not there."""
    program, *arguments = command.words
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        check_make(arguments)
    elif program == "tracker_ros":
        check_tracker_ros(arguments, whole=command.whole)
    elif program == "torchrun":
        check_tracker_ros(arguments[arguments.index("tracker_ros") + 1 :], whole=command.whole)
    elif program in ("python", "python3"):
        check_python(arguments, whole=command.whole)
    elif program == "ros2":
        check_ros2(arguments)
    elif program == "colcon":
        for path in arguments[arguments.index("--base-paths") + 1 :]:
            exists(path, "package.xml")
    elif program == "pip":
        for extra in re.findall(r"\.\[(\w+)\]", " ".join(arguments)):
            if f'"{extra}": [' not in (ROOT / "setup.py").read_text():
                raise Mistake(f"setup.py has no extra '{extra}'")
    elif program not in FOREIGN:
        raise Mistake(f"nobody knows the program '{program}'")


def exists(path: str, *below: str) -> None:
    """A file of this project, seen from its root or from the workspace that the README makes."""
    found = ROOT.joinpath(path.removeprefix("src/tracker_ros").lstrip("/"), *below)
    if not found.exists():
        raise Mistake(f"there is no {found.relative_to(ROOT)}")


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, setting, value = argument.partition("=")
        if not re.search(rf"^{name} \?=" if setting else rf"^{name}:", makefile, re.MULTILINE):
            raise Mistake(f"the Makefile has no {'variable' if setting else 'target'} '{name}'")
        if name == "TRACKER":
            registry.get(value)


def check_python(arguments: list[str], *, whole: bool) -> None:
    if arguments[:2] == ["-m", "tracker_ros"]:
        check_tracker_ros(arguments[2:], whole=whole)
    elif arguments[:2] == ["-m", "pytest"]:
        for path in arguments[2:]:
            if path.startswith("test/"):
                exists(path)
    elif arguments[0].endswith(".py"):
        exists(arguments[0])


def check_tracker_ros(arguments: list[str], *, whole: bool) -> None:
    name, *arguments = arguments
    if name not in cli.COMMANDS:
        raise Mistake(f"tracker_ros has no command '{name}'")
    parser = Parser()
    module = importlib.import_module(cli.COMMANDS[name][0])
    module.add_arguments(parser)
    for word in arguments:
        option = word.partition("=")[0]
        if re.fullmatch(r"--[a-z].*", option) and option not in parser.options:
            raise Mistake(f"tracker_ros {name} has no option '{option}'")
    if not whole or "--help" in arguments:
        return
    args = parser.parse_args(arguments)
    if name in ("evaluate", "benchmark", "long-run") and args.tracker:
        labels = args.tracker if isinstance(args.tracker, list) else [args.tracker]
        against = [args.against] if getattr(args, "against", None) else []
        parse_specs([*labels, *against], [s for s in getattr(args, "settings", []) if not s.endswith("=...")])
    elif name == "train":
        check_settings(args.recipe, args.set)
    elif name == "import-weights":
        if args.tracker not in module.importers():
            raise Mistake(f"import-weights takes no '{args.tracker}'")
    elif name == "trackers" and args.name:
        registry.get(args.name)


class Parser(argparse.ArgumentParser):
    @property
    def options(self) -> set[str]:
        return {*self._option_string_actions, "--debug"}

    def error(self, message: str) -> Any:
        raise Mistake(message)


def check_settings(recipe: str, settings: list[str]) -> None:
    """``--set`` of a recipe: its options stand beside the function that builds it."""
    from tracker_ros.training.command import RECIPES
    from tracker_ros.training.run import RunOptions, with_settings

    module = importlib.import_module(RECIPES[recipe].builder.partition(":")[0])
    (options,) = (
        own
        for own in vars(module).values()
        if isinstance(own, type) and issubclass(own, RunOptions) and own.__module__ == module.__name__
    )
    with_settings(options(), settings)


def check_ros2(arguments: list[str]) -> None:
    """What can be checked without ROS; the rest is in ``ros/test_docs.py``."""
    verb, *rest = arguments
    if verb == "run":
        package, program = rest[:2]
        if package != "tracker_ros" or f'"{program} = ' not in (ROOT / "setup.py").read_text():
            raise Mistake(f"setup.py has no program '{program}'")
    elif verb == "launch":
        package, file, *rest = rest
        exists(f"launch/{file}")
        for argument in rest:
            name, setting, value = argument.partition(":=")
            if setting and name not in launch_arguments(ROOT / "launch" / file):
                raise Mistake(f"{file} has no argument '{name}'")
            if name == "tracker":
                registry.get(value)


def launch_arguments(path: Path) -> set[str]:
    """Names of a launch file's arguments, read and not run, as ROS's launch is not everywhere.

    They are the first strings of `DeclareLaunchArgument` and of the rows of `PARAMETERS`.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        first = None
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "DeclareLaunchArgument":
            first = node.args[0]
        elif isinstance(node, ast.Tuple) and node.elts:
            first = node.elts[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            names.add(first.value)
    return names


@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_command_names_what_is_there(command: Command) -> None:
    check(command)


@pytest.mark.parametrize(
    "wrong",
    [
        "make demos",
        "make demo VIDEOS=clip.mp4",
        "make demo TRACKER=dimp19",
        "tracker_ros evaluat --tracker kcf",
        "tracker_ros evaluate --trackers kcf",
        "tracker_ros evaluate --tracker kcf:nothing=1",
        "tracker_ros evaluate --tracker kcf --set nothing=1",
        "tracker_ros evaluate --sequences DIR",
        "tracker_ros benchmark --tracker kcf --against nothing",
        "tracker_ros train siamban --out runs --set nothing=1",
        'SETTINGS="--set nothing=1"\ntracker_ros train siamban --out runs \\\n  $SETTINGS',
        "tracker_ros train nothing --out runs",
        "tracker_ros import-weights a.pth --tracker csrt --out a.safetensors",
        "tracker_ros trackers nothing",
        "OMP_NUM_THREADS=1 tracker_ros nothing | cat",
        "cd runs && tracker_ros nothing",
        "python -m tracker_ros nothing",
        "torchrun --nproc-per-node=4 -m tracker_ros nothing",
        "ros2 run tracker_ros nothing",
        "ros2 launch tracker_ros nothing.launch.py",
        "ros2 launch tracker_ros track.launch.py nothing:=1",
        "ros2 launch tracker_ros track.launch.py tracker:=nothing",
        "colcon build --base-paths src/tracker_ros src/nothing",
        "pip install .[nothing]",
        "python3 examples/nothing.py",
        "python -m pytest test/nothing.py",
        "nothing --at --all",
    ],
)
def test_a_mistake_is_noticed(wrong: str) -> None:
    found = commands(text=f"Words.\n\n```bash\n{wrong}\n```\n")
    assert found
    with pytest.raises((Mistake, ValueError)):
        list(map(check, found))


def test_commands_in_the_text_are_found_across_lines() -> None:
    (found,) = commands(text="Or `ros2 run tracker_ros\nvideo_source --ros-args -p path:=clip.mp4` it.")
    assert found.words == ("ros2", "run", "tracker_ros", "video_source", "--ros-args", "-p", "path:=clip.mp4")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_the_text_names_are_there(page: Path) -> None:
    folders = "config|docs|examples|launch|models|test|third_party|tools|tracker_ros"
    for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_examples_in_python_compile() -> None:
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            compile(block, str(page), "exec")


def test_the_readme_names_every_tracker() -> None:
    text = (ROOT / "README.md").read_text()
    rows = re.search(r"^## Trackers\n(.*?)^How ", text, re.MULTILINE | re.DOTALL)
    assert rows is not None
    named = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in rows[1].splitlines() if row.startswith("|")))
    assert sorted(named) == sorted(registry.names())
