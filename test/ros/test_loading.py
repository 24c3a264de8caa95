"""The thread that loads in the background."""

import threading
import time

import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")

from tracker_ros.ros.node.loading import Loader
from tracker_ros.ros.worker import Superseded


def test_loads_one_after_another_and_tells_what_went_wrong():
    loader = Loader()
    assert loader.load(lambda: 1).result(5) == 1
    with pytest.raises(ZeroDivisionError):
        loader.load(lambda: 1 / 0).result(5)
    assert loader.load(lambda: threading.current_thread().name).result(5) == "loader"


def test_what_was_asked_for_last_replaces_what_is_under_way():
    loader, gate, made = Loader(), threading.Event(), []

    def make(k: int):
        def run() -> int:
            gate.wait(5)
            made.append(k)
            return k

        return run

    futures = [loader.load(make(k)) for k in range(100)]
    for future in futures[:-1]:
        with pytest.raises(Superseded):
            future.result(1)
    assert loader.busy
    gate.set()
    assert futures[-1].result(5) == 99
    # The first had begun and runs to its end for nobody; those between never began.
    assert made in ([99], [0, 99])


def test_cancel_ends_the_wait_but_not_the_thread():
    loader, gate = Loader(), threading.Event()
    future = loader.load(lambda: gate.wait(5))
    loader.cancel()
    with pytest.raises(Superseded):
        future.result(1)
    gate.set()
    deadline = time.monotonic() + 5
    while loader.busy and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not loader.busy
    assert loader.load(lambda: "again").result(5) == "again"
