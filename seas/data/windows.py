"""Square windows of photographs, for defects that a whole photograph at the networks' size would lose."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from seas.artifacts import require_new, writing_file, writing_folder
from seas.data.index import index_samples
from seas.data.mvtec_ad import list_products, require_groups
from seas.data.split import read_groups
from seas.errors import InputError
from seas.images import read_image, read_mask, write_image, write_mask
from seas.training import progress

SMALLEST_PART = 0.002
"""A window with a smaller share of anomalous pixels is left out, unless it has the largest part of its photograph's defect."""

PHOTOGRAPHS = "photographs.csv"
"""The groups of a product's windows by photograph, for ``data.groups``."""


class WindowCounts(NamedTuple):
    """How many windows were written, of how many photographs, and how many with a small part of a defect were left out."""

    written: int
    photographs: int
    left_out: int


def window_starts(length: int, side: int) -> list[int]:
    """The first pixels of the fewest windows of ``side`` that cover ``length`` pixels, evenly spaced; at most one when shorter."""
    count = max(1, -(-length // side))
    return np.linspace(0, max(0, length - side), count).round().astype(int).tolist()


def window_places(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """The (top, left) pixels of the windows of ``side`` that cover a photograph."""
    return [(top, left) for top in window_starts(height, side) for left in window_starts(width, side)]


def write_windows(root: Path, side: int, out: Path, groups: str | None = None) -> WindowCounts:
    """Cut every photograph of a dataset in MVTec-AD layout into windows, and write them in the same layout.

    A window is named by its photograph and its first row and column, in pixels. One without an anomaly is a good one,
    in test/good where its photograph shows a defect elsewhere. photographs.csv groups each product's windows by
    photograph; the file ``groups`` of a product's folder is carried over to its windows,
    those of a photograph that it does not name are a group. After a fault nothing is left.

    Raises InputError for all faults of a product at once, before any window of it is cut, or when ``out`` exists.
    """
    require_new(out)
    if not (products := list_products(root)):
        raise InputError(f"the folder {root} holds no product (a folder with train/good in it)")
    if groups:
        require_groups(root, products, groups)
    counts = WindowCounts(0, 0, 0)
    with writing_folder(out, None) as folder:
        for product in products:
            of_photograph = read_groups(root, product, groups) if groups else {}
            rows = []
            samples = index_samples(root, "mvtec_ad", product)
            left_out = 0
            for sample in progress(list(samples.itertuples()), f"windows {product}"):
                image = read_image(root / sample.image)
                mask = read_mask(root / sample.mask) if sample.mask else np.zeros(image.shape[:2], bool)
                kept_windows = _windows(mask, side)
                left_out += len(window_places(*mask.shape, side)) - len(kept_windows)
                for top, left, kept in kept_windows:
                    cut = (slice(top, top + side), slice(left, left + side))
                    name = f"{Path(sample.image).stem}_{top:05d}_{left:05d}"
                    kind = sample.type if kept else "good"
                    path = (
                        f"{sample.folder}/{kind}/{sample.type}_{name}.png"
                        if kind != sample.type
                        else f"{sample.folder}/{kind}/{name}.png"
                    )
                    write_image(image[cut], folder / product / path)
                    if kept:
                        write_mask(mask[cut], folder / product / "ground_truth" / kind / f"{name}_mask.png")
                    rows.append((path, sample.image.removeprefix(f"{product}/"), of_photograph.get(sample.image)))
            table = pd.DataFrame(rows, columns=["window", "photograph", "group"])
            if (twice := table.window.duplicated()).any():
                raise InputError(
                    f"{root / product}: another photograph has the name of {table.photograph[twice].iloc[0]}; rename one"
                )
            _write_groups(table[["window", "photograph"]], folder / product / PHOTOGRAPHS)
            if groups:
                named = table.assign(group=table.group.fillna(table.photograph))
                _write_groups(named[["window", "group"]], folder / product / groups)
            counts = WindowCounts(
                counts.written + len(table), counts.photographs + len(samples), counts.left_out + left_out
            )
    return counts


def _windows(mask: np.ndarray, side: int) -> list[tuple[int, int, bool]]:
    """(top, left, anomalous) of each window that is kept."""
    places = window_places(*mask.shape, side)
    areas = [int(mask[top : top + side, left : left + side].sum()) for top, left in places]
    smallest = min(SMALLEST_PART * side**2, max(areas))
    return [(*place, area > 0) for place, area in zip(places, areas, strict=True) if area == 0 or area >= smallest]


def _write_groups(table: pd.DataFrame, path: Path) -> None:
    with writing_file(path) as partial:
        table.to_csv(partial, index=False)
