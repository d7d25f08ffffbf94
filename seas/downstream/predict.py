"""Scoring of photographs by a trained model: maps, overlays and a decision for each."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from seas.artifacts import hidden, require_new, writing_file, writing_folder
from seas.data.mvtec_ad import IMAGE_SUFFIXES, OTHER_PICTURES
from seas.data.windows import window_places
from seas.downstream.model import anomaly_maps, load_model
from seas.errors import InputError
from seas.images import fit, outlined, placement, read_image, write_image
from seas.scores import image_maxima
from seas.settings import ComputeSettings
from seas.training import prepare_device, progress

LONGEST_NAME = 230
"""Bytes of a name: file systems take 255, and a file that is being written has a longer one."""


def predict_images(
    model_folder: Path,
    images: Sequence[Path],
    output: Path,
    compute: ComputeSettings,
    *,
    window_side: int | None = None,
) -> None:
    """Score photographs, or all photographs of folders, and write them to ``output``.

    window_side: for a model that was trained on windows (``seas.data.windows``), their side in the photographs' pixels;
    each photograph is cut as they were, and the largest score of its windows decides.

    predictions.csv: image, score in [0, 1] (the map's maximum at the model's size, as the threshold was chosen),
    threshold, decision ("anomalous" or "good"), peak_row and peak_column (where the score map is largest, in pixels from the
    top left), anomaly_pixels of the photograph, and pixel_threshold, which the map of each of them reaches.
    score_maps/: 8-bit PNG at the photograph's size. overlays/: the photograph with what is found outlined.

    Raises InputError for an existing output, a folder without photographs, a broken photograph, or a folder that is no
    model; then nothing is written.
    """
    output = Path(output)
    require_new(output)
    network, description = load_model(model_folder, prepare_device(compute))
    if math.isinf(description.image_threshold):
        raise InputError(
            f"the model in {model_folder} has no threshold: no training image that it was to be chosen on has a pixel in its mask"
        )
    found = _photographs(images)
    rows = []
    with writing_folder(output, None) as folder:
        for name, path in progress(list(found.items()), "predict"):
            image = read_image(path)
            score, scores = _scored_in_windows(network, image, description, window_side or max(image.shape[:2]))
            anomalous = scores >= description.pixel_threshold
            decision = "anomalous" if score >= description.image_threshold else "good"
            row, column = np.unravel_index(scores.argmax(), scores.shape)
            rows.append(
                {
                    "image": str(path),
                    "score": score,
                    "threshold": description.image_threshold,
                    "decision": decision,
                    "peak_row": row,
                    "peak_column": column,
                    "anomaly_pixels": int(anomalous.sum()),
                    "pixel_threshold": description.pixel_threshold,
                }
            )
            write_image(np.uint8(np.round(255 * scores)), folder / "score_maps" / f"{name}.png")
            write_image(outlined(image, anomalous), folder / "overlays" / f"{name}.png")
        with writing_file(folder / "predictions.csv") as file:
            pd.DataFrame(rows).to_csv(file, index=False)


def _photographs(images: Sequence[Path]) -> dict[str, Path]:
    """Photographs by the name of what is written of them: their own, with the folders' names where two are alike."""
    paths: list[Path] = []
    for given in map(Path, images):
        if given.is_dir():
            files = [path for path in sorted(given.rglob("*")) if not hidden(path.relative_to(given))]
            if unread := [path for path in files if path.suffix.lower() in OTHER_PICTURES]:
                raise InputError(f"{unread[0]}: this kind of picture is not read; save it as PNG")
            inside = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
            if not inside:
                raise InputError(f"the folder {given} holds no photograph ({', '.join(sorted(IMAGE_SUFFIXES))})")
            paths += inside
        elif given.is_file():
            paths.append(given)
        else:
            raise InputError(f"the photograph {given} does not exist")
    paths = list(dict.fromkeys(paths))
    if odd := [path for path in paths if not str(path).isprintable()]:
        raise InputError(f"the photograph {ascii(str(odd[0]))} has a name that cannot be written down; rename it")
    of_stem = Counter(path.stem for path in paths)
    names: dict[str, Path] = {}
    for path in paths:
        name = path.stem if of_stem[path.stem] == 1 else _long_name(path)
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise InputError(
                f"{path}: what is written of it would be called {name}.png, which is too long; rename or move it"
            )
        if name in names:
            raise InputError(f"{names[name]} and {path} would both be written as {name}.png; give one of them")
        names[name] = path
    return names


def _long_name(path: Path) -> str:
    return "_".join(part for part in path.with_suffix("").parts if part not in ("/", "..", "."))


def _scored_in_windows(network, image: np.ndarray, description, side: int) -> tuple[float, np.ndarray]:
    """The largest score of the photograph's windows, and of each pixel the largest of theirs, float (H, W)."""
    scores = np.zeros(image.shape[:2], np.float32)
    largest = 0.0
    for top, left in window_places(*image.shape[:2], side):
        window = (slice(top, top + side), slice(left, left + side))
        score, of_window = _scored(network, image[window], description)
        largest = max(largest, score)
        scores[window] = np.maximum(scores[window], of_window)
    return largest, scores


def _scored(network, image: np.ndarray, description) -> tuple[float, np.ndarray]:
    """An image's score, and the anomaly's probabilities at its own size, float (H, W); 0 where fitting cut it off."""
    height, width = image.shape[:2]
    size = description.image_size
    fitted = fit(image, np.zeros((height, width), bool), size, description.fit)
    scores = anomaly_maps(network, fitted.image[None])[0]
    place = placement(height, width, size, description.fit)
    resized = np.zeros((place.height, place.width), np.float32)
    rows = slice(max(0, -place.top), max(0, -place.top) + min(size, place.height))
    columns = slice(max(0, -place.left), max(0, -place.left) + min(size, place.width))
    resized[rows, columns] = scores[fitted.valid].reshape(min(size, place.height), min(size, place.width))
    large = Image.fromarray(resized).resize((width, height), Image.Resampling.BILINEAR)
    score = float(image_maxima(scores[None], fitted.valid[None])[0])
    return score, np.asarray(large).clip(0, 1)
