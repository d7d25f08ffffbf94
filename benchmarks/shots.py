"""How many photographed defects do generated pairs save? The curve's points in a CSV file, its tables and its plot.

Five numbers of shots, five arms and three seeds take hours, so that the points are kept where runs of several days and machines can add
theirs. ``--add`` takes the finished arms of a dataset's experiments from ``results/``; a point that is there already is replaced.
From the repository's root::

    .venv/bin/python benchmarks/shots.py --add mine_windows --dataset mine_windows --plot shots.png

It prints mean ± standard deviation over seeds and the paired differences, in percent and points.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from seas.artifacts import read_manifest, read_table, writing_file
from seas.report.figures import ARM_LABELS, arms_in_order, shots_chart
from seas.report.shots import COMPARED, METRICS
from seas.report.tables import TextTable, markdown, metric_label

MODEL = "bisenet_v2"
SCORES = [("image", "auroc"), ("image", "ap"), ("pixel", "ap"), ("pixel", "iou"), ("pixel", "iou_oracle")]
COLUMNS = ["_".join(score) for score in SCORES]
EXPERIMENTS = ["shots_1", "shots_2", "shots_4", "shots_8", "seas"]
POINT = ["dataset", "shots", "seed", "trained_on"]
"""What names a point of the curve; ``shots`` is the mean over types."""


def measured(results: Path, dataset: str, experiments: list[str]) -> pd.DataFrame:
    """The experiments' finished arms of all products, one row each: ``POINT`` and the scores in percent, means over products."""
    rows = []
    settings: dict[str, Path] = {}
    arms = f"seed*/downstream/{MODEL}/*/all/scores.parquet"
    for path in sorted(path for name in experiments for path in (results / dataset / name).glob(arms)):
        run, trained_on = path.parents[4], path.parents[1].name
        settings.setdefault(_compared_settings(path.parent), path.parent)
        if len(settings) > 1:
            raise SystemExit(f"{' and '.join(map(str, settings.values()))} were trained with different settings")
        splits = pd.concat([read_table(split) for split in sorted((run / "split").glob("*.parquet"))])
        shots = splits[splits.role == "shot"].groupby(["product", "type"]).size().mean()
        scores = read_table(path).query("product == ''").set_index(["level", "metric"]).value
        names = {
            "dataset": dataset,
            "shots": shots,
            "seed": int(run.name.removeprefix("seed")),
            "trained_on": trained_on,
        }
        rows.append(names | {column: scores[score] for column, score in zip(COLUMNS, SCORES, strict=True)})
    if not rows:
        raise SystemExit(f"{results / dataset} holds no finished arm of {MODEL} and of {', '.join(experiments)}")
    return pd.DataFrame(rows).round({"shots": 1} | dict.fromkeys(COLUMNS, 2))


def _compared_settings(arm: Path) -> str:
    """What arms of one curve share of their settings: all but the number of shots and what they train on."""
    obeyed = read_manifest(arm)["settings"]
    del obeyed["data"]["shots"], obeyed["downstream"]["trained_on"]
    return json.dumps([obeyed["data"], obeyed["downstream"]], sort_keys=True)


def added(points: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """All points in order, each once, the new in the place of the old."""
    return pd.concat([points, new]).drop_duplicates(POINT, keep="last").sort_values(POINT, ignore_index=True)


def replaced(points: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """The points that ``new`` gives other values, as text."""
    both = points.merge(new, on=POINT, suffixes=("", "_new"))
    old, given = (both[[column + end for column in COLUMNS]].to_numpy(float) for end in ("", "_new"))
    changed = ~np.isclose(old, given, equal_nan=True).all(1)
    return [", ".join(map(str, point)) for point in both.loc[changed, POINT].itertuples(index=False)]


def means(points: pd.DataFrame) -> TextTable:
    """A row for each number of shots and arm: mean ± standard deviation over its seeds."""
    rows = []
    for shots, of_number in points.groupby("shots"):
        for arm in arms_in_order(of_number.trained_on):
            values = of_number[of_number.trained_on == arm][COLUMNS]
            rows.append([f"{shots:.3g}", str(len(values)), ARM_LABELS[arm], *map(_mean, values.T.to_numpy())])
    return TextTable(["shots of a type", "seeds", "trained on", *_labels()], rows)


def differences(points: pd.DataFrame) -> TextTable:
    """A row for each number of shots and pair of arms: the differences of their scores, seed by seed."""
    rows = []
    for shots, of_number in points.groupby("shots"):
        of_arm = {arm: rows.set_index("seed")[COLUMNS] for arm, rows in of_number.groupby("trained_on")}
        for arm, other in COMPARED[::-1]:
            if arm in of_arm and other in of_arm:
                found = of_arm[arm] - of_arm[other]
                listed = [", ".join(f"{value:+.1f}" for value in found[column].dropna()) for column in COLUMNS]
                rows.append([f"{shots:.3g}", f"{ARM_LABELS[arm]} less {ARM_LABELS[other]}", *listed])
    return TextTable(["shots of a type", "difference", *_labels()], rows)


def _mean(values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread}"


def _labels() -> list[str]:
    return [metric_label(*score) for score in SCORES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=Path, default=Path("benchmarks/shots.csv"))
    parser.add_argument("--add", metavar="DATASET", help="take this dataset's finished arms into the file")
    parser.add_argument(
        "--experiments", nargs="+", default=EXPERIMENTS, help="what is taken; they differ in shots alone"
    )
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--dataset", default="tiles", help="whose tables are printed")
    parser.add_argument("--plot", type=Path, help="a PNG file to draw the curve into")
    arguments = parser.parse_args()

    points = pd.read_csv(arguments.points) if arguments.points.exists() else pd.DataFrame(columns=[*POINT, *COLUMNS])
    if arguments.add:
        new = measured(arguments.results, arguments.add, arguments.experiments)
        for point in replaced(points, new):
            print(f"replaced: {point}")
        points = added(points, new)
        with writing_file(arguments.points) as partial:
            points.to_csv(partial, index=False)
    shown = points[points.dataset == arguments.dataset]
    if shown.empty:
        parser.error(f"--dataset: {arguments.points} has no point of '{arguments.dataset}'")
    print(markdown(means(shown)))
    print(markdown(differences(shown)))
    if arguments.plot:
        scores = [
            shown[[*POINT, "_".join(score)]]
            .rename(columns={"_".join(score): "value"})
            .assign(level=score[0], metric=score[1])
            for score in METRICS
        ]
        shots_chart(pd.concat(scores), METRICS, arguments.plot)


if __name__ == "__main__":
    main()
