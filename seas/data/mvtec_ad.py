"""The MVTec-AD layout: what a folder of products holds, without opening an image.

``<product>/train/good/``, ``<product>/test/<type>/`` and ``<product>/ground_truth/<type>/<name>_mask.png``.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from seas.artifacts import sampled_sha256, sha256
from seas.errors import InputError
from seas.settings import SAFE_NAME

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
OTHER_PICTURES = {
    f".{kind}"
    for kind in "webp gif jp2 j2k heic heif avif jfif jpe ppm pgm pnm tga exr raw dng cr2 nef arw".split()  # noqa: SIM905
}
UNCOMPRESSED = {".bmp", ".tif", ".tiff"}
"""Pictures whose size does not depend on what they show, or need not."""
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

    Raises InputError: one message with every product whose name cannot be used in a path of the results, or that
    lacks train/good.
    """
    products = sorted(path for path in _folders(Path(root)) if (path / "train").is_dir() or (path / "test").is_dir())
    faults = [
        f"{path} has no folder train/good; a product needs normal images to train on"
        for path in products
        if not (path / "train/good").is_dir()
    ]
    faults += [
        f"{path}: '{path.name}' cannot be the name of a product; rename the folder, "
        f"with letters, digits, '_', '.' and '-' only, and not '{UNIFIED}'"
        for path in products
        if not re.fullmatch(SAFE_NAME, path.name) or path.name == UNIFIED
    ]
    raise_faults(Path(root), faults)
    return [path.name for path in products]


def list_types(root: Path, product: str) -> list[str]:
    """The anomaly types of a product, by name."""
    return sorted(folder.name for folder in _folders(Path(root) / product / "test") if folder.name != "good")


def count_images(root: Path, product: str) -> dict[str, int]:
    """How many photographs each anomaly type of a product has, right or wrong."""
    return {name: len(_images(Path(root) / product / "test" / name)) for name in list_types(root, product)}


def count_tested(root: Path, product: str) -> int:
    """How many photographs are in a product's test/, right or wrong."""
    return sum(len(_images(folder)) for folder in _folders(Path(root) / product / "test"))


def list_samples(root: Path, product: str) -> list[Sample]:
    """The photographs of a product, by folder, type and name.

    Raises InputError: one message with every missing, surplus or ambiguous mask, odd name and empty folder.
    """
    root, folder = Path(root), Path(root) / product
    faults: list[str] = []
    good = _images(folder / "train/good")
    if not good:
        faults.append(f"{folder / 'train/good'} holds no image")
    faults += [
        f"{path}: only train/good trains; abnormal images belong into {folder / 'test'}"
        for path in _folders(folder / "train")
        if path.name != "good"
    ]
    samples = [Sample("good", "train", _relative(path, root), "") for path in good]
    types = sorted(path for path in _folders(folder / "test"))
    faults += [
        f"{path}: there are masks, but no folder {folder / 'test' / path.name}"
        for path in sorted(_folders(folder / "ground_truth"))
        if path.name not in {kind.name for kind in types}
    ]
    for path in [folder / "train/good", *types, *(folder / "ground_truth" / kind.name for kind in types)]:
        faults += _unread(path)
    if not [path for path in types if path.name != "good"]:
        faults.append(f"{folder / 'test'} holds no anomaly type (a folder of images beside 'good')")
    for path in types:
        images = _images(path)
        if not re.fullmatch(SAFE_NAME, path.name):
            faults.append(f"{path}: rename the type, with letters, digits, '_', '.' and '-' only")
        if not images:
            faults.append(f"{path} holds no image")
        if path.name == "good":
            samples += [Sample("good", "test", _relative(image, root), "") for image in images]
            continue
        drawn = _images(folder / "ground_truth" / path.name)
        masks = {mask.stem.removesuffix("_mask"): mask for mask in drawn}
        faults += [
            f"{folder / 'ground_truth' / path.name}: several masks belong to the image '{stem}'"
            for stem, count in Counter(mask.stem.removesuffix("_mask") for mask in drawn).items()
            if count > 1
        ]
        faults += [
            f"{image}: its mask {image.stem}_mask.png (or {image.stem}.png) is missing from {folder / 'ground_truth' / path.name}"
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


def require_groups(root: Path, products: Iterable[str], file: str) -> None:
    """Raise InputError when none of a dataset's products has the file of groups: a mistyped name would group nothing.

    So would one that leads out of the products' folders.
    """
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise InputError(
            f"'{file}' leads out of the products' folders; name the file of groups as it lies in each of them, such as groups.csv"
        )
    if not any((root / product / file).is_file() for product in products):
        raise InputError(f"no product of {root} has the file of groups '{file}' (data.groups)")


def raise_faults(where: Path, faults: list[str]) -> None:
    """Raise InputError with all ``faults``, one a line, when there are any."""
    if faults:
        raise InputError(
            faults[0] if len(faults) == 1 else f"{where} has {len(faults)} faults:\n  " + "\n  ".join(faults)
        )


def fingerprint(root: Path, product: str) -> str:
    """A hash of the names and sizes of a product's photographs and masks, of the masks' content, and of blocks of BMP and TIFF.

    A PNG or JPEG photograph that is replaced by another of its name and size goes unnoticed; so does what is no picture.
    """
    folder = Path(root) / product
    folders = [path for part in ("train", "test", "ground_truth") for path in _folders(folder / part)]
    files = sorted(
        path
        for path in itertools.chain(*(path.iterdir() for path in folders))
        if path.suffix.lower() in IMAGE_SUFFIXES | OTHER_PICTURES and not path.name.startswith(".") and path.is_file()
    )

    def content(path: Path) -> str:
        if path.is_relative_to(folder / "ground_truth"):
            return sha256(path)
        return sampled_sha256(path) if path.suffix.lower() in UNCOMPRESSED else ""

    listing = [(_relative(path, folder), path.stat().st_size, content(path)) for path in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _folders(folder: Path) -> Iterable[Path]:
    return (
        [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if folder.is_dir()
        else []
    )


def _unread(folder: Path) -> list[str]:
    """What lies in a folder of photographs and is not read, or not safely: a fault each."""
    faults = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue
        if not path.name.isprintable():
            faults.append(
                f"{folder}: rename the file {ascii(path.name)}; its name holds characters that cannot be printed"
            )
        elif path.is_dir():
            faults.append(f"{path}: folders within a type are not read; move the images up")
        elif path.suffix.lower() in OTHER_PICTURES:
            faults.append(f"{path}: this kind of picture is not read; save it as PNG")
    return faults


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.name.isprintable()
    )
