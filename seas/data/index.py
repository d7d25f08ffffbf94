"""The samples table of a product, every photograph and mask checked, and its split."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.ndimage import label

from seas.artifacts import Provenance, read_table, sha256, write_table
from seas.data.layouts import READERS
from seas.data.mvtec_ad import Sample, raise_faults
from seas.data.settings import INDEX_STAGE_VERSION, SPLIT_STAGE_VERSION, DataSettings
from seas.data.split import read_groups, split_samples
from seas.errors import InputError
from seas.images import Placement, fit, placement, read_image, read_mask, turned_by_exif
from seas.training import progress

LONGEST = 20
"""Sides of a photograph may differ by this factor; beyond it nothing is left of one side in a square."""


def index_samples(root: Path, layout: str, product: str) -> pd.DataFrame:
    """The samples table of a product: one row a photograph, with the columns product, type ("good" or an anomaly type),
    folder ("train" or "test"), image and mask (relative to ``root``), width, height, anomaly_pixels and bytes.

    Raises InputError: one message with every fault of the product's files.
    """
    samples = READERS[layout].list_samples(root, product)
    rows, faults = [], []
    for sample in progress(samples, f"index {product}"):
        try:
            rows.append(_row(Path(root), product, sample))
        except InputError as fault:
            faults.append(str(fault))
    raise_faults(Path(root) / product, faults)
    return pd.DataFrame(rows)


def _row(root: Path, product: str, sample: Sample) -> dict:
    height, width = read_image(root / sample.image).shape[:2]
    if max(height, width) > LONGEST * min(height, width):
        raise InputError(
            f"{root / sample.image} is {width}×{height} pixels; one side may be {LONGEST} times the other at most"
        )
    anomaly_pixels = 0
    if sample.mask:
        mask = read_mask(root / sample.mask)
        if mask.shape != (height, width):
            raise InputError(
                f"the mask {root / sample.mask} is {mask.shape[1]}×{mask.shape[0]} pixels, its image {width}×{height}"
                + (", turned as its EXIF says" if turned_by_exif(root / sample.image) else "")
            )
        anomaly_pixels = int(mask.sum())
        if anomaly_pixels == 0:
            raise InputError(f"the mask {root / sample.mask} is empty: it marks no pixel")
    size = (root / sample.image).stat().st_size
    facts = {"width": width, "height": height, "anomaly_pixels": anomaly_pixels, "bytes": size}
    return {"product": product, **sample._asdict(), **facts}


def index_product(root: Path, layout: str, product: str, *, output: Path) -> None:
    """Write the samples table of a product (parquet).

    Raises InputError: one message with every fault of the product's files.
    """
    read = {"layout": layout, "fingerprint": READERS[layout].fingerprint(root, product)}
    write_table(index_samples(root, layout, product), output, Provenance("index", INDEX_STAGE_VERSION, read, None, {}))


class FittedAnomaly(NamedTuple):
    """What fitting leaves of an abnormal image's mask.

    inside: the share of the anomaly that is not cut off. pixels: of the mask after fitting. regions, lost: how many
    connected regions the mask has, and how many of them leave no pixel.
    """

    image: str
    inside: float
    pixels: int
    regions: int
    lost: int


def fitted_anomalies(table: pd.DataFrame, root: Path, data: DataSettings) -> Iterator[FittedAnomaly]:
    """What fitting leaves of each abnormal image's mask."""
    for row in table[table.type != "good"].itertuples():
        mask = read_mask(Path(root) / row.mask)
        fitted = fit(np.zeros((*mask.shape, 3), np.uint8), mask, data.image_size, data.fit).mask
        place = placement(*mask.shape, data.image_size, data.fit)
        seen = mask[_seen(mask.shape[0], place.height, place.top), _seen(mask.shape[1], place.width, place.left)]
        regions, count = label(mask, np.ones((3, 3)))
        lost = 0
        if count > 1:
            kept = {int(number) for number in np.unique(_regions_seen(regions, fitted, place))} - {0}
            lost = count - len(kept)
        elif not fitted.any():
            lost = 1
        yield FittedAnomaly(row.image, float(seen.sum() / mask.sum()), int(fitted.sum()), count, lost)


def refuse_lost_defects(table: pd.DataFrame, root: Path, data: DataSettings) -> None:
    """Raise InputError when fitting cuts away the whole defect of an image: it would pass for a good one."""
    lost = [anomaly.image for anomaly in fitted_anomalies(table, root, data) if anomaly.pixels == 0]
    raise_faults(
        Path(root) / table["product"].iloc[0],
        [
            f"{Path(root) / image}: data.fit '{data.fit}' cuts its whole defect away at {data.image_size} px; "
            "take 'pad' or 'stretch'"
            for image in lost
        ],
    )


def _regions_seen(regions: np.ndarray, fitted: np.ndarray, place: Placement) -> np.ndarray:
    """The numbers of the regions, int (H, W), below the fitted mask's pixels, bool (S, S)."""
    size = len(fitted)
    rows = ((np.arange(regions.shape[0]) + 0.5) * place.height / regions.shape[0] + place.top).astype(int)
    columns = ((np.arange(regions.shape[1]) + 0.5) * place.width / regions.shape[1] + place.left).astype(int)
    inside = np.ix_((rows >= 0) & (rows < size), (columns >= 0) & (columns < size))
    below = fitted[np.ix_(rows[(rows >= 0) & (rows < size)], columns[(columns >= 0) & (columns < size)])]
    return regions[inside][below]


def _seen(length: int, resized: int, offset: int) -> slice:
    """The part of a side of ``length`` pixels that is not cut off."""
    cut = round(max(0, -offset) * length / resized)
    return slice(cut, length - cut)


def split_product(index: Path, settings: DataSettings, seed: int, *, root: Path, output: Path) -> None:
    """Split an indexed product and write the split table (parquet): the index's columns, role and type_index.

    Raises InputError when a type is too small, or when fitting cuts away the whole defect of an image.
    """
    table = read_table(index)
    groups = read_groups(Path(root), table["product"].iloc[0], settings.groups) if settings.groups else {}
    split = split_samples(table, settings, seed, groups)
    refuse_lost_defects(split, root, settings)
    file = Path(root) / table["product"].iloc[0] / settings.groups if settings.groups else None
    obeyed = {
        "data": settings.model_dump(mode="json"),
        "groups": sha256(file) if file and file.is_file() else None,
    }
    write_table(split, output, Provenance.of("split", SPLIT_STAGE_VERSION, obeyed, seed, {"index": index}))
