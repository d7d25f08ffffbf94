"""Training and scoring of one segmentation model on one source of abnormal images (Sec. 4.3)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from seas.artifacts import Provenance, read_table, working_folder, write_table, writing_folder
from seas.data.index import refuse_lost_defects
from seas.data.settings import DataSettings
from seas.downstream.model import MODELS, WEIGHTS, Description, anomaly_maps, normalised, save_description
from seas.downstream.samples import Sample, SegmentationBatches, fitted_samples, training_samples
from seas.downstream.settings import IMAGES_FOR_THRESHOLDS, STAGE_VERSION, DownstreamSettings
from seas.errors import InputError
from seas.images import Fitted, load_fitted, outlined, write_image
from seas.scores import RESULT_COLUMNS, Curve, detection_scores, image_maxima
from seas.seeding import rng, seed_of
from seas.settings import ComputeSettings
from seas.training import autocast, prepare_device, progress, train

METHODS = {
    "real": "real",
    "crop_and_paste": "crop_paste",
    "real+crop_and_paste": "real+crop_paste",
    "generated": "seas",
    "real+generated": "real+seas",
}
"""The method's name in the result tables; only that of the generated pairs alone is the paper's SeaS."""
WARM_UP = 0.02
POWER = 0.9
EXAMPLES = 6
IGNORED = 255
"""Target of a pixel that is padding."""


def train_segmenter(
    model: str,
    trained_on: str,
    splits: Mapping[str, Path],
    trees: Mapping[str, Sequence[Path]],
    root: Path,
    settings: DownstreamSettings,
    data: DataSettings,
    compute: ComputeSettings,
    seed: int,
    *,
    dataset: str,
    experiment: str,
    output: Path,
    tensorboard: Path | None = None,
) -> None:
    """Train ``model`` on the abnormal images that ``trained_on`` names, score it on the splits' test images, write its folder.

    ``splits`` and ``trees`` map each product to its split table and to its folders of generated pairs. The folder
    holds model.safetensors, model.json, scores.parquet, curves.parquet, losses.parquet and examples/.

    Raises InputError for a missing or damaged table or image, before training when there is nothing to test.
    """
    device = prepare_device(compute)
    obeyed = {
        "downstream": settings.obeyed() | {"model": model, "trained_on": trained_on},
        "data": data.obeyed(),
        "compute": compute.obeyed(),
    }
    inputs = {f"split {product}": path for product, path in splits.items()}
    inputs |= {f"{tree.parent.name} {product}": tree for product, folders in trees.items() for tree in folders}
    provenance = Provenance.of("downstream", STAGE_VERSION, obeyed, seed, inputs)
    working = working_folder(output, provenance)

    tables = {product: read_table(split) for product, split in splits.items()}
    tests = {product: table[table.role == "test"] for product, table in tables.items() if "test" in set(table.role)}
    if not tests:
        raise InputError(f"downstream {trained_on}: no image of {', '.join(splits)} is left to test")
    photographed = ["test", "shot"] if trained_on.startswith("real") else ["test"]
    for table in tables.values():
        if len(seen := table[table.role.isin(photographed)]):
            refuse_lost_defects(seen, root, data.model_copy(update={"image_size": settings.image_size}))
    abnormal, normal = training_samples(trained_on, splits, trees, root, data.fit)
    batches = SegmentationBatches(
        abnormal,
        normal,
        size=settings.image_size,
        batch_size=settings.batch_size,
        augmentation=data.augmentation,
        jitter=settings.jitter,
        seed=seed,
    )
    trainer = SegmenterTrainer(model, batches, settings, compute, seed, device)
    losses = train(
        trainer.update,
        settings.updates,
        trainer.state,
        working=working,
        label=f"downstream {model} {trained_on}",
        checkpoint_every=settings.checkpoint_every,
        tensorboard=tensorboard,
    )
    network = trainer.network.eval().requires_grad_(False)
    image_threshold, pixel_threshold = _thresholds(network, abnormal, normal, settings, seed)
    with writing_folder(output, provenance) as folder:
        scores, curves = [], []
        for product, test in progress(list(tests.items()), f"downstream {model} {trained_on}: test"):
            fitted = fitted_samples(test, root, settings.image_size, data.fit)
            maps = anomaly_maps(network, np.stack([sample.image for sample in fitted]))
            masks, valid = np.stack([sample.mask for sample in fitted]), np.stack([sample.valid for sample in fitted])
            found = detection_scores(maps, masks, valid)
            scores += [
                {"product": product, "level": level, "metric": metric, "value": value}
                for (level, metric), value in found.scores.items()
            ]
            curves += _thinned(product, found.curves)
            _write_examples(product, fitted, maps, folder / "examples")
        common = {
            "dataset": dataset,
            "method": METHODS[trained_on],
            "model": model,
            "variant": "",
            "experiment": experiment,
            "trained_on": trained_on,
            "seed": seed,
            "protocol": f"pixels pooled within a product, masks at {settings.image_size} px (half of a pixel's area); "
            f"trained on {len(abnormal)} abnormal and {len(normal)} normal images",
            "extractor": "",
        }
        write_table(
            pd.DataFrame([common | row for row in [*scores, *_means(scores)]])[RESULT_COLUMNS],
            folder / "scores.parquet",
        )
        write_table(pd.concat(curves, ignore_index=True), folder / "curves.parquet")
        write_table(losses, folder / "losses.parquet")
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
        thresholds = {"image_threshold": image_threshold, "pixel_threshold": pixel_threshold}
        save_description(
            Description(model, trained_on, list(splits), settings.image_size, data.fit, **thresholds), folder
        )


class SegmenterTrainer:
    """One update: cross-entropy over the valid pixels, of the head and the auxiliary heads alike."""

    def __init__(
        self,
        model: str,
        batches: SegmentationBatches,
        settings: DownstreamSettings,
        compute: ComputeSettings,
        seed: int,
        device: torch.device,
    ) -> None:
        self.batches, self.settings, self.compute, self.device = batches, settings, compute, device
        # Every arm starts from the same weights.
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed_of(seed, "downstream weights", model))
            self.network = MODELS[model]()
        self.network.to(device).train()
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay
        )

    @property
    def state(self) -> dict:
        """Everything that an update changes."""
        return {"network": self.network, "optimizer": self.optimizer}

    def update(self, step: int) -> dict[str, Tensor]:
        """One optimizer update; gives its losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * rate(step, self.settings.updates)
        batch = self.batches.batch(step)
        images = normalised(batch.images).to(self.device)
        target = torch.from_numpy(np.where(batch.valid, batch.masks, IGNORED).astype(np.int64)).to(self.device)
        with autocast(self.compute):
            logits = self.network.training_logits(images)
        main, *auxiliary = (cross_entropy(part.float(), target, ignore_index=IGNORED) for part in logits)
        loss = main + sum(auxiliary)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.detach(), "head": main.detach()}


def rate(step: int, updates: int) -> float:
    """The learning rate at a step as a share of its peak."""
    warm = max(1, round(WARM_UP * updates))
    return min((step + 1) / warm, (1 - step / updates) ** POWER)


def _thresholds(network, abnormal: list[Sample], normal: list[Sample], settings, seed: int) -> tuple[float, float]:
    """The thresholds of the highest F1 on training images: of an image's score and of a pixel's."""
    fitted: list[Fitted] = []
    for number, pool in enumerate((abnormal, normal)):
        order = rng(seed, "downstream thresholds", number).permutation(len(pool))[:IMAGES_FOR_THRESHOLDS]
        fitted += [load_fitted(pool[k].root, pool[k], settings.image_size, pool[k].fit) for k in order]
    maps = anomaly_maps(network, np.stack([sample.image for sample in fitted]))
    masks, valid = np.stack([sample.mask for sample in fitted]), np.stack([sample.valid for sample in fitted])
    of_images, of_pixels = Curve.of(masks.any((1, 2)), image_maxima(maps, valid)), Curve.of(masks[valid], maps[valid])
    return of_images.best_threshold(), of_pixels.best_threshold()


def _means(scores: list[dict]) -> list[dict]:
    """The means over the products that have a score: one without an abnormal test image has none."""
    table = pd.DataFrame(scores)
    scored = table[table.groupby("product").value.transform("count") > 0]
    return [
        {"product": "", "level": level, "metric": metric, "value": of_products.value.mean(skipna=False)}
        for (level, metric), of_products in scored.groupby(["level", "metric"], sort=False)
    ]


def _thinned(product: str, curves: dict[str, Curve]) -> list[pd.DataFrame]:
    points = {level: curve.precision_recall() for level, curve in curves.items()}
    return [
        pd.DataFrame({"product": product, "level": level, "precision": precision, "recall": recall})
        for level, (precision, recall) in points.items()
    ]


def _write_examples(product: str, fitted: list[Fitted], maps: np.ndarray, folder: Path) -> None:
    """Photograph | its mask | the model's map, of abnormal images spread over the test set."""
    abnormal = [k for k, sample in enumerate(fitted) if sample.mask.any()]
    chosen = [abnormal[k] for k in np.linspace(0, len(abnormal) - 1, min(EXAMPLES, len(abnormal))).round().astype(int)]
    for number, k in enumerate(chosen):
        image = fitted[k].image
        heat = np.repeat(np.uint8(255 * maps[k].clip(0, 1))[..., None], 3, axis=2)
        panel = np.concatenate([image, outlined(image, fitted[k].mask, width=1), heat], axis=1)
        write_image(panel, folder / f"{product}_{number}.png")
