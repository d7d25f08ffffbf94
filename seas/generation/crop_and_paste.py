"""The crop-and-paste baseline: real shots' defects, cut out and pasted onto normals."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from seas.artifacts import Provenance, read_table, writing_folder
from seas.data.settings import DataSettings
from seas.generation.settings import CROP_AND_PASTE_STAGE_VERSION, limit_of_type
from seas.generation.tree import write_generated, write_images_table
from seas.images import SYMMETRIES, Fitted, augment, bounding_box, bounding_slices, keeping_the_padding, load_fitted
from seas.seeding import rng
from seas.training import progress

SOFT_EDGE = 0.6
"""Blur of the pasted outline, in pixels."""


def crop_and_paste_product(
    split: Path,
    root: Path,
    pairs_per_type: int,
    largest_mask: float | None,
    data: DataSettings,
    seed: int,
    *,
    output: Path,
) -> None:
    """Write ``pairs_per_type`` pairs of each type: a shot's defect, turned or mirrored, at a random place of a training normal.

    A shot whose mask covers more of its image than the limit of its type is left out. The tree is that of the generation,
    without normals.
    """
    settings = {"data": data.model_dump(mode="json"), "pairs_per_type": pairs_per_type, "largest_mask": largest_mask}
    provenance = Provenance.of("crop_and_paste", CROP_AND_PASTE_STAGE_VERSION, settings, seed, {"split": split})
    table = read_table(split)
    normals = _fitted(table[table.role == "normal"], root, data)
    rows = []
    with writing_folder(output, provenance) as folder:
        for name, shots in table[table.role == "shot"].groupby("type"):
            defects = _fitted(shots, root, data)
            shares = [defect.mask.sum() / defect.valid.sum() for defect, _ in defects]
            limit = limit_of_type(largest_mask, shares)
            defects = [found for found, share in zip(defects, shares, strict=True) if limit is None or share <= limit]
            for index in progress(range(pairs_per_type), f"crop and paste {table['product'].iloc[0]} {name}"):
                random = rng(seed, "crop and paste", name, index)
                defect, (normal, source) = (
                    defects[random.integers(len(defects))][0],
                    normals[random.integers(len(normals))],
                )
                _, _, height, width = bounding_box(normal.valid)
                augmentation = keeping_the_padding(data.augmentation, height, width)
                turn = int(random.choice(turns_that_fit(defect, normal, augmentation)))
                image, mask = paste(random, defect, normal, turn)
                part = bounding_slices(normal.valid)
                rows.append(
                    write_generated(folder, name, index, image[part], mask[part], source_normal=source, draws=1)
                )
        write_images_table(rows, folder)


def _fitted(rows: pd.DataFrame, root: Path, data: DataSettings) -> list[tuple[Fitted, str]]:
    return [(load_fitted(root, row, data.image_size, data.fit), row.image) for row in rows.itertuples()]


def turns_that_fit(defect: Fitted, normal: Fitted, augmentation: str) -> tuple[int, ...]:
    """The symmetries of ``augmentation`` under which the defect fits into the part of the normal that is no padding.

    Where it fits under none it is not turned.
    """
    place, outline = bounding_box(normal.valid)[2:], bounding_box(defect.mask)[2:]
    fitting = [
        turn for turn in SYMMETRIES[augmentation] if all(np.less_equal(outline[:: -1 if turn % 2 else 1], place))
    ]
    return tuple(fitting) or (0,)


def paste(random: np.random.Generator, defect: Fitted, normal: Fitted, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the defect out, turn it, and lay it over the normal at a random place of the part that is no padding.

    What does not fit there is cut off, below and on the right.

    Returns image uint8 (S, S, 3) and mask bool (S, S).
    """
    cut = bounding_slices(defect.mask)
    patch, outline = augment(defect.image[cut], turn), augment(defect.mask[cut], turn)
    top, left, height, width = bounding_box(normal.valid)
    patch, outline = patch[:height, :width], outline[:height, :width]
    y = top + int(random.integers(height - outline.shape[0] + 1))
    x = left + int(random.integers(width - outline.shape[1] + 1))
    place = (slice(y, y + outline.shape[0]), slice(x, x + outline.shape[1]))
    mask = np.zeros_like(normal.mask)
    mask[place] = outline
    pasted = normal.image.copy()
    pasted[place] = np.where(outline[..., None], patch, pasted[place])
    share = gaussian_filter(mask.astype(np.float32), SOFT_EDGE)[..., None] * mask[..., None]
    share = share / max(share.max(), 1e-6)
    return np.uint8(np.round(share * pasted + (1 - share) * normal.image)), mask
