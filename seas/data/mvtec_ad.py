"""The MVTec-AD layout: what a folder of products holds, without opening an image.

``<product>/train/good/``, ``<product>/test/<type>/`` and ``<product>/ground_truth/<type>/<name>_mask.png``.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from seas.errors import InputError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
UNIFIED = "all"
"""No product bears this name: it stands for the model of all products."""


class Sample(NamedTuple):
    """One photograph. Paths are relative to the dataset's root; ``mask`` is "" for a good part."""

    type: str
    folder: str
    image: str
    mask: str


def list_products(root: Path) -> list[str]:
    """The products of a dataset, by name.

    Raises InputError for a product whose name cannot be used in a path of the results.
    """
    products = sorted(folder.name for folder in Path(root).iterdir() if (folder / "train/good").is_dir())
    for product in products:
        if not SAFE_NAME.fullmatch(product) or product == UNIFIED:
            raise InputError(
                f"{Path(root) / product}: '{product}' cannot be the name of a product; rename the folder, "
                f"with letters, digits, '_', '.' and '-' only, and not '{UNIFIED}'"
            )
    return products


def list_samples(root: Path, product: str) -> list[Sample]:
    """The photographs of a product, by folder, type and name.

    Raises InputError: one message with every missing, surplus or ambiguous mask, odd name and empty folder.
    """
    root, folder = Path(root), Path(root) / product
    faults: list[str] = []
    good = _images(folder / "train/good")
    if not good:
        faults.append(f"{folder / 'train/good'} holds no image")
    samples = [Sample("good", "train", _relative(path, root), "") for path in good]
    types = sorted(path for path in _folders(folder / "test"))
    if not [path for path in types if path.name != "good"]:
        faults.append(f"{folder / 'test'} holds no anomaly type (a folder of images beside 'good')")
    for path in types:
        images = _images(path)
        if not SAFE_NAME.fullmatch(path.name):
            faults.append(f"{path}: rename the type, with letters, digits, '_', '.' and '-' only")
        if not images:
            faults.append(f"{path} holds no image")
        if path.name == "good":
            samples += [Sample("good", "test", _relative(image, root), "") for image in images]
            continue
        masks = {mask.stem.removesuffix("_mask"): mask for mask in _images(folder / "ground_truth" / path.name)}
        faults += [
            f"{image}: its mask is missing from {folder / 'ground_truth' / path.name}"
            for image in images
            if image.stem not in masks
        ]
        faults += [
            f"{mask}: the mask belongs to no image of {path}"
            for stem, mask in masks.items()
            if stem not in {i.stem for i in images}
        ]
        faults += [
            f"{path}: several images are called '{stem}'"
            for stem, count in Counter(i.stem for i in images).items()
            if count > 1
        ]
        samples += [
            Sample(path.name, "test", _relative(image, root), _relative(masks[image.stem], root))
            for image in images
            if image.stem in masks
        ]
    raise_faults(folder, faults)
    return samples


def raise_faults(where: Path, faults: list[str]) -> None:
    """Raise InputError with all ``faults``, one a line, when there are any."""
    if faults:
        raise InputError(
            faults[0] if len(faults) == 1 else f"{where} has {len(faults)} faults:\n  " + "\n  ".join(faults)
        )


def fingerprint(root: Path, product: str) -> str:
    """A hash of the names and sizes of a product's photographs and masks."""
    folder = Path(root) / product
    files = sorted(
        path for part in ("train", "test", "ground_truth") for path in (folder / part).rglob("*") if path.is_file()
    )
    listing = [(_relative(path, folder), path.stat().st_size) for path in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _folders(folder: Path) -> Iterable[Path]:
    return (
        [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if folder.is_dir()
        else []
    )


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
