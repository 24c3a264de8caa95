#!/usr/bin/env python3
"""Make the virtual environment that `make demo` and `make test` run in.

What it does, each step only when its inputs have changed since the step last succeeded:

1. packages: a venv with the Python packages of requirements.lock, hash by hash, with ROS 2 Jazzy as wheels from PyPI;
   then torch. Where a ROS 2 is sourced, the venv sees that one's packages and gets what it lacks of requirements*.txt.
2. interfaces: builds `tracker_ros_interfaces` into the venv with ROS's own message generators, and those packages of
   `third_party` that cannot be imported.
3. project: installs this repository (editable), and registers it in the venv's ament index.

Once set up, a further run starts no program and needs no network. Everything stays inside the venv's folder; deleting
the folder undoes it all. Needs Python 3.10 to 3.13 with its headers, a C and C++ compiler and CMake; only the standard
library is used, since nothing else is installed yet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "requirements" / "dev.txt", ROOT / "requirements" / "build.txt"]
ROS_REQUIREMENTS = ROOT / "requirements" / "ros.txt"
LOCK = ROOT / "requirements.lock"
#: Apart from the rest, and without hashes: which torch it is, and from where, is the machine's and the user's choice.
TORCH_REQUIREMENTS = ROOT / "requirements" / "torch.txt"
#: Message packages of others that have no wheel.
BORROWED = [ROOT / "third_party" / name for name in ("vision_msgs", "tf2_msgs", "foxglove_msgs")]
INTERFACES = ROOT / "tracker_ros_interfaces"
#: What `ros2 run` can start; setup.py makes them.
PROGRAMS = ("tracker_ros", "tracker_node", "simulated_camera", "video_source", "recorder", "page", "mavlink_camera")
PROJECT_FILES = [ROOT / name for name in ("setup.py", "setup.cfg", "package.xml", "pyproject.toml")]

#: Requirements whose import name is not their own; used to find out what a sourced ROS 2 brings already.
IMPORT_NAMES = {"opencv-contrib-python-headless": "cv2", "pyyaml": "yaml"}

#: pip's line about a download of 10 MB or more: what a user on a slow line wants to know of.
LARGE_DOWNLOAD = re.compile(r"Downloading (?:\S*/)?([^\s/]+) \((\d{2,}\.\d MB|\d+\.\d GB)\)")

APT_HINT = "on Debian and Ubuntu: sudo apt install python3-venv python3-dev gcc g++ cmake make git"


class SetupError(Exception):
    """Something that the user has to change; the message says what."""


def main() -> int:
    """Parse the arguments, run the steps, and print errors for people."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where the environment goes")
    parser.add_argument(
        "--torch",
        default="",
        metavar="REQUIREMENT",
        help="requirement to use for torch instead of the tested one, such as torch==2.6.0; 'none' leaves it out",
    )
    parser.add_argument("--torch-index", default="", metavar="URL", help="package index that has the wanted torch")
    args = parser.parse_args()
    try:
        Environment(args.venv.absolute(), args.torch, args.torch_index).set_up()
    except SetupError as error:
        print(f"\nsetup: {error}", file=sys.stderr)
        return 1
    return 0


class Environment:
    """The venv and what is known about it.

    Args:
        venv: absolute path of the venv; made when it is missing.
        torch: requirement to use instead of the tested torch, 'none' for no torch, empty for the tested one.
        torch_index: URL of a further package index for torch, or empty.
    """

    def __init__(self, venv: Path, torch: str, torch_index: str) -> None:
        self.venv = venv
        self.torch = torch
        self.torch_index = torch_index
        self.python = venv / "bin" / "python"
        # Started from an activated venv, the interpreter behind it is the one to build on. Resolved, because the same
        # interpreter has several names (python3, python3.12), and another name is no reason to start afresh.
        self.base_python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        self.record_path = venv / "setup.json"
        self.record = self._read_record()
        self.sourced_ros = self._find_sourced_ros()

    def set_up(self) -> None:
        """Run the steps that are due.

        Raises:
            SetupError: something is missing on this machine, or a step failed.
        """
        if not (3, 10) <= sys.version_info[:2] <= (3, 13):
            raise SetupError(
                f"Python 3.10 to 3.13 is needed, {self.base_python} is {sys.version.split()[0]}; "
                "name another one, for example: make setup PYTHON=python3.12"
            )
        packages = digest(
            [*REQUIREMENTS, ROS_REQUIREMENTS, LOCK, TORCH_REQUIREMENTS],
            [str(self.venv), str(self.base_python), sys.version, self.sourced_ros, self.torch, self.torch_index],
        )
        interfaces = digest([*BORROWED, INTERFACES, Path(__file__)], [packages])
        project = digest([*PROJECT_FILES, Path(__file__)], [packages, str(ROOT)])

        self._step("packages", packages, self._install_packages)
        self._step("interfaces", interfaces, self._build_interfaces)
        self._step("project", project, self._install_project)

    # Steps.

    def _install_packages(self) -> None:
        self._check_tools()
        self._make_venv()
        if self.sourced_ros:
            say(f"ROS 2 {self.sourced_ros} is sourced: using it, installing only what it lacks")
            self._pip_install(*self._missing_requirements(), *self._torch_index_arguments())
        else:
            say("installing Python packages and ROS 2 Jazzy (wheels from PyPI)")
            # Everything is in the lock, with its hashes; a package that is not is none that pip should look for.
            self._pip_install("--require-hashes", "--no-deps", "-r", str(LOCK))
            torch = self.torch or requirements(TORCH_REQUIREMENTS)[0]
            if torch != "none":
                if not self.torch_index and self._torch_brings_cuda_in_vain():
                    say(
                        "note: no NVIDIA device is seen, and PyPI's torch for x86-64 brings gigabytes of CUDA along; "
                        f"TORCH={requirements(TORCH_REQUIREMENTS)[0]}+cpu "
                        "TORCH_INDEX=https://download.pytorch.org/whl/cpu gets the small one"
                    )
                self._pip_install(torch, *self._torch_index_arguments())
        if not self.sourced_ros:
            self._mend_cmake_files()
        self._write_environment_file()

    def _build_interfaces(self) -> None:
        # Where the real packages are installed, a second one must not stand in front of them.
        for source in (*BORROWED, INTERFACES):
            if source in BORROWED and not self._is_ours(source.name):
                continue
            say(f"building {source.name}")
            build = self.venv / "build" / source.name
            # A build folder of another Python or other definitions is no base to build on.
            shutil.rmtree(build, ignore_errors=True)
            self._run(
                [
                    *("cmake", "-S", str(source), "-B", str(build), f"-DCMAKE_INSTALL_PREFIX={self.venv}"),
                    *("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_TESTING=OFF", f"-DPython3_EXECUTABLE={self.python}"),
                    # Debian's Python would otherwise choose local/lib/python3.x/dist-packages.
                    f"-DPYTHON_INSTALL_DIR={self._site_packages().relative_to(self.venv)}",
                ],
                log=source.name,
            )
            self._run(
                ["cmake", "--build", str(build), "--target", "install", "--parallel", str(os.cpu_count() or 1)],
                log=source.name,
            )

    def _install_project(self) -> None:
        say("installing tracker_ros (editable)")
        self._pip_install("--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT))
        # The ament index, as colcon would make it, but with links: an edited preset counts at once. `ros2 launch` and
        # `ros2 run` look for files below these folders, but not behind a link to a folder.
        index = self.venv / "share" / "ament_index" / "resource_index" / "packages"
        share = self.venv / "share" / "tracker_ros"
        programs = self.venv / "lib" / "tracker_ros"
        links = {index / "tracker_ros": ROOT / "resource" / "tracker_ros"}
        links.update({share / name: ROOT / name for name in ("package.xml", "config", "models")})
        links.update({share / "launch" / path.name: path for path in (ROOT / "launch").glob("*.launch.py")})
        links.update({programs / name: self.venv / "bin" / name for name in PROGRAMS})
        for folder in (share, programs):
            remove(folder)
        for link, target in links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            remove(link)
            link.symlink_to(target)

    # What the steps are made of.

    def _step(self, name: str, key: str, action: Callable[[], None]) -> None:
        """Do `action` unless it succeeded before with the same inputs (`key`)."""
        if self.record.get(name) == key and self.python.exists():
            return
        if self.record.pop(name, None):
            self._write_record()  # Should it fail half way, what was there before is gone too.
        action()
        self.record[name] = key
        self._write_record()

    def _read_record(self) -> dict[str, str]:
        try:
            return dict(json.loads(self.record_path.read_text()))
        except (OSError, ValueError):
            return {}

    def _write_record(self) -> None:
        self.record_path.write_text(json.dumps(self.record, indent=1) + "\n")

    def _find_sourced_ros(self) -> str:
        """The name of the sourced ROS 2 distribution; empty when none is sourced."""
        distribution = os.environ.get("ROS_DISTRO", "")
        # Docker images set ROS_DISTRO without sourcing anything, hence the second condition.
        if not distribution or not os.environ.get("AMENT_PREFIX_PATH"):
            return ""
        found = self._find_module(self.base_python, "rclpy")
        if not found:
            raise SetupError(
                f"ROS 2 {distribution} is sourced, but {self.base_python} cannot import its rclpy. Use the Python that "
                "ROS was built for (make setup PYTHON=/usr/bin/python3), install rclpy, or unset ROS_DISTRO for wheels"
            )
        return "" if self.venv in found.parents else distribution

    def _find_module(self, python: Path, name: str) -> Path | None:
        """Where `python` would import the top-level module `name` from; None where it cannot."""
        code = f"import importlib.util as u; s = u.find_spec('{name}'); print(s.origin if s and s.origin else '')"
        result = subprocess.run([python, "-c", code], capture_output=True, text=True)
        lines = result.stdout.split()
        return Path(lines[-1]) if result.returncode == 0 and lines else None

    def _is_ours(self, module: str) -> bool:
        """Whether `module` is missing, or there only because an earlier run built it."""
        found = self._find_module(self.python, module)
        return found is None or self.venv in found.parents

    def _check_tools(self) -> None:
        missing = [tool for tool in ("cmake", "gcc", "g++", "make") if not shutil.which(tool)]
        header = Path(sysconfig.get_paths()["include"]) / "Python.h"
        if not header.exists():
            missing.append(f"Python's headers ({header})")
        if subprocess.run([self.base_python, "-c", "import venv, ensurepip"], capture_output=True).returncode:
            missing.append("Python's venv module")
        if missing:
            raise SetupError(f"missing: {', '.join(missing)}; {APT_HINT}")

    def _make_venv(self) -> None:
        """A new venv, unless there is one of the same Python and kind: pip then changes only what differs."""
        config = self.venv / "pyvenv.cfg"
        kind = f"{self.base_python} {sys.version.split()[0]} {self.sourced_ros or 'wheels'} at {self.venv}"
        if self.record.get("kind") == kind and self.python.exists():
            return
        if self.venv.exists():
            if not config.exists() and any(self.venv.iterdir()):
                raise SetupError(
                    f"{self.venv} exists and is not a virtual environment; move it away or choose VENV=..."
                )
            shutil.rmtree(self.venv)
        say(f"making {self.venv} (Python {sys.version.split()[0]})")
        options = ["--system-site-packages"] if self.sourced_ros else []
        subprocess.run([self.base_python, "-m", "venv", *options, self.venv], check=True)
        self.record = {"kind": kind}
        self._write_record()

    def _torch_brings_cuda_in_vain(self) -> bool:
        on_pc = sys.platform == "linux" and platform.machine() == "x86_64"
        return on_pc and not Path("/dev/nvidia0").exists()

    def _torch_index_arguments(self) -> list[str]:
        return ["--extra-index-url", self.torch_index] if self.torch_index else []

    def _requirement_arguments(self, path: Path) -> list[str]:
        """The requirements of a file, with torch as the user wants it."""
        found = requirements(path)
        if self.torch:
            found = [line for line in found if requirement_name(line) != "torch"]
            if path == REQUIREMENTS[0] and self.torch != "none":
                found.append(self.torch)
        return found

    def _missing_requirements(self) -> list[str]:
        """Return pip's arguments for what a sourced ROS 2's Python lacks.

        Its NumPy stays as it is: cv_bridge and the message packages were built against that one.
        """
        *needed, build = REQUIREMENTS
        wanted = [line for path in needed for line in self._requirement_arguments(path)]
        lacking = [
            line
            for line in wanted
            if not self._find_module(self.base_python, IMPORT_NAMES.get(requirement_name(line), requirement_name(line)))
        ]
        code = "import numpy; print(numpy.__version__)"
        numpy = subprocess.run([self.base_python, "-c", code], capture_output=True, text=True).stdout.strip()
        return [*lacking, *self._requirement_arguments(build), *([f"numpy=={numpy}"] if numpy else [])]

    def _mend_cmake_files(self) -> None:
        """Point the wheels' CMake files, which name the Python of the machine they were built on, to this one."""
        code = "import numpy; print(numpy.get_include())"
        numpy = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
        python = sysconfig.get_paths()["include"]
        for path in sorted(self.venv.glob("share/*/cmake/*.cmake")):
            text = path.read_text()
            mended = re.sub(
                r"/opt/python/[^/;\"]+/lib/python3\.\d+/site-packages/numpy/(_core|core)/include", numpy, text
            )
            mended = re.sub(r"/opt/python/[^/;\"]+/include/python3\.\d+", python, mended)
            if mended != text:
                path.write_text(mended)

    def _write_environment_file(self) -> None:
        """Write a shell file with what programs of the venv need to find the packages built into it."""
        (self.venv / "ros_env.sh").write_text(
            "# Source this: it lets ROS find the packages of this virtual environment.\n"
            f"export PATH={shlex.quote(str(self.venv / 'bin'))}:$PATH\n"
            f"export AMENT_PREFIX_PATH={shlex.quote(str(self.venv))}${{AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}}\n"
            f"export LD_LIBRARY_PATH={shlex.quote(str(self.venv / 'lib'))}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n"
        )

    def _site_packages(self) -> Path:
        return self.venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"

    def _pip_install(self, *arguments: str) -> None:
        pip = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
        self._run([*pip, *arguments], log="pip")

    def _run(self, command: list[str | Path], log: str) -> None:
        """Run a command in the venv's environment.

        Args:
            command: program and arguments.
            log: name of the file in the venv's build folder that collects the output.

        Raises:
            SetupError: the command failed; its last lines have been printed.
        """
        environment = dict(os.environ)
        environment.pop("PYTHONHOME", None)
        environment["PATH"] = f"{self.venv / 'bin'}:{environment.get('PATH', os.defpath)}"
        for name in ("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH"):
            # With wheels the venv is all there is; a sourced ROS 2 keeps its place behind the venv.
            before = environment.get(name, "") if self.sourced_ros else ""
            environment[name] = f"{self.venv}:{before}" if before else str(self.venv)
        before = environment.get("LD_LIBRARY_PATH", "")
        environment["LD_LIBRARY_PATH"] = f"{self.venv / 'lib'}:{before}" if before else str(self.venv / "lib")

        arguments = [str(part) for part in command]
        log_path = self.venv / "build" / f"{log}.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        tail: deque[str] = deque(maxlen=40)
        with (
            log_path.open("a") as stream,
            subprocess.Popen(
                arguments,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process,
        ):
            for line in process.stdout or ():
                stream.write(line)
                tail.append(line)
                download = LARGE_DOWNLOAD.search(line)
                if download:
                    say("downloading {} ({})".format(*download.groups()))
        if process.returncode:
            sys.stderr.writelines(tail)
            raise SetupError(
                f"this failed with exit status {process.returncode}: {shlex.join(arguments)}\n"
                f"Its last lines are above, all of them in {log_path}. Mend the cause and run `make setup` again: "
                "it goes on with the step that failed."
            )


def requirements(path: Path) -> list[str]:
    """The lines of a requirements file."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line]


def requirement_name(line: str) -> str:
    """The project's name in a requirement, such as torch in 'torch>=2.1'."""
    return re.split(r"[\s<>=!~;\[@]", line, maxsplit=1)[0].lower()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it, if there is one; what a link names stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def digest(paths: list[Path], extra: list[str]) -> str:
    """A hash of files (folders: everything in them) and strings, that changes when any of them does."""
    result = hashlib.sha256("\0".join(extra).encode())
    for path in paths:
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            result.update(f"\0{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return result.hexdigest()


def say(message: str) -> None:
    """Tell the user what goes on."""
    print(f"setup: {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
