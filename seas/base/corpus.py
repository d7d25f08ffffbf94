"""The corpus that a small base is pre-trained on: parts and materials, whole and damaged, with captions.

Most pictures are procedural; the others are crops of the photographs that scikit-image ships under CC0.
"""

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image
from skimage import data as photographs

from seas import rendering
from seas.images import augment
from seas.rendering import Plane
from seas.seeding import rng

COLOURS = {
    "grey": (1.0, 1.0, 1.0),
    "warm": (1.08, 0.98, 0.84),
    "cold": (0.9, 1.0, 1.1),
    "brown": (1.15, 0.9, 0.62),
    "red": (1.3, 0.7, 0.62),
    "green": (0.72, 1.12, 0.78),
    "blue": (0.66, 0.92, 1.3),
    "yellow": (1.25, 1.08, 0.52),
}
SHADES = {"dark": (0.12, 0.32), "medium": (0.35, 0.58), "bright": (0.6, 0.82)}
SPOILED = 0.6
"""Share of damaged parts."""
GENERAL = 0.35
"""Share of captions that say "object" or "defect" instead of the thing's own name."""
TINTED = 0.6
"""Share of coloured pictures; the others are grey, as many inspection cameras are."""
PHOTOGRAPHED = 0.15
"""Share of crops of photographs."""
PHOTOGRAPHS = {
    "brick": "brick surface",
    "grass": "grass surface",
    "gravel": "gravel surface",
    "camera": "object",
    "cell": "surface",
    "chelsea": "object",
    "coffee": "product",
    "retina": "surface",
}
"""Photographs under CC0 that the wheel of scikit-image holds, by the name of their function, and what a caption calls them."""
LARGEST_CROP = 6.0
"""Side of the largest crop over that of the picture; photographs that are smaller are cropped as far as they reach."""

Material = Callable[[np.random.Generator, Plane], np.ndarray]
MATERIALS: dict[str, Material] = {
    "brushed": lambda random, plane: 0.05 * rendering.brushed(random, plane, random.uniform(0, np.pi)),
    "turned": lambda random, plane: (
        0.035 * rendering.turned(random, plane.turned(tuple(random.uniform(0.4, 0.6, 2)), 0))
    ),
    "cast": lambda random, plane: 0.05 * rendering.grain(random, plane.size, int(random.integers(12, 40))),
    "wooden": lambda random, plane: 0.05 * rendering.wooden(random, plane, random.uniform(0, np.pi)),
    "painted": lambda random, plane: 0.02 * rendering.cloud(random, plane.size, 3),
    "woven": lambda random, plane: (
        random.uniform(0.06, 0.15)
        * rendering.woven(
            plane.turned((0.5, 0.5), random.uniform(0, np.pi)), random.uniform(5, 11), tuple(random.uniform(0, 2, 2))
        )
    ),
    "rough": lambda random, plane: 0.06 * rendering.cloud(random, plane.size, 10),
    "threaded": lambda random, plane: (
        random.uniform(0.08, 0.3) * rendering.threaded(random, plane, random.uniform(0, np.pi), random.uniform(4, 14))
    ),
    "ceramic": lambda random, plane: 0.1 * rendering.glossy(random, plane),
    "plastic": lambda random, plane: (
        0.06 * rendering.glossy(random, plane) + 0.02 * rendering.grain(random, plane.size, plane.size // 2)
    ),
    "printed": lambda random, plane: random.uniform(0.1, 0.3) * rendering.printed(random, plane),
}
OUTLINES: dict[str, Callable[[np.random.Generator, Plane, float], np.ndarray]] = {
    "disc": lambda random, plane, size: rendering.disc(plane, size),
    "ring": lambda random, plane, size: rendering.ring(plane, size, size * random.uniform(0.3, 0.6)),
    "block": lambda random, plane, size: rendering.box(
        plane, size * random.uniform(0.5, 1), size, size * random.uniform(0.05, 0.3)
    ),
    "bar": lambda random, plane, size: rendering.box(plane, size * random.uniform(0.2, 0.4), 2 * size, 0.02),
    "nut": lambda random, plane, size: np.maximum(
        rendering.polygon(plane, size * 0.9, 6), -rendering.disc(plane, size * random.uniform(0.35, 0.55))
    ),
    "gear": lambda random, plane, size: rendering.gear(plane, size * 0.92, int(random.integers(8, 16))),
    "tile": lambda random, plane, size: rendering.box(
        plane, size * random.uniform(0.6, 1.3), size * random.uniform(1.1, 1.7), random.uniform(0, 0.06)
    ),
    "screw": lambda random, plane, size: np.minimum(
        rendering.box(plane, size * random.uniform(0.15, 0.3), 1.2 * size, 0.01),
        rendering.box(
            Plane(plane.y, plane.x - size), size * random.uniform(0.4, 0.6), size * random.uniform(0.15, 0.3), 0.03
        ),
    ),
    "surface": lambda random, plane, size: np.full_like(plane.y, -1),
}
OUTLINE_SHARES = [0.07, 0.11, 0.08, 0.07, 0.07, 0.06, 0.1, 0.06, 0.38]
"""How often each outline is drawn, in the order of ``OUTLINES``."""
DEFECTS: dict[str, Callable] = {
    "scratch": lambda random, plane, picture, place: rendering.scratch(
        random,
        plane,
        picture,
        place,
        length=random.uniform(0.12, 0.45),
        width=random.uniform(0.016, 0.035),
        strength=_signed(random, 0.15, 0.4),
    ),
    "stain": lambda random, plane, picture, place: rendering.stain(
        random,
        plane,
        picture,
        place,
        radius=random.uniform(0.04, 0.16),
        colour=random.uniform(0.15, 0.85, 3),
        strength=random.uniform(0.4, 0.95),
    ),
    "dent": lambda random, plane, picture, place: rendering.dent(
        random, plane, picture, place, radius=random.uniform(0.05, 0.13), strength=random.uniform(0.2, 0.5)
    ),
    "hole": lambda random, plane, picture, place: rendering.pit(
        random, plane, picture, place, radius=random.uniform(0.02, 0.06), strength=random.uniform(0.25, 0.6)
    ),
    "crack": lambda random, plane, picture, place: rendering.crack(
        random,
        plane,
        picture,
        place,
        length=random.uniform(0.15, 0.6),
        width=random.uniform(0.012, 0.028),
        strength=random.uniform(0.15, 0.45),
    ),
    "fibre": lambda random, plane, picture, place: rendering.fibre(
        random,
        plane,
        picture,
        place,
        length=random.uniform(0.15, 0.45),
        width=random.uniform(0.018, 0.035),
        colour=random.uniform(0, 0.9, 3),
        strength=random.uniform(0.6, 1.0),
    ),
    "thread": lambda random, plane, picture, place: rendering.pulled_thread(
        random,
        plane,
        picture,
        place,
        length=random.uniform(0.2, 0.5),
        width=random.uniform(0.04, 0.09),
        strength=_signed(random, 0.4, 0.9),
    ),
    "break": lambda random, plane, picture, place: rendering.broken(
        random, plane, picture, place, radius=random.uniform(0.05, 0.18), strength=_signed(random, 0.2, 0.7)
    ),
    "wear": lambda random, plane, picture, place: rendering.worn(
        random, plane, picture, place, radius=random.uniform(0.1, 0.3), strength=_signed(random, 0.12, 0.4)
    ),
}
OTHER_WORDS = (
    "a",
    "photo",
    "of",
    "with",
    "on",
    "good",
    "damaged",
    "object",
    "defect",
    "part",
    "product",
    "and",
    ",",
    ".",
)


def _signed(random: np.random.Generator, low: float, high: float) -> float:
    return float(random.uniform(low, high) * (1 if random.random() < 0.5 else -1))


def vocabulary() -> list[str]:
    """Every word of the captions, and those that prompts need, sorted."""
    pictured = {word for words in PHOTOGRAPHS.values() for word in words.split()}
    return sorted({*OTHER_WORDS, *pictured, *COLOURS, *SHADES, *MATERIALS, *OUTLINES, *DEFECTS})


def corpus_image(seed: int, index: int, size: int) -> tuple[np.ndarray, str]:
    """One picture of the corpus, uint8 (size, size, 3), and its caption; a function of the arguments alone."""
    random = rng(seed, "corpus", index)
    plane = Plane.of(size)
    grey = random.random() > TINTED
    photographed = random.random() < PHOTOGRAPHED
    picture, distance, name = _cropped(random, size) if photographed else _drawn(random, plane, grey)
    caption = f"a photo of a {name}" if photographed else f"a {name}"
    if random.random() < SPOILED:
        kind = str(random.choice(list(DEFECTS)))
        rows, columns = np.nonzero(distance < -0.02)
        chosen = random.integers(len(rows))
        place = ((rows[chosen] + 0.5) / size, (columns[chosen] + 0.5) / size)
        changed = DEFECTS[kind](random, plane, picture, place).picture
        picture = rendering.blended(picture, changed, plane.inside(distance))
        caption += f" with {'defect' if random.random() < GENERAL else kind}"
    picture = picture * rendering.lit(random, plane, 0.25)[..., None] * random.uniform(0.85, 1.15)
    if grey:
        picture = np.broadcast_to(picture.mean(2, keepdims=True), picture.shape)
    taken = rendering.exposed(random, picture, blur=random.uniform(0, 0.5), noise=random.uniform(0, 0.012))
    if grey:
        taken = np.repeat(taken.mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    return taken, caption


def _drawn(random: np.random.Generator, plane: Plane, grey: bool) -> tuple[np.ndarray, np.ndarray, str]:
    """A part on a ground: the picture, the distance to its outline, and what it is."""
    outline = str(random.choice(list(OUTLINES), p=OUTLINE_SHARES))
    centre = tuple(random.uniform(0.42, 0.58, 2))
    distance = OUTLINES[outline](random, plane.turned(centre, random.uniform(0, 2 * np.pi)), random.uniform(0.22, 0.42))
    below, _ = _surface(random, plane, grey, "dark" if random.random() < 0.6 else None)
    above, words = _surface(random, plane, grey, None)
    above = (
        above
        + 0.16
        * rendering.bevelled(plane, distance, random.uniform(0.015, 0.05), random.uniform(0, 2 * np.pi))[..., None]
    )
    if outline != "surface":
        shadow = np.roll(distance, tuple(random.integers(1, 3, 2)), (0, 1))
        below = below * (1 - random.uniform(0.2, 0.6) * plane.inside(shadow, softness=4))[..., None]
    picture = rendering.blended(below, above, plane.inside(distance))
    return picture, distance, "object" if random.random() < GENERAL else f"{words} {outline}"


def _cropped(random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, str]:
    """A turned or mirrored square of a photograph, and what it is; the distance is that of a surface."""
    name = str(random.choice(list(PHOTOGRAPHS)))
    photograph = _photograph(name)
    height, width = photograph.shape[:2]
    smallest, largest = (min(side, height, width) for side in (size, LARGEST_CROP * size))
    side = int(np.exp(random.uniform(np.log(smallest), np.log(largest))))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    crop = Image.fromarray(photograph[top : top + side, left : left + side])
    small = np.asarray(crop.resize((size, size), Image.Resampling.LANCZOS))
    picture = augment(small, int(random.integers(8))).astype(np.float32) / 255
    return picture, np.full((size, size), -1.0, np.float32), PHOTOGRAPHS[name]


@functools.cache
def _photograph(name: str) -> np.ndarray:
    """A photograph by name, uint8 (H, W, 3)."""
    picture = getattr(photographs, name)()
    return np.asarray(Image.fromarray(picture).convert("RGB"))


def _surface(random: np.random.Generator, plane: Plane, grey: bool, shade: str | None) -> tuple[np.ndarray, str]:
    material = str(random.choice(list(MATERIALS)))
    colour = "grey" if grey else str(random.choice(list(COLOURS)))
    shade = shade or str(random.choice(list(SHADES)))
    field = random.uniform(*SHADES[shade]) * (1 + 1.6 * random.uniform(0.4, 1.2) * MATERIALS[material](random, plane))
    tint = np.array(COLOURS[colour]) * random.uniform(0.94, 1.06, 3)
    return rendering.coloured(field, tint), f"{shade} {colour} {material}"
