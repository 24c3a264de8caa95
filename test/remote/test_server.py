"""The page's server as browsers and others meet it: a real socket, and bad input of all kinds.

The tracker behind it is one that answers at once and notes what it was asked: what a real one does is tested in
test/ros.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="needs aiohttp (the extra `page`; `make setup` gets it)")

import aiohttp

from tracker_ros.geometry.boxes import Box
from tracker_ros.remote.page.commands import MAX_BYTES
from tracker_ros.remote.page.scene import Scene
from tracker_ros.remote.page.server import PageServer, is_loopback
from tracker_ros.remote.tracker import Answer, Sighting, State

TOKEN = "a token of enough letters"
WIDTH, HEIGHT = 320, 240


class Notes:
    """A `RemoteTracker` that notes what it is asked for; with `hold` it answers only when told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.hold = False
        self.open: list[Future[Answer]] = []

    def _note(self, *what: Any) -> Future[Answer]:
        self.asked.append(what)
        future: Future[Answer] = Future()
        if self.hold:
            self.open.append(future)
        else:
            future.set_result(Answer(True, f"did {what[0]}"))
        return future

    def start(self, stamp: int, box: Box, target_id: str) -> Future[Answer]:
        return self._note("start", stamp, box, target_id)

    def stop(self, target_id: str = "") -> Future[Answer]:
        return self._note("stop", target_id)

    def pause(self, paused: bool) -> Future[Answer]:
        return self._note("pause", paused)

    def select(self, tracker: str) -> Future[Answer]:
        return self._note("select", tracker)


class Visit:
    """A server, and a browser's side of it."""

    def __init__(self, server: PageServer, scene: Scene, tracker: Notes, session: aiohttp.ClientSession) -> None:
        self.server, self.scene, self.tracker, self.session = server, scene, tracker, session
        self.root = f"http://127.0.0.1:{server.port}"
        self.stamp = 0

    def picture(self) -> int:
        self.stamp += 33_000_000
        self.scene.add_picture(self.stamp, lambda: np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
        return self.stamp

    def say(self, name: str = "car", state: State = State.TRACKING, score: float = 0.5) -> None:
        self.scene.add(Sighting(self.stamp, name, state, score, Box(10, 20, 30, 40) if state.seen else None, "csrt"))

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self.session.get(self.root + path, headers=headers, allow_redirects=False) as response:
            return response.status, await response.text()

    @contextlib.asynccontextmanager
    async def live(self, origin: str | None = "", **options: Any):
        headers = {} if origin is None else {"Origin": origin or self.root}
        async with self.session.ws_connect(self.root + "/live", headers=headers, max_msg_size=0, **options) as ws:
            yield Talk(ws)

    async def refused(self, origin: str | None = "", headers: dict[str, str] | None = None) -> int:
        given = {**({} if origin is None else {"Origin": origin or self.root}), **(headers or {})}
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await self.session.ws_connect(self.root + "/live", headers=given)
        return int(caught.value.status)

    async def works(self) -> None:
        """The page is served, and a newcomer gets a picture and an answer."""
        assert (await self.get("/"))[0] == 200
        async with self.live() as talk:
            self.picture()
            assert (await talk.picture())["width"] == WIDTH
            assert (await talk.ask(do="pause", paused=False))["ok"]


class Talk:
    """A websocket: acknowledges pictures, keeps answers."""

    def __init__(self, ws: Any) -> None:
        self.ws = ws
        self.requests = 0
        self.answers: list[dict[str, Any]] = []
        self.acknowledge = True

    async def next(self) -> dict[str, Any] | None:
        """The next message's header with its JPEG under ``jpeg``; None for an answer, which is kept."""
        message = await asyncio.wait_for(self.ws.receive(), 10)
        if message.type is aiohttp.WSMsgType.TEXT:
            self.answers.append(json.loads(message.data))
            return None
        assert message.type is aiohttp.WSMsgType.BINARY, (message.type, self.ws.close_code)
        (length,) = struct.unpack_from(">I", message.data)
        header = json.loads(message.data[4 : 4 + length])
        if self.acknowledge:
            await self.ws.send_json({"do": "seen", "n": header["n"]})
        return {**header, "jpeg": message.data[4 + length :]}

    async def until(self, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The first message that the condition holds for."""
        for _ in range(200):
            message = await self.next()
            if message is not None and condition(message):
                return message
        raise AssertionError("it did not come")

    async def picture(self) -> dict[str, Any]:
        return await self.until(lambda m: m["jpeg"])

    async def answer(self) -> dict[str, Any]:
        while not self.answers:
            await self.next()
        return self.answers.pop(0)

    async def ask(self, **command: Any) -> dict[str, Any]:
        self.requests += 1
        await self.ws.send_json({"id": self.requests, **command})
        answer = await self.answer()
        assert answer["answer"] == self.requests
        return answer

    async def closed(self) -> int:
        """The code that the server closes the connection with."""
        for _ in range(200):
            message = await asyncio.wait_for(self.ws.receive(), 10)
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING):
                return int(self.ws.close_code)
        raise AssertionError("the connection stays open")


def visit(test: Callable[[Visit], Awaitable[None]], **options: Any) -> None:
    """Run `test` with a server of its own."""

    async def run() -> None:
        scene, tracker = Scene(), Notes()
        server = PageServer(scene, tracker, ("csrt", "kcf"), port=0, **options)
        await server.start()
        try:
            async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
                await test(Visit(server, scene, tracker, session))
        finally:
            await server.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


# ------------------------------------------------------------------------------------------------------- what it is for


def test_serves_its_files_and_nothing_else():
    async def test(v: Visit) -> None:
        for path in ("/", "/page.js", "/page.css", "/icon.svg"):
            async with v.session.get(v.root + path) as response:
                assert response.status == 200
                assert "default-src 'none'" in response.headers["Content-Security-Policy"]
                elsewhere = re.findall("https?://[a-z.0-9]+", await response.text())
                assert set(elsewhere) <= {"http://www.w3.org"}, "nothing is loaded from elsewhere"
        for path in ("/server.py", "/../server.py", "/%2e%2e/server.py", "/static/", "/page.js/.."):
            assert (await v.get(path))[0] in (404, 200)
            assert "import" not in (await v.get(path))[1]
        async with v.session.post(v.root + "/", data=b"x" * 10_000_000) as response:
            assert response.status in (405, 413)
        await v.works()

    visit(test)


def test_pictures_come_with_their_targets_and_only_new_scores():
    async def test(v: Visit) -> None:
        async with v.live() as talk:
            assert (await talk.until(lambda m: "trackers" in m))["trackers"] == ["csrt", "kcf"]
            stamp = v.picture()
            v.say()
            first = await talk.until(lambda m: m.get("targets"))
            assert (first["stamp"], first["width"], first["height"]) == (str(stamp), WIDTH, HEIGHT)
            (car,) = first["targets"]
            assert (car["id"], car["state"], car["box"], car["fresh"]) == ("car", "TRACKING", [10, 20, 30, 40], True)
            assert car["first"].startswith("data:image/jpeg;base64,")
            assert len(car["scores"]) == 1
            v.picture()
            v.say(state=State.LOST, score=float("nan"))
            second = (await talk.until(lambda m: m.get("stamp") == str(v.stamp)))["targets"][0]
            assert (second["state"], second["score"], second["fresh"]) == ("LOST", None, False)
            assert len(second["scores"]) == 1
            assert "first" not in second

    visit(test)


def test_a_slow_browser_gets_the_newest_picture_and_never_a_queue():
    async def test(v: Visit) -> None:
        async with v.live() as talk:
            talk.acknowledge = False
            v.picture()
            messages = []
            for _ in range(60):
                v.picture()
                await asyncio.sleep(0.01)
            with contextlib.suppress(asyncio.TimeoutError):
                while True:
                    messages.append(await asyncio.wait_for(talk.next(), 0.3))
            assert len(messages) <= 2
            talk.acknowledge = True
            await talk.ws.send_json({"do": "seen", "n": messages[-1]["n"]})
            assert (await talk.picture())["stamp"] == str(v.stamp)

    visit(test)


def test_a_tracker_that_comes_late_does_not_turn_back_the_time():
    async def test(v: Visit) -> None:
        async with v.live() as talk:
            v.picture()
            v.say()
            for _ in range(3):
                late = v.picture()
                await asyncio.sleep(0.3)
            newest = await talk.until(lambda m: m.get("stamp") == str(late))
            v.stamp -= 33_000_000
            v.say()  # Of the picture before, which would be shown if this one had not been.
            v.stamp = late
            assert not (await talk.next())["jpeg"]
            v.picture()
            v.say()
            assert int((await talk.picture())["stamp"]) > int(newest["stamp"])

    visit(test)


def test_a_camera_that_is_silent_or_broken_is_said():
    async def test(v: Visit) -> None:
        def broken():
            from tracker_ros.images import InvalidImage

            raise InvalidImage("it is cut short")

        async with v.live() as talk:
            assert (await talk.until(lambda m: "silence" in m))["silence"] is None
            v.scene.add_picture(7, broken)
            assert "cut short" in (await talk.until(lambda m: m.get("problem")))["problem"]
            answer = await talk.ask(do="start", stamp="7", target="car", box=[1, 1, 30, 30])
            assert not answer["ok"]
            assert "cut short" in answer["text"]

    visit(test)


def test_requests_reach_the_tracker():
    async def test(v: Visit) -> None:
        async with v.live() as talk:
            assert "no picture" in (await talk.ask(do="start", stamp="5", target="car", box=[9, 9, 30, 30]))["text"]
            stamp = v.picture()
            assert (await talk.ask(do="start", stamp=str(stamp), target="car", box=[9, 8, 30, 31]))["ok"]
            assert (await talk.ask(do="start", stamp=str(stamp), target="car", point=[100, 50]))["ok"]
            v.say()
            for command in (
                {"do": "stop", "target": "car"},
                {"do": "stop", "target": ""},
                {"do": "pause", "paused": True},
                {"do": "tracker", "name": "kcf"},
            ):
                assert (await talk.ask(**command))["ok"]
            side = 0.1 * HEIGHT
            assert v.tracker.asked == [
                ("start", stamp, Box(9, 8, 30, 31), "car"),
                ("start", stamp, Box(100 - side / 2, 50 - side / 2, side, side), "car"),
                ("stop", "car"),
                ("stop", ""),
                ("pause", True),
                ("select", "kcf"),
            ]
            assert (await talk.until(lambda m: "paused" in m))["paused"]

    visit(test)


def test_the_heatmap_is_asked_for_while_somebody_looks():
    wanted: list[bool] = []

    async def test(v: Visit) -> None:
        async with v.live() as talk:
            assert (await talk.ask(do="heatmap", on=True))["ok"]
            assert wanted[-1]
        for _ in range(100):
            if not wanted[-1]:
                break
            await asyncio.sleep(0.02)
        assert not wanted[-1]

    visit(test, watch_heatmap=wanted.append)


# ------------------------------------------------------------------------------------------------------ who may come in


def test_names_of_this_machine():
    for host in ("localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "192.168.1.2", "robot", "localhost.example.org", "127.0.0.1.example.org", ""):
        assert not is_loopback(host)


@pytest.mark.parametrize("options", [{"host": "0.0.0.0"}, {"host": "::"}, {"host": "robot"}, {"token": "short"}])
def test_an_open_address_needs_a_token_of_some_length(options: dict[str, str]):
    with pytest.raises(ValueError, match="at least 16 characters"):
        PageServer(Scene(), Notes(), **options)


def test_a_foreign_name_of_this_machine_is_refused():
    """DNS rebinding: a page of somebody else's name that leads here."""

    async def test(v: Visit) -> None:
        for host in ("evil.example.org", "evil.example.org:8080", "localhost.evil.example.org", "[", "", "192.168.1.2"):
            status, text = await v.get("/", Host=host)
            assert status in (400, 403), host
            if status == 403:
                assert "this machine alone" in text
            origin = f"http://{host}"
            assert await v.refused(origin, {"Host": host}) in (400, 403)
        await v.works()

    visit(test)


@pytest.mark.parametrize(
    "origin", ["http://evil.example.org", "null", "http://localhost:1", "file://", "http://127.0.0.1", ""]
)
def test_a_wrong_origin_is_refused(origin: str):
    async def test(v: Visit) -> None:
        assert await v.refused(None, {"Origin": origin}) == 403
        assert (await v.get("/page.js", Origin=origin))[0] == 403
        await v.works()

    visit(test)


def test_a_websocket_without_an_origin_is_refused():
    async def test(v: Visit) -> None:
        assert await v.refused(None) == 403
        assert (await v.get("/live", Origin=v.root))[0] == 400  # No websocket at all.
        await v.works()

    visit(test)


def test_the_token_is_needed_everywhere():
    async def test(v: Visit) -> None:
        for path in ("/", "/page.js", "/live", "/nothing"):
            status, text = await v.get(path)
            assert status == 401
            assert "token is needed" in text
        assert await v.refused() == 401
        for wrong in ("", "nonsense", TOKEN[:-1], TOKEN + "x", "\udcff", "%00", "é" * 20):
            status, text = await v.get("/?token=" + wrong.encode(errors="replace").hex())
            assert status == 401
            assert TOKEN not in text
        assert await v.refused(headers={"Cookie": f"tracker_page_{v.server.port}=wrong"}) == 401
        assert await v.refused(headers={"Cookie": f"tracker_page_{v.server.port}="}) == 401
        # The right one, as it stands in the address that the node prints.
        address = v.server.address.replace("localhost", "127.0.0.1")
        async with v.session.get(address, allow_redirects=False) as response:
            assert response.status == 303
            assert response.headers["Location"] == "/"
            cookie = response.headers["Set-Cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
        await v.works()
        assert await v.refused("http://evil.example.org") == 403

    visit(test, token=TOKEN.replace(" ", "-"))


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "not JSON"),
        ('{"do": "start", "id": 1, "stamp": "5", "target": "car", "box": [NaN, 0, 9, 9]}', "NaN is not a number"),
        ('{"do": "start", "id": 1, "stamp": "5", "target": "car", "box": [1e999, 0, 9, 9]}', "4 finite numbers"),
        ('{"do": "start", "id": 1, "stamp": "5", "target": "car", "box": [0, 0, 1, 1]}', "too small"),
        ('{"do": "start", "id": 1, "stamp": "5", "target": "car", "box": [0, 0, -9, 9]}', "zero or negative size"),
        ('{"do": "start", "id": 1, "stamp": "5", "target": "car", "box": [900, 0, 9, 9]}', "outside the image"),
        ('{"do": "start", "id": 1, "stamp": "5", "target": "car", "box": [0, 0, 999, 9]}', "larger than the image"),
        ('{"do": "start", "id": 1, "stamp": "5", "target": "car", "point": [-50, 9]}', "outside the image"),
        ('{"do": "start", "id": 1, "stamp": "later", "target": "car", "box": [0, 0, 9, 9]}', "'stamp' must be"),
        ('{"do": "stop", "id": 1, "target": "nobody"}', "no target 'nobody'; there are: car"),
        ('{"do": "tracker", "id": 1, "name": "../../etc/passwd"}', "no tracker"),
        ('{"do": "shutdown", "id": 1}', "'do' must be one of"),
        ('{"do": "pause", "id": 1, "paused": null}', "must be true or false"),
        ("[" * 4000, "not JSON"),
        ('{"a":' * 600 + "1" + "}" * 600, "'id' must be|not JSON"),
        (" " * (MAX_BYTES + 1), "longer than"),
        (b"\x00\xff\x00", "binary messages"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_message_gets_an_answer_and_the_connection_goes_on(text: str | bytes, said: str):
    async def test(v: Visit) -> None:
        async with v.live() as talk:
            v.picture()
            v.say()
            await talk.picture()
            await (talk.ws.send_bytes(text) if isinstance(text, bytes) else talk.ws.send_str(text))
            answer = await talk.answer()
            assert not answer["ok"]
            assert any(part in answer["text"] for part in said.split("|")), answer
            assert v.tracker.asked == []
            assert (await talk.ask(do="stop", target="car"))["ok"]
        await v.works()

    visit(test)


def test_frames_of_10_mb_end_the_connection_that_sent_them():
    async def test(v: Visit) -> None:
        async with v.live() as other:
            for payload in ("x" * 10_000_000, b"x" * 10_000_000):
                async with v.live() as talk:
                    with contextlib.suppress(ConnectionError):
                        await (talk.ws.send_str(payload) if isinstance(payload, str) else talk.ws.send_bytes(payload))
                    assert await talk.closed() in (1009, 1006)
            v.picture()
            assert await other.picture()
        await v.works()

    visit(test)


HANDSHAKE = (
    "GET /live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.mark.parametrize(
    "frames",
    [
        b"\x81\xfe\xff",  # half a header
        b"\x01\x83\x00\x00\x00\x00abc",  # the first part of a message, and no other
        b"\x81\x83\x00\x00\x00\x00\xff\xfe\xfd",  # text that is not UTF-8
        b"\x81\x03abc",  # not masked
        b"\xf1\x80\x00\x00\x00\x00",  # reserved bits
        b"\x83\x80\x00\x00\x00\x00",  # an operation that does not exist
        b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",  # 2**63 bytes are to come
        b"\x88\x81\x00\x00\x00\x00\x01",  # a close frame of one byte
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=lambda frame: frame.hex()[:20],
)
def test_half_and_broken_frames_hurt_nobody_else(frames: bytes):
    async def test(v: Visit) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", v.server.port)
        writer.write(HANDSHAKE.format(port=v.server.port).encode())
        assert b"101" in await asyncio.wait_for(reader.readline(), 10)
        writer.write(frames)
        await writer.drain()
        await v.works()
        writer.close()
        await v.works()

    visit(test)


@pytest.mark.parametrize(
    "request_text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/1.1\r\nHost: 127",  # half a request
        b"GET / HTTP/1.1\r\n" + b"A: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example.org\r\n\r\n",
        b"\x00" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_broken_requests_hurt_nobody_else(request_text: bytes):
    async def test(v: Visit) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", v.server.port)
        writer.write(request_text)
        await writer.drain()
        await v.works()
        writer.close()
        with contextlib.suppress(Exception):
            assert b"200 OK" not in await asyncio.wait_for(reader.read(200), 1)
        await v.works()

    visit(test)


def test_many_requests_at_once_are_refused_and_the_others_carried_out():
    async def test(v: Visit) -> None:
        v.tracker.hold = True
        async with v.live() as talk:
            for number in range(50):
                await talk.ws.send_json({"do": "pause", "id": number, "paused": True})
            answers = [await talk.answer() for _ in range(46)]
            assert all("under way already" in answer["text"] for answer in answers)
            v.picture()
            assert await talk.picture()  # Pictures go on while the tracker takes its time.
            assert len(v.tracker.open) == 4
            for future in v.tracker.open:
                future.set_result(Answer(True, "at last"))
            assert {(await talk.answer())["text"] for _ in range(4)} == {"at last"}

    visit(test)


def test_a_browser_that_leaves_while_the_tracker_is_busy():
    async def test(v: Visit) -> None:
        v.tracker.hold = True
        async with v.live() as talk:
            await talk.ws.send_json({"do": "stop", "id": 1, "target": ""})
            while not v.tracker.open:
                await asyncio.sleep(0.01)
        for _ in range(100):
            if v.tracker.open[0].cancelled():
                break
            await asyncio.sleep(0.02)
        v.tracker.hold = False
        await v.works()

    visit(test)


def test_no_more_browsers_than_there_is_room_for():
    async def test(v: Visit) -> None:
        async with v.live(), v.live():
            assert await v.refused() == 503
        for _ in range(100):
            if not v.server._clients:
                break
            await asyncio.sleep(0.02)
        await v.works()

    visit(test, clients=2)


def test_a_browser_that_acknowledges_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tracker_ros.remote.page.pacing.GONE", 0.5)

    async def test(v: Visit) -> None:
        async with v.live() as talk:
            talk.acknowledge = False
            for _ in range(2):
                v.picture()
                await talk.next()
            assert await talk.closed() == 1013

    visit(test)


def test_a_port_that_is_taken_is_said():
    async def test(v: Visit) -> None:
        second = PageServer(Scene(), Notes(), port=v.server.port)
        with pytest.raises(OSError, match=str(v.server.port)):
            await second.start()
        await second.stop()

    visit(test)


def test_listens_on_loopback_alone_unless_told_otherwise():
    async def test(v: Visit) -> None:
        names = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
        for name in names - {"127.0.0.1"}:
            if not is_loopback(name):
                with pytest.raises(OSError):  # noqa: PT011 - refused or unreachable
                    socket.create_connection((name, v.server.port), 1).close()

    visit(test)


def test_nothing_else_needs_the_extra():
    """aiohttp is optional: the rest of the package works without it."""
    code = (
        "import sys; sys.modules['aiohttp'] = None; sys.modules['pymavlink'] = None\n"
        "import tracker_ros, tracker_ros.cli, tracker_ros.remote.page.scene, tracker_ros.remote.tracker"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
