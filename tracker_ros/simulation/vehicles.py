"""Vehicles as seen from above: their outline, their looks and the sprite that is drawn."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

#: Pixels a metre of the sprites.
SPRITE_SCALE = 16.0
_SUPER = 4  # sprites are drawn this much larger and averaged down

#: Body paints, BGR.
PAINTS: tuple[tuple[int, int, int], ...] = (
    (40, 40, 190),
    (170, 80, 35),
    (235, 235, 235),
    (165, 160, 155),
    (45, 45, 48),
    (40, 170, 215),
    (70, 105, 35),
    (60, 95, 200),
)
#: Those of `PAINTS` that the target may have; a black car on asphalt or in shade is hardly seen.
VIVID: tuple[int, ...] = (0, 1, 2, 5, 6, 7)


@dataclass(frozen=True)
class Looks:
    """What a vehicle looks like; sizes in metres, colours BGR."""

    length: float
    width: float
    paint: tuple[int, int, int]
    roof: tuple[int, int, int]
    cabin: float  # length of the cabin, part of the vehicle's
    sunroof: bool
    stripes: bool
    rack: bool


def draw_looks(rng: np.random.Generator, paint: tuple[int, int, int] | None = None) -> Looks:
    """Draw a passenger car or a van; `paint` (BGR) fixes the colour of its body."""
    chosen = PAINTS[int(rng.integers(len(PAINTS)))] if paint is None else paint
    van = paint is None and rng.random() < 0.2
    length = rng.uniform(5.0, 5.6) if van else rng.uniform(4.1, 4.8)
    plain = rng.random() < 0.7
    roof = chosen if plain else tuple(int(c * 0.35) for c in chosen)
    return Looks(
        length=float(length),
        width=float(rng.uniform(1.95, 2.1) if van else rng.uniform(1.75, 1.9)),
        paint=chosen,
        roof=(roof[0], roof[1], roof[2]),
        cabin=float(rng.uniform(0.68, 0.75) if van else rng.uniform(0.44, 0.58)),
        sunroof=bool(not van and rng.random() < 0.35),
        stripes=bool(rng.random() < 0.15),
        rack=bool(rng.random() < 0.25),
    )


def similar_paint(rng: np.random.Generator, paint: tuple[int, int, int], amount: float) -> tuple[int, int, int]:
    """A colour near `paint` (BGR). `amount` 0 gives the same one, 1 one that is easy to tell apart."""
    b, g, r = (c / 255 for c in paint)
    h, s, v = colorsys.rgb_to_hsv(r, g, b)
    sign = rng.choice((-1.0, 1.0), 3)
    h = (h + sign[0] * 0.06 * amount) % 1.0
    s = float(np.clip(s + sign[1] * 0.15 * amount, 0, 1))
    step = 0.18 * amount
    v = v - step if v + sign[2] * step > 1 or (sign[2] < 0 and v > 2 * step) else v + step
    r, g, b = colorsys.hsv_to_rgb(h, s, float(np.clip(v, 0.08, 1)))
    return round(b * 255), round(g * 255), round(r * 255)


def outline(looks: Looks, points: int = 96) -> NDArray[np.float64]:
    """The body's silhouette, Nx2 metres in the vehicle's frame (x forwards, y to the right)."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    # a superellipse is close to a car's rounded rectangle; the power of 1/3 pushes it into the corners
    x = looks.length / 2 * np.sign(c) * np.abs(c) ** (1 / 3)
    y = looks.width / 2 * np.sign(s) * np.abs(s) ** (1 / 3.5)
    return np.stack([x, y], 1)


def sprite(looks: Looks, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw the vehicle facing right.

    Returns:
        HxWx4 float32 in [0, 1]: BGR multiplied by alpha, and alpha; `SPRITE_SCALE` pixels a metre, the vehicle's
        middle in the middle of the picture.
    """
    scale = SPRITE_SCALE * _SUPER
    width = 2 * int(np.ceil((looks.length / 2 + 0.3) * SPRITE_SCALE)) * _SUPER
    height = 2 * int(np.ceil((looks.width / 2 + 0.3) * SPRITE_SCALE)) * _SUPER
    middle = np.array([width / 2, height / 2])

    def pixels(metres: NDArray[np.float64]) -> NDArray[np.int32]:
        return np.round(metres * scale + middle - 0.5).astype(np.int32)

    def polygon(image: NDArray, metres: list[tuple[float, float]], color: tuple[float, ...]) -> None:
        cv2.fillPoly(image, [pixels(np.array(metres))], color, cv2.LINE_AA)

    alpha = np.zeros((height, width), np.uint8)
    cv2.fillPoly(alpha, [pixels(outline(looks))], 255, cv2.LINE_AA)
    color = np.empty((height, width, 3), np.uint8)
    color[:] = looks.paint
    a, b = looks.length / 2, looks.width / 2
    glass = (52.0, 44.0, 38.0)
    cabin = looks.cabin * looks.length
    front, rear = 0.42 * a - 0.1, 0.42 * a - 0.1 - cabin
    # windscreen, rear window and side windows around the roof
    polygon(color, [(front, -0.80 * b), (front, 0.80 * b), (rear, 0.84 * b), (rear, -0.84 * b)], glass)
    lead, trail = front - 0.42, rear + 0.34
    polygon(
        color,
        [(lead, -0.66 * b), (lead, 0.66 * b), (trail, 0.70 * b), (trail, -0.70 * b)],
        tuple(float(c) for c in looks.roof),
    )
    for x in (lead - 0.45 * (lead - trail), front - 0.03):
        for side in (-1, 1):  # pillars
            polygon(
                color,
                [(x, 0.62 * b * side), (x, 0.86 * b * side), (x - 0.1, 0.86 * b * side), (x - 0.1, 0.62 * b * side)],
                tuple(float(c) * 0.8 for c in looks.paint),
            )
    if looks.sunroof:
        x1, x2 = lead - 0.15, lead - 0.75
        polygon(color, [(x1, -0.4 * b), (x1, 0.4 * b), (x2, 0.4 * b), (x2, -0.4 * b)], (30.0, 26.0, 24.0))
    if looks.stripes:
        light = (235.0, 235.0, 235.0) if sum(looks.paint) < 420 else (60.0, 50.0, 45.0)
        for y in (-0.22 * b, 0.12 * b):
            polygon(color, [(a, y), (a, y + 0.1 * b), (front, y + 0.1 * b), (front, y)], light)
            polygon(color, [(lead, y), (lead, y + 0.1 * b), (trail, y + 0.1 * b), (trail, y)], light)
    if looks.rack:
        for x in (lead - 0.2, trail + 0.25):
            polygon(color, [(x, -0.7 * b), (x, 0.7 * b), (x - 0.08, 0.7 * b), (x - 0.08, -0.7 * b)], (25.0, 25.0, 25.0))
    dark = tuple(float(c) * 0.62 for c in looks.paint)
    for y in (-0.52 * b, 0.48 * b):  # bonnet creases
        polygon(color, [(a - 0.15, y), (a - 0.15, y + 0.04), (front + 0.1, y + 0.04), (front + 0.1, y)], dark)
    for side in (-1, 1):  # lamps
        polygon(
            color,
            [(a, 0.5 * b * side), (a, 0.85 * b * side), (a - 0.2, 0.9 * b * side), (a - 0.14, 0.5 * b * side)],
            (215.0, 235.0, 240.0),
        )
        polygon(
            color,
            [(-a, 0.55 * b * side), (-a, 0.9 * b * side), (-a + 0.14, 0.9 * b * side), (-a + 0.14, 0.55 * b * side)],
            (30.0, 25.0, 150.0),
        )
    # a rounded body: darker towards the rim, one soft highlight along the roof
    rim = cv2.GaussianBlur(alpha, (0, 0), 0.16 * scale).astype(np.float32) / 255
    shade = 0.55 + 0.5 * np.clip((rim - 0.4) / 0.55, 0, 1)
    rows = (np.arange(height, dtype=np.float32) - middle[1]) / (b * scale)
    shine = 0.10 * np.exp(-(((rows + rng.uniform(-0.4, 0.4)) / 0.3) ** 2))
    lit = np.clip(color.astype(np.float32) / 255 * shade[..., None] + shine[:, None, None], 0, 1)
    a_map = alpha.astype(np.float32)[..., None] / 255
    full = np.concatenate([lit * a_map, a_map], 2)
    small: NDArray[np.float32] = cv2.resize(full, (width // _SUPER, height // _SUPER), interpolation=cv2.INTER_AREA)
    return small
