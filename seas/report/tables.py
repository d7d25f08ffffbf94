"""All results in one tidy table, its comparison with the paper, and how tables are written."""

from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import pandas as pd

from seas.artifacts import read_table
from seas.report.runs import ReportedRun
from seas.scores import RESULT_COLUMNS

SHARED_WITH_PAPER = ["dataset", "product", "method", "model", "variant", "level", "metric"]
"""The columns that name a number of the paper; the comparison merges on them."""

KEY = [*SHARED_WITH_PAPER, "experiment", "trained_on", "seed"]
"""The columns that name one result; metrics.json joins them in this order."""

TEXTS = [column for column in RESULT_COLUMNS if column not in ("dataset", "experiment", "seed", "value")]

EMPTY_PART = "-"
DECIMALS = 6
MISSING = "–"
MEAN_OF_SOME = "mean of "
"""How the protocol of a mean over fewer products than ran begins."""

METRIC_LABELS = {
    ("generation", "is"): "IS",
    ("generation", "kid"): "KID",
    ("generation", "ic_lpips"): "IC-LPIPS",
    ("generation", "ic_lpips_nonzero"): "IC-LPIPS (no empty clusters)",
    ("generation", "ic_lpips_anomaly"): "IC-LPIPS(a)",
    ("generation", "ic_lpips_anomaly_nonzero"): "IC-LPIPS(a) (no empty clusters)",
    ("image", "auroc"): "image AUROC",
    ("image", "ap"): "image AP",
    ("image", "f1_max"): "image F1-max",
    ("pixel", "auroc"): "pixel AUROC",
    ("pixel", "ap"): "pixel AP",
    ("pixel", "f1_max"): "pixel F1-max",
    ("pixel", "iou"): "IoU",
    ("pixel", "iou_oracle"): "IoU (oracle)",
}


class TextTable(NamedTuple):
    """A table as it is shown: a heading for each column, and text in all cells."""

    headings: list[str]
    rows: list[list[str]]


def collect(runs: Sequence[ReportedRun]) -> pd.DataFrame:
    """Every result of the runs in the columns ``RESULT_COLUMNS``, sorted by ``KEY``, with the means over products.

    A result without a variant of its own has that of its run.

    A station's own mean over products (an empty product) is left out and computed anew, so that
    there is one definition of it: see ``means_over_products``.

    Raises ValueError when two stations give the same result.
    """
    parts = [_of_run(run) for run in runs]
    results = pd.concat(parts, ignore_index=True).loc[:, RESULT_COLUMNS]
    results = pd.concat([results, means_over_products(results)], ignore_index=True)
    if (twice := results.duplicated(KEY)).any():
        raise ValueError(f"two results are both named {_name(results[twice].iloc[0])}")
    return results.sort_values(KEY, ignore_index=True)


def _of_run(run: ReportedRun) -> pd.DataFrame:
    tables = [read_table(results.metrics).assign(product=product) for product, results in run.products.items()]
    for arm in run.downstream:
        scores = read_table(arm.folder / "scores.parquet")
        tables.append(scores[scores["product"] != ""].assign(model=arm.model, trained_on=arm.trained_on))
    table = pd.concat(tables, ignore_index=True).reindex(columns=RESULT_COLUMNS)
    texts = {column: table[column].astype(object).where(table[column].notna(), "").astype(str) for column in TEXTS}
    texts["variant"] = texts["variant"].where(texts["variant"] != "", run.variant)
    return table.assign(**texts).assign(dataset=run.dataset, experiment=run.experiment, seed=run.seed)


def means_over_products(results: pd.DataFrame) -> pd.DataFrame:
    """The unweighted mean over products of each result that every product of its run has.

    Of a segmentation model it is that over the products with abnormal images to test it on; where some products' value is no
    number (KID, where no training normal is left to compare with), it is that of the others, and the protocol says how many.
    A run of one product has no such mean.
    The rows have an empty product; a protocol or an extractor that differs between the products is named "mixed".
    """
    measured = ["dataset", "experiment", "seed", "model", "trained_on"]
    results = results[results.groupby([*measured, "product"]).value.transform("count") > 0]
    counts = results.groupby(measured)["product"].nunique()
    means = []
    for _, rows in results.groupby([column for column in KEY if column != "product"]):
        names = _common_names(rows)
        if 1 < len(rows) == counts[tuple(names[column] for column in measured)]:
            if 0 < rows.value.count() < len(rows):
                names["protocol"] = f"{MEAN_OF_SOME}{rows.value.count()} of {len(rows)} products"
            means.append({**names, "product": "", "value": rows.value.mean()})
    return pd.DataFrame(means, columns=RESULT_COLUMNS)


def over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """Mean, sample standard deviation (``spread``, NaN for one seed) and number of ``seeds`` of each result."""
    rows_of = results.groupby([column for column in KEY if column != "seed"])
    means = [
        {**_common_names(rows), "value": rows.value.mean(), "spread": rows.value.std(), "seeds": rows.value.count()}
        for _, rows in rows_of
    ]
    return pd.DataFrame(means, columns=[*(column for column in RESULT_COLUMNS if column != "seed"), "spread", "seeds"])


def _common_names(rows: pd.DataFrame) -> dict:
    mixed = {column: "mixed" for column in ("protocol", "extractor") if rows[column].nunique() > 1}
    return {**rows.iloc[0], **mixed}


def paper_results() -> pd.DataFrame:
    """The numbers that the paper prints: ``SHARED_WITH_PAPER``, ``paper`` (the value) and ``paper_table``.

    A number that is printed in two tables is taken from the first of them. The paper's IoU is the mean of
    each image's best IoU, so it bears the name that this project gives that metric, ``iou_oracle``.
    """
    with (files("seas.report") / "paper_results.csv").open(encoding="utf-8") as file:
        printed = pd.read_csv(file, keep_default_na=False)
    renamed = printed.rename(columns={"value": "paper", "table": "paper_table"}).replace(
        {"metric": {"iou": "iou_oracle"}}
    )
    first = renamed.sort_values("paper_table", kind="stable").drop_duplicates(SHARED_WITH_PAPER)
    return first.loc[:, [*SHARED_WITH_PAPER, "paper", "paper_table"]]


def paper_variants() -> dict[str, list[int]]:
    """The names of the paper's ablations → the tables that print them."""
    with (files("seas.report") / "paper_results.csv").open(encoding="utf-8") as file:
        printed = pd.read_csv(file, keep_default_na=False)
    named = printed[printed.variant != ""]
    return {name: sorted(set(tables)) for name, tables in named.groupby("variant").table}


def beside_paper(results: pd.DataFrame) -> pd.DataFrame:
    """The results of ``over_seeds`` that the paper has a number for, with ``paper``, ``paper_table``, ``difference``.

    A mean over products is compared only when it is over all products that the paper's is over, and each has a value.
    """
    paper = paper_results()
    compared = results.merge(paper, on=SHARED_WITH_PAPER, how="inner", validate="many_to_one")
    incomplete = [
        dataset
        for dataset, rows in compared.groupby("dataset")
        if set(paper.loc[paper.dataset == dataset, "product"]) - set(results.loc[results.dataset == dataset, "product"])
    ]
    of_some = compared.dataset.isin(incomplete) | compared.protocol.str.startswith(MEAN_OF_SOME)
    compared = compared[(compared["product"] != "") | ~of_some]
    return compared.assign(difference=compared.value - compared.paper).reset_index(drop=True)


def metrics(results: pd.DataFrame) -> dict[str, float | None]:
    """The results under flat, stable names, rounded; a value that is no number is None.

    A name joins the columns ``KEY`` in their order with "/"; an empty part is "-", the seed is "seed0".
    """
    values = [None if np.isnan(value) else round(float(value), DECIMALS) for value in results.value]
    return dict(sorted(zip((_name(row) for _, row in results.iterrows()), values, strict=True)))


def _name(row: pd.Series) -> str:
    return "/".join(f"seed{row[column]}" if column == "seed" else row[column] or EMPTY_PART for column in KEY)


def shown(value: float, spread: float = np.nan) -> str:
    """A number as it is shown: three decimals below 10, two above, ± the spread over seeds when there is one."""
    if np.isnan(value):
        return MISSING
    decimals = 3 if abs(value) < 10 else 2
    return f"{value:.{decimals}f}" + ("" if np.isnan(spread) else f" ± {spread:.{decimals}f}")


def wide(results: pd.DataFrame, named_by: dict[str, str]) -> TextTable:
    """The results of ``over_seeds`` with one column for each metric and one row for each name.

    ``named_by`` maps the columns that name a row to their headings. An empty product is shown as "mean",
    after the products.
    """
    by_row: dict[tuple[str, ...], dict[str, str]] = {}
    mean_last = results.iloc[(results["product"] == "").argsort(kind="stable")]
    for row in mean_last.itertuples():
        name = tuple(getattr(row, column) or ("mean" if column == "product" else MISSING) for column in named_by)
        by_row.setdefault(name, {})[metric_label(row.level, row.metric)] = shown(row.value, row.spread)
    used = {label for cells in by_row.values() for label in cells}
    labels = [label for label in METRIC_LABELS.values() if label in used] + sorted(used - set(METRIC_LABELS.values()))
    rows = [[*name, *(cells.get(label, MISSING) for label in labels)] for name, cells in by_row.items()]
    return TextTable([*named_by.values(), *labels], rows)


def metric_label(level: str, metric: str) -> str:
    """The name of a metric as it is shown, such as "pixel AP"."""
    return METRIC_LABELS.get((level, metric), f"{level} {metric}")


def markdown(table: TextTable) -> str:
    """The table in Markdown."""
    lines = [table.headings, ["---"] * len(table.headings), *table.rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
