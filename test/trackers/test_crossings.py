"""What goes between host and device in a frame: uploads, and one transfer back, of every tracker with a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from crossings import CountingLink, Crossing, watch
from numpy.typing import NDArray

import tracker_ros
from tracker_ros.geometry.boxes import Box
from tracker_ros.networks import inference
from tracker_ros.registry import DEFAULT
from tracker_ros.trackers.guided import GuidedTracker
from tracker_ros.trackers.search import SearchTracker

FULL_SIZE = ("_r50", "vgg16", "dimp50", "_up", "_dw")
NAMES = [
    pytest.param(entry.name, marks=pytest.mark.slow) if entry.name.endswith(FULL_SIZE) else entry.name
    for entry in DEFAULT
    if entry.network is not None
]
#: Options with which every frame of a tracker does all that a frame may have to do.
BUSY: dict[str, dict[str, Any]] = {
    "dimp": {"update_interval": 1},
    "guided": {"update_interval": 1},
}


def _tracker(name: str) -> SearchTracker[Any]:
    """With random weights: what crosses does not depend on them."""
    entry = DEFAULT.get(name)
    factory, preset = entry.load()
    torch.manual_seed(0)
    family = next((key for key in BUSY if name.startswith(key)), "")
    assert entry.network is not None
    options = preset.vary(device="cpu", precision="float32", redetect_windows=1, **BUSY.get(family, {}))
    tracker = factory(name, options, entry.network.create())
    assert isinstance(tracker, SearchTracker)
    return tracker


def _frame(seed: int) -> NDArray[np.uint8]:
    return np.random.RandomState(seed).randint(0, 255, (120, 160, 3)).astype(np.uint8)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "asking_is_free", lambda device: False)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", NAMES)
def test_a_frame_waits_for_the_device_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuidedTracker, "_confident", lambda *_: True)  # random weights are sure of nothing
    tracker = _tracker(name)
    targets = tracker.start(_frame(0), [Box(60, 40, 32, 28), Box(90, 60, 20, 30)])
    tracker.step(_frame(1), targets)  # what is made once, is made
    link = tracker.link = CountingLink(torch.device("cpu"))
    with watch():
        tracker.step(_frame(2), targets)
    assert link.downloads == 1
    if name.startswith("guided"):
        assert all(target.updates for target in targets)  # they learned, too
    # Crops, the numbers that belong to them, and what is learned from.
    assert link.uploads <= 10


@pytest.mark.parametrize(
    "crossing",
    [
        lambda x: x.max().item(),
        lambda x: float(x[0]),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x * torch.tensor([1.0, 2.0, 3.0]),
        lambda x: x * x.new_tensor([1.0, 2.0, 3.0]),
        lambda x: x + torch.from_numpy(np.zeros(3)),
        lambda x: x[[0, 2]],
        lambda x: x[np.array([0, 2])],
        lambda x: x.index_put_((x > 0,), x[:1]),
        lambda x: torch.equal(x, x),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: list(range(x.sum().long())),
    ],
)
def test_each_kind_of_crossing_is_seen(crossing: Any) -> None:
    x = torch.arange(3.0)
    with pytest.raises(Crossing), watch():
        crossing(x)


def test_what_stays_on_the_device_is_let_pass() -> None:
    link = CountingLink(torch.device("cpu"))
    with watch():
        x = link.upload(np.arange(6, dtype=np.float32)).reshape(2, 3) * 2 + 1
        y = torch.where(x > 3, x, 0.0).masked_fill(x > 8, 1.0)[:, 1:]
        y[0] = torch.arange(2) + torch.full((2,), 7.0)
        found = link.download(y)
    np.testing.assert_array_equal(found, [[7, 8], [1, 1]])


def test_pinned_memory_is_asked_for_only_where_there_is_a_device() -> None:
    values = torch.zeros(3)
    assert tracker_ros.networks.inference.Link(torch.device("cpu")).upload(values) is values
