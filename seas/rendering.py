"""Procedural photographs: light, materials, outlines and defects that the base's corpus and the miniature dataset are drawn with.

A picture is float32 (S, S, 3) in [0, 1]; a field is float32 (S, S). Lengths are fractions of the side S.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter


class Plane(NamedTuple):
    """Coordinates of the pixels' centres: y and x, float32 (S, S), from 0 to 1."""

    y: np.ndarray
    x: np.ndarray

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return len(self.y)

    @classmethod
    def of(cls, size: int) -> "Plane":
        """The plane of a picture of ``size`` pixels a side."""
        y, x = np.mgrid[:size, :size].astype(np.float32)
        return cls((y + 0.5) / size, (x + 0.5) / size)

    def turned(self, centre: tuple[float, float], angle: float) -> "Plane":
        """The same pixels, seen from ``centre`` (y, x) and turned by ``angle`` (radians)."""
        y, x = self.y - centre[0], self.x - centre[1]
        return Plane(np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x)

    def inside(self, distance: np.ndarray, softness: float = 1.0) -> np.ndarray:
        """Coverage in [0, 1] of what lies at a negative ``distance``, its edge ``softness`` pixels wide."""
        return np.clip(0.5 - distance * self.size / softness, 0, 1)


class Defect(NamedTuple):
    """What a defect does: ``picture`` with it, and its exact ``mask``, bool (S, S)."""

    picture: np.ndarray
    mask: np.ndarray


def smooth_noise(rng: np.random.Generator, size: int, cells: tuple[int, int] | int) -> np.ndarray:
    """Noise of standard deviation about 0.6 with bumps as large as a picture's 1/cells: float32 (size, size)."""
    rows, columns = (cells, cells) if isinstance(cells, int) else cells
    grid = rng.standard_normal((rows + 2, columns + 2)).astype(np.float32)
    box = (0.5, 0.5, columns + 1.5, rows + 1.5)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC, box=box))


def cloud(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Noise with detail at three scales, each half as strong as the one before."""
    return sum(smooth_noise(rng, size, min(cells << k, size)) / 2**k for k in range(3))


# Outlines: signed distances, negative inside.


def disc(plane: Plane, radius: float) -> np.ndarray:
    """A disc around the plane's origin."""
    return np.hypot(plane.y, plane.x) - radius


def ring(plane: Plane, outer: float, inner: float) -> np.ndarray:
    """A ring around the plane's origin."""
    radius = np.hypot(plane.y, plane.x)
    return np.maximum(radius - outer, inner - radius)


def box(plane: Plane, height: float, width: float, corner: float) -> np.ndarray:
    """A rectangle of half height and half width with round corners."""
    y, x = np.abs(plane.y) - height + corner, np.abs(plane.x) - width + corner
    return np.hypot(np.maximum(y, 0), np.maximum(x, 0)) + np.minimum(np.maximum(y, x), 0) - corner


def polygon(plane: Plane, radius: float, corners: int) -> np.ndarray:
    """A regular polygon whose inner circle has this radius."""
    sector = 2 * np.pi / corners
    angle = np.arctan2(plane.y, plane.x)
    return np.hypot(plane.y, plane.x) * np.cos((angle + sector / 2) % sector - sector / 2) - radius


def gear(plane: Plane, radius: float, teeth: int) -> np.ndarray:
    """A wheel with teeth."""
    wave = np.clip(1.5 * np.cos(teeth * np.arctan2(plane.y, plane.x)), -1, 1)
    return np.hypot(plane.y, plane.x) - radius * (1 + 0.09 * wave)


def along(plane: Plane, points: np.ndarray) -> np.ndarray:
    """The distance to a line through ``points`` (n, 2) of (y, x)."""
    nearest = np.full(plane.y.shape, np.inf, np.float32)
    for (y0, x0), (y1, x1) in zip(points[:-1], points[1:], strict=True):
        dy, dx = y1 - y0, x1 - x0
        share = np.clip(((plane.y - y0) * dy + (plane.x - x0) * dx) / max(dy * dy + dx * dx, 1e-12), 0, 1)
        nearest = np.minimum(nearest, np.hypot(plane.y - y0 - share * dy, plane.x - x0 - share * dx))
    return nearest


# Materials: brightness fields around 0, to be scaled and added to a colour.


def brushed(rng: np.random.Generator, plane: Plane, angle: float) -> np.ndarray:
    """Fine lines in one direction, as on ground metal."""
    turned = plane.turned((0.5, 0.5), angle)
    line = rng.standard_normal(4 * plane.size).astype(np.float32)
    coarse = gaussian_filter(line, 6, mode="wrap") * 3
    place = (turned.y + 1) * plane.size
    lines = np.interp(place.ravel() % len(line), np.arange(len(line)), 0.5 * line + coarse).reshape(place.shape)
    return lines * (1 + 0.4 * smooth_noise(rng, plane.size, 3))


def turned(rng: np.random.Generator, plane: Plane) -> np.ndarray:
    """Fine circles around the plane's origin, as a lathe leaves them, with the two bright fans of a light."""
    radius = np.hypot(plane.y, plane.x) * plane.size * 1.5
    line = gaussian_filter(rng.standard_normal(4 * plane.size).astype(np.float32), 0.7, mode="wrap")
    circles = np.interp(radius.ravel() % len(line), np.arange(len(line)), line).reshape(radius.shape)
    fans = np.cos(2 * (np.arctan2(plane.y, plane.x) - rng.uniform(0.5, 1.0)))
    return circles + 1.6 * np.clip(fans, 0, 1) ** 3


def woven(plane: Plane, threads: float, phase: tuple[float, float]) -> np.ndarray:
    """A plain weave of ``threads`` threads a side; ``plane`` may be warped. In [-1, 1]."""
    v, u = plane.y * threads + phase[0], plane.x * threads + phase[1]
    over = (np.floor(v) + np.floor(u)) % 2 == 0
    across, length = np.where(over, v, u) % 1 - 0.5, np.where(over, u, v) % 1 - 0.5
    return 1.6 * np.cos(np.pi * across) * (0.65 + 0.35 * np.cos(np.pi * length)) - 1


def grain(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Grains of cast or sand-blasted surfaces."""
    return 0.7 * smooth_noise(rng, size, min(cells, size)) + 0.3 * rng.standard_normal((size, size)).astype(np.float32)


def wooden(rng: np.random.Generator, plane: Plane, angle: float) -> np.ndarray:
    """Year rings cut lengthwise."""
    seen = plane.turned((0.5, 0.5), angle)
    wave = seen.y * rng.uniform(6, 14) + 0.5 * smooth_noise(rng, plane.size, (2, 3))
    return np.sin(2 * np.pi * wave) * 0.7 + 0.3 * np.sin(6.3 * 2.7 * wave)


def threaded(rng: np.random.Generator, plane: Plane, angle: float, turns: float) -> np.ndarray:
    """A screw's thread seen from the side: ``turns`` bright crests and dark grooves a side."""
    seen = plane.turned((0.5, 0.5), angle)
    share = (seen.x * turns + 0.25 * seen.y + rng.random()) % 1
    return np.where(share < 0.6, np.cos(np.pi * share / 0.6), 2.5 * share - 2.5) + 0.3 * smooth_noise(
        rng, plane.size, 4
    )


def glossy(rng: np.random.Generator, plane: Plane) -> np.ndarray:
    """A smooth surface with the soft reflection of a lamp."""
    seen = plane.turned(tuple(rng.uniform(0.2, 0.8, 2)), rng.uniform(0, np.pi))
    high, wide = rng.uniform(0.06, 0.3), rng.uniform(0.2, 0.8)
    return 2.5 * np.exp(-((seen.y / high) ** 2) - (seen.x / wide) ** 2) + 0.2 * smooth_noise(rng, plane.size, 4)


def printed(rng: np.random.Generator, plane: Plane) -> np.ndarray:
    """Traces and pads of a printed board."""
    field = np.zeros_like(plane.y)
    for _ in range(int(rng.integers(3, 9))):
        corner, end = rng.uniform(0, 1, 2), rng.uniform(0, 1, 2)
        line = along(plane, np.array([corner, (corner[0], end[1]), end])) - rng.uniform(0.008, 0.02)
        pad = disc(plane.turned(tuple(end), 0), rng.uniform(0.025, 0.06))
        field = np.maximum(field, plane.inside(np.minimum(line, pad)))
    return 2 * field - 0.3


def lit(rng: np.random.Generator, plane: Plane, strength: float) -> np.ndarray:
    """A lamp's fall-off over the picture: a factor around 1."""
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * (plane.y - 0.5) + np.sin(angle) * (plane.x - 0.5)
    return 1 + strength * (slope + 0.15 * smooth_noise(rng, plane.size, 2))


def bevelled(plane: Plane, distance: np.ndarray, width: float, light: float) -> np.ndarray:
    """Light on the rounded edge of an outline: a field around 0, ``light`` is its direction (radians)."""
    slope_y, slope_x = np.gradient(distance, 1 / plane.size)
    edge = np.exp(-((distance / width) ** 2)) * (distance < 0)
    return -edge * (np.cos(light) * slope_y + np.sin(light) * slope_x)


def coloured(field: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """A brightness field (S, S) as a picture of one colour (3,)."""
    return field[..., None] * np.asarray(colour, np.float32)


def blended(below: np.ndarray, above: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """``above`` laid over ``below`` where ``coverage`` (S, S) is 1."""
    return below + coverage[..., None] * (above - below)


def exposed(rng: np.random.Generator, picture: np.ndarray, *, blur: float, noise: float) -> np.ndarray:
    """What a camera makes of it: a slightly soft lens and sensor noise. uint8 (S, S, 3)."""
    soft = gaussian_filter(picture, (blur, blur, 0)) if blur else picture
    return np.uint8(np.clip(soft + noise * rng.standard_normal(picture.shape), 0, 1) * 255 + 0.5)


# Defects: each changes a picture at ``place`` (y, x) and knows its exact mask.


def _curve(
    rng: np.random.Generator, place: tuple[float, float], length: float, angle: float, bend: float
) -> np.ndarray:
    share = np.linspace(-0.5, 0.5, 14)
    across = bend * length * (share**2 - 0.08) + 0.012 * length * rng.standard_normal(14)
    direction = np.array([np.sin(angle), np.cos(angle)])
    return np.array(place) + length * share[:, None] * direction + across[:, None] * direction[::-1] * (1, -1)


def scratch(
    rng: np.random.Generator,
    plane: Plane,
    picture: np.ndarray,
    place: tuple[float, float],
    *,
    length: float,
    width: float,
    strength: float,
) -> Defect:
    """A groove: one flank catches the light, the other lies in shadow; ``strength`` may be negative."""
    points = _curve(rng, place, length, rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5))
    distance = along(plane, points) - width / 2
    shadow = along(plane, points + 0.7 * width) - width / 2
    fading = 0.75 + 0.25 * smooth_noise(rng, plane.size, 6)
    cover = plane.inside(distance)
    change = strength * fading * (cover - 0.6 * plane.inside(shadow) * (1 - cover))
    return Defect(picture + change[..., None], distance < 0.35 / plane.size)


def stain(
    rng: np.random.Generator,
    plane: Plane,
    picture: np.ndarray,
    place: tuple[float, float],
    *,
    radius: float,
    colour: np.ndarray,
    strength: float,
) -> Defect:
    """A patch with an uneven edge that tints what lies below; ``colour`` (3,) in [0, 1] is its transmission."""
    wide = radius * rng.uniform(0.75, 1.3)
    seen = plane.turned(place, rng.uniform(0, np.pi))
    distance = np.hypot(seen.y / radius, seen.x / wide) - 1 + 0.22 * smooth_noise(rng, plane.size, 9)
    distance = distance * radius
    cover = plane.inside(distance, softness=max(1.0, 0.35 * radius * plane.size))
    uneven = np.clip(0.8 + 0.3 * smooth_noise(rng, plane.size, 12), 0.4, 1.2)
    factor = 1 - (strength * cover * uneven)[..., None] * (1 - np.asarray(colour, np.float32))
    return Defect(picture * factor, distance < 0)


def dent(
    rng: np.random.Generator,
    plane: Plane,
    picture: np.ndarray,
    place: tuple[float, float],
    *,
    radius: float,
    strength: float,
) -> Defect:
    """A shallow dip: bright on the far side of the light, dark on the near one."""
    seen = plane.turned(place, rng.uniform(0, np.pi))
    wide = radius * rng.uniform(0.8, 1.4)
    squared = (seen.y / radius) ** 2 + (seen.x / wide) ** 2
    slope = gaussian_filter(np.exp(-1.6 * squared), 0.5)
    down, right = np.gradient(slope, 1 / plane.size)
    light = rng.uniform(0, 2 * np.pi)
    change = strength * radius * (np.sin(light) * down + np.cos(light) * right)
    return Defect(picture + change[..., None], squared < 1.1)


def pit(
    rng: np.random.Generator,
    plane: Plane,
    picture: np.ndarray,
    place: tuple[float, float],
    *,
    radius: float,
    strength: float,
) -> Defect:
    """A small dark hole with a bright rim on one side."""
    seen = plane.turned(place, 0)
    wobble = 0.2 * radius * smooth_noise(rng, plane.size, 10)
    distance = disc(seen, radius) + wobble
    rim = plane.inside(disc(plane.turned((place[0] + 0.3 * radius, place[1] + 0.2 * radius), 0), radius) + wobble)
    hole = plane.inside(distance)
    change = strength * (0.4 * rim * (1 - hole) - hole)
    return Defect(np.maximum(picture + change[..., None], 0.02), distance < 0.3 / plane.size)


def crack(
    rng: np.random.Generator,
    plane: Plane,
    picture: np.ndarray,
    place: tuple[float, float],
    *,
    length: float,
    width: float,
    strength: float,
) -> Defect:
    """A jagged dark line."""
    points = _curve(rng, place, length, rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3))
    points = points + 0.05 * length * rng.standard_normal(points.shape)
    distance = along(plane, points) - width / 2
    return Defect(
        np.maximum(picture - strength * plane.inside(distance)[..., None], 0.02), distance < 0.35 / plane.size
    )


def fibre(
    rng: np.random.Generator,
    plane: Plane,
    picture: np.ndarray,
    place: tuple[float, float],
    *,
    length: float,
    width: float,
    colour: np.ndarray,
    strength: float,
) -> Defect:
    """A hair or thread that lies on top, with a faint shadow beside it."""
    points = _curve(rng, place, length, rng.uniform(0, np.pi), rng.uniform(-1.6, 1.6))
    distance = along(plane, points) - width / 2
    shadow = plane.inside(along(plane, points + np.array([1.2, 0.8]) * width) - width / 2, softness=2)
    shaded = picture * (1 - 0.25 * strength * shadow[..., None])
    covered = blended(
        shaded, np.broadcast_to(np.asarray(colour, np.float32), picture.shape), strength * plane.inside(distance)
    )
    return Defect(covered, distance < 0.35 / plane.size)


def pulled_thread(
    rng: np.random.Generator,
    plane: Plane,
    picture: np.ndarray,
    place: tuple[float, float],
    *,
    length: float,
    width: float,
    strength: float,
) -> Defect:
    """A thread of a cloth that stands out along its row or column, thickest in its middle."""
    seen = plane.turned(place, 0 if rng.random() < 0.5 else np.pi / 2)
    drift = 0.25 * width * np.sin(seen.x * 9 + rng.uniform(0, 6))
    share = np.clip(1 - (seen.x / (length / 2)) ** 2, 0, 1)
    distance = np.where(np.abs(seen.x) < length / 2, np.abs(seen.y + drift) - width / 2 * (0.35 + 0.65 * share), 1)
    round_light = np.cos(np.clip((seen.y + drift) / width * np.pi, -np.pi / 2, np.pi / 2)) - 0.45
    change = strength * plane.inside(distance) * round_light
    return Defect(picture * (1 + change[..., None]), distance < 0)


def broken(
    rng: np.random.Generator,
    plane: Plane,
    picture: np.ndarray,
    place: tuple[float, float],
    *,
    radius: float,
    strength: float,
) -> Defect:
    """A piece that broke away: an angular hole with a rough ground of another brightness and a bright edge."""
    seen = plane.turned(place, rng.uniform(0, np.pi))
    stretched = Plane(seen.y, seen.x * rng.uniform(0.5, 1))
    distance = polygon(stretched, radius, int(rng.integers(4, 8))) + 0.35 * radius * smooth_noise(rng, plane.size, 7)
    hole = plane.inside(distance)
    ground = picture.mean() * (1 + strength) * (1 + 0.35 * cloud(rng, plane.size, 12))
    edge = np.exp(-((distance * plane.size / 1.5) ** 2)) * rng.uniform(0, 0.25)
    rough = blended(picture, np.repeat(ground[..., None], 3, 2), hole)
    return Defect(np.maximum(rough + edge[..., None], 0.02), distance < 0)


def worn(
    rng: np.random.Generator,
    plane: Plane,
    picture: np.ndarray,
    place: tuple[float, float],
    *,
    radius: float,
    strength: float,
) -> Defect:
    """A wide region whose coating is worn: brighter or darker, its texture weaker, without a sharp edge."""
    seen = plane.turned(place, rng.uniform(0, np.pi))
    wide = radius * rng.uniform(0.8, 2.0)
    distance = (np.hypot(seen.y / radius, seen.x / wide) - 1 + 0.4 * smooth_noise(rng, plane.size, 4)) * radius
    cover = plane.inside(distance, softness=max(2.0, 0.4 * radius * plane.size))
    smoothed = gaussian_filter(picture, (0.02 * plane.size, 0.02 * plane.size, 0))
    change = smoothed * (1 + strength) + 0.02 * cloud(rng, plane.size, 10)[..., None]
    return Defect(np.maximum(blended(picture, change, cover), 0.02), distance < 0)
