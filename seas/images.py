"""Photographs and masks: reading, fitting to a square, augmenting, writing."""

import struct
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from scipy.ndimage import binary_dilation
from torch import Tensor

from seas.artifacts import writing_file
from seas.errors import InputError

OUTLINE = (255, 40, 40)
NEARLY_SQUARE = 0.02
"""Sides that differ by less than this share are cropped by ``auto``, others are padded."""


class Fitted(NamedTuple):
    """A photograph fitted to a square of side S: image uint8 (S, S, 3); mask and valid bool (S, S), valid False on padding."""

    image: np.ndarray
    mask: np.ndarray
    valid: np.ndarray


def _opened(path: Path) -> Image.Image:
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path)
            image.load()
        return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise InputError(f"the image {path} does not exist") from None
    except UnidentifiedImageError:
        raise InputError(f"the image {path} cannot be read: it is no picture") from None
    except (OSError, SyntaxError, TypeError, ValueError, struct.error, Image.DecompressionBombError) as fault:
        raise InputError(f"the image {path} cannot be read: {fault}") from None


def turned_by_exif(path: Path) -> bool:
    """Whether a picture's EXIF says that it is to be turned or mirrored."""
    with Image.open(path) as image:
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)


def has_sixteen_bits(path: Path) -> bool:
    """Whether a picture's values may be larger than 255."""
    with Image.open(path) as image:
        return image.mode.startswith("I")


def _eight_bit(image: Image.Image, path: Path) -> Image.Image:
    """16-bit pictures as 8-bit grey, scaled from the whole range of 16 bits; others unchanged.

    Raises InputError for a float picture: nothing says which value is white.
    """
    if image.mode == "F":
        raise InputError(f"the image {path} holds floating-point values without a range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray((values.clip(0, 65535) / 257).round().astype(np.uint8))
    return image


def read_image(path: Path) -> np.ndarray:
    """A photograph as uint8 (H, W, 3), RGB, turned as its EXIF says. Grey, palette, 16-bit and RGBA pictures are
    converted; alpha is dropped.

    Raises InputError for a missing or broken file and for floating-point values.
    """
    return np.asarray(_eight_bit(_opened(path), path).convert("RGB"))


def read_mask(path: Path) -> np.ndarray:
    """A mask as bool (H, W), True on the anomaly: every pixel that is not 0, in colour not black; of a palette with two colours,
    the one that is not black.

    Raises InputError for a missing or broken file, for a mask with more than two values, and for a transparent one.
    """
    image = _opened(path)
    if "A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255:
        raise InputError(f"the mask {path} is partly transparent; save it as a grey picture without an alpha channel")
    plain = image.mode in ("1", "L", "P") or image.mode.startswith("I")  # any number but 0 marks: nothing is scaled
    values = np.asarray(image) if plain else _numbers(np.asarray(_eight_bit(image, path).convert("RGB")))
    found = np.unique(values)
    if len(found) > 2 or (len(found) == 2 and found[0] != 0):
        raise InputError(
            f"the mask {path} has {len(found)} values ({', '.join(map(str, found[:4]))}, …); a mask has 0 and one other"
        )
    if image.mode == "P":
        coloured = np.asarray(image.convert("RGB")).any(axis=-1)
        if len(found) == 2 and coloured.any() and not coloured.all():
            return coloured
        if len(found) == 1 and not coloured.any() and any(image.getpalette()):
            return coloured
    return values != 0


def _numbers(colours: np.ndarray) -> np.ndarray:
    """Each colour, (H, W, 3), as one number (H, W), 0 for black: its level where all are grey."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    grey = (red == green).all() and (red == blue).all()
    return red if grey else red << 16 | green << 8 | blue


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=None))


def _resized_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half of a pixel's area makes it anomalous; where that would leave nothing, any of it does."""
    area = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX))
    resized = area >= 0.5
    return resized if resized.any() or not mask.any() else area >= max(area.max() * 0.5, 1e-6)


class Placement(NamedTuple):
    """Where a photograph of height × width lies in the fitted square: its resized size and the offset of its top left corner.

    A negative offset cuts, a positive one pads.
    """

    height: int
    width: int
    top: int
    left: int


def placement(height: int, width: int, size: int, mode: str) -> Placement:
    """How a photograph of height × width is fitted into a square of side ``size``.

    crop: the short side becomes ``size``, the middle is kept; pad: the long side does; stretch: both;
    auto: crop when the sides differ by less than 2 %, else pad.
    """
    if mode == "auto":
        mode = "crop" if max(height, width) < (1 + NEARLY_SQUARE) * min(height, width) else "pad"
    if mode == "stretch":
        return Placement(size, size, 0, 0)
    side = min(height, width) if mode == "crop" else max(height, width)
    new_height, new_width = max(1, round(height * size / side)), max(1, round(width * size / side))
    return Placement(new_height, new_width, (size - new_height) // 2, (size - new_width) // 2)


def fit(image: np.ndarray, mask: np.ndarray, size: int, mode: str) -> Fitted:
    """Fit a photograph uint8 (H, W, 3) and its mask bool (H, W) into a square; padding continues the border's colours."""
    place = placement(*mask.shape, size, mode)
    resized = _resized(image, place.height, place.width)
    small = _resized_mask(mask, place.height, place.width)
    if place.height > size or place.width > size:
        rows, columns = slice(-place.top, size - place.top), slice(-place.left, size - place.left)
        resized, small = resized[rows, columns], small[rows, columns]
    top, left = max(place.top, 0), max(place.left, 0)
    around = ((top, size - top - small.shape[0]), (left, size - left - small.shape[1]))
    return Fitted(
        np.pad(resized, (*around, (0, 0)), mode="edge"), np.pad(small, around), np.pad(np.ones_like(small), around)
    )


FIT_OF_MADE = "pad"
"""How images that this project made are fitted again: each is a square, or the part of a padded one that is no padding."""


def load_fitted(root: Path, row: Any, size: int, mode: str) -> Fitted:
    """The fitted photograph and mask of a row of the samples table (its ``image`` and ``mask``, relative to ``root``)."""
    image = read_image(Path(root) / row.image)
    mask = read_mask(Path(root) / row.mask) if row.mask else np.zeros(image.shape[:2], bool)
    return fit(image, mask, size, mode)


def bounding_box(marked: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest rectangle (top, left, height, width), in pixels, around what is marked: bool (H, W), not all False."""
    rows, columns = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)


def bounding_slices(marked: np.ndarray) -> tuple[slice, slice]:
    """``bounding_box`` as the rows and columns that it holds."""
    top, left, height, width = bounding_box(marked)
    return slice(top, top + height), slice(left, left + width)


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 (..., H, W, 3) → float32 (..., 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, -3).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1] → uint8 (..., H, W, 3); values outside are clipped."""
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def augment(array: np.ndarray, index: int) -> np.ndarray:
    """One of the square's eight symmetries, for (H, W) or (H, W, C): ``index % 4`` quarter turns, from 4 on mirrored first."""
    turned = np.rot90(array[:, ::-1] if index >= 4 else array, index % 4)
    return np.ascontiguousarray(turned)


def mirrored(index: int, axis: int) -> int:
    """The symmetry that is ``index`` and then a mirroring along ``axis``: 0 swaps top and bottom, 1 left and right."""
    turns, flipped = index % 4, index >= 4
    return ((2 if axis == 0 else 0) - turns) % 4 + (0 if flipped else 4)


SYMMETRIES = {"turns_and_flips": tuple(range(8)), "flips": (0, 2, 4, 6), "half_turn": (0, 2), "none": (0,)}
"""The symmetries (indices of ``augment``) of each value of ``data.augmentation``; 4 mirrors left-right, 6 top-bottom."""


def keeping_the_padding(augmentation: str, height: int, width: int) -> str:
    """``augmentation`` without quarter turns for a photograph of which height × width pixels are no padding: they would lay
    down what stands.

    Generation cuts the padding off where, to a pixel, the photographs have it.
    """
    return "flips" if augmentation == "turns_and_flips" and height != width else augmentation


def draw_augmentation(rng: np.random.Generator, augmentation: str) -> int:
    """The index of one of the symmetries that ``augmentation`` names.

    "turns_and_flips" draws one of 0/90/180/270° and one of none/left-right/top-bottom, as the released code does, so that
    two of three draws are mirrored; the others draw each symmetry as often as another.
    """
    if augmentation != "turns_and_flips":
        return int(rng.choice(SYMMETRIES[augmentation]))
    turns, flip = int(rng.integers(4)), int(rng.integers(3))
    if flip == 0:
        return turns
    # A top-bottom flip is a left-right flip and half a turn.
    return 4 + (turns + (2 if flip == 2 else 0)) % 4


def shrink_mask(mask: Tensor, size: int | tuple[int, int]) -> Tensor:
    """(B, 1, H, W) → (B, 1, *size) by max pooling, so that an anomaly never vanishes."""
    return torch.nn.functional.adaptive_max_pool2d(mask, size)


def outlined(image: np.ndarray, mask: np.ndarray, width: int = 2) -> np.ndarray:
    """The image, uint8 (H, W, 3), with a red line of ``width`` pixels around the mask, bool of any size."""
    large = np.asarray(Image.fromarray(mask).resize(image.shape[1::-1], Image.Resampling.NEAREST))
    line = binary_dilation(large, iterations=width) & ~large
    return np.where(line[..., None], np.uint8(OUTLINE), image)


def write_image(array: np.ndarray, path: Path) -> None:
    """Write uint8 (H, W, 3) or (H, W) as a PNG."""
    with writing_file(path) as partial:
        Image.fromarray(array).save(partial, format="PNG", compress_level=3)


def write_mask(mask: np.ndarray, path: Path) -> None:
    """Write bool (H, W) as a PNG of 0 and 255."""
    write_image(mask.astype(np.uint8) * 255, path)
