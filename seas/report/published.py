"""What of the results git keeps as text, for comparing revisions: all metrics, the settings behind them, and curves."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seas.artifacts import has_manifest, json_text, read_manifest, read_table
from seas.report.runs import ReportedRun
from seas.report.tables import collect, metrics

METRICS, SETTINGS, PLOTS = "metrics.json", "settings.json", "plots"
POINTS = 200
"""A curve of more points is drawn from the means of so many parts."""
DIGITS = 6


def published_files(runs: Sequence[ReportedRun]) -> dict[str, str]:
    """The text of each file by its path below results/: a function of the finished stages alone.

    metrics.json holds every number under a flat name, settings.json the settings and the version of each stage of each
    experiment, plots/losses/ the losses of each trained folder by its path, plots/precision_recall/ the curves of
    each downstream model by product and level.

    Raises InputError when a result is missing or damaged.
    """
    texts = {METRICS: json_text(metrics(collect(runs))), SETTINGS: json_text(settings_of_stages(runs))}
    for run in runs:
        trained = {
            _last(5, path): path for product in run.products.values() for path in (product.generator, product.rmp)
        }
        trained |= {_last(7, arm.folder): arm.folder for arm in run.downstream}
        for name, folder in trained.items():
            texts[f"{PLOTS}/losses/{name}.csv"] = _csv(thinned(read_table(folder / "losses.parquet")))
        for arm in run.downstream:
            curves = read_table(arm.folder / "curves.parquet")
            for (product, level), curve in curves.groupby(["product", "level"]):
                name = f"{PLOTS}/precision_recall/{_last(7, arm.folder)}/{product}_{level}.csv"
                texts[name] = _csv(thinned(curve[["recall", "precision"]]))
    return texts


def _last(parts: int, folder: Path) -> str:
    """The folder's path below results/: dataset, owner, seed, stage, and the names that the stage adds."""
    return Path(*folder.parts[-parts:]).as_posix()


def settings_of_stages(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """dataset → experiment → stage → its settings and ``stage_version``, as the manifests have them.

    A segmentation model's ``scope`` is what it was trained on: with some of the products alone no model is unified.
    """
    found: dict[str, Any] = {}
    for run in runs:
        stages = found.setdefault(run.dataset, {}).setdefault(run.experiment, {})
        for artifact in run.artifacts():
            if artifact.is_file() and not has_manifest(artifact):
                continue  # a table of an earlier version
            manifest = read_manifest(artifact)
            stages[manifest["stage"]] = dict(_of_all_arms(manifest))
        if run.downstream:
            stages["downstream"]["downstream"]["scope"] = "unified" if run.unified else "per_product"
    return found


def _of_all_arms(manifest: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "stage_version", manifest["stage_version"]
    for section, content in manifest["settings"].items():
        if section == manifest["stage"] == "downstream":
            content = {key: value for key, value in content.items() if key not in ("model", "trained_on")}
        if section != "wanted":
            yield section, content


def thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """At most ``POINTS`` rows: the means of as many consecutive parts of the curve."""
    if len(curve) <= POINTS:
        return curve
    part = np.arange(len(curve)) * POINTS // len(curve)
    return curve.groupby(part).mean()


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format=f"%.{DIGITS}g")
