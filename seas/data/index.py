"""The samples table of a product, every photograph and mask checked, and its split."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from seas.artifacts import read_table, write_table
from seas.data import mvtec_ad
from seas.data.mvtec_ad import Sample, raise_faults
from seas.data.settings import DataSettings
from seas.data.split import read_groups, split_samples
from seas.errors import InputError
from seas.images import fit, placement, read_image, read_mask
from seas.training import progress

READERS: dict[str, ModuleType] = {"mvtec_ad": mvtec_ad}
"""The reader of each layout: ``list_products``, ``list_samples`` and ``fingerprint``."""


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
    anomaly_pixels = 0
    if sample.mask:
        mask = read_mask(root / sample.mask)
        if mask.shape != (height, width):
            raise InputError(
                f"the mask {root / sample.mask} is {mask.shape[1]}×{mask.shape[0]} pixels, its image {width}×{height}"
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
    write_table(index_samples(root, layout, product), output)


def fitted_anomalies(table: pd.DataFrame, root: Path, data: DataSettings) -> Iterator[tuple[str, float, int]]:
    """What fitting leaves of each abnormal image's mask: (image, share of the anomaly that stays inside, pixels after fitting)."""
    for row in table[table.type != "good"].itertuples():
        mask = read_mask(Path(root) / row.mask)
        fitted = fit(np.zeros((*mask.shape, 3), np.uint8), mask, data.image_size, data.fit).mask
        place = placement(*mask.shape, data.image_size, data.fit)
        seen = mask[_seen(mask.shape[0], place.height, place.top), _seen(mask.shape[1], place.width, place.left)]
        yield row.image, float(seen.sum() / mask.sum()), int(fitted.sum())


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
    cut = [image for image, _, pixels in fitted_anomalies(split, root, settings) if pixels == 0]
    raise_faults(
        Path(root) / table["product"].iloc[0],
        [
            f"{Path(root) / image}: data.fit '{settings.fit}' cuts its whole defect away; take 'pad' or 'stretch'"
            for image in cut
        ],
    )
    write_table(split, output)
