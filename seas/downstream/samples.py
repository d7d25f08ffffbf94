"""What an arm is trained on: real photographs and generated pairs as one list, and its batches."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from seas.artifacts import read_table
from seas.errors import InputError
from seas.images import FIT_OF_MADE, Fitted, augment, bounding_box, draw_augmentation, keeping_the_padding, load_fitted
from seas.seeding import rng

CACHE_BYTES = 2 * 2**30
"""Fitted photographs are kept up to this size; beyond it they are read anew each time."""
READERS = 4


class Sample(NamedTuple):
    """One training image, and how it is fitted. ``image`` and ``mask`` are relative to ``root``; ``mask`` is "" for a normal one."""

    root: Path
    image: str
    mask: str
    fit: str


def training_samples(
    trained_on: str, splits: Mapping[str, Path], trees: Mapping[str, Sequence[Path]], root: Path, fit: str
) -> tuple[list[Sample], list[Sample]]:
    """The abnormal and the normal images of an arm; ``fit`` is that of the photographs.

    The normals are all of train/good in each arm; the abnormal ones are the split's shots for ``real`` and
    the arms that name ``real``, and the trees' pairs for all but ``real``.

    Raises InputError when there is none of either.
    """
    abnormal: list[Sample] = []
    normal: list[Sample] = []
    for product, path in splits.items():
        split = read_table(path)
        good = split[(split.type == "good") & (split.folder == "train")]
        normal += [Sample(root, image, "", fit) for image in good.image]
        if trained_on.startswith("real"):
            shots = split[split.role == "shot"]
            abnormal += [Sample(root, *pair, fit) for pair in zip(shots.image, shots["mask"], strict=True)]
        for tree in trees[product]:
            pairs = read_table(tree / "images.parquet").query("type != 'good'")
            abnormal += [Sample(tree, *pair, FIT_OF_MADE) for pair in zip(pairs.image, pairs["mask"], strict=True)]
    if not abnormal or not normal:
        raise InputError(f"downstream {trained_on}: there is no {'abnormal' if normal else 'normal'} image to train on")
    return abnormal, normal


class Batch(NamedTuple):
    """images uint8 (B, S, S, 3); masks and valid bool (B, S, S)."""

    images: np.ndarray
    masks: np.ndarray
    valid: np.ndarray


class SegmentationBatches:
    """Half abnormal, half normal images; a function of (seed, step) alone, read ahead by threads."""

    def __init__(
        self,
        abnormal: list[Sample],
        normal: list[Sample],
        *,
        size: int,
        batch_size: int,
        augmentation: str,
        jitter: float,
        seed: int,
    ) -> None:
        self._pools = (abnormal, normal)
        self._size, self._half = size, batch_size // 2
        self._augmentation, self._jitter, self._seed = augmentation, jitter, seed
        self._cache: dict[Sample, Fitted] = {}
        self._room = CACHE_BYTES // (5 * size * size)
        self._readers = ThreadPoolExecutor(READERS)
        self._ahead: dict[int, list[Future]] = {}

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        waiting = self._ahead.pop(step, None) or self._submit(step)
        self._ahead = {step + 1: self._submit(step + 1)}
        return Batch(*(np.stack(part) for part in zip(*(future.result() for future in waiting), strict=True)))

    def _submit(self, step: int) -> list[Future]:
        chosen = [(pool, number) for pool in (0, 1) for number in range(self._half)]
        return [self._readers.submit(self._drawn, pool, step, number) for pool, number in chosen]

    def _drawn(self, pool: int, step: int, number: int) -> Fitted:
        samples = self._pools[pool]
        epoch, place = divmod(step * self._half + number, len(samples))
        fitted = self._read(
            samples[int(rng(self._seed, "downstream order", pool, epoch).permutation(len(samples))[place])]
        )
        draws = rng(self._seed, "downstream augmentation", pool, step, number)
        _, _, height, width = bounding_box(fitted.valid)
        turn = draw_augmentation(draws, keeping_the_padding(self._augmentation, height, width))
        contrast, brightness = 1 + self._jitter * draws.uniform(-1, 1, 2)
        image = augment(fitted.image, turn).astype(np.float32)
        mean = fitted.image[fitted.valid].mean()
        image = (image - mean) * contrast + mean * brightness
        return Fitted(np.uint8(image.clip(0, 255).round()), augment(fitted.mask, turn), augment(fitted.valid, turn))

    def _read(self, sample: Sample) -> Fitted:
        if (fitted := self._cache.get(sample)) is None:
            fitted = load_fitted(sample.root, sample, self._size, sample.fit)
            if len(self._cache) < self._room:
                self._cache[sample] = fitted
        return fitted


def fitted_samples(rows: pd.DataFrame, root: Path, size: int, fit: str) -> list[Fitted]:
    """The photographs of a table's rows."""
    return [load_fitted(root, row, size, fit) for row in rows.itertuples()]
