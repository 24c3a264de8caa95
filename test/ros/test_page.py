"""The page in a real browser, in front of a real node: what an operator does, on a desk and on a tablet."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")
pytest.importorskip("aiohttp", reason="needs aiohttp (the extra `page`; `make setup` gets it)")
pytest.importorskip("selenium", reason="needs selenium (`make setup` gets it)")

from rclpy.qos import QoSProfile
from std_srvs.srv import SetBool, Trigger
from vision_msgs.msg import Detection2D

from tracker_ros.geometry.boxes import iou
from tracker_ros.ros import messages
from tracker_ros.trackers.base import TrackState

from .browser import Browser, needs_browser
from .conftest import ROOT
from .graph import HEIGHT, WIDTH, Graph

pytestmark = [pytest.mark.ros, needs_browser]

SCREENSHOTS = ROOT / "out" / "test_page"


@pytest.fixture
def start():
    """Starts a program of the package with parameters and returns it with the lines of its output; ended afterwards."""
    started = []

    def run(module: str, *parameters: str) -> subprocess.Popen:
        command = [sys.executable, "-u", "-m", f"tracker_ros.ros.{module}", "--ros-args"]
        for parameter in parameters:
            command += ["-p", parameter]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.send_signal(signal.SIGINT)
    for process in started:
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def address(page: subprocess.Popen) -> str:
    """What the page's node says to open."""
    said = ""
    for line in page.stdout:
        said += line
        found = re.search(r"open (http\S+) in a browser", line)
        if found:
            return found[1]
    raise AssertionError(f"the page did not start:\n{said}")


@pytest.fixture
def browser(tmp_path: Path, request: pytest.FixtureRequest):
    """A browser; where the test fails, what it shows stays in out/test_page."""
    browser = Browser(tmp_path / "profile")
    try:
        failed = request.session.testsfailed
        yield browser
        if request.session.testsfailed > failed:
            browser.screenshot(SCREENSHOTS / f"{re.sub(r'[^a-z0-9]+', '-', request.node.name)}.png")
    finally:
        browser.close()


def test_the_simulated_flight(graph: Graph, start, browser: Browser):
    """Draws a box around the car, sees TRACKING, the car leaves the view, sees LOST, stops: at a desk, then a phone."""
    start("simulated_camera", "start:=paused", "rate:=20.0", "wait_for_tracker:=true", "limit:=270")
    start("tracker_node", "tracker:=csrt")
    page = start("page", "port:=0")
    truth: list[Detection2D] = []
    graph.client.create_subscription(Detection2D, "ground_truth", truth.append, QoSProfile(depth=500))
    graph.listen("status", "detections")
    browser.open(address(page))

    def first_image() -> bool:
        return bool(graph.call(Trigger, "simulated_camera/first_image").success)

    def shows_picture() -> bool:
        return first_image() and "pictures a second" in browser.text("#link-text")

    services = graph.client.get_service_names_and_types
    assert browser.wait(lambda: "/simulated_camera/first_image" in dict(services()), 150), "the camera did not start"
    assert browser.wait(lambda: graph.received["status"] or (first_image() and False), 60), "the tracker did not start"
    assert browser.wait(shows_picture), browser.text("body")
    assert browser.wait(lambda: graph.get("buffer_seconds") == 5.0), "a box may be drawn slowly"
    assert truth
    box = messages.box_from_message(truth[-1].bbox)
    corners = [(box.x, box.y), (box.x + box.w, box.y + box.h)]
    browser.drag(*(browser.on_screen(x, y, 640, 480) for x, y in corners))
    answer = browser.wait(lambda: browser.text("#message"))
    assert "tracking 'target-1'" in answer
    graph.call(SetBool, "simulated_camera/play", data=True)

    assert browser.wait(lambda: browser.text(".state") == "TRACKING"), browser.text("aside")
    assert browser.text(".name") == "target-1"
    assert browser.wait(lambda: len(truth) > 30 and len(graph.received["detections"]) > 30, 60)
    found = {messages.stamp_to_ns(m.header.stamp): m.detections for m in graph.received["detections"]}
    overlaps = [
        iou(messages.box_from_message(found[stamp][0].bbox), messages.box_from_message(true.bbox))
        for true in truth[:30]
        if true.results and found.get(stamp := messages.stamp_to_ns(true.header.stamp))
    ]
    assert len(overlaps) > 10
    assert np.median(overlaps) > 0.4, "the box that was drawn is not the one that is tracked"

    browser.size(390, 844, touch=True)
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    assert browser.text(".card")

    # Frames 202 to 274: the car is out of view.
    assert browser.wait(lambda: len(truth) > 200 and not truth[-1].results, 180), len(truth)
    assert browser.wait(lambda: browser.text(".state") == "LOST", 60), browser.text("aside")
    assert float(browser.text(".score")) < 0.6
    assert browser.run("return document.querySelector('.first').complete && document.querySelector('.now').complete")
    browser.click("#stop")
    assert browser.wait(lambda: "stopped tracking 'target-1'" in browser.text("#message")), browser.text("#message")
    assert browser.wait(lambda: browser.text(".card") == "")
    assert browser.errors() == []


@pytest.fixture
def puppet_page(graph: Graph, start, browser: Browser):
    """The page in front of a node whose tracker does what the test says, without images so far."""
    graph.start("detections", tracker="puppet", service_timeout=3.0)
    page = start("page", "port:=0")
    browser.open(address(page))
    assert browser.wait(lambda: "Waiting for the first image" in browser.text("#notice")), browser.text("body")
    assert browser.wait(lambda: graph.client.count_subscribers("image_raw") == 2)
    assert browser.wait(lambda: graph.get("buffer_seconds") == 5.0), "a box may be drawn slowly"
    yield graph
    assert browser.errors() == []


def places(browser: Browser, *points: tuple[float, float]) -> list[tuple[float, float]]:
    return [browser.on_screen(x, y, WIDTH, HEIGHT) for x, y in points]


def shown_grey(browser: Browser) -> int:
    """The mean grey in the middle of the picture on the screen."""
    script = """const c = document.getElementById('picture'), side = 64;
        const data = c.getContext('2d').getImageData((c.width - side) / 2, (c.height - side) / 2, side, side).data;
        let sum = 0;
        for (let i = 0; i < data.length; i += 4) sum += data[i];
        return Math.round(sum / (side * side))"""
    return int(browser.run(script))


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
def test_the_picture_is_held_while_drawing_and_the_track_starts_on_it(puppet_page: Graph, browser: Browser, touch):
    graph = puppet_page
    greys = iter(range(20, 250))
    with graph.camera(10, lambda: graph.image(next(greys, 250))):
        assert browser.wait(lambda: shown_grey(browser) > 30)
        begin, end = places(browser, (100, 60), (150, 100))
        browser._pointer("down", begin, touch)
        held = shown_grey(browser)
        browser._pointer("move", end, touch)
        time.sleep(1.5)  # More than the node keeps images for on its own, and 15 images.
        assert abs(shown_grey(browser) - held) <= 1
        assert browser.text("#frozen")
        browser._pointer("up", end, touch)
        assert browser.wait(lambda: graph.puppet.starts == 1), browser.text("#message")
        assert browser.wait(lambda: browser.text(".state") == "TRACKING")
    assert abs(graph.puppet.seen[0] - held) <= 2, "the track began on another image than the one that was seen"
    first = next(m.detections[0] for m in graph.received["detections"] if m.detections)
    assert messages.box_from_message(first.bbox) == pytest.approx((100, 60, 50, 40), abs=1.0)
    assert browser.text("#frozen") == ""


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
def test_a_tap_takes_the_share_of_the_image_that_the_page_says(puppet_page: Graph, browser: Browser, touch):
    graph = puppet_page
    with graph.camera(15):
        assert browser.wait(lambda: "10 %" in browser.text("#hint"))
        assert browser.wait(lambda: shown_grey(browser) > 30)
        browser.tap(*places(browser, (160, 120)), touch=touch)
        assert browser.wait(lambda: browser.text(".state") == "TRACKING"), browser.text("#message")
    first = next(m.detections[0] for m in graph.received["detections"] if m.detections)
    assert messages.box_from_message(first.bbox) == pytest.approx((148, 108, 24, 24), abs=1.0)


def test_states_buttons_and_refusals(puppet_page: Graph, browser: Browser):
    graph = puppet_page
    with graph.camera(15):
        assert browser.wait(lambda: shown_grey(browser) > 30)
        browser.tap(*places(browser, (100, 100)))
        assert browser.wait(lambda: browser.text(".state") == "TRACKING")
        for state in (TrackState.UNCERTAIN, TrackState.LOST, TrackState.TRACKING):
            graph.puppet.state, graph.puppet.score = state, 0.25
            assert browser.wait(lambda state=state: browser.text(".state") == state.name)
        assert browser.wait(lambda: browser.text(".score") == "0.25")

        # The same target anew, on demand; else a target of its own, which replaces it in a node with room for one.
        browser.click(".name")
        browser.tap(*places(browser, (200, 100)))
        assert browser.wait(lambda: graph.puppet.starts == 2)
        assert browser.text(".name") == "target-1"
        browser.click(".name")
        browser.tap(*places(browser, (60, 60)))
        assert browser.wait(lambda: browser.text(".name") == "target-2"), browser.text("aside")

        browser.click("#heatmap")
        assert browser.wait(lambda: graph.node.count_subscribers("heatmap") == 1)
        browser.click("#heatmap")
        assert browser.wait(lambda: graph.node.count_subscribers("heatmap") == 0)

        browser.click("#pause")
        assert browser.wait(lambda: browser.text("#pause") == "Go on")
        browser.tap(*places(browser, (200, 100)))
        assert browser.wait(lambda: "paused" in browser.text("#message.bad")), browser.text("#message")
        browser.click("#pause")
        assert browser.wait(lambda: browser.text("#pause") == "Pause")

        browser.run("const m = document.getElementById('tracker'); m.value = 'nano'; m.onchange()")
        assert browser.wait(lambda: "can't be loaded" in browser.text("#message.bad")), browser.text("#message")
        browser.run("const m = document.getElementById('tracker'); m.value = 'kcf'; m.onchange()")
        assert browser.wait(lambda: browser.text("#message") == "now tracking with kcf"), browser.text("#message")

        # Boxes that are none, and drawing that is given up.
        starts = graph.puppet.starts
        browser.drag(*places(browser, (100, 100), (300, 101)))
        assert browser.wait(lambda: "too small" in browser.text("#message.bad")), browser.text("#message")
        browser._pointer("down", *places(browser, (100, 100)), False)
        browser._pointer("move", *places(browser, (150, 150)), False)
        assert browser.text("#frozen")
        browser.driver.switch_to.active_element.send_keys("\ue00c")  # Escape
        assert browser.wait(lambda: browser.text("#frozen") == "")
        browser._pointer("up", *places(browser, (150, 150)), False)
        assert graph.puppet.starts == starts

        browser.click(".one-stop")
        assert browser.wait(lambda: browser.text(".card") == "")
        assert browser.text("#empty")
    assert browser.wait(lambda: "No image from the camera" in browser.text("#notice"))


def test_the_page_outlives_the_tracker_and_browsers_outlive_the_page(graph: Graph, start, browser: Browser):
    page = start("page", "port:=0")
    where = address(page)
    browser.open(where)
    with graph.camera(15):
        assert browser.wait(lambda: shown_grey(browser) > 30)
        browser.tap(*places(browser, (100, 100)))
        assert browser.wait(lambda: "the tracker is not there" in browser.text("#message.bad"))
        assert browser.wait(lambda: "the tracker says nothing" in browser.text("#link-text"))
        graph.start(tracker="puppet")
        assert browser.wait(lambda: "pictures a second" in browser.text("#link-text"))

        def follows() -> bool:
            browser.tap(*places(browser, (100, 100)))
            return browser.wait(lambda: browser.text(".state") == "TRACKING", 3)

        assert browser.wait(follows)
        page.send_signal(signal.SIGINT)
        assert page.wait(20) == 0
        assert browser.wait(lambda: "trying again" in browser.text("#link-text"))
        assert graph.puppet.starts >= 1
        start("page", f"port:={where.rstrip('/').rpartition(':')[2]}")
        assert browser.wait(lambda: browser.text(".state") == "TRACKING", 40), browser.text("body")


def test_other_machines_need_the_token(graph: Graph, start, browser: Browser):
    page = start("page", "port:=0", "host:=0.0.0.0")
    where = address(page).replace("0.0.0.0", "127.0.0.1")
    plain, _, token = where.partition("?token=")
    assert len(token) >= 16
    browser.open(plain)
    assert "a token is needed" in browser.text("body")
    browser.open(plain + "?token=" + "x" * 32)
    assert "this token is wrong" in browser.text("body")
    with graph.camera(15):
        browser.open(where)
        assert browser.wait(lambda: shown_grey(browser) > 30)
        assert browser.driver.current_url == plain, "the token stays in the address"


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ("host:=no.such.host.invalid", "token|not known|resolve|resolution"),
        ("token:=short", "at least 16 characters"),
        ("port:=70000", "port"),
        ("rate:=.nan", "rate"),
        ("image_transport:=theora", "raw, compressed"),
        ("host:=[1]", "host"),
    ],
)
def test_wrong_parameters_are_refused(start, parameter: str, said: str):
    page = start("page", parameter)
    output = page.communicate(timeout=60)[0]
    assert page.returncode == 2, output
    assert re.search(said, output), output
    assert "Traceback" not in output
