"""The training batches of the generator and of the RMP: a function of the seed and the step alone.

A step draws a fresh latent from an image's kept posterior.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seas.generator.encoded import EncodedImages
from seas.generator.prompts import Prompts
from seas.images import draw_augmentation
from seas.seeding import rng, torch_rng
from seas.settings import TrainerSettings


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


class TrainingBatches:
    """Draws the batches of one product from its encoded images.

    Each image comes once before any comes twice; an abnormal image and its normal share one
    augmentation, and their pairing is drawn anew; each is shifted for itself.
    """

    def __init__(self, encoded: EncodedImages, prompts: Prompts, settings: TrainerSettings, seed: int) -> None:
        self._encoded = encoded
        self._prompts = prompts
        self._seed = seed
        self._counts = {"shot": settings.abnormal_per_batch, "normal": settings.normal_per_batch}
        self._images = {role: np.flatnonzero(encoded.rows.role == role) for role in self._counts}

    def batch(self, step: int, shot_step: int | None = None) -> Batch:
        """The batch of one step; its shots are those that come in turn at ``shot_step``, the same unless it is given."""
        turns = {"shot": step if shot_step is None else shot_step, "normal": step}
        encoded, draws = self._encoded, rng(self._seed, "augmentation", step)
        shared = [draw_augmentation(draws, encoded.augmentation) for _ in range(max(self._counts.values()))]
        latents, masks, valids, types = [], [], [], []
        for role, count in self._counts.items():
            for slot in range(count):
                image = self._image_in_turn(role, turns[role] * count + slot)
                shift = self._shift(image, shared[slot], rng(self._seed, "shift", role, step, slot))
                view = encoded.view(image, shared[slot], shift)
                noise = torch.randn(view.mean.shape, generator=torch_rng(self._seed, "posterior", role, step, slot))
                latents.append(view.mean + view.deviation * noise)
                masks.append(view.mask)
                valids.append(view.valid)
                types.append(encoded.rows.type[image])
        return Batch(
            torch.stack(latents) * encoded.scaling_factor,
            torch.stack(masks)[:, None].float(),
            torch.stack(valids)[:, None].float(),
            [self._prompts.normal() if name == "good" else self._prompts.abnormal(name) for name in types],
            types,
        )

    def _shift(self, image: int, turn: int, draws: np.random.Generator) -> tuple[int, int]:
        if not self._encoded.shifted:
            return 0, 0
        down, right = (int(draws.integers(cells.start, cells.stop)) for cells in self._encoded.shifts(image, turn))
        return down, right

    def _image_in_turn(self, role: str, number: int) -> int:
        images = self._images[role]
        epoch, place = divmod(number, len(images))
        return int(images[rng(self._seed, "order", role, epoch).permutation(len(images))[place]])
