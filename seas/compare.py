"""Two revisions of the results side by side: which settings changed, which numbers, and which changes are more than chance."""

import json
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t

from seas.artifacts import flat
from seas.errors import InputError
from seas.report.published import METRICS, SETTINGS
from seas.report.tables import EMPTY_PART, KEY, metric_label, shown

WORKSPACE = "workspace"
CONFIDENCE = 0.95
ABSENT = "absent"
RULE = (
    "A difference of means is called beyond chance when it is larger than t · √(s₁²/n₁ + s₂²/n₂), with s the standard "
    f"deviation over the n seeds of a side and t Student's two-sided {100 * CONFIDENCE:.0f} % quantile (Welch's degrees of "
    "freedom); with one seed on a side it is not judged."
)


class Number(NamedTuple):
    """The names of a number in ``KEY`` without its seed, an empty name being "-"."""

    dataset: str
    product: str
    method: str
    model: str
    variant: str
    level: str
    metric: str
    experiment: str
    trained_on: str


class Difference(NamedTuple):
    """Mean and sample standard deviation over the seeds of both sides (NaN where there is none), and what decides.

    ``limit``: the largest difference of the means that passes for chance; None when a side has fewer than two seeds.
    """

    before: float
    before_spread: float
    after: float
    after_spread: float
    limit: float | None

    @property
    def delta(self) -> float:
        """After minus before."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """What is to be thought of it, in two or three words."""
        if math.isnan(self.delta):
            return ""
        if self.limit is None:
            return "one seed: not judged"
        return "BEYOND CHANCE" if abs(self.delta) > self.limit else "within chance"


def difference(before: Sequence[float], after: Sequence[float]) -> Difference:
    """The difference of two sets of values, one value a seed, by ``RULE``."""
    sides = [
        (float(np.mean(side)), float(np.std(side, ddof=1)) if len(side) > 1 else math.nan) if side else (math.nan,) * 2
        for side in (before, after)
    ]
    limit = None
    if min(len(before), len(after)) > 1:
        parts = [np.var(side, ddof=1) / len(side) for side in (before, after)]
        limit = 0.0
        if sum(parts) > 0:
            freedom = sum(parts) ** 2 / sum(
                part**2 / (len(side) - 1) for part, side in zip(parts, (before, after), strict=True)
            )
            limit = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(sum(parts))
    return Difference(*sides[0], *sides[1], limit)


def by_seed(metrics: Mapping[str, float | None], revision: str | None = None) -> dict[Number, dict[str, float]]:
    """The content of a revision's metrics.json: number → seed → value; values that are no number are left out.

    Raises InputError for a name that is none of this project's.
    """
    found: dict[Number, dict[str, float]] = {}
    for name, value in metrics.items():
        parts = dict(zip(KEY, name.split("/"), strict=False))
        if len(parts) < len(KEY) or not parts["seed"].startswith("seed"):
            raise InputError(f"'{name}' in {METRICS} of {revision or WORKSPACE} is no name of a result")
        values = found.setdefault(Number(**{key: parts[key] for key in KEY if key != "seed"}), {})
        if value is not None:
            values[parts["seed"]] = value
    return found


def changed_settings(before: Any, after: Any) -> dict[tuple[str, str, str], dict[str, list[str]]]:
    """(setting, before, after) → "dataset/experiment" → the stages where it changed; of experiments that both sides have."""
    changes: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for dataset in sorted(before.keys() & after.keys()):
        for experiment in sorted(before[dataset].keys() & after[dataset].keys()):
            was, now = before[dataset][experiment], after[dataset][experiment]
            for stage in sorted(was.keys() | now.keys()):
                old, new = flat(was.get(stage, {})), flat(now.get(stage, {}))
                for key in sorted(old.keys() | new.keys()):
                    if old.get(key, ABSENT) != new.get(key, ABSENT):
                        change = key, _text(old.get(key, ABSENT)), _text(new.get(key, ABSENT))
                        changes.setdefault(change, {}).setdefault(f"{dataset}/{experiment}", []).append(stage)
    return changes


def _text(value: Any) -> str:
    return value if value is ABSENT else json.dumps(value)


def read_revision(revision: str | None, file: str) -> dict[str, Any]:
    """The JSON content of a file of results/ in a git revision or an experiment of DVC; None is the working folder.

    Raises InputError when the revision or the file in it does not exist.
    """
    path = Path("results") / file
    if revision is None:
        if not path.is_file():
            raise InputError(f"{path} does not exist; it is written at the end of a run")
        return _parsed(path.read_bytes(), str(path))
    shown_file = subprocess.run(["git", "show", f"{_commit(revision)}:./{path}"], capture_output=True)
    if shown_file.returncode:
        raise InputError(f"the revision '{revision}' has no {path}; commit the results first")
    return _parsed(shown_file.stdout, f"{path} of '{revision}'")


def _commit(revision: str) -> str:
    """The commit of a git revision, or of an experiment of DVC by its name."""
    experiments = _git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    for name in (revision, *(name for name in experiments if name.rpartition("/")[2] == revision)):
        if commit := _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip():
            return commit
    raise InputError(f"'{revision}' is no revision of this repository, and no experiment of DVC")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as fault:
        raise InputError(f"{where} is damaged: {fault}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where} is damaged: it holds no names")
    return content


def compare(before: str, after: str | None) -> str:
    """What differs between the results of two git revisions, as text; ``after`` None is the working folder.

    Raises InputError when a revision or its results do not exist.
    """
    settings = changed_settings(read_revision(before, SETTINGS), read_revision(after, SETTINGS))
    numbers = [by_seed(read_revision(revision, METRICS), revision) for revision in (before, after)]
    lines = [f"Results of {before} → {after or WORKSPACE}", "", "Settings"]
    for (key, old, new), places in settings.items():
        where = "; ".join(f"{run}: {', '.join(stages)}" for run, stages in places.items())
        lines.append(f"  {key}: {old} → {new}   ({where})")
    lines += [] if settings else ["  none changed"]
    return "\n".join([*lines, "", *_numbers(*numbers)])


def _numbers(before: dict[Number, dict[str, float]], after: dict[Number, dict[str, float]]) -> Iterator[str]:
    shared = [number for number in before if number in after]
    differing = {
        number: difference(list(before[number].values()), list(after[number].values()))
        for number in shared
        if before[number] != after[number]
    }
    groups: dict[tuple[str, str], list[Number]] = {}
    for number in differing:
        groups.setdefault((number.dataset, number.experiment), []).append(number)
    for (dataset, experiment), members in groups.items():
        yield f"{dataset}, {experiment}"
        rows = [["product", "measured", "before", "after", "difference", ""]]
        rows += [_row(number, differing[number]) for number in sorted(members, key=_order)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        yield ""
    judged = [found for found in differing.values() if found.limit is not None]
    beyond = sum(found.verdict == "BEYOND CHANCE" for found in judged)
    yield f"{len(shared) - len(differing)} of {len(shared)} numbers are equal, {len(differing)} differ."
    for side, other, word in ((before, after, "gone"), (after, before, "new")):
        runs = sorted({f"{n.dataset}/{n.experiment}" for n in side if n not in other})
        if runs:
            yield f"{sum(n not in other for n in side)} numbers are {word}: {', '.join(runs)}."
    if judged:
        yield (
            f"{len(judged)} differences were judged, {beyond} are beyond chance; "
            f"about {(1 - CONFIDENCE) * len(judged):.0f} would be if nothing had changed."
        )
    if differing:
        yield RULE


def _order(number: Number) -> tuple:
    """Means over products last; within a product the means over types first."""
    return number.product == EMPTY_PART, number.product, number.level, number.variant != EMPTY_PART, number


def _row(number: Number, found: Difference) -> list[str]:
    what = metric_label(number.level, number.metric)
    if number.trained_on != EMPTY_PART:
        what += f", {number.model} on {number.trained_on}"
    if number.variant != EMPTY_PART:
        what += f", {number.variant}"
    before, after = shown(found.before, found.before_spread), shown(found.after, found.after_spread)
    delta = "" if math.isnan(found.delta) else f"{found.delta:+.{3 if abs(found.before) < 10 else 2}f}"
    return ["mean" if number.product == EMPTY_PART else number.product, what, before, after, delta, found.verdict]
