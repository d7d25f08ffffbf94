"""What is each loss worth? Attention, image quality and segmentation of experiments that differ in one setting, seed by seed.

For each experiment and seed the workflow makes a generator, its mask branch, pairs and normals, their metrics and a
segmentation model of the pairs alone; what is finished is not made again. From the repository's root::

    .venv/bin/python benchmarks/ablations.py --dataset mine_windows --experiments seas map_mass without_da_loss --seeds 0 1 2

It prints mean ± standard deviation over seeds, and the differences from the first experiment, paired by seed.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from attention import attention_aps, make, parser_of_runs, workflow_of

from seas.artifacts import read_table
from seas.report.tables import TextTable, markdown
from seas.workflow import Workflow

MODEL, ARM = "bisenet_v2", "generated"
QUALITY = {"KID": "kid", "IC-LPIPS": "ic_lpips"}
SEGMENTATION = {
    "image AUROC": ("image", "auroc"),
    "pixel AP": ("pixel", "ap"),
    "IoU": ("pixel", "iou"),
    "IoU (oracle)": ("pixel", "iou_oracle"),
}
"""Scores of the segmentation model, in percent."""
DECIMALS = {"attention AP": 3, "KID": 3, "IC-LPIPS": 3} | dict.fromkeys(SEGMENTATION, 1)


def files_of(flow: Workflow, dataset: str, experiment: str, seed: int) -> tuple[list[Path], Path]:
    """The tables of a run's metrics, one a product, and the folder of its segmentation model."""
    metrics = Path(flow.folder(dataset, experiment, seed, "metrics"))
    tables = [metrics / f"{product}.parquet" for product in flow.products(dataset)]
    return tables, Path(flow.downstream(dataset, experiment, seed, MODEL, ARM, "all"))


def measured(flow: Workflow, dataset: str) -> Iterator[dict]:
    """A row for each experiment and seed; means over products. The position prior is a row of attention alone."""
    experiments = flow.config.experiments
    for seed in flow.config.seeds:
        attention = pd.DataFrame(
            attention_aps(flow, dataset, experiments, seed, product) for product in flow.products(dataset)
        ).mean()
        for experiment in experiments:
            tables, model = files_of(flow, dataset, experiment, seed)
            quality = pd.concat(map(read_table, tables)).query("variant == ''").groupby("metric").value.mean()
            scores = read_table(model / "scores.parquet").query("product == ''").set_index(["level", "metric"]).value
            row = {"experiment": experiment, "seed": seed, "attention AP": attention[experiment]}
            row |= {column: quality[metric] for column, metric in QUALITY.items()}
            yield row | {column: scores[score] for column, score in SEGMENTATION.items()}
        yield {"experiment": "position prior", "seed": seed, "attention AP": attention.position_prior}


def means(rows: pd.DataFrame) -> TextTable:
    """A row for each experiment: mean ± standard deviation over its seeds."""
    shown = []
    for experiment, of_experiment in rows.groupby("experiment", sort=False):
        cells = [
            f"{of_experiment[column].mean():.{decimals}f} ± {of_experiment[column].std():.{decimals}f}"
            if of_experiment[column].notna().all()
            else ""
            for column, decimals in DECIMALS.items()
        ]
        shown.append([experiment, *cells])
    return TextTable(["experiment", *DECIMALS], shown)


def differences(rows: pd.DataFrame, first: str) -> TextTable:
    """A row for each other experiment: what it has more than the first, seed by seed."""
    by_seed = {name: of.set_index("seed")[list(DECIMALS)] for name, of in rows.groupby("experiment", sort=False)}
    shown = [
        [f"{name} less {first}"]
        + [
            ", ".join(f"{value:+.{decimals}f}" for value in (values - by_seed[first])[column].dropna())
            for column, decimals in DECIMALS.items()
        ]
        for name, values in by_seed.items()
        if name != first
    ]
    return TextTable(["difference", *DECIMALS], shown)


def main() -> None:
    config = ("config/demo.yaml", "benchmarks/ablations.yaml")
    experiments = ["seas", "without_da_loss"]
    parser = parser_of_runs(__doc__.splitlines()[0], experiments=experiments, seeds=[0, 1, 2], config=config)
    arguments = parser.parse_args()

    dataset, flow = arguments.dataset, workflow_of(arguments)
    runs = [files_of(flow, dataset, *run) for run in itertools.product(arguments.experiments, arguments.seeds)]
    make((str(path) for tables, model in runs for path in (*tables, model)), flow, arguments.config)
    torch.set_num_threads(2)
    rows = pd.DataFrame(measured(flow, dataset))
    print(markdown(means(rows)))
    print(markdown(differences(rows, arguments.experiments[0])))


if __name__ == "__main__":
    main()
