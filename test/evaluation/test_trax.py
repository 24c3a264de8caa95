"""The TraX server against the client of the TraX library, each in its own process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.conftest import spoil
from tracker_ros import registry
from tracker_ros.evaluation import trax as server
from tracker_ros.evaluation.sequences import Sequence, load_sequence

COMMAND = [sys.executable, "-m", "tracker_ros.evaluation.trax"]


@pytest.fixture
def sequence(make_sequence) -> Sequence:
    folder = make_sequence("patch", [f"{40 + 2 * i},40,32,32" for i in range(4)], size=(160, 120))
    patch = np.random.RandomState(0).randint(0, 255, (8, 8, 3)).astype(np.uint8)
    patch = cv2.resize(patch, (32, 32), interpolation=cv2.INTER_CUBIC)
    for i, path in enumerate(sorted((folder / "img").iterdir())):
        frame = np.full((120, 160, 3), 110, np.uint8)
        frame[40:72, 40 + 2 * i : 72 + 2 * i] = patch
        cv2.imwrite(str(path), frame)
    return load_sequence(folder)


@pytest.fixture
def process() -> Iterator[subprocess.Popen]:
    pytest.importorskip("trax", reason="the TraX library is not installed; runs after `pip install vot-trax`")
    if not hasattr(cv2, "TrackerKCF_create"):
        pytest.skip("this OpenCV has no contrib modules; runs with opencv-contrib-python-headless")
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([*COMMAND, "--tracker", "kcf"], **pipes) as process:
        yield process
        process.kill()


def _image(sequence: Sequence, index: int):
    from trax import FileImage

    return {"color": FileImage.create(str(sequence.images.paths[index]))}


def _client(process: subprocess.Popen):
    from trax.client import Client

    return Client(stream=(process.stdin.fileno(), process.stdout.fileno()), log=lambda text: None)


def test_a_client_gets_what_the_tracker_says(process: subprocess.Popen, sequence: Sequence) -> None:
    from trax import Rectangle

    client = _client(process)
    assert client.tracker_name == "kcf"
    assert client.image_formats == ["path"]
    tracker = registry.create("kcf")
    for _ in range(2):  # A client may start anew at any time.
        (region, _), *_ = client.initialize(_image(sequence, 0), [(Rectangle.create(40, 40, 32, 32), {})], {})[0]
        assert region.bounds() == (40, 40, 32, 32)
        tracker.initialize(sequence.frame(0), sequence.first_box)
        for index in range(1, len(sequence)):
            ((region, properties),) = client.frame(_image(sequence, index), {}, [])[0]
            expected = tracker.track(sequence.frame(index))
            assert region.bounds() == pytest.approx(tuple(expected.box), abs=1e-3)
            assert float(properties["confidence"]) == pytest.approx(expected.score, abs=1e-4)
            assert properties["state"] == "TRACKING"
    client.quit()
    assert process.wait(20) == 0


def test_an_error_ends_the_conversation_with_its_reason(process: subprocess.Popen, sequence: Sequence) -> None:
    from trax import Rectangle, TraxException

    client = _client(process)
    with pytest.raises(TraxException):
        client.initialize(_image(sequence, 0), [(Rectangle.create(40, 40, 2, 2), {})], {})
    assert process.wait(20) == 2
    assert b"error: the box is too small" in process.stderr.read()


@pytest.mark.parametrize("fault", ["cut short", "gone", "a folder", "text"])
def test_an_image_that_cannot_be_read_is_passed_over(process: subprocess.Popen, sequence: Sequence, fault: str) -> None:
    from trax import Rectangle

    client = _client(process)
    client.initialize(_image(sequence, 0), [(Rectangle.create(40, 40, 32, 32), {})], {})
    ((before, _),) = client.frame(_image(sequence, 1), {}, [])[0]
    spoil(sequence.images.paths[2], fault)
    ((region, properties),) = client.frame(_image(sequence, 2), {}, [])[0]
    assert region.bounds() == before.bounds()
    assert (properties["state"], float(properties["confidence"])) == ("UNCERTAIN", 0)
    ((region, properties),) = client.frame(_image(sequence, 3), {}, [])[0]
    assert properties["state"] == "TRACKING"
    assert region.bounds()[0] == pytest.approx(46, abs=2)
    client.quit()
    assert process.wait(20) == 0
    said = process.stderr.read().decode()
    assert sequence.images.paths[2].name in said
    assert "1 of 4 images could not be read" in said


def test_mistakes_in_the_call_are_named(capsys) -> None:
    assert server.main(["--tracker", "kfc"]) == 2
    assert "did you mean 'kcf'?" in capsys.readouterr().err


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['trax'] = None; from tracker_ros.evaluation.trax import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "--tracker", "csrt"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install vot-trax" in done.stderr
