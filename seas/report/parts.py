"""The parts of the page: what one experiment on one dataset gave, in tables, sentences and pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
from diffusers import StableDiffusionPipeline

from seas.artifacts import flat, read_manifest, read_table
from seas.generator.pipeline import load_pipeline
from seas.generator.prompts import Prompts, models_of, token_ids
from seas.images import FIT_OF_MADE, load_fitted
from seas.report.attention import token_attention
from seas.report.figures import (
    ARM_LABELS,
    SheetRow,
    arms_chart,
    arms_in_order,
    contact_sheet,
    loss_curves,
    precision_recall,
)
from seas.report.page import Block, Part, Picture
from seas.report.published import settings_of_stages
from seas.report.runs import ProductResults, ReportedRun
from seas.report.settings import ReportSettings
from seas.report.tables import (
    MEAN_OF_SOME,
    MISSING,
    TextTable,
    beside_paper,
    metric_label,
    over_seeds,
    paper_results,
    shown,
    wide,
)

PAPER_EXTRACTORS = ("inception_v3", "vgg16")
PAPER_IMAGE_SIZE = 512
ARM_METRICS = (("pixel", "ap"), ("pixel", "iou"))


def overview(runs: Sequence[ReportedRun]) -> TextTable:
    """What ran, one row for each experiment on each dataset."""
    rows = []
    for seeds in grouped(runs):
        run = seeds[0]
        arms = arms_in_order(pd.Series([arm.trained_on for arm in run.downstream], dtype=str))
        rows.append(
            [
                run.dataset,
                run.experiment,
                ", ".join(str(seed.seed) for seed in seeds),
                ", ".join(run.products),
                f"{run.image_size} px, {run.fit}",
                ", ".join(sorted({arm.model for arm in run.downstream})) + ("" if run.unified else ", one a product"),
                ", ".join(ARM_LABELS.get(arm, arm) for arm in arms),
            ]
        )
    return TextTable(["dataset", "experiment", "seeds", "products", "images", "tested with", "trained on"], rows)


def grouped(runs: Sequence[ReportedRun]) -> list[list[ReportedRun]]:
    """The runs of each dataset and experiment, by seed, in the order in which they were given."""
    groups: dict[tuple[str, str], list[ReportedRun]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.experiment), []).append(run)
    return [sorted(seeds, key=lambda run: run.seed) for seeds in groups.values()]


def part_of(
    seeds: Sequence[ReportedRun], results: pd.DataFrame, settings: ReportSettings, drawn: dict[Path, str], figures: Path
) -> Part:
    """One experiment on one dataset; its figures are written into the folder ``figures``.

    Pictures of single images and the losses are those of the first seed. ``drawn`` maps each folder of
    generated pairs that an earlier part shows to that part's title: an experiment that only changes what
    comes later has its parent's pairs.
    """
    run = seeds[0]
    own = results[(results.dataset == run.dataset) & (results.experiment == run.experiment)]
    title = f"{run.dataset}: {run.experiment}"
    blocks = [
        _pairs(run, title, settings, drawn, figures),
        _generation_metrics(own),
        *_arms(own, figures),
        *_curves(seeds, figures),
        *_paper(own),
        _losses(run, figures),
        Block("Settings", table=_settings(run), folded=True),
    ]
    return Part(title, f"{run.dataset}-{run.experiment}", blocks, run.descriptions)


def limits(runs: Sequence[ReportedRun], results: pd.DataFrame) -> list[str]:
    """What the numbers do not say, in plain sentences."""
    sentences = [
        "The pairs shown are the first of each type, not chosen ones; the tables count all of them.",
        "IoU uses the threshold of the best F1 on the test images, IoU (oracle) the best threshold of each image: "
        "both know the truth, an inspector does not.",
        "Attention maps are stretched over their own range; the number in each is its maximum (1: all attention).",
    ]
    sizes = sorted({run.image_size for run in runs if run.image_size != PAPER_IMAGE_SIZE})
    if sizes:
        pixels = ", ".join(str(size) for size in sizes)
        sentences.append(
            f"Images have {pixels} pixels a side, the paper's {PAPER_IMAGE_SIZE}; such numbers say little beside its."
        )
    if apart := sorted({f"{run.dataset}: {run.experiment}" for run in runs if _apart_unlike_the_paper(run)}):
        sentences.append(
            f"Each product has a segmentation model of its own in {', '.join(apart)}, the paper has one of all products: "
            "these scores and its do not compare."
        )
    if enlarged := sorted({sizes for run in runs for sizes in _enlarged(run)}):
        listed = ", ".join(f"{made} px and are enlarged to {tested}" for made, tested in enlarged)
        sentences.append(
            f"Generated and pasted images have {listed} for segmentation, photographs are read at that size: "
            "the arms see defects of different sharpness, and their differences are not those of the sources alone."
        )
    if any(len(seeds) == 1 for seeds in grouped(runs)):
        sentences.append("An experiment with one seed cannot tell a small difference from chance.")
    if _stand_ins(results):
        sentences.append(_stand_in_sentence(results))
    of_some = results[(results["product"] == "") & results.protocol.str.startswith(MEAN_OF_SOME)]
    if len(of_some):
        told = sorted(
            {f"{metric_label(r.level, r.metric)} of {r.dataset} ({r.protocol})" for r in of_some.itertuples()}
        )
        sentences.append(f"A mean over products leaves out those without a number: {', '.join(told)}.")
    return sentences


def _apart_unlike_the_paper(run: ReportedRun) -> bool:
    return not run.unified and run.variant != "multiple_models" and run.dataset in set(paper_results().dataset)


def _enlarged(run: ReportedRun) -> Iterator[tuple[int, int]]:
    """(side of the run's images, side at which its segmentation models see them) where the second is larger."""
    for arm in run.downstream:
        tested = read_manifest(arm.folder)["settings"]["downstream"]["image_size"]
        if tested > run.image_size:
            yield run.image_size, tested


def counts(run: ReportedRun) -> TextTable:
    """How many images of each type there are, and what became of the masks. Areas are medians."""
    headings = ["product", "type", "real shots", "test images", "generated"]
    headings += ["empty masks", "drawn again", "area of real defects", "of generated"]
    rows = []
    for product, results in run.products.items():
        split, images = read_table(results.split), read_table(results.generation / "images.parquet")
        for name in split.loc[split.role == "shot"].sort_values("type_index").type.unique():
            shots = split[(split.type == name) & (split.role == "shot")]
            tests = split[(split.type == name) & (split.role == "test")]
            pairs = images[images.type == name]
            numbers = len(shots), len(tests), len(pairs), (pairs.anomaly_pixels == 0).sum(), (pairs.draws > 1).sum()
            real_area = (shots.anomaly_pixels / (shots.width * shots.height)).median()
            generated_area = (pairs.anomaly_pixels / (pairs.width * pairs.height)).median()
            areas = (f"{100 * area:.2f} %" for area in (real_area, generated_area))
            rows.append([product, name, *map(str, numbers), *areas])
        good = split[split.type == "good"]
        numbers = (good.role == "normal").sum(), (good.role == "test").sum(), (images.type == "good").sum()
        rows.append([product, "good", *map(str, numbers), *[MISSING] * 4])
    return TextTable(headings, rows)


def _pairs(run: ReportedRun, title: str, settings: ReportSettings, drawn: dict[Path, str], figures: Path) -> Block:
    pictures, elsewhere = [], {}
    for product, results in run.products.items():
        folder = results.generation.resolve()
        if folder in drawn:
            elsewhere[product] = drawn[folder]
            continue
        drawn[folder] = title
        path = figures / f"pairs_{product}.png"
        rows, tokens = _sheet_rows(run, results, settings)
        contact_sheet(rows, tokens, path)
        caption = (
            f"{product}: a training shot, a generated image, the outline of its mask, and where each token looks "
            f"(at timestep {settings.attention_timestep}). A row's shot and its pair have only the type in common."
        )
        pictures.append(Picture(path, caption, photographs=True))
    sentences = [f"Pictures of seed {run.seed}. Areas are medians, as shares of the image."]
    sentences += [f"The pairs of {product} are those of {title}." for product, title in elsewhere.items()]
    return Block("Generated pairs", sentences, counts(run), pictures)


def _sheet_rows(
    run: ReportedRun, results: ProductResults, settings: ReportSettings
) -> tuple[list[SheetRow], list[str]]:
    rows, headings = [], []
    for model in models_of(results.generator):
        of_model, headings = _sheet_rows_of(model, run, results, settings)
        rows += of_model
    return rows, headings


def _sheet_rows_of(
    model: Path, run: ReportedRun, results: ProductResults, settings: ReportSettings
) -> tuple[list[SheetRow], list[str]]:
    """The rows of the types that a model has learned, and the headings of its tokens."""
    pipeline, prompts = load_pipeline(model), Prompts.load(model)
    split = read_table(results.split)
    images = read_table(results.generation / "images.parquet")
    layers = read_manifest(results.generator)["settings"]["generator"]["attention_layers"]
    rows = []
    for name in prompts.types:
        pairs = images[images.type == name].sort_values("index").head(settings.examples_per_type)
        if pairs.empty:
            continue
        fitted = [load_fitted(results.generation, pair, run.image_size, FIT_OF_MADE) for pair in pairs.itertuples()]
        generated = np.stack([pair.image for pair in fitted])
        masks = [pair.mask for pair in fitted]
        shots = split[(split.role == "shot") & (split.type == name)].head(len(pairs))
        real = [load_fitted(run.root, shot, run.image_size, run.fit).image for shot in shots.itertuples()]
        real += [None] * (len(pairs) - len(real))
        attention = token_attention(
            pipeline, prompts, name, generated, layers=layers, timestep=settings.attention_timestep, seed=run.seed
        )
        rows += [SheetRow(name, *cells) for cells in zip(real, generated, masks, attention, strict=True)]
    return rows, tokens_shown(prompts, pipeline)


def tokens_shown(prompts: Prompts, pipeline: StableDiffusionPipeline) -> list[str]:
    """The headings of a type's tokens, the anomaly's first; of words those of their pieces."""
    anomaly_tokens = prompts.anomaly_tokens[prompts.types[0]]
    if not prompts.learned:
        pieces = token_ids(pipeline.tokenizer, [*anomaly_tokens, *prompts.normal_tokens])
        return [piece.removesuffix("</w>") for piece in pipeline.tokenizer.convert_ids_to_tokens(pieces)]
    counts = {"<df>": len(anomaly_tokens), "<ob>": len(prompts.normal_tokens)}
    return [f"{name} {number}" for name, count in counts.items() for number in range(1, count + 1)]


def _generation_metrics(results: pd.DataFrame) -> Block:
    generation = over_seeds(results[(results.level == "generation") & ~results.variant.str.startswith("type=")])
    sentences = [
        "Higher is better for IS and IC-LPIPS, lower for KID. IS is at most the number of images in one of its splits, and "
        "IC-LPIPS is measured around its references, the shots: runs with other numbers of pairs or of shots do not compare."
    ]
    if _stand_ins(generation):
        sentences.append(_stand_in_sentence(generation))
    names = {"product": "product", "method": "method", "extractor": "features"}
    return Block("Quality and diversity of the generated images", sentences, wide(generation, names))


def _stand_ins(results: pd.DataFrame) -> list[str]:
    used = results.loc[results.level == "generation", "extractor"]
    return sorted(name for name in set(used) if not name.startswith(PAPER_EXTRACTORS))


def _stand_in_sentence(results: pd.DataFrame) -> str:
    return (
        f"Generation metrics were computed with {', '.join(_stand_ins(results))} instead of the paper's networks: "
        "they compare runs of this project with each other, not with the paper."
    )


def _arms(results: pd.DataFrame, figures: Path) -> Iterator[Block]:
    detection = results[results.level != "generation"]
    for model, scores in detection.groupby("model"):
        path = figures / f"arms_{model}.png"
        arms_chart(scores, ARM_METRICS, path)
        picture = Picture(path, f"{model} on the test images: a dot is one seed, a bar their mean.")
        means = over_seeds(scores)
        means = means.assign(trained_on=means.trained_on.map(lambda arm: ARM_LABELS.get(arm, arm)))
        table = wide(means, {"product": "product", "trained_on": "trained on"})
        explained = "All values in per cent, on the split's test images. ± is the standard deviation over seeds."
        yield Block(f"What the generated pairs are worth: {model}", [explained, *worth(scores)], table, [picture])


def worth(scores: pd.DataFrame) -> list[str]:
    """The gain in pixel AP of the generated pairs over each other arm, in sentences.

    ``scores`` are rows of the result table of one model: the mean over products counts where there is one.
    """
    pixel_ap = scores[(scores.level == "pixel") & (scores.metric == "ap")]
    if (pixel_ap["product"] == "").any():
        pixel_ap = pixel_ap[pixel_ap["product"] == ""]
    by_seed = pixel_ap.pivot_table(index="seed", columns="trained_on", values="value")
    sentences = []
    for arm in [arm for arm in arms_in_order(pixel_ap.trained_on) if arm != "generated" and "generated" in by_seed]:
        gains = (by_seed["generated"] - by_seed[arm]).dropna()
        text = f"Generated pairs against {ARM_LABELS.get(arm, arm)}: {gains.mean():+.2f} points of pixel AP"
        if len(gains) == 1:
            sentences.append(f"{text}, from one seed.")
        else:
            sentences.append(f"{text}, from {len(gains)} seeds ({gains.min():+.2f} to {gains.max():+.2f}).")
    return sentences


def _curves(seeds: Sequence[ReportedRun], figures: Path) -> Iterator[Block]:
    tables = [
        read_table(arm.folder / "curves.parquet").assign(model=arm.model, trained_on=arm.trained_on, seed=run.seed)
        for run in seeds
        for arm in run.downstream
    ]
    if not tables:
        return
    pictures = []
    for (model, product), curves in pd.concat(tables).groupby(["model", "product"]):
        path = figures / f"curves_{model}_{product}.png"
        precision_recall(curves, path)
        pictures.append(Picture(path, f"{product}, {model}: precision and recall on the test images."))
    yield Block("Precision and recall", pictures=pictures)


def _paper(results: pd.DataFrame) -> Iterator[Block]:
    compared = comparable_with_paper(results)
    if compared.empty:
        return
    sentences = [
        "Only numbers that the paper prints for the same product, method, model, variant and metric. A mean over products "
        "appears when all products of the paper ran. An experiment that is no row of the paper's tables stands beside its SeaS. "
        "The paper's IoU is each image's best, our IoU (oracle)."
    ]
    yield Block("Beside the paper", sentences, paper_table(compared), folded=len(compared) > 40)


def comparable_with_paper(results: pd.DataFrame) -> pd.DataFrame:
    """``beside_paper`` of the results that were computed with the paper's networks."""
    stand_in = (results.level == "generation") & results.extractor.isin(_stand_ins(results))
    return beside_paper(over_seeds(results[~stand_in]))


def paper_table(compared: pd.DataFrame) -> TextTable:
    """The comparison as it is shown."""
    rows = [
        [
            row.dataset,
            row.experiment,
            row.product or "mean",
            row.method,
            row.model or MISSING,
            row.variant or MISSING,
            metric_label(row.level, row.metric),
            shown(row.value, row.spread),
            shown(row.paper),
            MISSING if np.isnan(row.difference) else f"{row.difference:+.{3 if abs(row.paper) < 10 else 2}f}",
            str(row.paper_table),
        ]
        for row in compared.itertuples()
    ]
    columns = ["dataset", "experiment", "product", "method", "model", "variant", "metric", "here", "paper"]
    return TextTable([*columns, "difference", "table"], rows)


def _losses(run: ReportedRun, figures: Path) -> Block:
    pictures = []
    models: dict[tuple[str, str], dict[str, Path]] = {}
    for product, results in run.products.items():
        path = figures / f"losses_{product}.png"
        trainers = {"generator": results.generator, "mask branch (RMP)": results.rmp}
        loss_curves({name: read_table(folder / "losses.parquet") for name, folder in trainers.items()}, path)
        pictures.append(Picture(path, f"{product}: losses of seed {run.seed}, as recorded and as a running mean."))
    for arm in run.downstream:
        models.setdefault((arm.model, arm.scope), {})[ARM_LABELS.get(arm.trained_on, arm.trained_on)] = arm.folder
    for (model, scope), folders in models.items():
        path = figures / f"losses_{model}_{scope}.png"
        loss_curves({name: read_table(folder / "losses.parquet") for name, folder in folders.items()}, path)
        pictures.append(Picture(path, f"{model} ({scope}): losses of seed {run.seed}, one panel an arm."))
    return Block("Training", pictures=pictures)


def _settings(run: ReportedRun) -> TextTable:
    values: dict[str, str] = {}
    for stage, sections in settings_of_stages([run])[run.dataset][run.experiment].items():
        for section, content in sections.items():
            if section != "stage_version":
                found = flat(content, f"compute of {stage}" if section == "compute" else section)
                values |= {name: _without_folders(value) for name, value in found.items()}
    return TextTable(["setting", "value"], [[name, value] for name, value in sorted(values.items())])


def _without_folders(value: Any) -> str:
    """A setting's value as text; of an absolute path the last part alone."""
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else str(value)
