"""The node as its users meet it: real publishers, subscribers and service clients, in a context of their own."""

from __future__ import annotations

import gc
import math
import re
import threading
import time
import weakref

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from rcl_interfaces.msg import ParameterType
from sensor_msgs.msg import CompressedImage
from vision_msgs.msg import Detection2D

from tracker_ros import images, registry, weights
from tracker_ros.geometry.boxes import Box
from tracker_ros.ros import messages, overlay
from tracker_ros.trackers.base import TrackState
from tracker_ros_interfaces.msg import TrackStatus
from tracker_ros_interfaces.srv import InitTarget

from .graph import BOX, HEIGHT, WIDTH, diagnosis

pytestmark = pytest.mark.ros


# ------------------------------------------------------------------------------------------------------------ outputs


def test_every_output_carries_the_header_of_its_image(graph):
    graph.start("detection", "detections", "heatmap", "image_annotated")
    idle = graph.process()
    assert graph.status_of(idle).state == TrackStatus.IDLE
    assert graph.of("detections", idle)[0].detections == []
    assert len(graph.of("image_annotated", idle)) == 1
    assert graph.init(target_id="car").success
    sent = [graph.process(graph.image(grey)) for grey in (10, 60, 200)]
    for image in sent:
        (detection,) = graph.of("detection", image)
        (detections,) = graph.of("detections", image)
        (heatmap,) = graph.of("heatmap", image)
        (annotated,) = graph.of("image_annotated", image)
        status = graph.status_of(image)
        assert detections.detections == [detection]
        assert detection.id == status.target_id == "car"
        assert detection.results[0].hypothesis.class_id == "", "nobody said what it is"
        assert detection.results[0].hypothesis.score == pytest.approx(0.75)
        assert (status.state, status.tracker, status.frames_since_seen) == (TrackStatus.TRACKING, "puppet", 0)
        assert 0 < status.latency < 5
        assert (heatmap.encoding, heatmap.height, heatmap.width) == ("32FC1", HEIGHT // 8, WIDTH // 8)
        values = np.frombuffer(heatmap.data, np.float32).reshape(heatmap.height, heatmap.width)
        assert values.max() > 0.9
        region = messages.box_from_message(status.search_region)
        assert values[:, : int(region.x / 8) - 1].max() == 0
        assert (annotated.encoding, annotated.height, annotated.width) == ("bgr8", HEIGHT, WIDTH)
    # Nothing else was published about the target, and one of each for every processed image.
    assert len(graph.received["detection"]) == 3
    assert len(graph.received["detections"]) == len(graph.received["status"]) == 4


def test_box_makes_the_round_trip_through_messages(graph):
    graph.start("detection")
    graph.process()
    rng = np.random.RandomState(3)
    for _ in range(10):
        w, h = rng.uniform(5, 150, 2)
        box = Box.from_center(rng.uniform(w / 6, WIDTH - w / 6), rng.uniform(h / 2, HEIGHT - h / 2), w, h)
        assert graph.init(box).success
        (detection,) = graph.of("detection", graph.process())
        assert abs(detection.bbox.center.position.x - box.center[0]) < 1e-6
        assert abs(detection.bbox.center.position.y - box.center[1]) < 1e-6
        assert abs(detection.bbox.size_x - box.w) < 1e-6
        assert abs(detection.bbox.size_y - box.h) < 1e-6
        assert detection.bbox.center.theta == 0


def test_nothing_is_detected_while_the_target_is_lost(graph):
    graph.start("detection", "detections", "/diagnostics")
    graph.process()
    assert graph.init().success
    for state, count, since in [("UNCERTAIN", 1, 1), ("LOST", 0, 2), ("LOST", 0, 3), ("TRACKING", 1, 0)]:
        graph.puppet.state, graph.puppet.score = TrackState[state], 0.125
        image = graph.process()
        status = graph.status_of(image)
        assert (status.state, status.frames_since_seen) == (TrackState[state], since)
        (array,) = graph.of("detections", image)
        assert [detection.results[0].hypothesis.score for detection in array.detections] == [0.125] * count
        if since == 3:
            with graph.camera(make=lambda: graph.image()):
                assert diagnosis(graph, "LOST").level == DiagnosticStatus.WARN
    # A box without its state must never be that of a LOST target: `detection` says nothing of it either.
    image = graph.process()
    assert len(graph.of("detection", image)) == 1
    lost = [s.header for s in graph.received["status"] if s.state == TrackStatus.LOST]
    assert len(lost) >= 2
    assert not [d for d in graph.received["detection"] if d.header in lost]


def test_pictures_are_built_only_while_someone_looks(graph, monkeypatch):
    drawn = []
    draw = overlay.draw_on
    monkeypatch.setattr(overlay, "draw_on", lambda *a, **k: drawn.append(1) or draw(*a, **k))
    graph.start()
    graph.process()
    assert graph.init().success
    graph.process()
    assert drawn == []
    graph.listen("image_annotated")
    assert graph.until(lambda: graph.node.count_subscribers("image_annotated"))
    assert graph.of("image_annotated", graph.process())
    assert drawn


def test_slow_drawing_holds_up_nothing_and_only_the_newest_picture_is_drawn(graph, monkeypatch):
    go, drawn = threading.Event(), []

    def slow(pixels, *rest):
        go.wait(20)
        drawn.append(round(float(pixels.mean())))

    monkeypatch.setattr(overlay, "draw_on", slow)
    graph.start("image_annotated", "detection")
    graph.process()
    assert graph.init().success
    sent = [graph.process(graph.image(grey)) for grey in range(40, 120, 10)]
    assert len(graph.of("detection", sent[-1])) == 1
    go.set()
    assert graph.of("image_annotated", sent[-1])
    assert len(drawn) <= 3, "pictures that wait give way to the newest"
    assert drawn[-1] == 110


def test_compressed_images(graph):
    graph.start("detection", image_transport="compressed")
    assert graph.images.get_subscription_count() == 0

    def message(data: bytes) -> CompressedImage:
        return CompressedImage(header=graph.header(), format="bgr8; jpeg compressed bgr8", data=data)

    jpeg = cv2.imencode(".jpg", np.full((HEIGHT, WIDTH, 3), 90, np.uint8))[1].tobytes()
    before = message(jpeg)
    graph.compressed.publish(before)
    assert graph.until(lambda: graph.status_of(before))
    assert graph.init().success
    good, bad, again = message(jpeg), message(jpeg[:-30]), message(jpeg)
    for image, processed in ((good, True), (bad, False), (again, True)):
        graph.compressed.publish(image)
        if processed:
            assert graph.until(lambda image=image: graph.status_of(image))
            assert len(graph.of("detection", image)) == 1
        else:
            assert graph.until(lambda: graph.node_sequence() == 3)
            time.sleep(0.1)  # Or else the next image may replace it.
    assert graph.status_of(bad) is None
    last = graph.status_of(again)
    assert (last.frames_received, last.frames_processed, last.frames_dropped) == (4, 3, 1)
    assert abs(graph.puppet.seen[-1] - 90) < 2


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_malformed_images_in_mid_stream_are_skipped_and_reported(graph):
    graph.start("detection", "/diagnostics")
    graph.process()
    assert graph.init().success
    graph.process()

    def broken(**fields):
        image = graph.image()
        for name, value in fields.items():
            setattr(image, name, value)
        return image

    bad = [
        broken(encoding="64FC9"),
        broken(data=b"123"),
        broken(width=0),
        broken(step=5),
        broken(encoding="yuv422", width=319),
        broken(height=2**31),
    ]
    for k, image in enumerate(bad, 1):
        graph.publish(image)
        assert graph.until(lambda k=k: graph.node.pipeline.worker.mailbox.counts.dropped == k)
    after = graph.process()
    assert len(graph.of("detection", after)) == 1
    status = graph.status_of(after)
    assert (status.state, status.frames_dropped, status.frames_processed) == (TrackStatus.TRACKING, len(bad), 3)
    assert all(graph.status_of(image) is None for image in bad)
    report = diagnosis(graph, "can't be decoded")
    assert report.level == DiagnosticStatus.ERROR
    assert "height" in report.message or "2147483648" in report.message


def test_an_unusable_camera_is_reported_before_there_is_a_target(graph):
    graph.start("/diagnostics")
    image = graph.image()
    image.encoding = "64FC9"
    graph.publish(image)
    assert diagnosis(graph, "'64FC9' can't be decoded").level == DiagnosticStatus.ERROR
    answer = graph.init()
    assert not answer.success
    assert "64FC9" in answer.message


def test_a_tracker_that_fails_on_a_frame_ends_neither_node_nor_track(graph):
    graph.start("detection", "detections", "/diagnostics")
    graph.process()
    assert graph.init().success
    graph.process()
    graph.puppet.fails = True
    failed = graph.process()
    status = graph.status_of(failed)
    assert (status.state, status.score, status.frames_since_seen) == (TrackStatus.UNCERTAIN, 0, 1)
    assert (status.frames_received, status.frames_processed, status.frames_dropped) == (3, 2, 1)
    assert graph.of("detections", failed)[0].detections == []
    report = diagnosis(graph, "the puppet was told to fail")
    assert report.level == DiagnosticStatus.ERROR
    graph.puppet.fails = False
    good = graph.process()
    assert graph.status_of(good).state == TrackStatus.TRACKING
    assert [d.header for d in graph.received["detection"]].count(failed.header) == 0
    assert len(graph.of("detection", good)) == 1


def test_images_that_change_their_size(graph):
    graph.start("detection", "heatmap")
    graph.process()
    assert graph.init(Box(100, 60, 50, 40)).success
    big = graph.process(graph.image(width=640, height=480))
    (detection,) = graph.of("detection", big)
    assert messages.box_from_message(detection.bbox) == pytest.approx((200, 120, 100, 80))
    assert graph.of("heatmap", big)[0].width == 80
    (detection,) = graph.of("detection", graph.process())
    assert messages.box_from_message(detection.bbox) == pytest.approx((100, 60, 50, 40))


def test_time_that_goes_back(graph):
    graph.start("detection")
    late = graph.process()
    assert graph.init().success
    early = graph.image()
    early.header.stamp.sec -= 1000
    graph.process(early)
    assert len(graph.of("detection", early)) == 1
    assert graph.status_of(early).latency == pytest.approx(1000, abs=20)
    answer = graph.init(stamp=late.header.stamp)
    assert not answer.success
    assert "no image has the stamp" in answer.message
    assert graph.init(stamp=early.header.stamp).success


def test_an_image_without_a_stamp_has_no_latency(graph):
    graph.start()
    image = graph.image()
    image.header.stamp = Time()
    graph.process(image)
    assert math.isnan(graph.status_of(image).latency)


# ---------------------------------------------------------------------------------------------------- real time


def test_a_slow_tracker_never_lags_and_every_image_is_accounted_for(graph):
    inference, period = 0.15, 1 / 30
    graph.start("detection")
    graph.puppet.seconds = inference
    with graph.camera(1 / period) as sent:
        assert graph.until(lambda: len(graph.received["status"]) > 3)
        assert graph.init().success
        start, began = len(graph.received["status"]), time.monotonic()
        time.sleep(4.0)
        elapsed = time.monotonic() - began
        statuses = [s for s in graph.received["status"][start + 1 :] if s.state != TrackStatus.STALE]
    assert graph.until(lambda: graph.status_of(sent[-1])), "the last image was not taken"
    latencies = sorted(status.latency for status in statuses)
    # A busy machine may stall a frame now and then, but a node that lags would be late by more and more: each image
    # of four seconds by another fifth of a second.
    each = max(elapsed / len(statuses), inference)
    assert latencies[len(latencies) // 2] < 2 * period + 2 * each
    assert latencies[int(0.9 * len(latencies))] < 2 * period + 4 * each
    assert 0.2 < len(statuses) * inference / elapsed <= 1.1
    for status in graph.received["status"]:
        assert 0 <= status.frames_received - status.frames_processed - status.frames_dropped <= 1
    last = graph.status_of(sent[-1])
    assert last.frames_received == last.frames_processed + last.frames_dropped
    assert last.frames_received >= 0.9 * len(sent)  # How many arrive is tested across processes.
    assert last.frames_dropped > last.frames_processed


@pytest.mark.parametrize("tracker", ["guided_ssd", "guided_frcnn"])
def test_a_detector_that_learns_from_each_image_never_lags(graph, tracker):
    if not weights.shipped(registry.DEFAULT.get(tracker).options.design.network).is_file():
        pytest.skip(f"the weights of {tracker} are not there")
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(0, 255, (30, 40, 3), np.uint8), (640, 480))
    patch = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (64, 64))
    count = 0

    def scene():
        nonlocal count
        count += 1
        frame, x = ground.copy(), 200 + round(100 * math.sin(count / 40))
        frame[200:264, x : x + 64] = patch
        return messages.image_to_message(frame, "bgr8", graph.header())

    period = 1 / 30
    # The start of such a track takes seconds where other programs hold the cores.
    graph.start("detection", tracker=tracker, service_timeout=60.0, patience=90.0, **{f"{tracker}__update_interval": 1})
    graph.process(scene())
    count = 0
    first = graph.process(scene())
    assert graph.init(Box(202, 200, 64, 64), stamp=first.header.stamp, patience=90.0).success
    with graph.camera(1 / period, scene) as sent:
        start, began = len(graph.received["status"]), time.monotonic()
        time.sleep(5.0)
        elapsed = time.monotonic() - began
        statuses = [s for s in graph.received["status"][start + 1 :] if s.state != TrackStatus.STALE]
    assert graph.until(lambda: graph.status_of(sent[-1])), "the last image was not taken"
    target = graph.node.pipeline.session.tracks["target"].handle
    assert target.updates > 0.25 * len(statuses), "it hardly learned from any image"
    # What an image waits for is the one before it and itself, updates included, however slow the machine is.
    each = max(elapsed / len(statuses), period)
    latencies = [status.latency for status in statuses]
    assert np.median(latencies) < period + 2 * each
    half = len(latencies) // 2
    assert np.median(latencies[half:]) < 2 * np.median(latencies[:half]) + period
    last = graph.status_of(sent[-1])
    assert last.frames_received == last.frames_processed + last.frames_dropped


def test_a_service_answers_in_time_although_the_tracker_is_stuck(graph):
    graph.start("detection", service_timeout=0.5)
    graph.process()
    assert graph.init(target_id="first").success
    graph.puppet.hold.clear()
    graph.publish()
    assert graph.until(lambda: graph.node.pipeline.worker.mailbox.counts.pending == 1)
    with graph.camera() as sent:
        before = graph.node_sequence()
        began = time.monotonic()
        answers = [graph.call_later(InitTarget, "init_target", bbox=messages.box_to_message(BOX)) for _ in range(3)]
        assert graph.until(lambda: all(answer.done() for answer in answers))
        assert 0.4 < time.monotonic() - began < 5
        answer = graph.stop()
        assert graph.until(lambda: len(sent) > 20)
    *older, newest = (reply.result() for reply in answers)
    assert not any(reply.success for reply in (*older, newest, answer))
    assert all("a newer request came" in reply.message for reply in older)
    for reply in (newest, answer):
        assert "still busy with an image after 0.5 s; the request was withdrawn" in reply.message
    # Images went on coming in while services were waiting.
    assert graph.node_sequence() - before > 10
    graph.puppet.hold.set()
    image = graph.process()
    assert graph.status_of(image).target_id == "first"
    assert graph.puppet.starts == 1


def test_tracking_can_be_paused(graph):
    graph.start("detections")
    graph.process()
    assert graph.init(target_id="car").success
    graph.process()
    assert graph.pause(True).success
    published = len(graph.received["detections"])
    for _ in range(3):
        graph.publish()
    answer = graph.init()
    assert not answer.success
    assert "paused" in answer.message
    assert "pause_tracking" in answer.message
    time.sleep(0.3)
    assert len(graph.received["detections"]) == published
    assert graph.pause(False).success
    image = graph.process()
    status = graph.status_of(image)
    assert (status.state, status.target_id) == (TrackStatus.TRACKING, "car")
    assert graph.until(lambda: graph.node.pipeline.worker.mailbox.counts.pending == 0)
    counts = graph.node.pipeline.worker.mailbox.counts
    assert counts.received == counts.processed + counts.dropped


def test_tracking_can_be_stopped(graph):
    graph.start("detection", "detections")
    graph.process()
    assert graph.stop().message == "there was no target"
    assert graph.init(target_id="car").success
    graph.process()
    assert graph.stop().message == "stopped tracking 'car'"
    seen = len(graph.received["detection"])
    image = graph.process()
    status = graph.status_of(image)
    assert (status.state, status.target_id) == (TrackStatus.IDLE, "")
    assert graph.of("detections", image)[0].detections == []
    assert len(graph.received["detection"]) == seen


# ------------------------------------------------------------------------------------------------- starting a track


def test_starts_on_the_stamped_image_and_catches_up(graph):
    graph.start("detection")
    sent = [graph.process(graph.image(grey)) for grey in range(0, 200, 20)]
    answer = graph.init(stamp=sent[3].header.stamp, target_id="car")
    assert answer.success
    assert "caught up over 6 of 6 later images" in answer.message
    assert graph.puppet.seen == pytest.approx([60, 80, 100, 120, 140, 160, 180])
    assert graph.received["detection"] == []
    image = graph.process(graph.image(250))
    assert graph.puppet.seen[-1] == 250
    assert len(graph.of("detection", image)) == 1
    # Catching up counts no image twice.
    status = graph.status_of(image)
    assert (status.frames_received, status.frames_processed, status.frames_dropped) == (11, 11, 0)


def test_catching_up_with_a_slow_tracker_skips_images(graph):
    graph.start(catch_up_seconds=0.3, buffer_seconds=10.0)
    sent = [graph.process(graph.image(grey)) for grey in range(0, 240, 8)]
    graph.puppet.seconds = 0.1
    began = time.monotonic()
    assert graph.init(stamp=sent[0].header.stamp).success
    assert time.monotonic() - began < 3
    seen = graph.puppet.seen
    assert seen[0] == 0
    assert seen[-1] == 232
    assert seen == sorted(seen)
    assert len(seen) < 8


def test_no_stamp_means_the_newest_image(graph):
    graph.start()
    for grey in (10, 20, 30):
        graph.process(graph.image(grey))
    assert graph.init().target_id == "target"
    assert graph.puppet.seen == [30]
    time.sleep(2.2)
    answer = graph.init()
    assert answer.success
    assert re.search(r"the newest image came \d+ s ago", answer.message)


def test_a_request_may_overtake_its_image(graph):
    graph.start()
    graph.process()
    time.sleep(0.1)
    image = graph.image(77)
    answer = graph.call_later(
        InitTarget, "init_target", header=image.header, bbox=messages.box_to_message(BOX), target_id="car"
    )
    time.sleep(0.1)
    assert not answer.done()
    graph.images.publish(image)
    assert graph.until(answer.done)
    assert answer.result().success
    assert graph.puppet.seen[0] == 77


def test_a_box_on_the_topic_starts_a_track_too(graph):
    graph.start("detection")
    graph.process()
    image = graph.process()
    assert graph.until(graph.boxes.get_subscription_count)
    graph.boxes.publish(Detection2D(header=image.header, bbox=messages.box_to_message(Box(1, 1, 2, 2))))
    graph.boxes.publish(Detection2D(header=image.header, bbox=messages.box_to_message(BOX), id="from_gui"))
    assert graph.until(lambda: graph.puppet.starts)
    (detection,) = graph.of("detection", graph.process())
    assert detection.id == "from_gui"


REFUSED_BOXES = {
    "outside the image": Box(1000, 1000, 50, 40),
    "NaN": Box(math.nan, 10, 50, 40),
    "infinite": Box(10, 10, math.inf, 40),
    "zero": Box(10, 10, 0, 40),
    "negative": Box(10, 10, 50, -40),
    "at least 4 px": Box(10, 10, 3.5, 40),
    "larger than the image": Box(-10, 10, 1.2 * WIDTH, 40),
    "mostly outside the image": Box(-75, 10, 100, 40),
}


def test_boxes_that_no_track_can_start_on_are_refused_and_the_running_track_goes_on(graph):
    graph.start("detection")
    graph.process()
    assert graph.init(target_id="car").success
    for words, box in REFUSED_BOXES.items():
        answer = graph.init(box, target_id="bike")
        assert not answer.success
        assert words in answer.message
        assert answer.target_id == ""
    for theta in (0.5, -math.pi, math.nan, math.inf):
        answer = graph.init(theta=theta)
        assert not answer.success
        assert "rotated" in answer.message
    image = graph.process()
    assert graph.of("detection", image)[0].id == "car"
    assert graph.puppet.starts == 1


def test_a_box_a_little_larger_than_the_image_is_clipped(graph):
    graph.start("detection")
    graph.process()
    assert graph.init(Box(-0.3, 60, WIDTH + 0.6, 80)).success
    (detection,) = graph.of("detection", graph.process())
    assert messages.box_from_message(detection.bbox) == pytest.approx((0, 60, WIDTH, 80))


@pytest.mark.parametrize(
    ("target_id", "words"),
    [
        ("x" * 129, "target_id has 129 characters"),
        ("car\n[ERROR] all is lost", r"'car\n[ERROR] all is lost' has control characters"),
        ("\x1b[2Jcar", r"'\x1b[2Jcar' has control"),
        ("tab\there", r"\t"),
        ("\u202ecar", r"\u202e"),
    ],
)
def test_names_that_no_target_can_have_are_refused(graph, capfd, target_id, words):
    graph.start()
    graph.process()
    answer = graph.init(target_id=target_id)
    assert not answer.success
    assert words in answer.message
    assert answer.message.isprintable()
    assert graph.status_of(graph.process()).target_id == ""
    assert graph.init(target_id="größe " + "x" * 122).success
    logged = capfd.readouterr().err
    assert all(line.isprintable() for line in logged.split("\n"))
    assert not [line for line in logged.split("\n") if line.startswith("[ERROR] all")]


@pytest.mark.parametrize("where", ["encoding", "format", "tracker", "init_box"])
def test_control_characters_of_no_input_reach_log_or_diagnostics(graph, capfd, where):
    evil = "\x1b[31mred\n[FATAL] forged\a"
    graph.start("/diagnostics", image_transport="compressed" if where == "format" else "raw")
    if where == "format":
        graph.compressed.publish(CompressedImage(header=graph.header(), format=evil, data=b"123"))
        assert graph.until(graph.node_sequence)
        answer = graph.init()
        assert "forged" in answer.message
        assert answer.message.isprintable()
    elif where == "encoding":
        image = graph.image()
        image.encoding = evil
        graph.publish(image)
        assert "forged" in diagnosis(graph, "can't be decoded").message
    elif where == "tracker":
        (result,) = graph.set(tracker=evil)
        assert "forged" in result.reason
        assert result.reason.isprintable()
    else:
        graph.process()
        assert graph.until(graph.boxes.get_subscription_count)
        graph.boxes.publish(Detection2D(bbox=messages.box_to_message(BOX), id=evil))
        time.sleep(0.5)
    assert all(array.status[0].message.isprintable() for array in graph.received["/diagnostics"])
    assert all(line.isprintable() for line in capfd.readouterr().err.split("\n"))


def test_a_box_is_refused_while_there_is_no_image(graph):
    graph.start()
    time.sleep(0.2)
    answer = graph.init()
    assert not answer.success
    assert "no image has arrived on /image_raw in the " in answer.message
    assert "/client has announced itself there" in answer.message


def test_a_stamp_too_old_for_the_buffer_is_refused(graph):
    graph.start(buffer_seconds=0.2)
    old = graph.process()
    time.sleep(0.4)
    graph.process()
    answer = graph.init(stamp=old.header.stamp)
    assert not answer.success
    assert "too old" in answer.message
    assert "buffer_seconds (0.2)" in answer.message
    future = graph.header().stamp
    future.sec += 100
    answer = graph.init(stamp=future)
    assert not answer.success
    assert "yet" in answer.message


def test_a_tracker_that_cannot_start_is_an_answer(graph, monkeypatch):
    graph.start()
    graph.process()

    def start(frame, boxes):
        raise MemoryError("no room for the filter")

    monkeypatch.setattr(graph.node.pipeline.session.tracker, "start", start)
    answer = graph.init()
    assert not answer.success
    assert "no room for the filter" in answer.message
    assert graph.status_of(graph.process()).state == TrackStatus.IDLE


# ---------------------------------------------------------------------------------------------------------- lifecycle


def test_lifecycle_from_start_to_end(graph):
    node = graph.start(active=False, autostart=False)
    assert graph.state() == "unconfigured"
    answer = graph.init()
    assert not answer.success
    assert "not active" in answer.message

    assert graph.change_state(Transition.TRANSITION_CONFIGURE)
    assert graph.state() == "inactive"
    assert graph.images.get_subscription_count() == 0
    assert "not active" in graph.stop().message

    assert graph.change_state(Transition.TRANSITION_ACTIVATE)
    graph.connected()
    graph.process()
    assert graph.init(target_id="car").success

    assert graph.change_state(Transition.TRANSITION_DEACTIVATE)
    assert graph.until(lambda: graph.images.get_subscription_count() == 0)
    assert "not active" in graph.pause(True).message
    assert graph.change_state(Transition.TRANSITION_ACTIVATE)
    graph.connected()
    assert not graph.init().success, "images from before must be forgotten"
    status = graph.status_of(graph.process())
    assert (status.target_id, status.frames_received) == ("car", 1)

    tracker = weakref.ref(node.pipeline.session.tracker)
    assert graph.change_state(Transition.TRANSITION_DEACTIVATE)
    assert graph.change_state(Transition.TRANSITION_CLEANUP)
    assert graph.state() == "unconfigured"
    gc.collect()
    assert tracker() is None, "cleanup must free the tracker"

    assert graph.change_state(Transition.TRANSITION_CONFIGURE)
    assert graph.change_state(Transition.TRANSITION_ACTIVATE)
    assert graph.change_state(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert graph.state() == "finalized"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"tracker": "pupet"}, "there is no tracker 'pupet'; did you mean 'puppet'?"),
        ({"weights": "missing.safetensors"}, "weights file missing.safetensors is not there"),
        ({"tracker": "nano"}, "nano"),
        ({"update": "sometimes"}, "update"),
        ({"tracker": "kcf", "update": "often"}, "'kcf' has no update policy"),
    ],
)
def test_configure_fails_with_a_reason_and_can_be_tried_again(graph, parameters, words):
    graph.start("/diagnostics", active=False, **parameters)
    report = diagnosis(graph, "not configured")
    assert report.level == DiagnosticStatus.ERROR
    assert words in report.message
    assert graph.state() == "unconfigured"
    answer = graph.init()
    assert not answer.success
    assert "not active" in answer.message
    assert words in answer.message
    # Corrected in one go; then the node can be configured and used.
    assert graph.set_atomically(tracker="puppet", weights="", update="").successful
    assert graph.change_state(Transition.TRANSITION_CONFIGURE)
    assert graph.change_state(Transition.TRANSITION_ACTIVATE)
    assert graph.state() == "active"


def test_a_stuck_tracker_does_not_keep_the_node_from_its_transitions(graph):
    graph.start(service_timeout=0.3)
    graph.process()
    assert graph.init().success
    graph.puppet.hold.clear()
    image = graph.publish()
    assert graph.until(lambda: graph.node.pipeline.worker.mailbox.counts.pending)
    began = time.monotonic()
    assert graph.change_state(Transition.TRANSITION_DEACTIVATE)
    assert graph.change_state(Transition.TRANSITION_CLEANUP)
    assert time.monotonic() - began < 5
    assert graph.change_state(Transition.TRANSITION_CONFIGURE)
    assert graph.change_state(Transition.TRANSITION_ACTIVATE)
    graph.puppet.hold.set()
    graph.connected()
    status = graph.status_of(graph.process())
    assert (status.state, status.target_id) == (TrackStatus.IDLE, "")
    assert graph.status_of(image) is None


# --------------------------------------------------------------------------------------------------------- parameters


def test_parameters_are_described(graph):
    graph.start()
    node = [
        *("tracker", "device", "weights", "update", "image_transport", "reliability", "autostart", "buffer_seconds"),
        *("buffer_megabytes", "catch_up_seconds", "service_timeout", "silence", "heatmap.stride"),
    ]
    names = [*node, "puppet.gain", "puppet.mode", "puppet.count"]
    described = {d.name: d for d in graph.describe(*names)}
    assert set(described) == set(names)
    assert all(d.description for d in described.values())
    assert {name for name, d in described.items() if d.read_only} == {"image_transport", "reliability", "autostart"}
    stride = described["heatmap.stride"].integer_range[0]
    assert (stride.from_value, stride.to_value) == (1, 64)
    gain = described["puppet.gain"].floating_point_range[0]
    assert (gain.from_value, gain.to_value) == (0, 2)
    assert described["puppet.count"].type == ParameterType.PARAMETER_INTEGER
    assert described["puppet.mode"].additional_constraints == "one of: calm, wild"
    assert graph.get("puppet.gain") == 1.0
    assert all(name in described["tracker"].description for name in ("dimp18", "csrt", "kcf", "puppet"))


def test_bad_values_are_refused_with_a_reason_and_change_nothing(graph):
    graph.start("detection")
    graph.process()
    assert graph.init(target_id="car").success
    for values, words in [
        ({"tracker": "pupet"}, "did you mean 'puppet'"),
        ({"tracker": 5}, "type"),
        ({"weights": "missing.safetensors"}, "missing.safetensors is not there"),
        ({"update": "sometimes"}, "update"),
        ({"heatmap__stride": 0}, "heatmap.stride"),
        ({"buffer_seconds": -1.0}, "buffer_seconds"),
        ({"image_transport": "compressed"}, "read-only"),
        ({"puppet__gain": 3.0}, "puppet.gain"),
        ({"puppet__gain": math.nan}, "puppet.gain"),
        ({"puppet__gain": "loud"}, "puppet.gain"),
        ({"puppet__mode": "sleepy"}, "calm, wild"),
        ({"puppet__count": 100}, "puppet.count"),
        ({"no_such_parameter": 1}, "declared"),
    ]:
        (result,) = graph.set(**values)
        assert not result.successful, values
        assert words in result.reason, (values, result.reason)
    assert (graph.get("tracker"), graph.get("weights"), graph.get("puppet.gain")) == ("puppet", "", 1.0)
    image = graph.process()
    assert graph.of("detection", image)[0].id == "car"
    assert graph.puppet.starts == 1


def test_a_whole_number_is_good_enough_for_a_float(graph):
    graph.start(puppet__gain=2, buffer_seconds=3)
    assert graph.node.pipeline.session.tracker.options.gain == 2.0
    assert graph.set(puppet__gain=1)[0].successful
    assert graph.node.pipeline.session.tracker.options.gain == 1.0
    (result,) = graph.set(puppet__gain=3)
    assert not result.successful
    assert "[0.0, 2.0]" in result.reason


def test_names_are_relative_so_that_namespaces_and_remaps_work(graph):
    rules = ["image_raw:=/cam/image", "detection:=found"]
    arguments = ["--ros-args", "-r", "__ns:=/drone1", *(part for rule in rules for part in ("-r", rule))]
    node = graph.start(active=False, cli_arguments=arguments, image_transport="compressed")
    assert graph.until(lambda: node._active)
    topics = {name for name, _ in node.get_topic_names_and_types()}
    expected = ("found", "detections", "status", "heatmap", "image_annotated", "init_box")
    assert {f"/drone1/{name}" for name in expected} | {"/cam/image/compressed", "/diagnostics"} <= topics
    services = {name for name, _ in node.get_service_names_and_types()}
    assert {f"/drone1/{name}" for name in ("init_target", "stop_tracking", "pause_tracking")} <= services


def test_settings_take_effect_while_running(graph):
    graph.start("heatmap")
    graph.process()
    assert graph.init().success
    assert graph.of("heatmap", graph.process())[0].width == WIDTH // 8
    assert graph.set(heatmap__stride=4)[0].successful
    assert graph.of("heatmap", graph.process())[0].width == WIDTH // 4
    assert graph.puppet.starts == 1, "nothing about the tracker changed, so the track must not start anew"


def test_the_tracker_can_be_switched_while_it_tracks(graph):
    graph.start("detection")
    graph.process(graph.image(10))
    assert graph.init(target_id="car").success
    graph.process(graph.image(50))
    assert graph.set(tracker="puppet2")[0].successful
    # It starts on the image that its box was found in.
    assert graph.until(lambda: graph.puppet.starts == 2)
    assert graph.puppet.seen == [10, 50, 50]
    image = graph.process()
    (detection,) = graph.of("detection", image)
    assert detection.id == "car"
    assert messages.box_from_message(detection.bbox) == pytest.approx(BOX)
    assert graph.status_of(image).tracker == "puppet2"
    # An option of the tracker in use rebuilds it, one of another tracker does not.
    assert graph.set(puppet2__gain=0.5)[0].successful
    assert graph.until(lambda: graph.puppet.starts == 3)
    assert graph.set(puppet__gain=0.5)[0].successful
    assert graph.node.pipeline.session.tracker.options.gain == 0.5
    # A target that is LOST has no box to hand over.
    graph.puppet.state = TrackState.LOST
    graph.process()
    assert graph.set(update="often")[0].successful
    assert graph.until(lambda: graph.node.pipeline.session.tracker.options.update == "often")
    assert graph.status_of(graph.process()).state == TrackStatus.IDLE
    assert graph.puppet.starts == 3


def test_switching_between_real_trackers_keeps_the_target(graph):
    rng = np.random.RandomState(1)
    target = rng.randint(0, 255, (40, 48, 3)).astype(np.uint8)

    def scene(x: int):
        frame = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        frame[100:140, x : x + 48] = target
        return messages.image_to_message(frame, "bgr8", graph.header())

    graph.start("detection", tracker="kcf")
    graph.process(scene(60))
    assert graph.init(Box(60, 100, 48, 40)).success
    for x in range(62, 110, 2):
        image = graph.process(scene(x))
        status = graph.status_of(image)
        assert status.state == TrackStatus.TRACKING
        assert graph.of("detection", image)[0].bbox.center.position.x == pytest.approx(x + 24, abs=4)
        if x == 84:
            assert status.tracker == "kcf"
            assert graph.set(tracker="csrt")[0].successful
    assert status.tracker == "csrt"


# -------------------------------------------------------------------------------------------------------- diagnostics


def test_diagnostics_tell_rates_counts_and_memory(graph):
    graph.start("/diagnostics")
    with graph.camera(20):
        assert graph.until(lambda: len(graph.received["status"]) > 2)
        assert graph.init().success
        time.sleep(1.0)
        status = diagnosis(graph, "TRACKING")
    assert status.level == DiagnosticStatus.OK
    assert status.name == "tracker: tracking"
    values = {pair.key: pair.value for pair in status.values}
    assert 1 < float(values["input rate (Hz)"]) < 30
    assert 1 < float(values["processed rate (Hz)"]) < 30
    assert 0 < float(values["latency p50 (ms)"]) <= float(values["latency p99 (ms)"]) < 5000
    assert (values["tracker"], values["device"], values["state"]) == ("puppet", "cpu", "TRACKING")
    assert float(values["resident memory (MiB)"]) > 10
    silent = diagnosis(graph, "no image on /image_raw for")
    assert silent.level == DiagnosticStatus.WARN


def test_no_image_stays_alive_longer_than_it_is_needed(graph, monkeypatch):
    """Beside the last frame, which another tracker may have to start on, and the one being worked on."""
    graph.start("image_annotated", buffer_seconds=0.0)
    graph.process()
    assert graph.init().success
    frames = []
    decode = images.from_message

    def watch(message, *scale):
        frame = decode(message, *scale)
        frames.append(weakref.ref(frame))
        return frame

    monkeypatch.setattr(images, "from_message", watch)
    for _ in range(10):
        graph.process()
    assert len(frames) == 10
    # The thread that draws may still be at one.
    assert graph.until(lambda: sum(reference() is not None for reference in frames) <= 2)
