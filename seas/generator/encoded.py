"""The training images as the frozen VAE sees them: encoded once, for a generator, its mask branch and generation."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from seas.data.settings import DataSettings
from seas.errors import InputError
from seas.images import SYMMETRIES, augment, load_fitted, mirrored, to_tensor, valid_box
from seas.training import progress

ENCODED = "encoded_images.safetensors"
_TENSORS = ("mean", "deviation", "image", "mask", "boxes")
_FACTS = ("augmentation", "shifted", "scaling_factor")
_METADATA = "images"  # one key: the order of several would change a file's bytes from run to run


class StartNormals(NamedTuple):
    """The training normals as generation needs them.

    latents: (n, C, h, w), posterior means times the scaling factor. images: uint8 (n, S, S, 3), fitted. boxes: (n, 4), the
    part of each fitted image that is no padding: top, left, height, width in pixels. names: their paths in the dataset.
    """

    latents: Tensor
    images: Tensor
    boxes: Tensor
    names: list[str]


class View(NamedTuple):
    """One training image as a batch shows it. mean, deviation: (C, h, w). mask, valid: bool (S, S)."""

    mean: Tensor
    deviation: Tensor
    mask: Tensor
    valid: Tensor


class EncodedImages(NamedTuple):
    """The n shots and normals of a split, under each symmetry of its augmentation.

    rows: table of n rows with role ("shot" or "normal"), type and image. mean, deviation: (n, symmetries, C, h, w), of the
    posterior, not scaled. image: uint8 (n, S, S, 3). mask: bool (n, S, S). boxes: (n, 4), as of ``StartNormals``. augmentation: as in
    ``data.augmentation``. shifted: as in ``generator.shifts``. scaling_factor: the VAE's.
    """

    rows: pd.DataFrame
    mean: Tensor
    deviation: Tensor
    image: Tensor
    mask: Tensor
    boxes: Tensor
    augmentation: str
    shifted: bool
    scaling_factor: float

    def valid(self, image: int) -> np.ndarray:
        """bool (S, S), False on an image's padding."""
        top, left, height, width = self.boxes[image].tolist()
        valid = np.zeros(self.mask.shape[1:], bool)
        valid[top : top + height, left : left + width] = True
        return valid

    @property
    def _cell(self) -> int:
        """Side of a latent's cell, in pixels."""
        return self.mask.shape[-1] // self.mean.shape[-1]

    def view(self, image: int, turn: int, shift: tuple[int, int] = (0, 0)) -> View:
        """An image under a symmetry of its augmentation, seen through a window ``shift`` cells of the latent down and right.

        What the window shows behind an edge is mirrored from the surface between that edge and the defect, as often as it takes, so
        that no defect is seen twice. The latents of mirrored images are kept, where the augmentation mirrors.
        """
        cells, symmetries = self.mean.shape[-1], SYMMETRIES[self.augmentation]
        mask, valid = self.mask[image].numpy(), self.valid(image)
        rows, columns = (
            _places(cells, by, *margins) for by, margins in zip(shift, self._margins(image, turn), strict=True)
        )

        def window(content: Callable[[int], Tensor], cell: int) -> Tensor:
            if shift == (0, 0):
                return content(turn)
            halves = [torch.cat([content(left), content(mirrored(left, 1))], -1) for left in (turn, mirrored(turn, 0))]
            pixels = ((places[:, None] * cell + torch.arange(cell)).flatten() for places in (rows, columns))
            return torch.cat(halves, -2).index_select(-2, next(pixels)).index_select(-1, next(pixels))

        return View(
            window(lambda index: self.mean[image, symmetries.index(index)], 1),
            window(lambda index: self.deviation[image, symmetries.index(index)], 1),
            window(lambda index: torch.from_numpy(augment(mask, index)), self._cell),
            window(lambda index: torch.from_numpy(augment(valid, index)), self._cell),
        )

    def shifts(self, image: int, turn: int) -> tuple[range, range]:
        """The shifts of ``view``'s window that keep a shot's whole defect in it; none along an axis with padding.

        Nor is there one away from an edge that the defect is near: nothing is left to be mirrored there, and a chipped edge has its
        place.
        """
        valid, ranges = augment(self.valid(image), turn), []
        for axis, (before, behind) in enumerate(self._margins(image, turn)):
            first, last = self._defect(image, turn, axis)
            if not valid.any(1 - axis).all():
                ranges.append(range(1))
            elif first is None:
                ranges.append(range(-before + 1, behind))
            else:
                ranges.append(range(-last if before else 0, first + 1 if behind else 1))
        return ranges[0], ranges[1]

    def _defect(self, image: int, turn: int, axis: int) -> tuple[int, int] | tuple[None, None]:
        """Whole cells before and behind a shot's defect along an axis; None for a normal."""
        anomalous = np.flatnonzero(augment(self.mask[image].numpy(), turn).any(1 - axis))
        if not len(anomalous):
            return None, None
        return int(anomalous[0]) // self._cell, (self.mask.shape[-1] - 1 - int(anomalous[-1])) // self._cell

    def _margins(self, image: int, turn: int) -> list[tuple[int, int]]:
        """Cells at either edge, by axis, that may be mirrored: they and their neighbours hold nothing of a defect."""
        margins = []
        for axis in (0, 1):
            rooms = self._defect(image, turn, axis)
            margins.append(tuple(self.mean.shape[-1] if room is None else max(0, room - 1) for room in rooms))
        return margins

    def of_types(self, types: Sequence[str]) -> "EncodedImages":
        """The shots of some types, and all normals."""
        chosen = np.flatnonzero(self.rows.type.isin([*types, "good"]))
        if len(chosen) == len(self.rows):
            return self
        rows = self.rows.iloc[chosen].reset_index(drop=True)
        tensors = (getattr(self, name)[chosen] for name in _TENSORS)
        return EncodedImages(rows, *tensors, self.augmentation, self.shifted, self.scaling_factor)

    def start_normals(self) -> StartNormals:
        """The normals without augmentation, for generation to start from."""
        normal = np.flatnonzero(self.rows.role == "normal")
        latents = self.mean[normal, 0] * self.scaling_factor
        return StartNormals(latents, self.image[normal], self.boxes[normal], list(self.rows.image[normal]))

    def save(self, folder: Path) -> None:
        """Write them into a generator's folder."""
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        about = {name: getattr(self, name) for name in _FACTS}
        about["rows"] = self.rows.to_dict("list")
        save_file(tensors, folder / ENCODED, {_METADATA: json.dumps(about)})


def encode_images(
    split: pd.DataFrame, root: Path, data: DataSettings, vae: AutoencoderKL, *, shifted: bool = False
) -> EncodedImages:
    """Encode the shots and normals of a product's split, whose images lie below ``root``.

    Raises InputError when the split has no shot or no normal, and for an image that cannot be read.
    """
    product = split["product"].iloc[0]
    for role in ("shot", "normal"):
        if not (split.role == role).any():
            raise InputError(f"{product}: the split has no {role} to train on")
    kept = split[split.role.isin(["shot", "normal"])]
    means, deviations, photographs, masks, boxes = [], [], [], [], []
    for row in progress(list(kept.itertuples()), f"encode {product}"):
        fitted = load_fitted(root, row, data.image_size, data.fit)
        images = torch.stack([to_tensor(augment(fitted.image, turn)) for turn in SYMMETRIES[data.augmentation]])
        with torch.no_grad():
            posterior = vae.encode(images.to(vae.device)).latent_dist
        means.append(posterior.mean.float().cpu())
        deviations.append(posterior.std.float().cpu())
        photographs.append(torch.from_numpy(fitted.image))
        masks.append(torch.from_numpy(fitted.mask))
        boxes.append(valid_box(fitted.valid))
    return EncodedImages(
        kept[["role", "type", "image"]].reset_index(drop=True),
        torch.stack(means),
        torch.stack(deviations),
        torch.stack(photographs),
        torch.stack(masks),
        torch.tensor(boxes),
        data.augmentation,
        shifted,
        vae.config.scaling_factor,
    )


def _places(cells: int, shift: int, before: int, behind: int) -> Tensor:
    """Where a window of ``cells`` cells, moved by ``shift``, finds them in an axis that its mirror image follows, int (cells,).

    Behind the edges lie the first ``before`` and the last ``behind`` cells, to and fro.
    """
    places = torch.arange(cells) + shift
    left, right = -1 - places, places - cells
    if before:
        there = left % (2 * before)
        places = torch.where(
            left >= 0, torch.where(there < before, 2 * cells - 1 - there, 2 * before - 1 - there), places
        )
    if behind:
        there = right % (2 * behind)
        places = torch.where(right >= 0, torch.where(there < behind, cells + there, cells - 2 * behind + there), places)
    return places


def load_encoded(folder: Path) -> EncodedImages:
    """The encoded images of a generator.

    Raises InputError when they are missing or damaged.
    """
    path = Path(folder) / ENCODED
    try:
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in _TENSORS]
            about = json.loads(file.metadata()[_METADATA])
        return EncodedImages(pd.DataFrame(about["rows"]), *tensors, *(about[name] for name in _FACTS))
    except (FileNotFoundError, KeyError):
        raise InputError(
            f"{path} is missing or incomplete: the generator is damaged, or an earlier version made it; make it anew"
        ) from None
    except Exception as fault:
        raise InputError(f"{path} cannot be read: {fault}") from None
