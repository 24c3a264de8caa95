"""The page's web server: files, and one websocket for each browser.

Who may come in: on a loopback address anybody who names it by a loopback name (so that no foreign page can reach it
through a name of its own); anywhere else, who brings the token. The token comes in once, as ``/?token=…``, and lives on
in a cookie that scripts can't read. A websocket needs an ``Origin`` that is this page's own in any case. Everything
that comes in is bounded in size and number, and nothing is read from disk but the page's own files.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hmac
import ipaddress
import itertools
import json
import math
import struct
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, web

from tracker_ros.geometry.boxes import POINT_SHARE, Box, InvalidBox, around_point, validate_init_box
from tracker_ros.images import InvalidImage
from tracker_ros.remote.page import commands
from tracker_ros.remote.page.pacing import Pacer
from tracker_ros.remote.page.scene import Scene, Seen, Target, View, encode
from tracker_ros.remote.tracker import Answer, RemoteTracker

#: Path -> file and type. Nothing else is served.
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
#: Fewest characters of a token that guards more than this machine.
MIN_TOKEN = 16
#: Requests of one browser that may be under way at a time.
_AT_ONCE = 4
#: Seconds between two messages while no picture comes.
_IDLE = 0.5
#: Seconds after which a browser that does not answer pings is taken for gone.
_HEARTBEAT = 10.0

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address or name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class PageServer:
    """Serves the page; all methods belong to the event loop's thread, except `Scene`'s.

    Args:
        scene: what there is to see.
        tracker: takes the requests.
        trackers: names that can be chosen.
        host: address to listen on.
        port: 0 for any that is free.
        token: what a browser must bring; may be empty on a loopback address.
        rate: most pictures a second for each browser.
        clients: most browsers at a time.
        watch_heatmap: called with whether any browser shows the heatmap, when that changes.

    Raises:
        ValueError: the token is too short for an address that others can reach.
    """

    def __init__(
        self,
        scene: Scene,
        tracker: RemoteTracker,
        trackers: tuple[str, ...] = (),
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        token: str = "",
        rate: float = 15.0,
        clients: int = 8,
        watch_heatmap: Callable[[bool], None] = lambda wanted: None,
    ) -> None:
        if len(token) < MIN_TOKEN and (token or not is_loopback(host)):
            raise ValueError(f"a token has at least {MIN_TOKEN} characters, got {len(token)}")
        self._scene, self._tracker, self._trackers = scene, tracker, trackers
        self._host, self.port, self._token = host, port, token
        self._rate, self._most = rate, clients
        self._watch_heatmap = watch_heatmap
        self._clients: set[_Client] = set()
        self._pool = concurrent.futures.ThreadPoolExecutor(2, "jpeg")
        self._runner: web.AppRunner | None = None
        package = resources.files("tracker_ros.remote.page") / "static"
        self._files = {path: ((package / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address or port can't be had.
        """
        app = web.Application(middlewares=[self._guard], client_max_size=commands.MAX_BYTES)
        for path in self._files:
            app.router.add_get(path, self._file)
        app.router.add_get("/live", self._live)
        app.on_shutdown.append(self._close_clients)
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=30, shutdown_timeout=2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        loop = asyncio.get_running_loop()
        self._scene.changed = lambda: _from_thread(loop, self._wake)

    async def stop(self) -> None:
        """Close all connections and stop listening."""
        self._scene.changed = lambda: None
        if self._runner is not None:
            await self._runner.cleanup()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def address(self) -> str:
        """What to open in a browser, the token included."""
        host = "localhost" if is_loopback(self._host) else self._host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/" + (f"?token={self._token}" if self._token else "")

    # ------------------------------------------------------------------------------------------------- who may come in

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Check host, origin and token before anything else looks at a request."""
        try:
            refusal = self._refusal(request)
            response = refusal or await handler(request)
        except web.HTTPException as error:
            # aiohttp's own answers (404, 405, 413) get the same headers.
            response = web.Response(status=error.status, text=f"{error.status}: {error.reason}\n")
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        host = request.headers.get("Host", "")
        if not self._token and not _is_loopback_name(host):
            return _refuse(
                403, f"this page is for this machine alone: open {self.address} (it was asked for as '{host[:80]}')"
            )
        origin = request.headers.get("Origin")
        if origin is not None and not _same(origin, host):
            return _refuse(403, f"a page of another origin ('{origin[:80]}') may not use this one")
        if not self._token:
            return None
        if "token" in request.query:
            if not self._is_token(request.query["token"]):
                return _refuse(401, "this token is wrong: open the address that the page's node printed at its start")
            response = web.Response(status=303, headers={"Location": request.path})
            # Cookies do not tell ports apart, so the name does.
            response.set_cookie(self._cookie, self._token, httponly=True, samesite="Strict", path="/")
            return response
        if not self._is_token(request.cookies.get(self._cookie, "")):
            return _refuse(401, "a token is needed: open the address that the page's node printed at its start")
        return None

    @property
    def _cookie(self) -> str:
        return f"tracker_page_{self.port}"

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self._token.encode())

    # --------------------------------------------------------------------------------------------------------- answers

    async def _file(self, request: web.Request) -> web.Response:
        body, kind = self._files[request.path]
        return web.Response(body=body, content_type=kind, charset="utf-8")

    async def _live(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Origin") is None:
            return _refuse(403, "a websocket needs an Origin: it is for the page alone")
        if len(self._clients) >= self._most:
            return _refuse(503, f"{self._most} browsers look at this page already: close one of them")
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT, max_msg_size=2 * commands.MAX_BYTES, compress=False)
        if not socket.can_prepare(request).ok:
            return _refuse(400, "this address is for websockets")
        client = _Client(self, socket)
        self._clients.add(client)
        try:
            await socket.prepare(request)
            await client.run()
        finally:
            self._clients.discard(client)
            self.heatmap_changed()
        return socket

    async def _close_clients(self, app: web.Application) -> None:
        for client in list(self._clients):
            await client.socket.close(code=WSCloseCode.GOING_AWAY, message=b"the page's node ends")

    def _wake(self) -> None:
        for client in self._clients:
            client.news.set()

    def heatmap_changed(self) -> None:
        """A browser wants the heatmap, or does not any more."""
        self._watch_heatmap(any(client.heatmap for client in self._clients))


class _Client:
    """One browser."""

    def __init__(self, server: PageServer, socket: web.WebSocketResponse) -> None:
        self._server = server
        self.socket = socket
        self.news = asyncio.Event()
        self.heatmap = False
        self._pacer = Pacer(server._rate)
        self._numbers = itertools.count(1)
        self._shown: tuple[int, bool] = (0, False)
        self._told: dict[int, _Told] = {}
        self._requests: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Talk to the browser until it goes."""
        sender = asyncio.create_task(self._send())
        try:
            await self._receive()
        finally:
            for task in (sender, *self._requests):
                task.cancel()
            await asyncio.gather(sender, *self._requests, return_exceptions=True)

    # -------------------------------------------------------------------------------------------------- pictures, state

    async def _send(self) -> None:
        scene, pacer, loop = self._server._scene, self._pacer, asyncio.get_running_loop()
        await self._post({"trackers": self._server._trackers, "share": POINT_SHARE}, b"")
        while not self.socket.closed:
            started = time.monotonic()
            self.news.clear()
            while (wait := pacer.wait(time.monotonic())) > 0:
                if pacer.gone(time.monotonic()):
                    await self.socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"no picture was acknowledged")
                    return
                await self._news(min(wait, 1.0))
            view = scene.view()
            while not self._is_new(view):
                left = started + _IDLE - time.monotonic()
                if left <= 0:
                    break
                await self._news(left)
                view = scene.view()
            jpeg, header = b"", {}
            if view is not None and self._is_new(view):
                self._shown = view.picture.number, self.heatmap
                try:
                    jpeg, width, height = await loop.run_in_executor(
                        self._server._pool, encode, view.picture, pacer.level, self.heatmap
                    )
                    header = {"stamp": str(view.picture.stamp), "width": width, "height": height}
                except InvalidImage as error:
                    header = {"problem": f"the camera's image can't be shown: {error}"}
                await loop.run_in_executor(self._server._pool, scene.refresh_thumbnails)
            await self._post({**self._state(view), **header}, jpeg)

    def _is_new(self, view: View | None) -> bool:
        """Whether there is something to show that is not older than what is shown: no picture turns back the time."""
        if view is None or view.picture.number < self._shown[0]:
            return False
        return (view.picture.number, self.heatmap) != self._shown

    async def _news(self, seconds: float) -> None:
        """Wait for something new, but no longer than this."""
        try:
            await asyncio.wait_for(self.news.wait(), seconds)
        except asyncio.TimeoutError:
            return
        self.news.clear()

    async def _post(self, header: dict[str, Any], jpeg: bytes) -> None:
        """One message: length of the header (32 bits, big-endian), header (JSON), JPEG or nothing."""
        number = next(self._numbers)
        text = json.dumps({"n": number, **header}, allow_nan=False, separators=(",", ":")).encode()
        self._pacer.sent(number, time.monotonic())
        await self.socket.send_bytes(struct.pack(">I", len(text)) + text + jpeg)

    def _state(self, view: View | None) -> dict[str, Any]:
        scene = self._server._scene
        known, self._told = self._told, {}
        shown = []
        if view is not None:
            for name, seen in view.targets.items():
                told = self._told[id(seen.target)] = known.get(id(seen.target), _Told(seen.target))
                shown.append({"id": name, **told.news(seen, view.picture.stamp)})
        silence = scene.silence
        return {
            "targets": shown,
            "tracker": scene.tracker,
            "paused": scene.paused,
            "answering": scene.answering,
            "silence": None if math.isinf(silence) else round(silence, 1),
        }

    # -------------------------------------------------------------------------------------------------------- requests

    async def _receive(self) -> None:
        async for message in self.socket:
            if message.type is WSMsgType.TEXT:
                await self._take(message.data)
            elif message.type is WSMsgType.BINARY:
                await self._answer(None, Answer(False, "binary messages are not understood: send JSON as text"))

    async def _take(self, text: str) -> None:
        try:
            parsed = commands.parse(text)
        except commands.InvalidMessage as error:
            await self._answer(error.request, Answer(False, str(error)))
            return
        if isinstance(parsed, commands.Seen):
            self._pacer.seen(parsed.n, time.monotonic())
            self.news.set()
            return
        number, command = parsed
        if len(self._requests) >= _AT_ONCE:
            text = f"{_AT_ONCE} requests are under way already: wait for an answer"
            await self._answer(number, Answer(False, text))
            return
        # Not here: a tracker may take seconds, in which pictures must be acknowledged.
        task = asyncio.create_task(self._carry_out(number, command))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _carry_out(self, number: int, command: commands.Command) -> None:
        try:
            answer = await self._do(command)
        except InvalidBox as error:
            answer = Answer(False, str(error))
        await self._answer(number, answer)

    async def _do(self, command: commands.Command) -> Answer:
        scene, tracker = self._server._scene, self._server._tracker
        match command:
            case commands.Start(stamp, target_id):
                box = self._box(command)
                answer = await asyncio.wrap_future(tracker.start(stamp, box, target_id))
                if answer.ok:
                    scene.renew(target_id)
            case commands.Stop(target_id):
                if target_id and target_id not in scene.targets:
                    names = ", ".join(scene.targets) or "none"
                    return Answer(False, f"there is no target '{target_id}'; there are: {names}")
                answer = await asyncio.wrap_future(tracker.stop(target_id))
                if answer.ok:
                    scene.forget(target_id)
            case commands.Pause(paused):
                answer = await asyncio.wrap_future(tracker.pause(paused))
                if answer.ok:
                    scene.set_paused(paused)
            case commands.Select(name):
                if name not in self._server._trackers:
                    known = ", ".join(self._server._trackers)
                    return Answer(False, f"there is no tracker '{name}'; there are: {known}")
                answer = await asyncio.wrap_future(tracker.select(name))
            case commands.Heatmap(on):
                self.heatmap = on
                self._server.heatmap_changed()
                answer = Answer(True, "")
        return answer

    def _box(self, command: commands.Start) -> Box:
        """The box that a start means.

        Raises:
            InvalidBox: no track can start on it.
        """
        view = self._server._scene.view()
        if view is None:
            raise InvalidBox("no picture has come from the camera yet, so there is nothing to track")
        try:
            height, width = view.picture.frame().shape[:2]
        except InvalidImage as error:
            raise InvalidBox(f"the camera's image can't be read: {error}") from error
        if command.box is not None:
            return validate_init_box(command.box, width, height)
        assert command.point is not None  # `commands.parse` sees to it.
        return validate_init_box(around_point(*command.point, width, height), width, height)

    async def _answer(self, number: int | None, answer: Answer) -> None:
        if not self.socket.closed:
            await self.socket.send_str(json.dumps({"answer": number, "ok": answer.ok, "text": answer.text}))


class _Told:
    """What one browser knows of a target, so that it is told only what is new."""

    def __init__(self, target: Target) -> None:
        self._target = target  # Kept, so that its id belongs to no other one meanwhile.
        self._count = 0
        self._thumbnails = ("", "")

    def news(self, seen: Seen, stamp: int) -> dict[str, Any]:
        """What is new of a target, as seen on the picture with this stamp."""
        target, last = seen.target, seen.word
        count = target.count
        scores = list(target.scores)[-min(count - self._count, len(target.scores)) :] if count > self._count else []
        news: dict[str, Any] = {
            "state": last.state.name,
            "reason": last.reason,
            "score": _number(last.score),
            "box": None if seen.box is None else [_number(v) for v in seen.box],
            # Milliseconds by which the box is older than the picture.
            "age": round((stamp - last.stamp) / 1e6),
            "fresh": self._count == 0,
            "scores": [[round(when / 1e6), _number(score), state] for when, score, state in scores],
        }
        self._count = count
        thumbnails = target.first, target.now
        if thumbnails != self._thumbnails:
            news["first"], news["now"] = self._thumbnails = thumbnails
        return news


def _number(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def _is_loopback_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)


def _same(origin: str, host: str) -> bool:
    """Whether an origin is that of the page itself, behind a proxy with TLS or not."""
    return bool(host) and origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


def _refuse(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n")


def _from_thread(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:  # The loop was closed a moment ago.
        return
