"""The training images as the frozen VAE sees them: encoded once, for a generator, its mask branch and generation."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seas.data.settings import DataSettings
from seas.errors import InputError
from seas.images import (
    SYMMETRIES,
    augment,
    bounding_box,
    keeping_the_padding,
    load_fitted,
    mirrored,
    placement,
    to_tensor,
)
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
    ``data.augmentation``, without quarter turns where a photograph is padded.
    shifted: as in ``generator.shifts``. scaling_factor: the VAE's.
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

    def shares(self, anomaly_type: str) -> list[float]:
        """The share of its image, padding left out, that the mask of each shot of a type covers."""
        return [
            self.mask[shot].sum().item() / self.boxes[shot, 2:].prod().item()
            for shot in np.flatnonzero(self.rows.type == anomaly_type)
        ]

    @property
    def _cell(self) -> int:
        """Side of a latent's cell, in pixels."""
        return self.mask.shape[-1] // self.mean.shape[-1]

    def view(self, image: int, turn: int, shift: tuple[int, int] = (0, 0)) -> View:
        """An image under a symmetry of its augmentation, seen through a window ``shift`` cells of the latent down and right.

        Behind its edges lie its mirror images, whose latents are kept, too, where the augmentation mirrors.
        """

        def window(content: Callable[[int], Tensor], cell: int) -> Tensor:
            here = content(turn)
            if shift == (0, 0):
                return here
            halves = [torch.cat([content(left), content(mirrored(left, 1))], -1) for left in (turn, mirrored(turn, 0))]
            moved = torch.cat(halves, -2).roll([-cell * cells for cells in shift], (-2, -1))
            return moved[..., : here.shape[-2], : here.shape[-1]]

        symmetries = SYMMETRIES[self.augmentation]
        mask, valid = self.mask[image].numpy(), self.valid(image)
        return View(
            window(lambda index: self.mean[image, symmetries.index(index)], 1),
            window(lambda index: self.deviation[image, symmetries.index(index)], 1),
            window(lambda index: torch.from_numpy(augment(mask, index)), self._cell),
            window(lambda index: torch.from_numpy(augment(valid, index)), self._cell),
        )

    def shifts(self, image: int, turn: int) -> tuple[range, range]:
        """The shifts of ``view``'s window that keep a shot's whole defect in it; none along an axis with padding."""
        cell, size = self._cell, self.mask.shape[-1]
        mask, valid = augment(self.mask[image].numpy(), turn), augment(self.valid(image), turn)
        ranges = []
        for axis in (0, 1):
            inside, anomalous = valid.any(1 - axis), np.flatnonzero(mask.any(1 - axis))
            if not inside.all():
                ranges.append(range(1))
            elif len(anomalous):
                ranges.append(range(-((size - 1 - int(anomalous[-1])) // cell), int(anomalous[0]) // cell + 1))
            else:
                ranges.append(range(-(size // cell) + 1, size // cell))
        return ranges[0], ranges[1]

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
    photographs = [load_fitted(root, row, data.image_size, data.fit) for row in kept.itertuples()]
    augmentation = data.augmentation
    for row in split.itertuples():  # of all, so that it depends neither on the seed nor on the number of shots
        place = placement(row.height, row.width, data.image_size, data.fit)
        sides = (min(side, data.image_size) for side in (place.height, place.width))
        augmentation = keeping_the_padding(augmentation, *sides)
    means, deviations = [], []
    for fitted in progress(photographs, f"encode {product}"):
        images = torch.stack([to_tensor(augment(fitted.image, turn)) for turn in SYMMETRIES[augmentation]])
        with torch.no_grad():
            posterior = vae.encode(images.to(vae.device)).latent_dist
        means.append(posterior.mean.float().cpu())
        deviations.append(posterior.std.float().cpu())
    return EncodedImages(
        kept[["role", "type", "image"]].reset_index(drop=True),
        torch.stack(means),
        torch.stack(deviations),
        torch.from_numpy(np.stack([fitted.image for fitted in photographs])),
        torch.from_numpy(np.stack([fitted.mask for fitted in photographs])),
        torch.tensor([bounding_box(fitted.valid) for fitted in photographs]),
        augmentation,
        shifted,
        vae.config.scaling_factor,
    )


def load_encoded(folder: Path) -> EncodedImages:
    """The encoded images of a generator.

    Raises InputError when they are missing or damaged.
    """
    path = Path(folder) / ENCODED
    try:
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in _TENSORS if name in file.keys()]  # noqa: SIM118
            about = json.loads((file.metadata() or {})[_METADATA])
        if len(tensors) < len(_TENSORS):
            raise KeyError
        return EncodedImages(pd.DataFrame(about["rows"]), *tensors, *(about[name] for name in _FACTS))
    except (FileNotFoundError, KeyError):
        raise InputError(
            f"{path} is missing or incomplete: the generator is damaged, or an earlier version made it; make it anew"
        ) from None
    except (OSError, SafetensorError, ValueError, TypeError) as fault:
        raise InputError(f"{path} cannot be read: {fault}") from None
