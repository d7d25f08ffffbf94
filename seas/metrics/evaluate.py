"""The metrics' stage: how good and how diverse the generated images of one product are."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from seas.artifacts import Provenance, read_table, write_table
from seas.data.settings import DataSettings
from seas.errors import InputError
from seas.images import Fitted, bounding_slices, load_fitted, read_image, read_mask, shrink_mask
from seas.metrics.diversity import ic_lpips
from seas.metrics.extractors import FeatureExtractor, build_extractor
from seas.metrics.quality import inception_score, kid
from seas.metrics.settings import STAGE_VERSION, MetricsSettings
from seas.scores import RESULT_COLUMNS
from seas.seeding import rng, seed_of
from seas.settings import ComputeSettings
from seas.training import prepare_device, progress

METRICS_OF_TYPES = ("is", "ic_lpips", "ic_lpips_nonzero", "ic_lpips_anomaly", "ic_lpips_anomaly_nonzero")
REFERENCE_ROLES = {"train_shots": ("shot",), "all_real": ("shot", "test", "left_out")}

Counts = dict[str, Any]
"""The numbers that a value depends on, by plain names; joined they are the column protocol."""


class Photographs(NamedTuple):
    """Images uint8 (N, S, S, 3) and their masks bool (N, S, S)."""

    images: np.ndarray
    masks: np.ndarray

    def masked(self) -> np.ndarray:
        """The images with every pixel outside the mask black."""
        return self.images * self.masks[..., None]


class Measured(NamedTuple):
    """A value of a metric, the numbers that it depends on, and the network behind it."""

    metric: str
    value: float
    protocol: Counts
    extractor: str


def evaluate_product(
    generation: Path,
    split: Path,
    root: Path,
    settings: MetricsSettings,
    data: DataSettings,
    compute: ComputeSettings,
    seed: int,
    *,
    dataset: str,
    experiment: str,
    product: str,
    output: Path,
) -> None:
    """Write the table of the metrics of one product's generated images, in the columns ``RESULT_COLUMNS``.

    IS, IC-LPIPS and IC-LPIPS(a) are measured for each anomaly type (rows of the variant "type=<name>") and
    averaged over the types (variant ""). KID compares the generated normal images with the training normals
    that the generator has not trained on (role "reserve"; of windows, some lie beside one of the same photograph that it
    has); it is NaN where one side has fewer than two.

    Raises InputError when nothing was generated or a generated type has no real image.
    """
    generated, real = read_table(generation / "images.parquet"), read_table(split)
    types = sorted(set(generated["type"]) - {"good"})
    if not types:
        raise InputError(f"{generation} has no generated anomaly images to measure")
    device = prepare_device(compute)
    # In bf16 generated images change their nearest reference, and IC-LPIPS with it.
    exact = compute.model_copy(update={"precision": "fp32"})
    evaluation = _Evaluation(generation, root, settings, data, build_extractor(settings, device, exact), seed)

    rows = []
    for name in progress(types, f"metrics of {product}"):
        pairs = generated[generated["type"] == name]
        references = real[(real["type"] == name) & real["role"].isin(REFERENCE_ROLES[settings.reference])]
        if references.empty:
            raise InputError(f"{split} has no {settings.reference} image of the generated type {name!r}")
        rows += [(f"type={name}", measured) for measured in evaluation.of_type(pairs, references)]
    means = [("", _mean([found for _, found in rows if found.metric == metric])) for metric in METRICS_OF_TYPES]
    normals = evaluation.of_normals(generated[generated["type"] == "good"], real[real["role"] == "reserve"])

    table = pd.DataFrame(
        [
            {"variant": variant, **found._asdict(), "protocol": _joined(found.protocol)}
            for variant, found in [*means, ("", normals), *rows]
        ]
    ).assign(dataset=dataset, product=product, method="seas", model="", level="generation")
    obeyed = {
        "metrics": settings.obeyed(),
        "data": data.obeyed(),
        "compute": compute.obeyed(),
        "paper_weights": settings.as_the_paper(),
    }
    inputs = {"generation": generation, "split": split}
    provenance = Provenance.of("metrics", STAGE_VERSION, obeyed, seed, inputs)
    table = table.assign(experiment=experiment, trained_on="", seed=seed)[RESULT_COLUMNS]
    write_table(table, output, provenance, facts=True)


@dataclass(frozen=True)
class _Evaluation:
    """The measuring of one product's images."""

    generation: Path
    root: Path
    settings: MetricsSettings
    data: DataSettings
    extractor: FeatureExtractor
    seed: int

    def of_type(self, pairs: pd.DataFrame, references: pd.DataFrame) -> Iterator[Measured]:
        """``METRICS_OF_TYPES`` of the generated pairs of one type; the references are its real images."""
        generated, real = self._generated(pairs), self._real(references)
        splits = max(1, min(self.settings.is_splits, len(pairs) // 2))
        protocol: Counts = {"images": len(pairs), "size": self.settings.image_size}
        score = inception_score(self._logits(generated.images), splits)
        yield Measured("is", score, {"splits": splits, **protocol}, self.extractor.features_name)

        protocol |= {"reference": self.settings.reference, "references": len(references)}
        protocol |= {"cap": self.settings.cluster_cap or "none"}
        kinds = {"ic_lpips": (generated.images, real.images), "ic_lpips_anomaly": (generated.masked(), real.masked())}
        for metric, (images, centres) in kinds.items():
            found = ic_lpips(
                images,
                centres,
                self.extractor.embed,
                cap=self.settings.cluster_cap,
                batch_size=self.settings.batch_size,
                seed=seed_of(self.seed, metric, pairs["type"].iloc[0]),
            )
            counts = protocol | {"scored_clusters": found.scored_clusters}
            yield Measured(metric, found.mean, counts, self.extractor.distance_name)
            yield Measured(f"{metric}_nonzero", found.nonzero_mean, counts, self.extractor.distance_name)

    def of_normals(self, generated: pd.DataFrame, reserve: pd.DataFrame) -> Measured:
        """KID of the generated normals; of windows the reserve can hold tens of thousands, so that some are drawn."""
        drawn = rng(self.seed, "kid normals").permutation(len(reserve))[: self.settings.kid_normals]
        reserve = reserve.iloc[np.sort(drawn)]
        subset_size = min(self.settings.kid_subset_size, len(generated), len(reserve))
        protocol: Counts = {"subset_size": subset_size, "real": len(reserve), "generated": len(generated)}
        value = float("nan")
        if subset_size >= 2:
            of_real, of_generated = self._features(self._real, reserve), self._features(self._generated, generated)
            value = kid(of_real, of_generated, subset_size, seed=self.seed)
        else:
            protocol["why"] = "fewer than two images on one side"
        return Measured("kid", value, protocol | {"size": self.settings.image_size}, self.extractor.features_name)

    def _features(self, read: Callable[[pd.DataFrame], Photographs], rows: pd.DataFrame) -> Tensor:
        """Features of the images of ``rows``, which are read a batch at a time."""
        size = self.settings.batch_size
        batches = (rows.iloc[start : start + size] for start in range(0, len(rows), size))
        return torch.cat([self.extractor.logits_and_features(read(batch).images)[1].cpu() for batch in batches])

    def _logits(self, images: np.ndarray) -> Tensor:
        size = self.settings.batch_size
        batches = (images[start : start + size] for start in range(0, len(images), size))
        return torch.cat([self.extractor.logits_and_features(batch)[0].cpu() for batch in batches])

    def _real(self, rows: pd.DataFrame) -> Photographs:
        """Fitted as the generator saw them, their padding cut off as generation cuts it off."""
        fitted = (load_fitted(self.root, row, self.data.image_size, self.data.fit) for row in rows.itertuples())
        return _resized(map(_without_padding, fitted), self.settings.image_size)

    def _generated(self, rows: pd.DataFrame) -> Photographs:
        return _resized(map(partial(_read, self.generation), rows.itertuples()), self.settings.image_size)


def _without_padding(fitted: Fitted) -> tuple[np.ndarray, np.ndarray]:
    part = bounding_slices(fitted.valid)
    return fitted.image[part], fitted.mask[part]


def _read(folder: Path, row) -> tuple[np.ndarray, np.ndarray]:
    image = read_image(folder / row.image)
    return image, read_mask(folder / row.mask) if row.mask else np.zeros(image.shape[:2], bool)


def _resized(pairs: Iterable[tuple[np.ndarray, np.ndarray]], size: int) -> Photographs:
    """Images by bilinear interpolation, masks so that an anomaly never vanishes."""
    images, masks = [], []
    for image, mask in pairs:
        images.append(np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)))
        masks.append(shrink_mask(torch.from_numpy(mask)[None, None].float(), size)[0, 0].numpy() > 0)
    return Photographs(np.stack(images), np.stack(masks))


def _mean(found: list[Measured]) -> Measured:
    """The unweighted mean over the types that have a value; a number of the protocol that differs between types is shown as
    "least-most"."""
    values = [measured.value for measured in found if not math.isnan(measured.value)]
    protocol: Counts = {"types": len(values)}
    for key in found[0].protocol:
        counts = sorted({measured.protocol[key] for measured in found})
        protocol[key] = counts[0] if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return found[0]._replace(value=float(np.mean(values)) if values else math.nan, protocol=protocol)


def _joined(counts: Counts) -> str:
    return "; ".join(f"{key}={value}" for key, value in counts.items())
