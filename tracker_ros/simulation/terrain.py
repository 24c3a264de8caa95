"""The ground of the simulated world: fields, roads, buildings, trees and the things that a vehicle drives under.

Everything is drawn once into a texture of `SCALE` pixels a metre that repeats every `roads.PERIOD` metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.simulation.roads import HALF_WIDTH, LANE, PERIOD, RoadNetwork, Route
from tracker_ros.simulation.vehicles import SPRITE_SCALE, draw_looks, sprite

#: Pixels a metre of the texture.
SCALE = 12
#: Side of the texture, pixels.
SIZE = int(PERIOD * SCALE)
#: Where shadows fall: metres of shadow for each metre of height (x to the right, y down).
SUN = np.array([0.55, 0.35])
#: How dark a full shadow is, 0 to 1.
SHADE = 0.5

Float = NDArray[np.float32]

_FIELDS = (  # BGR, contrast of the rows
    ((62, 118, 88), 0.08),
    ((70, 140, 120), 0.10),
    ((96, 168, 186), 0.09),
    ((88, 118, 140), 0.16),
    ((60, 100, 70), 0.05),
    ((78, 150, 105), 0.12),
    ((105, 150, 165), 0.07),
)
_ROOFS = ((62, 72, 150), (80, 84, 96), (70, 90, 130), (120, 125, 132), (92, 70, 70))


@dataclass(frozen=True)
class Terrain:
    """The finished ground.

    Attributes:
        picture: `SIZE` x `SIZE` x 3 uint8, BGR: all that a camera sees but the moving vehicles.
        cover: `SIZE` x `SIZE` x 2 uint8: how much of a vehicle is hidden (tree crowns, bridges) and how much shadow
            falls on it, 0 to 255.
    """

    picture: NDArray[np.uint8]
    cover: NDArray[np.uint8]


def build_terrain(roads: RoadNetwork, route: Route, rng: np.random.Generator) -> Terrain:
    """Draw the ground with occluders over the route, one halfway between each two of its turns."""
    canvas = _Canvas(rng)
    _paint_ground(canvas, roads, rng)
    crowns = [_tree(rng, r) for r in np.linspace(1.4, 4.6, 14)]
    houses = _place_houses(canvas, roads, route, rng)
    trees = _place_trees(canvas, roads, houses, len(crowns), rng)
    trees += _cover_route(canvas, route, crowns, rng)
    for x, y, k in trees:
        radius = crowns[k].shape[0] / 2 / SCALE
        dx, dy = SUN * radius * 1.1
        canvas.shade(crowns[k][..., 3], x + dx, y + dy)
    canvas.apply_shadows()
    for house in houses:
        _draw_house(canvas, house, rng)
    _park_cars(canvas, houses, roads, rng)
    for x, y, k in trees:
        canvas.stamp(crowns[k], x, y, hides=True)
    for bridge in canvas.bridges:
        _draw_bridge(canvas, *bridge)
    return Terrain(canvas.picture, np.dstack([canvas.hides, canvas.shadow]))


def periodic_noise(rng: np.random.Generator, size: int, cells: int, channels: int = 1) -> Float:
    """Smooth noise of mean 0 and deviation about 0.6 that repeats at the border: `size` x `size` (x channels)."""
    if size % cells:
        raise ValueError(f"size {size} must be a multiple of cells {cells}")
    zoom = size // cells
    grid = rng.standard_normal((cells, cells, channels)).astype(np.float32)
    grid = np.pad(grid, ((3, 3), (3, 3), (0, 0)), mode="wrap")
    side = (cells + 6) * zoom
    large = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
    large = large[3 * zoom : 3 * zoom + size, 3 * zoom : 3 * zoom + size]
    return np.ascontiguousarray(large)


def _bgr(blue: float, green: float, red: float) -> Float:
    return np.array([blue, green, red], np.float32)


class _Canvas:
    """The texture while it is drawn. Places are metres; everything wraps around at the border."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.picture: NDArray[np.uint8] = np.zeros((SIZE, SIZE, 3), np.uint8)
        self.hides: NDArray[np.uint8] = np.zeros((SIZE, SIZE), np.uint8)
        self.shadow: NDArray[np.uint8] = np.zeros((SIZE, SIZE), np.uint8)
        self.bridges: list[tuple[float, float, float]] = []

    def window(self, x: float, y: float, height: int, width: int) -> tuple[NDArray, NDArray]:
        """Indices of a window of pixels whose middle lies at `x`, `y`."""
        top = round(y * SCALE - height / 2)
        left = round(x * SCALE - width / 2)
        rows, columns = np.ix_(np.arange(top, top + height) % SIZE, np.arange(left, left + width) % SIZE)
        return rows, columns

    def stamp(self, picture: Float, x: float, y: float, *, hides: bool = False) -> None:
        """Lay a premultiplied BGRA picture (HxWx4, 0 to 1) over the ground."""
        at = self.window(x, y, *picture.shape[:2])
        alpha = picture[..., 3:]
        under = self.picture[at].astype(np.float32)
        self.picture[at] = np.clip(under * (1 - alpha) + picture[..., :3] * 255 + 0.5, 0, 255).astype(np.uint8)
        if hides:
            cover = self.hides[at].astype(np.float32) / 255
            self.hides[at] = ((1 - (1 - cover) * (1 - alpha[..., 0])) * 255 + 0.5).astype(np.uint8)

    def shade(self, alpha: Float, x: float, y: float) -> None:
        """Let a shadow (HxW, 0 to 1) fall."""
        at = self.window(x, y, *alpha.shape)
        self.shadow[at] = np.maximum(self.shadow[at], (alpha * 255).astype(np.uint8))

    def shade_block(self, base: NDArray[np.float64], height: float) -> None:
        """Let the shadow fall of something upright and `height` metres high, with a convex `base` (Nx2 metres)."""
        corners = cv2.convexHull(np.vstack([base, base + SUN * height]).astype(np.float32))[:, 0]
        low, high = corners.min(0), corners.max(0)
        middle = (low + high) / 2
        side = np.ceil((high - low) * SCALE).astype(int) + 4
        mask = np.zeros((side[1], side[0]), np.uint8)
        cv2.fillConvexPoly(mask, np.round((corners - middle) * SCALE + side / 2).astype(np.int32), 255, cv2.LINE_AA)
        self.shade(np.float32(1 / 255) * mask.astype(np.float32), float(middle[0]), float(middle[1]))

    def apply_shadows(self) -> None:
        """Darken the ground where a shadow falls."""
        soft = cv2.GaussianBlur(np.pad(self.shadow, 8, mode="wrap"), (0, 0), 1.2)[8:-8, 8:-8]
        self.shadow = np.ascontiguousarray(soft)
        for top in range(0, SIZE, 256):
            rows = slice(top, top + 256)
            factor = 1 - SHADE * self.shadow[rows].astype(np.float32)[..., None] / 255
            # skylight is blue: shadows lose less of it
            part = self.picture[rows].astype(np.float32) * (factor * _bgr(0.92, 1, 1) + _bgr(0.08, 0, 0))
            self.picture[rows] = (part + 0.5).astype(np.uint8)


def _paint_ground(canvas: _Canvas, roads: RoadNetwork, rng: np.random.Generator) -> None:
    half = SIZE // 2
    place = (np.arange(half, dtype=np.float32) + 0.5) * (2 / SCALE)
    x, y = np.meshgrid(place, place, sparse=True)
    wobble = periodic_noise(rng, half, 24, 2)
    block, u, v = roads.blocks(x, y)
    # each block is cut in two to four fields along slightly uneven borders
    cut_u, cut_v = rng.uniform(-0.3, 0.3, (2, 16))
    upright = rng.random(16) < 0.5
    over_u, over_v = (p + 0.02 * wobble[..., k] > cut[block] for k, (p, cut) in enumerate(((u, cut_u), (v, cut_v))))
    first = np.where(upright[block], over_u, over_v)
    second = np.where(upright[block], over_v, over_u)
    field = block * 4 + first * 2 + second * rng.integers(0, 2, 16)[block]
    kind = rng.integers(0, len(_FIELDS), 64)
    colors = np.array([c for c, _ in _FIELDS], np.float32)[kind] * rng.uniform(0.88, 1.1, (64, 3)).astype(np.float32)
    contrast = np.array([c for _, c in _FIELDS], np.float32)[kind]
    angle = rng.uniform(0, np.pi, 64)
    pitch = rng.uniform(0.9, 2.4, 64)
    # rows are counted from the block's own middle, so that they don't break where the world repeats
    local_x = u * np.float32(PERIOD / 6) + 0.35 * wobble[..., 0]
    local_y = v * np.float32(PERIOD / 6) + 0.35 * wobble[..., 1]
    ca, sa = (np.cos(angle) / pitch).astype(np.float32), (np.sin(angle) / pitch).astype(np.float32)
    rows = np.sin(np.float32(2 * np.pi) * (local_x * ca[field] + local_y * sa[field]))
    patches = 0.5 * periodic_noise(rng, half, 12)[..., None] + 0.5 * periodic_noise(rng, half, 48)[..., None]
    light = 1 + (contrast[field] * rows)[..., None] + 0.10 * patches.reshape(half, half, 1)
    light += 0.07 * periodic_noise(rng, half, 192).reshape(half, half, 1)
    tint = 1 + 0.05 * periodic_noise(rng, half, 24, 3)
    ground = cv2.resize(np.pad(colors[field] * light * tint, ((2, 2), (2, 2), (0, 0)), mode="wrap"), None, fx=2, fy=2)
    ground = ground[4:-4, 4:-4]
    del block, field, light, tint, rows, u, v

    grain = rng.standard_normal((SIZE // 3, SIZE // 3)).astype(np.float32)
    grain = np.tile(grain, (3, 3))
    clumps = periodic_noise(rng, SIZE, SIZE // 4)
    asphalt_noise = periodic_noise(rng, SIZE, 96)
    place = (np.arange(SIZE, dtype=np.float32) + 0.5) / SCALE
    for top in range(0, SIZE, 256):
        part = slice(top, top + 256)
        x, y = np.meshgrid(place, place[part], sparse=True)
        dx, dy = roads.signed_distances(x, y)
        ax, ay = np.abs(dx), np.abs(dy)
        # a smooth minimum rounds the corners of the junctions
        blend = np.clip(0.5 + 0.5 * (ay - ax) / 6, 0, 1)
        distance = ax * blend + ay * (1 - blend) - 6 * blend * (1 - blend)
        distance += 0.25 * asphalt_noise[part] * (distance > 3.2)
        soil = ground[part] * (1 + 0.07 * clumps[part] + 0.05 * grain[part])[..., None]
        # the rest only where there is a road
        at = distance < HALF_WIDTH + 3.2
        edge_of = distance[at]
        speckle, lumps, stains = grain[part][at], clumps[part][at], asphalt_noise[part][at]
        along_x = (ax < ay)[at]  # on a vertical road
        off = np.where(along_x, dx[at], dy[at])
        other = np.where(along_x, ay[at], ax[at])
        run = np.where(along_x, np.broadcast_to(y, at.shape)[at], np.broadcast_to(x, at.shape)[at])
        verge = _bgr(88, 128, 118) * (1 + 0.10 * lumps + 0.07 * speckle)[:, None]
        gravel = _bgr(128, 142, 150) * (1 + 0.08 * lumps + 0.09 * speckle)[:, None]
        track = np.exp(-(((np.abs(np.abs(off) - LANE) - 0.75) / 0.3) ** 2))
        tone = 104 * (1 + 0.07 * stains + 0.045 * speckle + 0.03 * lumps - 0.06 * track)
        dash = (np.abs(off) < 0.09) & (np.mod(run, PERIOD / 32) < 3.2) & (other > 8.5)
        edge = np.abs(edge_of - 3.55) < 0.08
        stop = (np.abs(other - 8.0) < 0.22) & (np.abs(off) < 3.4)
        paint = ((dash | edge | stop) * (0.75 + 0.18 * stains))[:, None]
        asphalt = tone[:, None] * _bgr(1.02, 1.0, 0.97) * (1 - paint) + 215 * paint
        color = soil[at]
        for layer, border in ((verge, HALF_WIDTH + 2.6), (gravel, HALF_WIDTH + 0.55), (asphalt, HALF_WIDTH)):
            mix = np.clip((border - edge_of) * (SCALE / 2) + 0.5, 0, 1)[:, None]
            color = color * (1 - mix) + layer * mix
        soil[at] = color
        canvas.picture[part] = np.clip(soil, 0, 255).astype(np.uint8)


def _tree(rng: np.random.Generator, radius: float) -> Float:
    """A crown from above: premultiplied BGRA, HxWx4 in [0, 1]."""
    side = int(np.ceil(radius * SCALE)) * 2 + 6
    c = (np.arange(side, dtype=np.float32) - side / 2 + 0.5) / (radius * SCALE)
    x, y = np.meshgrid(c, c)
    coarse = cv2.resize(rng.standard_normal((7, 7)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    leaves = max(6, side // 5)
    fine = cv2.resize(
        rng.standard_normal((leaves, leaves)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC
    )
    rim = np.hypot(x, y) + 0.10 * coarse + 0.05 * fine
    alpha = np.clip((0.88 - rim) * radius * SCALE / 2.5, 0, 1)
    relief = np.sqrt(np.clip(1 - rim * rim, 0, 1)) + 0.10 * coarse + 0.13 * fine
    gy, gx = np.gradient(cv2.GaussianBlur(relief, (0, 0), 0.8))
    lit = -(gx * SUN[0] + gy * SUN[1]) * radius * SCALE * 0.20
    tone = np.clip(0.72 + 0.30 * lit + 0.10 * fine + 0.06 * rng.standard_normal((side, side)), 0.2, 1.5)
    base = np.array([rng.uniform(38, 58), rng.uniform(82, 116), rng.uniform(52, 84)], np.float32) / 255
    color = np.clip(tone[..., None] * base, 0, 1)
    return np.dstack([color * alpha[..., None], alpha]).astype(np.float32)


@dataclass(frozen=True)
class _House:
    x: float
    y: float
    a: float  # half length, m
    b: float  # half width, m
    angle: float
    height: float

    def corners(self) -> NDArray[np.float64]:
        c, s = np.cos(self.angle), np.sin(self.angle)
        local = np.array([[self.a, self.b], [-self.a, self.b], [-self.a, -self.b], [self.a, -self.b]])
        return local @ np.array([[c, s], [-s, c]]) + [self.x, self.y]


def _road_distance(roads: RoadNetwork, x: float, y: float) -> float:
    dx, dy = roads.signed_distances(np.array([[x]], np.float32), np.array([[y]], np.float32))
    return float(min(abs(dx[0, 0]), abs(dy[0, 0])))


def _gap(ax: float, ay: float, bx: float, by: float) -> float:
    dx = (ax - bx + PERIOD / 2) % PERIOD - PERIOD / 2
    dy = (ay - by + PERIOD / 2) % PERIOD - PERIOD / 2
    return float(np.hypot(dx, dy))


def _place_houses(canvas: _Canvas, roads: RoadNetwork, route: Route, rng: np.random.Generator) -> list[_House]:
    houses: list[_House] = []
    covered, _ = route.at(route.middles, lane=0.0)  # bridges need the room beside the road
    for _ in range(700):
        x, y = rng.uniform(0, PERIOD, 2)
        a, b = rng.uniform(4.5, 9.5), rng.uniform(3.2, 5.5)
        d = _road_distance(roads, x, y)
        if not 15 < d < 27 or any(_gap(x, y, h.x, h.y) < 17 for h in houses):
            continue
        if any(_gap(x, y, px, py) < 28 for px, py in covered):
            continue
        angle = rng.choice((0, np.pi / 2)) + rng.uniform(-0.12, 0.12)
        house = _House(x, y, a, b, angle, rng.uniform(4, 8))
        houses.append(house)
        canvas.shade_block(house.corners(), house.height)
        if len(houses) == 34:
            break
    return houses


def _draw_house(canvas: _Canvas, house: _House, rng: np.random.Generator) -> None:
    side = int(np.ceil((house.a + house.b) * 1.6 * SCALE)) + 4
    picture = np.zeros((side, side, 4), np.float32)
    mask = np.zeros((side, side), np.uint8)
    corners = (house.corners() - [house.x, house.y]) * SCALE + side / 2 - 0.5
    cv2.fillConvexPoly(mask, np.round(corners).astype(np.int32), 255, cv2.LINE_AA)
    base = _bgr(*_ROOFS[int(rng.integers(len(_ROOFS)))]) * rng.uniform(0.85, 1.15)
    c = (np.arange(side, dtype=np.float32) - side / 2 + 0.5) / SCALE
    x, y = np.meshgrid(c, c)
    across = -x * np.sin(house.angle) + y * np.cos(house.angle)
    along = x * np.cos(house.angle) + y * np.sin(house.angle)
    normal = np.array([-np.sin(house.angle), np.cos(house.angle)])
    slope = -float(normal @ SUN)  # the side towards the sun is brighter
    tone = np.where(across > 0, 1 + 0.45 * slope, 1 - 0.45 * slope)
    tone = tone * (1 + 0.06 * np.sign(np.sin(2 * np.pi * across / 0.45)) + 0.04 * np.sin(2 * np.pi * along / 0.5))
    tone = tone + 0.05 * rng.standard_normal((side, side)).astype(np.float32)
    tone = np.where(np.abs(across) < 0.14, 1.25, tone)
    color = np.clip(base * tone[..., None] / 255, 0, 1)
    chimney = (np.abs(along - house.a * 0.4) < 0.45) & (np.abs(across - 1.1) < 0.45)
    color[chimney] = _bgr(0.30, 0.32, 0.42)
    alpha = mask.astype(np.float32)[..., None] / 255
    picture[..., :3], picture[..., 3:] = color * alpha, alpha
    canvas.stamp(picture, house.x, house.y, hides=True)


def _place_trees(
    canvas: _Canvas, roads: RoadNetwork, houses: list[_House], kinds: int, rng: np.random.Generator
) -> list[tuple[float, float, int]]:
    trees: list[tuple[float, float, int]] = []
    woods = rng.uniform(0, PERIOD, (14, 2))
    for n in range(620):
        if n % 5:
            x, y = woods[n % len(woods)] + rng.normal(0, 8.5, 2)
        else:
            x, y = rng.uniform(0, PERIOD, 2)
        kind = int(rng.integers(kinds))
        if _road_distance(roads, x, y) < 10.5 or any(_gap(x, y, h.x, h.y) < h.a + 2.5 for h in houses):
            continue
        trees.append((float(x), float(y), kind))
    return trees


def _cover_route(
    canvas: _Canvas, route: Route, crowns: list[Float], rng: np.random.Generator
) -> list[tuple[float, float, int]]:
    """Trees or a bridge over the road at each of the route's middles; trees are returned, bridges kept for later."""
    trees: list[tuple[float, float, int]] = []
    bridge_at = int(rng.integers(2))
    for k, t in enumerate(route.middles):
        (place,), (heading,) = route.at(float(t), lane=0.0)
        ahead = np.array([np.cos(heading), np.sin(heading)])
        right = np.array([-ahead[1], ahead[0]])
        if k % 2 == bridge_at:
            canvas.bridges.append((float(place[0]), float(place[1]), float(heading)))
            half_span, half_width, height = 17.0, 4.6, 6.0
            signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
            canvas.shade_block(place + signs @ np.array([ahead * half_width, right * half_span]), height)
            continue
        for along in np.arange(-4.4, 4.5, 2.2):
            for across in (-5.6, -2.6, 0.2, 2.2, 5.2):
                spot = place + ahead * (along + rng.uniform(-0.5, 0.5)) + right * (across + rng.uniform(-0.5, 0.5))
                trees.append((float(spot[0]), float(spot[1]), int(rng.integers(len(crowns) // 3, len(crowns) - 4))))
    return trees


def _draw_bridge(canvas: _Canvas, x: float, y: float, heading: float) -> None:
    """A bridge across the road that runs along `heading`, with earth ramps on both sides."""
    half_span, half_width = 17.0, 4.6
    side = int(np.ceil((half_span + 4) * 2 * SCALE))
    c = (np.arange(side, dtype=np.float32) - side / 2 + 0.5) / SCALE
    px, py = np.meshgrid(c, c)
    along = px * np.cos(heading) + py * np.sin(heading)
    across = -px * np.sin(heading) + py * np.cos(heading)
    grain = canvas.rng.standard_normal((side, side)).astype(np.float32)
    clumps = cv2.GaussianBlur(canvas.rng.standard_normal((side, side)).astype(np.float32), (0, 0), 3) * 6
    deck = _bgr(138, 142, 144) * (1 + 0.05 * grain + 0.05 * clumps)[..., None]
    lane = np.abs(along) < 3.1
    deck[lane] = (_bgr(96, 97, 98) * (1 + 0.05 * grain + 0.05 * clumps)[..., None])[lane]
    dash = (np.abs(along) < 0.09) & (np.mod(across, 6) < 3)
    deck[dash] = 205
    rail = (np.abs(np.abs(along) - (half_width - 0.35)) < 0.16) & (np.abs(across) < 11)
    deck[rail] = 186
    deck[np.abs(np.abs(across) - 8.4) < 0.1] *= 0.6  # joints
    # beyond the abutments the deck runs out into an overgrown ramp
    earth = np.clip((np.abs(across) - 11) / 4 + 0.4 * clumps, 0, 1)[..., None]
    soil = _bgr(76, 118, 104) * (1 + 0.10 * grain + 0.12 * clumps)[..., None]
    color = deck * (1 - earth) + soil * earth
    wide = half_width + 0.5 * earth[..., 0] * (1 + clumps)
    border = np.minimum(wide - np.abs(along), half_span - np.abs(across) + clumps)
    alpha = np.clip(border * SCALE + 0.5, 0, 1)
    canvas.stamp(np.dstack([np.clip(color / 255, 0, 1) * alpha[..., None], alpha]).astype(np.float32), x, y, hides=True)


def _park_cars(canvas: _Canvas, houses: list[_House], roads: RoadNetwork, rng: np.random.Generator) -> None:
    for house in houses:
        for _ in range(int(rng.integers(0, 3))):
            offset = house.b + rng.uniform(2.0, 3.2)
            along = rng.uniform(-house.a, house.a)
            turn = house.angle + rng.choice((0, np.pi / 2, np.pi))
            x = house.x + along * np.cos(house.angle) + offset * np.sin(house.angle)
            y = house.y + along * np.sin(house.angle) - offset * np.cos(house.angle)
            if _road_distance(roads, x, y) < 8 or any(_gap(x, y, h.x, h.y) < h.b + 1.8 for h in houses):
                continue
            looks = draw_looks(rng)
            picture = sprite(looks, rng)
            side = int(np.ceil(np.hypot(*picture.shape[:2]) * SCALE / SPRITE_SCALE)) + 4
            rotation = cv2.getRotationMatrix2D(
                (picture.shape[1] / 2 - 0.5, picture.shape[0] / 2 - 0.5), -np.degrees(turn), SCALE / SPRITE_SCALE
            )
            rotation[:, 2] += side / 2 - np.array([picture.shape[1], picture.shape[0]]) / 2
            turned = cv2.warpAffine(picture, rotation, (side, side), flags=cv2.INTER_LINEAR)
            shadow = np.zeros((side, side, 4), np.float32)
            shadow[..., 3] = cv2.GaussianBlur(turned[..., 3], (0, 0), 1.5) * SHADE
            canvas.stamp(shadow, x + SUN[0] * 1.0, y + SUN[1] * 1.0)
            canvas.stamp(turned, x, y)
