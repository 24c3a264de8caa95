"""The one-slot mailbox and the worker thread behind it."""

import random
import threading
import time

import pytest

from tracker_ros.ros.mailbox import Counts, Mailbox
from tracker_ros.ros.worker import Superseded, Worker


def balanced(counts: Counts) -> bool:
    return counts.received == counts.processed + counts.dropped + counts.pending


def test_newest_wins_and_the_older_one_is_counted():
    mailbox = Mailbox()
    for item in ("a", "b", "c"):
        mailbox.put(item)
    assert mailbox.counts == Counts(received=3, processed=0, dropped=2, pending=1)
    assert mailbox.take() == "c"
    assert not mailbox.waiting
    mailbox.put("d")
    assert mailbox.counts == Counts(4, 0, 2, 2)
    assert mailbox.finish(processed=True) == Counts(4, 1, 2, 1)
    assert mailbox.take() == "d"
    assert mailbox.finish(processed=False) == Counts(4, 1, 3, 0)
    assert mailbox.take() is None


def test_clear_and_reset():
    mailbox = Mailbox()
    mailbox.put("a")
    mailbox.clear()
    mailbox.clear()
    assert mailbox.counts == Counts(1, 0, 1, 0)
    mailbox.put("b")
    mailbox.reset()
    assert mailbox.counts == Counts(1, 0, 0, 1)
    assert mailbox.take() == "b"


def test_an_item_must_be_finished_before_the_next():
    mailbox = Mailbox()
    with pytest.raises(RuntimeError):
        mailbox.finish(True)
    mailbox.put("a")
    mailbox.take()
    with pytest.raises(RuntimeError):
        mailbox.take()


def test_counts_balance_at_every_moment_under_load():
    seen, errors, delivered = [], [], []
    rng = random.Random(0)

    def process(item: int) -> tuple[bool, int]:
        time.sleep(rng.random() * 1e-3)
        seen.append(item)
        if item % 7 == 0:
            raise ValueError("seven")
        return item % 5 != 0, item

    worker = Worker(process, lambda item, result, counts: delivered.append((item, result, counts)), errors.append)
    worker.resume()
    for item in range(1, 600):
        worker.mailbox.put(item)
        assert balanced(worker.mailbox.counts)
        if item % 10 == 0:
            time.sleep(2e-3)
    deadline = time.monotonic() + 10
    while worker.mailbox.counts.pending and time.monotonic() < deadline:
        time.sleep(0.005)
    assert worker.stop(5)
    counts = worker.mailbox.counts
    assert counts.received == 599
    assert counts.pending == 0
    assert balanced(counts)
    assert counts.processed == sum(item % 7 != 0 and item % 5 != 0 for item in seen)
    assert seen == sorted(seen)
    assert seen[-1] == 599
    assert len(errors) == sum(item % 7 == 0 for item in seen)
    assert all(balanced(c) for _, _, c in delivered)


def ticking_worker(order: list) -> tuple[Worker, threading.Event]:
    """A worker that notes its items in `order`, held by a command until the event is set."""
    gate = threading.Event()
    worker = Worker(lambda item: (order.append(item) or True, item), lambda *_: None, lambda error: None)
    worker.submit(lambda command: gate.wait(5))
    worker.resume()
    return worker, gate


def eventually(condition, timeout: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(condition())


def test_commands_return_results_or_exceptions():
    worker = Worker(lambda item: (True, item), lambda *_: None, lambda error: None)
    assert worker.submit(lambda command: 42).future.result(5) == 42
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda command: 1 / 0).future.result(5)
    assert worker.stop(5)
    with pytest.raises(RuntimeError, match="stopped"):
        worker.submit(lambda command: 1).future.result(1)


def test_items_get_their_turn_between_commands():
    order: list[str] = []
    worker, gate = ticking_worker(order)

    def command(name: str, following: str):
        def run(_):
            order.append(name)
            worker.mailbox.put(following)

        return run

    worker.mailbox.put("image 0")
    for k in range(1, 4):
        worker.submit(command(f"command {k}", f"image {k}"))
    gate.set()
    assert eventually(lambda: len(order) == 7)
    assert order == ["image 0", *(f"{what} {k}" for k in (1, 2, 3) for what in ("command", "image"))]
    assert worker.stop(5)


def test_the_newest_command_of_a_kind_replaces_the_one_that_waits():
    order: list[str] = []
    worker, gate = ticking_worker(order)
    boxes = [worker.submit(lambda command, k=k: order.append(f"box {k}"), kind="box") for k in range(500)]
    other = worker.submit(lambda command: order.append("other"))
    last = worker.submit(lambda command: order.append("last"), kind="box")
    for box in boxes:
        with pytest.raises(Superseded):
            box.future.result(1)
    gate.set()
    other.future.result(5)
    last.future.result(5)
    assert order == ["other", "last"]
    assert worker.stop(5)


def test_a_command_can_be_withdrawn_until_it_commits():
    worker = Worker(lambda item: (True, item), lambda *_: None, lambda error: None)
    began, go = threading.Event(), threading.Event()
    effects = []

    def run(command):
        began.set()
        go.wait(5)
        if command.commit():
            effects.append("done")
        began.set()
        go.wait(5)

    first = worker.submit(run)
    waiting = worker.submit(lambda command: effects.append("never"))
    assert began.wait(5)
    assert worker.doing()[0] == "request"
    assert first.withdraw(), "it has begun, but changed nothing yet"
    assert waiting.withdraw()
    go.set()
    first.future.result(5)
    assert worker.submit(lambda command: "alive").future.result(5) == "alive"
    assert effects == []
    assert waiting.future.cancelled()
    late = worker.submit(run)
    late.future.result(5)
    assert effects == ["done"]
    assert not late.withdraw()
    assert worker.stop(5)


def test_suspended_worker_drops_items_but_runs_commands():
    processed = []
    worker = Worker(lambda item: (processed.append(item) or True, None), lambda *_: None, lambda error: None)
    for item in range(5):
        worker.mailbox.put(item)
    assert worker.submit(lambda command: "alive").future.result(5) == "alive"
    assert processed == []
    assert worker.mailbox.counts == Counts(5, 0, 4, 1)
    worker.resume()
    deadline = time.monotonic() + 5
    while not processed and time.monotonic() < deadline:
        time.sleep(0.005)
    assert worker.stop(5)
    assert processed == [4]


def test_stop_cancels_what_waits_and_tells_if_the_thread_hangs():
    gate = threading.Event()
    worker = Worker(lambda item: (True, None), lambda *_: None, lambda error: None)
    worker.submit(lambda command: gate.wait())
    assert eventually(lambda: worker.doing()[0])
    waiting = worker.submit(lambda command: 1)
    assert not worker.stop(0.1)
    assert waiting.future.cancelled(), "whoever waits must not wait for a thread that hangs"
    gate.set()
    assert worker.stop(5)


def test_an_exception_while_delivering_does_not_end_the_thread():
    errors, seen = [], []

    def deliver(item, result, counts):
        seen.append(item)
        raise OSError("nobody there")

    worker = Worker(lambda item: (True, item), deliver, errors.append)
    worker.resume()
    for item in (1, 2):
        worker.mailbox.put(item)
        deadline = time.monotonic() + 5
        while item not in seen and time.monotonic() < deadline:
            time.sleep(0.005)
    assert worker.stop(5)
    assert seen == [1, 2]
    assert len(errors) == 2
    assert worker.mailbox.counts == Counts(2, 2, 0, 0)
