"""The roads of the simulated world and the route that the traffic takes.

The world is a torus: a square of `PERIOD` metres that repeats in both directions, so that a flight never reaches an
end. Coordinates are metres, x to the right and y down (as in an image); they are not wrapped, so that a vehicle that
drives on for ever keeps a continuous position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

#: Side of the repeating square, metres.
PERIOD = 256.0
#: Distance of a lane's middle from the road's middle, metres. Traffic keeps to the right.
LANE = 1.85
#: Half the width of the asphalt, metres.
HALF_WIDTH = 3.9
#: Time for one lap of the route, seconds.
LAP = 48.0

_ROADS = 3  # roads in each direction and period
_STEP = 0.25  # metres between points of the route


class RoadNetwork:
    """Gently bent roads in two directions: vertical ones at ``x = xs[i] + bend_x(y)``, horizontal ones likewise."""

    def __init__(self, rng: np.random.Generator) -> None:
        pitch = PERIOD / _ROADS
        self.xs: Array = (np.arange(_ROADS) + rng.uniform(-0.09, 0.09, _ROADS)) * pitch
        self.ys: Array = (np.arange(_ROADS) + rng.uniform(-0.09, 0.09, _ROADS)) * pitch
        self._bends = rng.uniform([[3, 0, 1, 0]], [[6, 2 * np.pi, 2, 2 * np.pi]], (2, 4))

    def bend_x(self, y: ArrayLike) -> Array:
        """Shift in x (metres) of the vertical roads at `y`."""
        return self._bend(0, y)

    def bend_y(self, x: ArrayLike) -> Array:
        """Shift in y (metres) of the horizontal roads at `x`."""
        return self._bend(1, x)

    def _bend(self, axis: int, at: ArrayLike) -> Array:
        a1, p1, a2, p2 = self._bends[axis]
        turn = 2 * np.pi * np.asarray(at, np.float64) / PERIOD
        return a1 * np.sin(turn + p1) + a2 * np.sin(2 * turn + p2)

    def junction(self, i: int, j: int) -> tuple[float, float]:
        """Where vertical road `i` crosses horizontal road `j`, metres; indices beyond the period are other copies."""
        x0 = self.xs[i % _ROADS] + PERIOD * (i // _ROADS)
        y0 = self.ys[j % _ROADS] + PERIOD * (j // _ROADS)
        x, y = x0, y0
        for _ in range(50):  # a contraction: the slope of a bend is below 0.3
            x, y = x0 + float(self.bend_x(y)), y0 + float(self.bend_y(x))
        return x, y

    def signed_distances(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
        """Distance (metres, signed) of each point from the nearest vertical and the nearest horizontal road."""
        u = x - self.bend_x(y).astype(np.float32)
        v = y - self.bend_y(x).astype(np.float32)
        return _nearest(u, self.xs), _nearest(v, self.ys)

    def blocks(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[NDArray, NDArray, NDArray]:
        """Number of the block between the roads, and place in it (-1 to 1 in both directions), of each point."""
        column, u = _between(x - self.bend_x(y).astype(np.float32), self.xs)
        row, v = _between(y - self.bend_y(x).astype(np.float32), self.ys)
        return (column + _ROADS * row).astype(np.int32), u, v


def _nearest(value: NDArray, places: Array) -> NDArray:
    best = value - np.float32(places[0])
    best -= np.float32(PERIOD) * np.rint(best / np.float32(PERIOD))
    for place in places[1:]:
        d = value - np.float32(place)
        d -= np.float32(PERIOD) * np.rint(d / np.float32(PERIOD))
        best = np.where(np.abs(d) < np.abs(best), d, best)
    return best


def _between(value: NDArray, places: Array) -> tuple[NDArray, NDArray]:
    start = float(places[0])
    offset = np.mod(value - np.float32(start), np.float32(PERIOD))
    edges = np.append(places - start, PERIOD)
    index = np.clip(np.searchsorted(edges, offset, side="right") - 1, 0, len(places) - 1)
    low, high = edges[index].astype(np.float32), edges[index + 1].astype(np.float32)
    return index, (offset - low) / (high - low) * 2 - 1


class Route:
    """A closed staircase through the road network, six turns a lap, driven slower in the turns.

    Attributes:
        turns: lap times (s) at which the route turns.
        middles: lap times (s) halfway between two turns.
    """

    def __init__(self, roads: RoadNetwork, rng: np.random.Generator) -> None:
        sx, sy = (int(v) for v in rng.choice((-1, 1), 2))
        self._shift = np.array([sx * PERIOD, sy * PERIOD])  # one lap ends in the next copy of the world
        points: list[Array] = []
        corners: list[Array] = []
        i = j = 0
        for step in range(2 * _ROADS):
            a = np.array(roads.junction(i, j))
            corners.append(a)
            if step % 2 == 0:
                i += sx
            else:
                j += sy
            b = np.array(roads.junction(i, j))
            along = np.linspace(0, 1, 400, endpoint=False)[:, None]
            line = a + (b - a) * along
            if step % 2 == 0:
                line[:, 1] += roads.bend_y(line[:, 0]) - np.interp(along[:, 0], [0, 1], roads.bend_y([a[0], b[0]]))
            else:
                line[:, 0] += roads.bend_x(line[:, 1]) - np.interp(along[:, 0], [0, 1], roads.bend_x([a[1], b[1]]))
            points.append(line)
        path = np.concatenate(points)
        path = np.vstack([path, path[:1] + self._shift])
        s = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
        n = int(s[-1] / _STEP)
        grid = np.arange(n) * (s[-1] / n)
        even = np.stack([np.interp(grid, s, path[:, k]) for k in range(2)], 1)
        drift = np.outer(np.arange(n) / n, self._shift)
        center = _smooth(even - drift, 4.5 / _STEP) + drift
        tangent = np.gradient(np.vstack([center[-2:] - self._shift, center, center[:2] + self._shift]), axis=0)[2:-2]
        heading = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))
        length = s[-1] / n
        curvature = np.abs(_periodic_gradient(heading)) / length
        speed = _smooth(np.minimum(13.0, np.sqrt(4.5 / np.maximum(curvature, 1e-3)))[:, None], 5.0 / _STEP)[:, 0]
        spent = np.concatenate([[0], np.cumsum(length / speed)])
        self._time = spent * (LAP / spent[-1])
        self._center = np.vstack([center, center[:1] + self._shift])
        turn_of_lap = round((heading[-1] - heading[0]) / (2 * np.pi)) * 2 * np.pi
        self._heading = np.append(heading, heading[0] + turn_of_lap)
        self._lap_turn = turn_of_lap
        nearest = [int(np.argmin(np.hypot(*(center - c).T))) for c in corners]
        self.turns: Array = np.sort(self._time[nearest] % LAP)
        self.middles: Array = (self.turns + np.append(self.turns[1:], self.turns[0] + LAP)) / 2 % LAP

    def at(self, t: Array | float, *, reverse: bool = False, lane: float = LANE) -> tuple[Array, Array]:
        """Where a vehicle is that drives the route.

        Args:
            t: times in seconds, N of them (or one).
            reverse: drive the route backwards (the oncoming lane).
            lane: distance to the right of the road's middle, metres.

        Returns:
            positions, Nx2 metres, and headings, N radians (0 along x, growing towards y).
        """
        time = np.atleast_1d(np.asarray(t, np.float64))
        if reverse:
            time = -time
        lap = np.floor(time / LAP)
        phase = time - lap * LAP
        center = np.stack([np.interp(phase, self._time, self._center[:, k]) for k in range(2)], 1)
        center += lap[:, None] * self._shift
        heading = np.interp(phase, self._time, self._heading) + lap * self._lap_turn
        if reverse:
            heading = heading + np.pi
        right = np.stack([-np.sin(heading), np.cos(heading)], 1)
        return center + lane * right, heading


def _smooth(values: Array, sigma: float) -> Array:
    """Circular Gaussian smoothing of the rows of an NxK array, `sigma` in rows."""
    frequency = np.fft.rfftfreq(len(values))
    kernel = np.exp(-2 * (np.pi * frequency * sigma) ** 2)
    smoothed: Array = np.fft.irfft(np.fft.rfft(values, axis=0) * kernel[:, None], n=len(values), axis=0)
    return smoothed


def _periodic_gradient(angle: Array) -> Array:
    step = np.diff(angle, append=angle[0])
    return (step + np.pi) % (2 * np.pi) - np.pi
