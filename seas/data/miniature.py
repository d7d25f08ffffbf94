"""The miniature dataset: two procedural products in the MVTec-AD layout, for the demo and the tests.

``washer`` is an object, a turned steel washer on a mat; ``fabric`` a texture, a plain weave. The defects
are faint, vary from one to the next and lie anywhere on the part, so that three shots do not show them all.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from seas import rendering
from seas.artifacts import writing_folder
from seas.errors import InputError
from seas.images import write_image, write_mask
from seas.rendering import Defect, Plane
from seas.seeding import rng

SUPERSAMPLING = 2
SMALLEST_MASK = 8
"""Pixels of the finished mask below which a defect is drawn anew."""

Draw = Callable[[np.random.Generator, Plane, np.ndarray, tuple[float, float]], Defect]


def _washer(random: np.random.Generator, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    size = plane.size
    centre = tuple(0.5 + random.uniform(-0.025, 0.025, 2))
    part = plane.turned(centre, random.uniform(0, 2 * np.pi))
    distance = rendering.ring(part, 0.405, 0.165)
    mat = 0.17 + 0.018 * rendering.grain(random, size, size // 2) + 0.02 * rendering.smooth_noise(random, size, 4)
    shadow = rendering.ring(plane.turned((centre[0] + 0.018, centre[1] + 0.014), 0), 0.405, 0.165)
    mat = mat * (1 - 0.55 * plane.inside(shadow, softness=0.06 * size))
    steel = 0.56 + 0.028 * rendering.turned(random, plane.turned(centre, 0)) + 0.02 * rendering.cloud(random, size, 5)
    steel = steel + 0.16 * rendering.bevelled(plane, distance, 0.02, random.uniform(3.6, 4.2))
    picture = rendering.blended(
        rendering.coloured(mat, (0.93, 1.0, 1.06)),
        rendering.coloured(steel, (1.0, 0.985, 0.95)),
        plane.inside(distance),
    )
    return picture * rendering.lit(random, plane, 0.18)[..., None] * random.uniform(0.93, 1.07), distance


def _fabric(random: np.random.Generator, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    size = plane.size
    warped = Plane(
        plane.y + 0.006 * rendering.smooth_noise(random, size, 4),
        plane.x + 0.006 * rendering.smooth_noise(random, size, 4),
    ).turned((0.5, 0.5), random.uniform(-0.03, 0.03))
    weave = rendering.woven(warped, 9, tuple(random.uniform(0, 2, 2)))
    thread = 0.05 * rendering.smooth_noise(random, size, (9, 3)) + 0.05 * rendering.smooth_noise(random, size, (3, 9))
    field = 0.52 + 0.13 * weave + 0.5 * thread + 0.015 * rendering.grain(random, size, size // 2)
    picture = rendering.coloured(field, (1.06, 0.98, 0.82))
    return picture * rendering.lit(random, plane, 0.15)[..., None] * random.uniform(0.94, 1.06), np.full_like(
        plane.y, -1
    )


def _sign(random: np.random.Generator) -> float:
    return -1.0 if random.random() < 0.5 else 1.0


def _scratch(random: np.random.Generator, plane: Plane, picture: np.ndarray, place: tuple[float, float]) -> Defect:
    sizes = {"length": random.uniform(0.13, 0.3), "width": random.uniform(0.016, 0.026)}
    return rendering.scratch(
        random, plane, picture, place, strength=_sign(random) * random.uniform(0.14, 0.26), **sizes
    )


def _rust(random: np.random.Generator, plane: Plane, picture: np.ndarray, place: tuple[float, float]) -> Defect:
    colour = np.array([0.72, 0.42, 0.2]) + random.uniform(-0.07, 0.07, 3)
    radius, strength = random.uniform(0.045, 0.09), random.uniform(0.4, 0.75)
    return rendering.stain(random, plane, picture, place, radius=radius, colour=colour, strength=strength)


def _dent(random: np.random.Generator, plane: Plane, picture: np.ndarray, place: tuple[float, float]) -> Defect:
    radius, strength = random.uniform(0.05, 0.085), random.uniform(0.2, 0.34)
    return rendering.dent(random, plane, picture, place, radius=radius, strength=strength)


def _oil(random: np.random.Generator, plane: Plane, picture: np.ndarray, place: tuple[float, float]) -> Defect:
    colour = np.array([0.45, 0.4, 0.36]) + random.uniform(-0.08, 0.08, 3)
    radius, strength = random.uniform(0.06, 0.12), random.uniform(0.35, 0.6)
    return rendering.stain(random, plane, picture, place, radius=radius, colour=colour, strength=strength)


def _fibre(random: np.random.Generator, plane: Plane, picture: np.ndarray, place: tuple[float, float]) -> Defect:
    colour = np.array([0.16, 0.2, 0.34]) + random.uniform(-0.08, 0.12, 3)
    sizes = {"length": random.uniform(0.18, 0.36), "width": random.uniform(0.02, 0.03)}
    strength = random.uniform(0.6, 0.9)
    return rendering.fibre(random, plane, picture, place, colour=colour, strength=strength, **sizes)


def _pulled_thread(
    random: np.random.Generator, plane: Plane, picture: np.ndarray, place: tuple[float, float]
) -> Defect:
    sizes = {"length": random.uniform(0.2, 0.4), "width": random.uniform(0.05, 0.075)}
    return rendering.pulled_thread(random, plane, picture, place, strength=random.uniform(0.5, 0.75), **sizes)


PRODUCTS: dict[str, Callable[[np.random.Generator, Plane], tuple[np.ndarray, np.ndarray]]] = {
    "washer": _washer,
    "fabric": _fabric,
}
TYPES: dict[str, dict[str, Draw]] = {
    "washer": {"dent": _dent, "rust": _rust, "scratch": _scratch},
    "fabric": {"fibre": _fibre, "oil": _oil, "pulled_thread": _pulled_thread},
}


def miniature_image(
    seed: int, product: str, folder: str, anomaly_type: str, index: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """One photograph uint8 (size, size, 3) and its mask bool (size, size); the mask of "good" is empty."""
    plane = Plane.of(SUPERSAMPLING * size)
    attempt = 0
    while True:
        random = rng(seed, "miniature", product, folder, anomaly_type, index, attempt)
        picture, distance = PRODUCTS[product](random, plane)
        mask = np.zeros(distance.shape, bool)
        if anomaly_type != "good":
            rows, columns = np.nonzero(distance < -0.03)
            chosen = random.integers(len(rows))
            place = (float(plane.y[rows[chosen], 0]), float(plane.x[0, columns[chosen]]))
            changed, mask = TYPES[product][anomaly_type](random, plane, picture, place)
            on_part = plane.inside(distance)
            picture, mask = rendering.blended(picture, changed, on_part), mask & (on_part > 0.5)
        taken = rendering.exposed(random, picture, blur=0.9, noise=0.022)
        coverage = mask.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean((1, 3))
        small = coverage >= 0.5
        if anomaly_type == "good" or small.sum() >= SMALLEST_MASK:
            return np.asarray(Image.fromarray(taken).resize((size, size), Image.Resampling.BOX)), small
        attempt += 1


def write_miniature(
    root: Path, *, seed: int, size: int = 96, normals: int = 80, test_normals: int = 24, abnormal: int = 15
) -> None:
    """Write the dataset: ``normals`` train/good, ``test_normals`` test/good and ``abnormal`` images of each type a product.

    Raises InputError when ``root`` holds something already.
    """
    root = Path(root)
    if root.exists() and any(root.iterdir()):
        raise InputError(f"{root} is not empty; name a folder that does not exist")
    with writing_folder(root, None) as partial:
        for product, types in TYPES.items():
            counts = [
                ("train", "good", normals),
                ("test", "good", test_normals),
                *(("test", name, abnormal) for name in types),
            ]
            for folder, name, count in counts:
                for index in range(count):
                    image, mask = miniature_image(seed, product, folder, name, index, size)
                    write_image(image, partial / product / folder / name / f"{index:03d}.png")
                    if name != "good":
                        write_mask(mask, partial / product / "ground_truth" / name / f"{index:03d}_mask.png")
