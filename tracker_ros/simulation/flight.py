"""A simulated flight: an aerial camera follows one car among look-alikes; the truth is exact.

`Flight.render` takes any frame number, in any order, and always gives the same picture for the same options: the
motion is a closed form of time and the noise is seeded by the frame. The flight has no end; `FlightOptions.duration`
only says how many frames `len` and `Flight.truth` cover.

What happens is set by the route (`Flight.episodes` says in which frames): halfway along every road the target drives
under trees or a bridge, and at every other turn the camera loses it for 2 to 3 s and finds it again from somewhere
else. In the first 12 s of every flight the target is hidden once, leaves the view once, and comes back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import Box
from tracker_ros.simulation.roads import LAP, PERIOD, RoadNetwork, Route
from tracker_ros.simulation.terrain import SCALE, SHADE, SIZE, SUN, build_terrain
from tracker_ros.simulation.vehicles import (
    PAINTS,
    SPRITE_SCALE,
    VIVID,
    Looks,
    draw_looks,
    outline,
    similar_paint,
    sprite,
)

Array = NDArray[np.float64]

_RAMP = 0.85  # s to leave the view, and to come back
#: Times (s) around the present over which the camera averages the heading that it follows.
_FOLLOWED = np.linspace(-1.2, 1.2, 9)


@dataclass(frozen=True, kw_only=True)
class FlightOptions:
    """What the flight looks like.

    Attributes:
        width, height: size of the picture, pixels.
        fps: frames a second.
        duration: length in seconds (what `len` and `truth` cover).
        seed: everything random depends on it, and on nothing else.
        zoom: mean scale, image pixels a metre; the car is 4.1 to 4.8 m long.
        similarity: paint of the closest look-alike; 1 is the target's own, 0 one that is easy to tell apart.
        traffic: number of moving look-alikes in each direction.
        follow: part of the target's turning that the camera makes along, as one in follow mode does; 0 keeps its yaw.
        leaves_view: whether the target leaves the view.
        noise: deviation of the sensor noise, grey levels.
        shutter: exposure as a part of the frame time (motion blur); 0 switches blur off.
        jitter: camera shake, pixels.
        light: whether the illumination changes (clouds, exposure, vignette).
        shadows: whether vehicles cast shadows.
    """

    width: int = 640
    height: int = 480
    fps: float = 30.0
    duration: float = 20.0
    seed: int = 0
    zoom: float = 10.5
    similarity: float = 0.4
    traffic: int = 4
    follow: float = 0.8
    leaves_view: bool = True
    noise: float = 3.0
    shutter: float = 0.35
    jitter: float = 1.0
    light: bool = True
    shadows: bool = True

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the option, its value and the range.
        """
        ranges = {
            "width": (64, 3840),
            "height": (64, 3840),
            "fps": (1, 240),
            "duration": (0.1, 1e6),
            "seed": (0, 2**63 - 1),
            "zoom": (6, 20),
            "similarity": (0, 1),
            "traffic": (0, 12),
            "follow": (0, 1),
            "noise": (0, 50),
            "shutter": (0, 1),
            "jitter": (0, 20),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"the flight's {name} must lie in [{low:g}, {high:g}], got {value}")


@dataclass(frozen=True, slots=True)
class Truth:
    """Where the target is in one frame.

    Attributes:
        index: number of the frame, from 0.
        box: the target's extent inside the image (x, y, w, h in pixels, 0-based), hidden parts included; None when no
            part of it is in view.
        extent: the whole extent, also beyond the image's border.
        in_view: part of the target's area inside the image, 0 to 1.
        hidden: part of the target's area that lies under trees or a bridge, 0 to 1.
    """

    index: int
    box: Box | None
    extent: Box
    in_view: float
    hidden: float


@dataclass(frozen=True, slots=True)
class Episode:
    """Frames `first` to `last` (both included) during which the target is ``hidden`` (by half and more) or ``away``."""

    kind: str
    first: int
    last: int


@dataclass(frozen=True)
class _Vehicle:
    looks: Looks
    picture: NDArray[np.float32]
    outline: Array
    offset: float  # s ahead of the target on the route
    sway: float  # s, by which the offset changes
    reverse: bool


class Flight:
    """A flight over a world that depends on the seed alone. See the module's text.

    The world takes a second or two to build and about 100 MB.
    """

    def __init__(self, options: FlightOptions | None = None) -> None:
        self.options = o = options if options is not None else FlightOptions()
        world, traffic, camera = (np.random.default_rng([o.seed, k]) for k in range(3))
        roads = RoadNetwork(world)
        self._route = Route(roads, world)
        terrain = build_terrain(roads, self._route, world)
        # the texture repeats; a margin as large as the widest view saves wrapping it for every frame
        margin = int(np.ceil(np.hypot(o.width + 40, o.height + 40) / (0.72 * o.zoom) * SCALE)) + 8
        self._margin = margin
        self._picture = np.pad(terrain.picture, ((0, margin), (0, margin), (0, 0)), mode="wrap")
        self._cover = np.pad(terrain.cover, ((0, margin), (0, margin), (0, 0)), mode="wrap")
        self._vehicles = self._make_vehicles(traffic)
        self._offsets = np.array([v.offset for v in self._vehicles])
        self._sways = np.array([v.sway for v in self._vehicles])
        self._reversed = np.array([v.reverse for v in self._vehicles])
        half = (np.arange(13) + 0.5) / 13 * 2 - 1, (np.arange(7) + 0.5) / 7 * 2 - 1
        grid = np.stack(np.meshgrid(*half), -1).reshape(-1, 2)
        target = self._vehicles[0].looks
        self._body = grid * [target.length / 2, target.width / 2]

        first_turn = int(camera.integers(3)) * 2
        self._start = float(self._route.turns[first_turn]) + 0.9
        self._wander = camera.uniform(0, 2 * np.pi, 8)
        self._zoom_phase = camera.uniform(0, 2 * np.pi, 2)
        self._yaw = camera.uniform(0, 2 * np.pi), float(camera.choice((-1, 1))) * camera.uniform(0.01, 0.03)
        self._shake = camera.uniform(0, 2 * np.pi, (3, 4))
        self._clouds = self._make_clouds(np.random.default_rng([o.seed, 3]))
        self._noise = self._make_noise(np.random.default_rng([o.seed, 4]))
        fall = np.linspace(-1, 1, 40)[None, :] ** 2 + np.linspace(-1, 1, 30)[:, None] ** 2
        self._vignette = (1 - 0.09 * fall).astype(np.float32)

    def __len__(self) -> int:
        """Number of frames in `FlightOptions.duration`."""
        return max(1, round(self.options.duration * self.options.fps))

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], Truth]]:
        """All frames with their truth."""
        return (self.render(i) for i in range(len(self)))

    # ---------------------------------------------------------------- truth

    def truth(self) -> list[Truth]:
        """The truth of all frames."""
        return [self.truth_at(i) for i in range(len(self))]

    def truth_at(self, index: int) -> Truth:
        """The truth of one frame, any number from 0.

        Raises:
            IndexError: a negative number.
        """
        if index < 0:
            raise IndexError(f"frames are numbered from 0, got {index}")
        t = index / self.options.fps
        camera = self._camera(t)
        (target,), (angle,) = self._route.at(self._start + t)
        place, heading = target, float(angle)
        corners = _project(camera, _turn(self._vehicles[0].outline, heading) + place)
        low, high = corners.min(0), corners.max(0)
        extent = Box(float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))
        clipped = extent.clip(self.options.width, self.options.height)
        body = _turn(self._body, heading) + place
        at = _project(camera, body)
        inside = ((at >= 0) & (at < [self.options.width, self.options.height])).all(1)
        cells = np.floor(body * SCALE).astype(int) % SIZE
        hidden = self._cover[cells[:, 1], cells[:, 0], 0].astype(np.float64) / 255
        seen = clipped.w > 0 and clipped.h > 0
        in_view = float(inside.mean())
        return Truth(index, clipped if seen else None, extent, in_view if seen else 0.0, float(hidden.mean()))

    def boxes(self) -> Array:
        """The target's boxes in all frames, Nx4 (x, y, w, h in pixels); rows of NaN where it is out of view."""
        missing = (math.nan,) * 4
        return np.array([missing if t.box is None else t.box for t in self.truth()], np.float64)

    def episodes(self) -> list[Episode]:
        """When the target is ``hidden`` (by half and more) or ``away`` (nothing of it in the image), in order."""
        truth = self.truth()
        flags = {"hidden": [t.hidden >= 0.5 for t in truth], "away": [t.box is None for t in truth]}
        found = []
        for kind, flag in flags.items():
            edges = np.flatnonzero(np.diff(np.concatenate([[0], np.array(flag, int), [0]])))
            found += [Episode(kind, int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]
        return sorted(found, key=lambda e: e.first)

    def others(self, index: int) -> list[Box]:
        """Boxes (whole extents, pixels) of the moving look-alikes that touch the picture of frame `index`."""
        t = index / self.options.fps
        camera = self._camera(t)
        found = []
        for vehicle, place, heading in list(zip(self._vehicles, *self._places(t), strict=True))[1:]:
            corners = _project(camera, _turn(vehicle.outline, float(heading)) + place)
            low, high = corners.min(0), corners.max(0)
            if (high > 0).all() and (low < [self.options.width, self.options.height]).all():
                found.append(Box(float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])))
        return found

    # ---------------------------------------------------------------- picture

    def render(self, index: int, *, target: bool = True, grain: int | None = None) -> tuple[NDArray[np.uint8], Truth]:
        """Draw one frame, any number from 0.

        Args:
            index: number of the frame.
            target: False leaves the target out (and nothing else).
            grain: the sensor noise is that of this frame; None: its own.

        Returns:
            HxWx3 uint8, BGR, and the truth (of the target, drawn or not).

        Raises:
            IndexError: a negative number.
        """
        truth = self.truth_at(index)
        t = index / self.options.fps
        camera = self._camera(t)
        exposure = self.options.shutter / self.options.fps
        before, after = self._camera(t - exposure / 2), self._camera(t + exposure / 2)
        frame = self._draw_ground(camera, before, after)
        places, headings = self._places(t)
        # how far each vehicle moves in the image during the exposure
        then, later = self._places(t - exposure / 2)[0], self._places(t + exposure / 2)[0]
        motion = _project(after, later) - _project(before, then)
        for k, vehicle in enumerate(self._vehicles):
            if k > 0 or target:
                self._draw_vehicle(frame, vehicle, camera, places[k], float(headings[k]), motion[k])
        return self._develop(frame, index if grain is None else grain, t), truth

    def _draw_ground(self, camera: Array, before: Array, after: Array) -> NDArray[np.uint8]:
        o = self.options
        middle = np.array([[o.width / 2, o.height / 2]])
        ground = _back(camera, middle)
        motion = (_project(after, ground) - _project(before, ground))[0]
        length = float(np.hypot(*motion))
        steps: list[tuple[int, int]] = []
        if length >= 1.2:
            motion *= min(1.0, 14.0 / length)
            for k in range(max(1, math.ceil(math.log2(min(length, 14.0))))):
                steps.append((round(motion[0] / 2 ** (k + 1)), round(motion[1] / 2 ** (k + 1))))
        pad_x, pad_y = (sum(abs(s[k]) for s in steps) for k in range(2))
        width, height = o.width + pad_x, o.height + pad_y
        frame = self._warp(self._picture, camera, pad_x / 2, pad_y / 2, width, height)
        for dx, dy in steps:  # each pass averages with a shifted copy and halves the remaining length
            h, w = frame.shape[:2]
            ax, ay, bx, by = max(dx, 0), max(dy, 0), max(-dx, 0), max(-dy, 0)
            h, w = h - abs(dy), w - abs(dx)
            frame = cv2.addWeighted(frame[ay : ay + h, ax : ax + w], 0.5, frame[by : by + h, bx : bx + w], 0.5, 0)
        return frame

    def _warp(
        self, texture: NDArray[np.uint8], camera: Array, left: float, top: float, width: int, height: int
    ) -> NDArray[np.uint8]:
        """Look at a texture of the ground: the picture's window that begins `left`, `top` pixels before its origin."""
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64) - [left, top]
        low = _back(camera, corners).min(0)
        tile = np.floor(low / PERIOD) * PERIOD
        # image index -> image coordinate -> metres -> texture coordinate -> texture index
        inverse = np.linalg.inv(camera[:, :2])
        matrix = np.empty((2, 3))
        matrix[:, :2] = inverse * SCALE
        origin = inverse @ (np.array([0.5 - left, 0.5 - top]) - camera[:, 2])
        matrix[:, 2] = (origin - tile) * SCALE - 0.5
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped: NDArray[np.uint8] = cv2.warpAffine(texture, matrix, (width, height), flags=flags)
        return warped

    def _draw_vehicle(
        self,
        frame: NDArray[np.uint8],
        vehicle: _Vehicle,
        camera: Array,
        place: Array,
        heading: float,
        motion: Array,
    ) -> None:
        o = self.options
        at = _project(camera, place[None])[0]
        scale = float(np.sqrt(abs(np.linalg.det(camera[:, :2]))))
        reach = int(np.ceil(vehicle.looks.length * scale * 0.62)) + 12
        left, top = int(np.floor(at[0])) - reach, int(np.floor(at[1])) - reach
        side = 2 * reach + 1
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, o.width), min(top + side, o.height)
        if x1 >= x2 or y1 >= y2:
            return
        h, w = vehicle.picture.shape[:2]
        c, s = np.cos(heading), np.sin(heading)
        turn = camera[:, :2] @ np.array([[c, -s], [s, c]]) / SPRITE_SCALE  # sprite pixels -> image pixels
        matrix = np.empty((2, 3))
        matrix[:, :2] = turn
        matrix[:, 2] = at - [left, top] - 0.5 - turn @ np.array([w / 2 - 0.5, h / 2 - 0.5])
        layer = cv2.warpAffine(vehicle.picture, matrix, (side, side), flags=cv2.INTER_LINEAR)
        shadow = None
        if o.shadows:
            matrix[:, 2] += camera[:, :2] @ (SUN * 1.1)
            shadow = cv2.warpAffine(vehicle.picture[..., 3], matrix, (side, side), flags=cv2.INTER_LINEAR)
            shadow = cv2.GaussianBlur(shadow, (0, 0), 1.2)
        if np.hypot(*motion) > 0.7:
            layer = cv2.filter2D(layer, -1, _streak(motion), borderType=cv2.BORDER_CONSTANT)
        part = slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)
        cover = self._warp(self._cover, camera, -x1, -y1, x2 - x1, y2 - y1).astype(np.float32) / 255
        seen = 1 - cover[..., :1]
        under = frame[y1:y2, x1:x2].astype(np.float32)
        if shadow is not None:
            # where the ground is dark already, and on top of what hides the car, its shadow adds nothing
            under *= 1 - SHADE * shadow[part][..., None] * seen * (1 - cover[..., 1:])
        layer = layer[part] * seen
        lit = layer[..., :3] * (255 * (1 - SHADE * cover[..., 1:]))
        frame[y1:y2, x1:x2] = np.clip(under * (1 - layer[..., 3:]) + lit + 0.5, 0, 255).astype(np.uint8)

    def _develop(self, frame: NDArray[np.uint8], grain: int, t: float) -> NDArray[np.uint8]:
        """Illumination and sensor noise."""
        o = self.options
        if o.light:
            gain = 1 + 0.10 * np.sin(2 * np.pi * t / 9.1 + self._wander[6]) + 0.05 * np.sin(2 * np.pi * t / 3.7)
            drift = (np.array([11.0, 5.0]) * t * 0.2) % 64
            window = np.array([[0.55, 0, drift[0]], [0, 0.55, drift[1]]])
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            cloud = cv2.warpAffine(self._clouds, window, (40, 30), flags=flags)
            light = cv2.resize(cloud * self._vignette * np.float32(gain), (o.width, o.height))
            warm = 0.03 * np.sin(2 * np.pi * t / 23 + self._wander[7])
            tints = (1 - warm, 1.0, 1 + warm)  # the sun's colour, BGR
            light3 = cv2.merge([cv2.convertScaleAbs(light, alpha=128 * tint) for tint in tints])
            frame = cv2.multiply(frame, light3, scale=1 / 128)
        if o.noise > 0:
            rng = np.random.default_rng([o.seed, 5, grain])
            dx, dy = (int(v) for v in rng.integers(0, 128, 2))
            noise = self._noise[dy : dy + o.height, dx : dx + o.width]
            frame = cv2.add(frame, noise, dtype=cv2.CV_8U)
        return frame

    # ---------------------------------------------------------------- motion

    def _places(self, t: float) -> tuple[Array, Array]:
        """Positions (Nx2 metres) and headings (N radians) of all vehicles at `t`; those of the target come first.

        The others are in the copy of the world that is nearest to the target.
        """
        time = self._start + t + self._offsets + self._sways * math.sin(2 * math.pi * t / 17)
        ahead, heading = self._route.at(time)
        # on the same clock as the target, a vehicle on the reversed route meets it twice a lap
        oncoming, back = self._route.at(time, reverse=True)
        places = np.where(self._reversed[:, None], oncoming, ahead)
        places -= np.round((places - places[0]) / PERIOD) * PERIOD
        return places, np.where(self._reversed, back, heading)

    def _camera(self, t: float) -> Array:
        """The 2x3 matrix from metres to image coordinates (pixels, 0-based, pixel i covers [i, i + 1))."""
        o, p = self.options, self._wander
        (target,), _ = self._route.at(self._start + t)
        w = 2 * np.pi * t
        zoom = o.zoom * math.exp(
            0.19 * math.sin(w / 13.3 + self._zoom_phase[0]) + 0.08 * math.sin(w / 5.9 + self._zoom_phase[1])
        )
        phase, drift = self._yaw
        yaw = phase + 0.55 * math.sin(w / 21 + phase) + 0.12 * math.sin(w / 6.3) + drift * t
        headings = self._route.at(self._start + t + _FOLLOWED)[1]
        yaw -= o.follow * float(headings.mean())
        spot = np.array(
            [
                o.width * (0.5 + 0.15 * math.sin(w / 8.7 + p[0]) + 0.07 * math.sin(w / 3.9 + p[1])),
                o.height * (0.5 + 0.15 * math.sin(w / 7.3 + p[2]) + 0.07 * math.sin(w / 4.3 + p[3])),
            ]
        )
        spot = self._lead_away(spot, t, zoom)
        shake = np.sin(2 * np.pi * t * np.array([2.3, 3.7, 6.1, 8.9]) + self._shake) @ np.array([1.0, 0.6, 0.35, 0.2])
        spot = spot + o.jitter * shake[:2]
        yaw += 0.002 * o.jitter * float(shake[2])
        c, s = math.cos(yaw), math.sin(yaw)
        linear = zoom * np.array([[c, -s], [s, c]])
        return np.column_stack([linear, spot - linear @ target])

    def _lead_away(self, spot: Array, t: float, zoom: float) -> Array:
        """Move the target's place in the image out of view around every other turn of the route."""
        if not self.options.leaves_view:
            return spot
        lap = math.floor((self._start + t) / LAP)
        first = int(np.argmin(np.abs(self._route.turns - (self._start - 0.9))))
        for near in (lap - 1, lap, lap + 1):
            for k in range(1, 6, 2):
                turn = int(first + k) % 6
                at = float(self._route.turns[turn]) + near * LAP - self._start
                if at < 2:  # nothing happens in the first two seconds, nor before them
                    continue
                rng = np.random.default_rng([self.options.seed, 6, near + 1, turn])
                hold = rng.uniform(1.7, 2.2)
                angle = rng.uniform(0, 2 * np.pi)
                sweep = rng.uniform(-np.pi, np.pi)
                begin = at - hold / 2 - _RAMP
                end = at + hold / 2 + _RAMP
                if begin < t < end:
                    away = min(_ease((t - begin) / _RAMP), _ease((end - t) / _RAMP))
                    angle += sweep * _ease((t - begin - _RAMP) / hold)
                    o = self.options
                    radius = math.hypot(o.width, o.height) / 2 + 4.5 * zoom + 6 * o.jitter
                    outside = [o.width / 2 + radius * math.cos(angle), o.height / 2 + radius * math.sin(angle)]
                    return spot * (1 - away) + np.array(outside) * away
        return spot

    # ---------------------------------------------------------------- things

    def _make_vehicles(self, rng: np.random.Generator) -> list[_Vehicle]:
        o = self.options
        paint = PAINTS[int(rng.choice(VIVID))]
        vehicles: list[_Vehicle] = []

        def add(looks: Looks, offset: float, sway: float, reverse: bool) -> None:
            vehicles.append(_Vehicle(looks, sprite(looks, rng), outline(looks), offset, sway, reverse))

        add(draw_looks(rng, paint), 0.0, 0.0, False)
        # those close by on the target's own lane: gaps of at least 1.1 s, so that nobody ever touches
        ahead, behind = 0.0, 0.0
        for n in range(o.traffic):
            alike = similar_paint(rng, paint, (1 - o.similarity) + 0.25 * n) if n < 3 else None
            gap = 1.3 if n < 2 else rng.uniform(1.6, 3.0)
            if n % 2 == 0:
                behind -= gap
                add(draw_looks(rng, alike), behind, 0.15 if n == 0 else 0.0, False)
            else:
                ahead += gap
                add(draw_looks(rng, alike), ahead, 0.0, False)
        spacing = LAP / max(1, o.traffic)
        for n in range(o.traffic):
            alike = similar_paint(rng, paint, (1 - o.similarity) + 0.3) if n % 2 == 0 else None
            add(draw_looks(rng, alike), spacing * (n + rng.uniform(0.1, 0.6)), 0.0, True)
        return vehicles

    def _make_clouds(self, rng: np.random.Generator) -> NDArray[np.float32]:
        cells = rng.standard_normal((14, 14)).astype(np.float32)
        smooth = cv2.GaussianBlur(cv2.resize(np.pad(cells, 2, mode="wrap"), (324, 324)), (0, 0), 5)
        edge = 1 / (1 + np.exp(-(smooth - 0.25) * 9))
        return (1.06 - 0.24 * edge).astype(np.float32)

    def _make_noise(self, rng: np.random.Generator) -> NDArray[np.int16]:
        """A sheet of sensor noise, larger than the picture: each frame takes another window of it."""
        o = self.options
        shape = (o.height + 128, o.width + 128)
        luma = rng.standard_normal((*shape, 1), np.float32) * 0.85
        chroma = cv2.GaussianBlur(rng.standard_normal((*shape, 3), np.float32), (0, 0), 0.7) * 1.1
        return np.round((luma + chroma) * o.noise).astype(np.int16)


def _ease(x: float) -> float:
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def _turn(points: Array, heading: float) -> Array:
    c, s = math.cos(heading), math.sin(heading)
    return points @ np.array([[c, s], [-s, c]])


def _project(camera: Array, points: Array) -> Array:
    """Metres (Nx2) to image coordinates (Nx2)."""
    return points @ camera[:, :2].T + camera[:, 2]


def _back(camera: Array, points: Array) -> Array:
    """Image coordinates (Nx2) to metres (Nx2)."""
    return (points - camera[:, 2]) @ np.linalg.inv(camera[:, :2]).T


def _streak(motion: Array) -> NDArray[np.float32]:
    """A kernel that blurs along `motion` (pixels), centred and of sum 1."""
    n = max(3, 2 * math.ceil(np.abs(motion).max()) + 1)
    reach = math.ceil(np.abs(motion).max() / 2) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float64)
    for part in np.linspace(-0.5, 0.5, n):
        x, y = motion * part + reach
        i, j = math.floor(y), math.floor(x)
        fy, fx = y - i, x - j
        kernel[i, j] += (1 - fy) * (1 - fx)
        kernel[i, j + 1] += (1 - fy) * fx
        kernel[i + 1, j] += fy * (1 - fx)
        kernel[i + 1, j + 1] += fy * fx
    return (kernel / kernel.sum()).astype(np.float32)
