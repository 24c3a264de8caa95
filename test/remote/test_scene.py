"""What browsers look at: boxes that fit their picture, targets that come and go, thumbnails, JPEGs."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest

from tracker_ros.geometry.boxes import Box
from tracker_ros.images import InvalidImage
from tracker_ros.remote.page.pacing import Level
from tracker_ros.remote.page.scene import SCORES, Scene, encode
from tracker_ros.remote.tracker import Sighting, State

MS = 10**6
BOX = Box(100.0, 60.0, 40.0, 20.0)


class World:
    """A scene with a clock of its own and a picture every 33 ms; picture k is of grey k."""

    def __init__(self) -> None:
        self.now = 100.0
        self.scene = Scene(lambda: self.now)
        self.count = 0

    def picture(self, count: int = 1) -> int:
        for _ in range(count):
            self.now += 0.033
            self.count += 1
            grey = self.count % 256
            self.scene.add_picture(self.count * 33 * MS, lambda grey=grey: np.full((240, 320, 3), grey, np.uint8))
        return self.count * 33 * MS

    def say(self, stamp: int, name: str = "car", state: State = State.TRACKING, box: Box | None = BOX) -> None:
        self.scene.add(Sighting(stamp, name, state, 0.5, box if state.seen else None, "csrt"))

    @property
    def shown(self) -> int:
        view = self.scene.view()
        assert view is not None
        return view.picture.stamp


@pytest.fixture
def world():
    return World()


def test_shows_nothing_before_the_first_picture_and_then_the_newest(world: World):
    assert world.scene.view() is None
    assert world.scene.silence == float("inf")
    stamp = world.picture(5)
    assert world.shown == stamp
    world.now += 2
    assert world.scene.silence == pytest.approx(2)


def test_shows_the_picture_that_the_tracker_has_spoken_about(world: World):
    spoken = world.picture()
    world.say(spoken)
    world.picture(3)
    assert world.shown == spoken
    assert world.scene.targets["car"].box == BOX


def test_does_not_wait_for_a_tracker_that_is_far_behind(world: World):
    world.say(world.picture())
    newest = world.picture(30)
    assert world.shown == newest
    world.say(newest - 20 * 33 * MS)
    assert world.shown == newest


def test_an_older_word_does_not_turn_the_picture_back(world: World):
    first, second = world.picture(), world.picture()
    world.say(second)
    world.say(first, "bus")
    assert world.shown == second


def test_a_picture_is_shown_with_the_words_on_it_and_not_with_later_ones(world: World):
    first, second, third = world.picture(), world.picture(), world.picture()
    world.say(first)
    world.say(first, "bus")
    view = world.scene.view()
    world.say(second, box=Box(0, 0, 9, 9))
    world.say(third, state=State.LOST)
    assert (view.targets["car"].word.stamp, view.targets["car"].box) == (first, BOX)
    late = world.scene.view().targets
    assert (late["car"].word.state, late["car"].box) == (State.LOST, Box(0, 0, 9, 9))
    assert (late["bus"].word.stamp, late["bus"].box) == (first, BOX)  # Nothing newer is known of it.


def test_a_lost_target_keeps_its_last_box(world: World):
    world.say(world.picture())
    world.say(world.picture(), state=State.LOST)
    target = world.scene.targets["car"]
    assert (target.last.state, target.box) == (State.LOST, BOX)


def test_targets_go_when_the_tracker_speaks_of_others_or_of_none(world: World):
    stamp = world.picture()
    world.say(stamp)
    world.say(stamp, "bus")
    for _ in range(2):
        world.say(world.picture(), "bus")
    assert set(world.scene.targets) == {"car", "bus"}
    world.now += 60  # A slow tracker is no reason to forget anybody.
    stamp = world.picture()
    world.say(stamp, "bus")
    assert set(world.scene.targets) == {"bus"}
    world.say(world.picture(), "", State.IDLE)
    assert world.scene.targets == {}


def test_scores_are_counted_and_bounded(world: World):
    for _ in range(SCORES + 5):
        world.say(world.picture())
    target = world.scene.targets["car"]
    assert (len(target.scores), target.count) == (SCORES, SCORES + 5)
    world.scene.renew("car")
    world.scene.renew("nobody")
    assert (target.count, world.scene.targets["car"].count, set(world.scene.targets)) == (SCORES + 5, 0, {"car"})
    world.say(world.picture())
    assert world.scene.targets["car"].count == 1
    world.scene.forget("car")
    assert world.scene.targets == {}


def test_pictures_are_bounded_and_not_decoded_before_somebody_looks(world: World):
    decoded = []
    for k in range(1000):
        world.scene.add_picture(k, lambda k=k: decoded.append(k) or np.zeros((8, 8, 3), np.uint8))
    assert len(world.scene._pictures) <= 64
    assert decoded == []


def test_thumbnails_of_the_start_and_of_now(world: World):
    world.say(world.picture())
    first = pixels(world.scene.targets["car"].first)
    world.now += 2
    world.picture(98)
    world.say(world.picture())
    world.scene.refresh_thumbnails()
    target = world.scene.targets["car"]
    assert abs(int(first.mean()) - 1) <= 2
    assert abs(int(pixels(target.now).mean()) - 100) <= 2
    assert max(first.shape) == 96


def test_a_box_beyond_the_image_and_a_picture_that_cannot_be_read_have_no_thumbnail(world: World):
    world.say(world.picture(), box=Box(5000.0, 5000.0, 10.0, 10.0))
    assert world.scene.targets["car"].first == ""
    world.scene.add_picture(7, broken)
    world.scene.add(Sighting(7, "bus", State.TRACKING, 1.0, BOX))
    assert world.scene.targets["bus"].first == ""


def test_encode_keeps_to_the_level_and_never_enlarges(world: World):
    world.picture()
    picture = world.scene.view().picture
    jpeg, width, height = encode(picture, Level(160, 50), heat=False)
    assert (width, height) == (320, 240)
    assert read(jpeg).shape == (120, 160, 3)
    jpeg, *_ = encode(picture, Level(1280, 80), heat=False)
    assert read(jpeg).shape == (240, 320, 3)


def test_the_heatmap_colours_its_own_picture_where_it_responds(world: World):
    stamp = world.picture()
    heat = np.zeros((30, 40), np.float32)
    heat[10:20, 10:20] = 1.0
    heat[0, 0] = np.nan
    world.scene.add_heatmap(stamp, heat)
    world.scene.add_heatmap(12345, heat)  # Of a picture that is gone, or never came.
    picture = world.scene.view().picture
    plain, hot = (read(encode(picture, Level(320, 90), heat=on)[0]).astype(int) for on in (False, True))
    assert np.abs(hot - plain)[100:140, 100:140].max(axis=2).min() > 50
    assert np.abs(hot - plain)[180:].max() < 10


def test_a_picture_that_cannot_be_read_is_said(world: World):
    world.scene.add_picture(7, broken)
    with pytest.raises(InvalidImage, match="cut short"):
        encode(world.scene.view().picture, Level(320, 90), heat=False)


def test_paused_until_the_tracker_speaks(world: World):
    world.scene.set_paused(True)
    assert world.scene.paused
    world.say(world.picture())
    assert not world.scene.paused


def broken():
    raise InvalidImage("the image is cut short")


def read(jpeg: bytes):
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def pixels(url: str):
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return read(base64.b64decode(data))
