"""A tree of generated images in the MVTec-AD layout, and the table of what it holds."""

from pathlib import Path

import numpy as np
import pandas as pd

from seas.artifacts import write_table
from seas.images import write_image, write_mask

TABLE = "images.parquet"
COLUMNS = ["type", "index", "image", "mask", "width", "height", "source_normal", "anomaly_pixels", "draws"]


def write_generated(
    folder: Path, anomaly_type: str, index: int, image: np.ndarray, mask: np.ndarray, *, source_normal: str, draws: int
) -> dict:
    """Write one generated image uint8 (H, W, 3), with its mask bool (H, W) unless the type is "good".

    Returns its row of the table: the paths are relative to ``folder``, ``draws`` counts the tries it took.
    """
    good = anomaly_type == "good"
    image_path = f"{'train' if good else 'test'}/{anomaly_type}/{index:04d}.png"
    mask_path = "" if good else f"ground_truth/{anomaly_type}/{index:04d}_mask.png"
    write_image(image, folder / image_path)
    if mask_path:
        write_mask(mask, folder / mask_path)
    height, width = image.shape[:2]
    pixels = 0 if good else int(mask.sum())
    values = [anomaly_type, index, image_path, mask_path, width, height, source_normal, pixels, draws]
    return dict(zip(COLUMNS, values, strict=True))


def write_images_table(rows: list[dict], folder: Path) -> None:
    """Write images.parquet, sorted by type and index."""
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values(["type", "index"], ignore_index=True)
    write_table(table, folder / TABLE)
