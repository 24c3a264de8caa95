"""What is installed: floors past known holes, the same in all places; a lock with hashes that covers everything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: The first versions without the holes that were known when the floors were set.
FLOORS = {"torch": "2.10", "opencv-contrib-python-headless": "4.8.1.78", "aiohttp": "3.13.3", "tqdm": "4.66.3"}
FLOORS |= {"pyyaml": "5.4", "numpy": "1.22", "setuptools": "78.1.1"}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0]))


def _requirements(*files: str) -> dict[str, str]:
    """Name -> what is asked of it, of requirements files."""
    lines = [line.partition("#")[0].partition(";")[0].strip() for f in files for line in (ROOT / f).open()]
    parts = [re.fullmatch(r"([\w.-]+)(?:\[\w+\])?(.*)", line) for line in lines if line]
    return {_normal(part[1]): part[2].strip() for part in parts if part}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _metadata() -> dict[str, str]:
    """Name -> what setup.py asks of it, of all extras too."""
    code = (
        "import json, setuptools\n"
        "def setup(**given): print(json.dumps(sum(given['extras_require'].values(), given['install_requires'])))\n"
        "setuptools.setup = setup\n"
        "import runpy; runpy.run_path('setup.py')"
    )
    import json

    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    parts = [re.fullmatch(r"([\w.-]+)(.*)", line) for line in json.loads(told.stdout)]
    return {_normal(part[1]): part[2] for part in parts if part}


def _lock() -> dict[str, list[tuple[str, int]]]:
    """Name -> versions that the lock has for some Python, and how many hashes each has."""
    found: dict[str, list[tuple[str, int]]] = {}
    text = "".join(line for line in (ROOT / "requirements.lock").open() if not line.startswith("#"))
    for entry in re.split(r"\n(?=\S)", text.strip()):
        head = re.match(r"([\w.-]+)==(\S+)", entry)
        assert head, entry[:80]
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}(?=\s|$)", entry)
        found.setdefault(_normal(head[1]), []).append((head[2], len(hashes)))
    return found


@pytest.mark.parametrize("name", FLOORS)
def test_no_place_takes_a_version_with_a_known_hole(name: str) -> None:
    asked = {
        "requirements": _requirements("requirements.txt", "requirements/dev.txt", "requirements/build.txt"),
        "torch.txt": _requirements("requirements/torch.txt"),
        "setup.py": _metadata(),
    }
    bounds = {where: found[name] for where, found in asked.items() if found.get(name)}
    assert bounds, f"nobody asks for {name}"
    for where, bound in bounds.items():
        least = re.search(r"[>=]=\s*([\d.]+)", bound)
        assert least, f"{where}: '{name}{bound}' has no floor"
        assert _version(least[1]) >= _version(FLOORS[name]), where
    for version, _ in _lock().get(name, []):
        assert _version(version) >= _version(FLOORS[name])


def test_setup_and_requirements_ask_for_the_same() -> None:
    needed, told = _requirements("requirements.txt"), _metadata()
    for name, bound in needed.items():
        assert told.get(name) == bound, f"setup.py: '{told.get(name)}', requirements.txt: '{bound}'"


def test_the_build_asks_for_one_setuptools() -> None:
    bound = _requirements("requirements/build.txt")["setuptools"]
    assert f'"setuptools{bound}"' in (ROOT / "pyproject.toml").read_text()


def test_the_lock_pins_and_hashes_all_that_is_asked_for_but_torch() -> None:
    lock = _lock()
    files = ("requirements.txt", "requirements/dev.txt", "requirements/build.txt", "requirements/ros.txt")
    assert _requirements(*files).keys() - lock.keys() == {"torch"}
    assert "torch" not in lock, "it comes from where the machine has it: see requirements/torch.txt"
    for name, versions in lock.items():
        for version, hashes in versions:
            assert hashes, f"{name}=={version} has no hash"


def test_what_pip_would_not_take_is_refused(tmp_path: Path) -> None:
    """A file whose hash is another is not installed, wherever it comes from."""
    lines = (ROOT / "requirements.lock").read_text()
    entry = re.search(r"^iniconfig==.*\n(?:    .*\n?)+", lines, re.MULTILINE)
    assert entry
    altered = re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", entry[0])
    (tmp_path / "lock").write_text(altered)
    wheel = tmp_path / f"{re.sub('==', '-', entry[0].split()[0])}-py3-none-any.whl"
    wheel.write_bytes(b"not what it says")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-index", "-q"]
    done = subprocess.run(
        [*command, "--find-links", str(tmp_path), "-d", str(tmp_path / "to"), "-r", str(tmp_path / "lock")],
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert "DO NOT MATCH THE HASHES" in done.stderr
