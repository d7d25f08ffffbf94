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

    What differs from product to product, such as the hash of a file of groups, is a list of the different values. The base
    is told by its name and the start of its hash, photographs and masks by the start of their fingerprint.
    A segmentation model's ``scope`` is what it was trained on: with some of the products alone no model is unified.
    """
    told: dict[tuple[str, str, str, str], list[Any]] = {}
    for run in runs:
        for artifact in [*run.indices(), *run.artifacts()]:
            if artifact.is_file() and not has_manifest(artifact):
                continue  # a table of an earlier version
            for stage, section, content in _told(read_manifest(artifact), run):
                values = told.setdefault((run.dataset, run.experiment, stage, section), [])
                if content not in values:
                    values.append(content)
    found: dict[str, Any] = {}
    for (dataset, experiment, stage, section), values in told.items():
        stages = found.setdefault(dataset, {}).setdefault(experiment, {})
        stages.setdefault(stage, {})[section] = values[0] if len(values) == 1 else sorted(values, key=json_text)
    return found


def _told(manifest: dict[str, Any], run: ReportedRun) -> Iterator[tuple[str, str, Any]]:
    """(stage, section, content) of what one artifact tells, the same for all arms."""
    stage = manifest["stage"]
    yield stage, "stage_version", manifest["stage_version"]
    if stage == "index":
        yield stage, "photographs", manifest["settings"]["fingerprint"][:12]
        return
    if stage == "generator":
        yield "base", "base", {"name": run.base, "sha256": manifest["inputs"]["base"][:12]}
    for section, content in manifest["settings"].items():
        if section == stage == "downstream":
            content = {key: value for key, value in content.items() if key not in ("model", "trained_on")}
            content["scope"] = "unified" if run.unified else "per_product"
        if section != "wanted":
            yield stage, section, content


def thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """At most ``POINTS`` rows: the means of as many consecutive parts of the curve."""
    if len(curve) <= POINTS:
        return curve
    part = np.arange(len(curve)) * POINTS // len(curve)
    return curve.groupby(part).mean()


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format=f"%.{DIGITS}g")
