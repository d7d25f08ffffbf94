"""How many photographed defects do generated pairs save? The arms' scores against the number of shots."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from seas.artifacts import read_table
from seas.report.figures import ARM_LABELS, arms_in_order, shots_chart
from seas.report.page import Block, Part, Picture
from seas.report.runs import ReportedRun
from seas.report.tables import TextTable, metric_label, shown

METRICS = (("pixel", "ap"), ("pixel", "iou"))
COMPARED = (
    ("real+generated", "real"),
    ("real+generated", "real+crop_and_paste"),
    ("generated", "real"),
    ("generated", "crop_and_paste"),
)
"""Arms with generated pairs, and those without that they are set against."""


def shots_parts(runs: Sequence[ReportedRun], results: pd.DataFrame, figures: Path) -> Iterator[Part]:
    """A part for each dataset on which experiments ran that differ in the number of shots alone.

    Its figures are written into the folder ``figures``.
    """
    families: dict[tuple[str, str], list[ReportedRun]] = {}
    for run in filter(_has_tested_defects, runs):
        families.setdefault((run.dataset, run.all_shots), []).append(run)
    for (dataset, family), members in families.items():
        number = {run.experiment: shots_a_type(run) for run in members}
        if len(set(number.values())) == 1:
            continue
        own = results[(results.dataset == dataset) & results.experiment.isin(number) & (results.level != "generation")]
        scores = _means(own).assign(shots=lambda rows, number=number: rows.experiment.map(number))
        # Experiments of equal settings share their results: each counts once.
        scores = scores.drop_duplicates(["product", "model", "trained_on", "shots", "seed", "level", "metric"])
        blocks = []
        for model, of_model in scores.groupby("model"):
            path = figures / dataset / f"shots_{family}_{model}.png"
            shots_chart(of_model, METRICS, path)
            caption = f"{model} on the same test images: a dot is one seed, a line joins their means."
            for level, metric in METRICS:
                of_metric = of_model[(of_model.level == level) & (of_model.metric == metric)]
                heading = f"{metric_label(level, metric)} of {model}, per cent"
                pictures = [Picture(path, caption)] if (level, metric) == METRICS[0] else []
                blocks.append(Block(heading, gains(of_metric), arms_by_shots(of_metric), pictures))
        title = f"{dataset}: how many photographed defects do generated pairs save?"
        yield Part(title, f"{dataset}-{family}-shots", blocks)


def _has_tested_defects(run: ReportedRun) -> bool:
    """Not so with ``data.shots: all``."""
    tables = (read_table(product.split) for product in run.products.values())
    return any(((split.role == "test") & (split.type != "good")).any() for split in tables)


def shots_a_type(run: ReportedRun) -> float:
    """The mean number of shots over the types of all products."""
    tables = [read_table(product.split) for product in run.products.values()]
    counts = [(split[split.role == "shot"].groupby("type").size()) for split in tables]
    return float(pd.concat(counts).mean())


def _means(results: pd.DataFrame) -> pd.DataFrame:
    """The means over products of several, the product of one."""
    return results[results["product"] == ""] if (results["product"] == "").any() else results


def arms_by_shots(scores: pd.DataFrame) -> TextTable:
    """One row for each number of shots, one column for each arm: mean ± spread over seeds of one metric."""
    arms = arms_in_order(scores.trained_on)
    rows = []
    for shots, of_number in scores.groupby("shots"):
        values = [of_number[of_number.trained_on == arm].value for arm in arms]
        rows.append([f"{shots:g}", *(shown(value.mean(), value.std()) for value in values)])
    return TextTable(["shots of each type", *(ARM_LABELS.get(arm, arm) for arm in arms)], rows)


def gains(scores: pd.DataFrame) -> list[str]:
    """For each number of shots, what the generated pairs add to another arm, seed by seed, in sentences."""
    by_seed = scores.pivot_table(index=["shots", "seed"], columns="trained_on", values="value")
    sentences = []
    for arm, other in COMPARED:
        if not {arm, other} <= set(by_seed.columns):
            continue
        differences = (by_seed[arm] - by_seed[other]).dropna().groupby("shots")
        listed = [
            f"{values.mean():+.2f} ({values.min():+.2f} to {values.max():+.2f}) with {shots:.4g}"
            for shots, values in differences
        ]
        sentences.append(
            f"{ARM_LABELS[arm]} less {ARM_LABELS[other]}, paired by seed, mean (range): {'; '.join(listed)} shots."
        )
    return sentences
