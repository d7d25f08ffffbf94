"""The training batches of the generator and of the RMP: a function of (seed, step) alone.

The VAE is frozen, so each image is encoded once under each augmentation; a step draws a fresh
latent from the kept posterior.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from seas.data.settings import DataSettings
from seas.errors import InputError
from seas.generator.pipeline import StartNormals
from seas.generator.prompts import Prompts
from seas.images import SYMMETRIES, augment, draw_augmentation, load_fitted, to_tensor, valid_box
from seas.seeding import rng, torch_rng
from seas.training import progress


class Batch(NamedTuple):
    """One batch, the abnormal images first.

    latents (B, C, h, w): posterior samples times the scaling factor. mask, valid (B, 1, S, S): 0 or 1,
    mask 0 for normals, valid 0 on padding. prompts: one each. types: the anomaly type, "good" for normals.
    """

    latents: Tensor
    mask: Tensor
    valid: Tensor
    prompts: list[str]
    types: list[str]

    @property
    def is_abnormal(self) -> Tensor:
        """(B,) of booleans."""
        return torch.tensor([name != "good" for name in self.types])

    def only(self, *, abnormal: bool) -> "Batch":
        """The abnormal or the normal images alone."""
        kept = self.is_abnormal == abnormal
        chosen = kept.nonzero().flatten().tolist()
        texts = ([values[k] for k in chosen] for values in (self.prompts, self.types))
        return Batch(self.latents[kept], self.mask[kept], self.valid[kept], *texts)


class _Encoded(NamedTuple):
    rows: pd.DataFrame
    mean: Tensor  # (n, symmetries, C, h, w)
    deviation: Tensor
    mask: np.ndarray  # (n, S, S)
    valid: np.ndarray


class TrainingBatches:
    """Draws the batches of one product from its split.

    Each image comes once before any comes twice; an abnormal image and its normal share one
    augmentation, and their pairing is drawn anew.
    """

    def __init__(
        self,
        split: pd.DataFrame,
        root: Path,
        data: DataSettings,
        vae: AutoencoderKL,
        prompts: Prompts,
        *,
        seed: int,
        abnormal_per_batch: int,
        normal_per_batch: int,
    ) -> None:
        self._prompts = prompts
        self._seed = seed
        self._counts = {"shot": abnormal_per_batch, "normal": normal_per_batch}
        self._scaling_factor = vae.config.scaling_factor
        self._augmentation = data.augmentation
        self._encoded = {
            role: _encode(
                split[split.role == role].reset_index(drop=True), root, data, vae, f"encode {prompts.product} {role}s"
            )
            for role in ("shot", "normal")
        }

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        draws = rng(self._seed, "augmentation", step)
        shared = [draw_augmentation(draws, self._augmentation) for _ in range(max(self._counts.values()))]
        latents, masks, valids, types = [], [], [], []
        for role, count in self._counts.items():
            encoded = self._encoded[role]
            for slot in range(count):
                image = self._image_in_turn(role, step * count + slot, len(encoded.rows))
                turn = shared[slot]
                view = SYMMETRIES[self._augmentation].index(turn)
                noise = torch.randn(
                    encoded.mean.shape[2:], generator=torch_rng(self._seed, "posterior", role, step, slot)
                )
                latents.append(encoded.mean[image, view] + encoded.deviation[image, view] * noise)
                masks.append(augment(encoded.mask[image], turn))
                valids.append(augment(encoded.valid[image], turn))
                types.append(encoded.rows.type[image])
        return Batch(
            torch.stack(latents) * self._scaling_factor,
            torch.from_numpy(np.stack(masks)[:, None]).float(),
            torch.from_numpy(np.stack(valids)[:, None]).float(),
            [self._prompts.normal() if name == "good" else self._prompts.abnormal(name) for name in types],
            types,
        )

    def start_normals(self) -> StartNormals:
        """The training normals without augmentation, for generation to start from."""
        encoded = self._encoded["normal"]
        boxes = torch.tensor([valid_box(valid) for valid in encoded.valid], dtype=torch.int64)
        return StartNormals(encoded.mean[:, 0] * self._scaling_factor, boxes, list(encoded.rows.image))

    def _image_in_turn(self, role: str, number: int, images: int) -> int:
        epoch, place = divmod(number, images)
        return int(rng(self._seed, "order", role, epoch).permutation(images)[place])


def _encode(rows: pd.DataFrame, root: Path, data: DataSettings, vae: AutoencoderKL, label: str) -> _Encoded:
    if rows.empty:
        raise InputError(f"{label}: the split has no such image")
    means, deviations, masks, valids = [], [], [], []
    for row in progress(list(rows.itertuples()), label):
        fitted = load_fitted(root, row, data.image_size, data.fit)
        images = torch.stack([to_tensor(augment(fitted.image, turn)) for turn in SYMMETRIES[data.augmentation]])
        with torch.no_grad():
            posterior = vae.encode(images.to(vae.device)).latent_dist
        means.append(posterior.mean.float().cpu())
        deviations.append(posterior.std.float().cpu())
        masks.append(fitted.mask)
        valids.append(fitted.valid)
    return _Encoded(rows, torch.stack(means), torch.stack(deviations), np.stack(masks), np.stack(valids))
