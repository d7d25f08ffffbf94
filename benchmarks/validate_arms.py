"""Which settings suit the segmentation models? Every arm, scored on photographs that no arm trains or tests on.

With fewer shots than the third (``shots_1`` … ``shots_8``), the rest of the third is used by nobody: its abnormal images, and the good
ones that the split leaves out (only one with ``data.groups`` does), stand in for the test images here, so that settings can be chosen
without looking at those. Images of one group with a shot or with a good training image are left out. The workflow makes what
is missing of the pairs.
From the repository's root::

    .venv/bin/python benchmarks/validate_arms.py --dataset mine_windows --config config/demo.yaml config/windows.yaml

It prints scores in percent, per arm and learning rate, as means over products, for each seed. Which type's pairs help and which harm is
seen by an arm whose types come from different stages: ``--sources blowhole=generation crack=crop_and_paste`` (others: none).
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from seas.artifacts import read_table, write_table
from seas.data.split import read_groups
from seas.downstream.settings import TREES
from seas.downstream.train import train_segmenter
from seas.workflow import Workflow, load_workflow

MODEL = "bisenet_v2"
PAIRS = ("generation", "crop_and_paste")
SCORES = [("image", "auroc"), ("image", "ap"), ("pixel", "auroc"), ("pixel", "ap"), ("pixel", "iou_oracle")]


def validation_split(split: pd.DataFrame, groups: dict[str, str]) -> pd.DataFrame:
    """The split whose test images are those that it leaves out, but for images of one group with one that an arm trains on.

    Raises SystemExit when they are all abnormal or all good.
    """
    group = split.image.map(lambda image: groups.get(image, image))
    trains = group.isin(set(group[split.role.isin(["shot", "normal", "reserve"])]))
    role = split.role.where(split.role != "test", "reserve")
    validation = split.assign(role=role.where((split.role != "left_out") | trains, "test"))
    good = validation.type[validation.role == "test"] == "good"
    if good.all() or not good.any():
        lacking = "abnormal" if good.all() else "good"
        raise SystemExit(f"of {split['product'].iloc[0]} the split leaves no {lacking} image to validate on")
    return validation


def pairs_of(tree: Path, anomaly_type: str, output: Path) -> Path:
    """A tree of one type's pairs alone, with links to the images of ``tree``."""
    output.mkdir(parents=True)
    table = read_table(tree / "images.parquet").query("type == @anomaly_type")
    if table.empty:
        raise SystemExit(f"{tree} has no pair of the type '{anomaly_type}'")
    write_table(table.reset_index(drop=True), output / "images.parquet")
    for part in ("test", "ground_truth"):
        (output / part).symlink_to((tree / part).resolve())
    return output


def made(flow: Workflow, dataset: str, experiment: str, seed: int, stages: set[str], files: list[Path]) -> None:
    """Have the workflow make every split and every pair of the stages that is not there yet."""
    targets = [flow.split(dataset, experiment, seed, product) for product in flow.products(dataset)]
    targets += [
        f"{flow.folder(dataset, experiment, seed, stage)}/{product}"
        for stage in sorted(stages)
        for product in flow.products(dataset)
    ]
    chosen = [f"datasets=[{dataset}]", f"experiments=[{experiment}]", f"seeds=[{seed}]"]
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile", *map(str, files), "--config", *chosen]
    subprocess.run([*command, "--", *targets], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, nargs="+", default=[Path("config/demo.yaml")])
    parser.add_argument("--dataset", required=True, help="one with data.groups")
    parser.add_argument("--experiment", default="shots_4", help="one with fewer shots than the third")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=list(TREES), default=list(TREES))
    parser.add_argument(
        "--sources",
        nargs="+",
        default=[],
        metavar="TYPE=STAGE",
        help=f"in the place of --arms one arm of these; a stage is one of {', '.join(PAIRS)}",
    )
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", help="of the segmentation model; the config's when absent"
    )
    arguments = parser.parse_args()

    sources = dict(source.partition("=")[::2] for source in arguments.sources)
    if wrong := [name for name, stage in sources.items() if stage not in PAIRS]:
        parser.error(f"--sources: give {wrong[0]}=STAGE, a stage of {', '.join(PAIRS)}")
    dataset, experiment = arguments.dataset, arguments.experiment
    flow = load_workflow(arguments.config, datasets=[dataset], experiments=[experiment], seeds=arguments.seeds)
    settings, root = flow.settings(dataset, experiment), flow.datasets[dataset].root
    arms = ["generated"] if sources else arguments.arms
    types = {product: flow.types(dataset, product) for product in flow.products(dataset)}
    if unknown := sorted(set(sources) - {name for names in types.values() for name in names}):
        parser.error(f"--sources: no product of {dataset} has the type '{unknown[0]}'")

    def tree_of(stage: str, product: str, seed: int) -> Path:
        return Path(flow.folder(dataset, experiment, seed, stage)) / product

    stages = set(sources.values()) or {stage for arm in arms for stage in TREES[arm]}
    rows = []
    for seed in arguments.seeds:
        made(flow, dataset, experiment, seed, set(), arguments.config)
        with tempfile.TemporaryDirectory() as folder:
            splits = {}
            for product in flow.products(dataset):
                groups = read_groups(root, product, settings.data.groups) if settings.data.groups else {}
                split = read_table(Path(flow.split(dataset, experiment, seed, product)))
                splits[product] = Path(folder) / f"{product}.parquet"
                write_table(validation_split(split, groups), splits[product])
            made(flow, dataset, experiment, seed, stages, arguments.config)
            for arm in arms:
                trees = {
                    product: [
                        pairs_of(tree_of(stage, product, seed), name, Path(folder) / product / name)
                        for name, stage in sources.items()
                        if name in types[product]
                    ]
                    if sources
                    else [tree_of(stage, product, seed) for stage in TREES[arm]]
                    for product in splits
                }
                for rate in arguments.learning_rates or [settings.downstream.learning_rate]:
                    output = Path(folder) / arm / str(rate)
                    train_segmenter(
                        MODEL,
                        arm,
                        splits,
                        trees,
                        root,
                        settings.downstream.model_copy(update={"learning_rate": rate}),
                        settings.data,
                        settings.compute.of("downstream"),
                        seed,
                        dataset=dataset,
                        experiment=experiment,
                        output=output,
                    )
                    scores = read_table(output / "scores.parquet").query("product == ''")
                    values = scores.set_index(["level", "metric"]).value
                    row = {"seed": seed, "arm": " ".join(arguments.sources) or arm, "learning_rate": rate}
                    rows.append(row | {f"{level}_{metric}": values[level, metric] for level, metric in SCORES})
                    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format), flush=True)


if __name__ == "__main__":
    main()
