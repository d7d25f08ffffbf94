"""The report's figures: contact sheets, loss curves, precision-recall curves, and the comparison of the arms."""

from collections.abc import Sequence
from itertools import cycle, groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from seas.artifacts import writing_file
from seas.images import outlined
from seas.report.tables import metric_label

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "figure.dpi": 130,
}
ARM_LABELS = {
    "real": "real shots",
    "crop_and_paste": "crop and paste",
    "generated": "generated pairs",
    "real+crop_and_paste": "real shots + crop and paste",
    "real+generated": "real shots + generated pairs",
}
ARM_COLOURS = {
    "real": "#4d4d4d",
    "crop_and_paste": "#d08a1d",
    "generated": "#2166ac",
    "real+crop_and_paste": "#3a9a6a",
    "real+generated": "#7b4fa3",
}
LOSS_COLOURS = ("#222222", "#2166ac", "#d08a1d", "#3a9a6a", "#b2456e")
CELL = 160
GAP = 6
GAP_BETWEEN_TYPES = 18
HEADINGS = 30
LABELS = 36


class SheetRow(NamedTuple):
    """One row of a contact sheet.

    real: uint8 (S, S, 3), a training shot, or None when there are fewer of them. generated: uint8 (S, S, 3).
    mask: bool (S, S). attention: float (tokens, S, S) in [0, 1].
    """

    anomaly_type: str
    real: np.ndarray | None
    generated: np.ndarray
    mask: np.ndarray
    attention: np.ndarray


def contact_sheet(rows: Sequence[SheetRow], tokens: Sequence[str], path: Path) -> None:
    """Draw real | generated | outline of the mask | attention of each token, one line a generated pair.

    Small images are enlarged. Each attention map is stretched over its own range, and its maximum is written
    into it. ``tokens`` are the headings of the maps.
    """
    cells = [_cells(row) for row in rows]
    tops = _tops([row.anomaly_type for row in rows])
    width = len(cells[0]) * (CELL + GAP) - GAP
    height = tops[-1] + CELL
    mosaic = np.full((height, width, 3), 255, np.uint8)
    for top, line in zip(tops, cells, strict=True):
        for column, cell in enumerate(line):
            mosaic[top : top + CELL, column * (CELL + GAP) : column * (CELL + GAP) + CELL] = cell

    dots = STYLE["figure.dpi"]
    whole = (width + LABELS, height + HEADINGS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(whole[0] / dots, whole[1] / dots))
        axes = figure.add_axes((LABELS / whole[0], 0, width / whole[0], height / whole[1]))
        axes.imshow(mosaic, interpolation="none", aspect="auto", extent=(0, width, height, 0))
        axes.axis("off")
        for column, heading in enumerate(["real shot", "generated", "its mask", *tokens]):
            axes.text(column * (CELL + GAP) + CELL / 2, -8, heading, ha="center", va="bottom")
        for name, group in groupby(zip(rows, tops, strict=True), key=lambda pair: pair[0].anomaly_type):
            first, *_, last = [top for _, top in group] * 2
            axes.text(-10, (first + last + CELL) / 2, name, ha="right", va="center", rotation=90, weight="bold")
        for row, top in zip(rows, tops, strict=True):
            for column, attention in enumerate(row.attention, start=3):
                place = (column * (CELL + GAP) + 5, top + CELL - 6)
                axes.text(*place, f"{attention.max():.2f}", color="white", fontsize=7, va="bottom")
        _save(figure, path)


def _tops(types: Sequence[str]) -> list[int]:
    tops = [0]
    for before, name in pairwise(types):
        tops.append(tops[-1] + CELL + (GAP if name == before else GAP_BETWEEN_TYPES))
    return tops


def _cells(row: SheetRow) -> list[np.ndarray]:
    blank = np.full((CELL, CELL, 3), 245, np.uint8)
    generated = _resized(row.generated)
    maps = [attention_overlay(generated, attention) for attention in row.attention]
    return [blank if row.real is None else _resized(row.real), generated, outlined(generated, row.mask), *maps]


def _resized(image: np.ndarray) -> np.ndarray:
    method = Image.Resampling.BICUBIC if len(image) < CELL else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((CELL, CELL), method))


def attention_overlay(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """A map, float of any size, stretched over its own range and laid over the grey image, uint8 (H, W, 3)."""
    low, high = attention.min(), attention.max()
    stretched = (attention - low) / max(high - low, 1e-12)
    height, width = image.shape[:2]
    large = np.asarray(Image.fromarray(stretched.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    colours = matplotlib.colormaps["inferno"](large)[..., :3]
    grey = image.mean(axis=2, keepdims=True) / 255
    return np.uint8(np.round(255 * (0.35 * grey + 0.65 * colours)))


def loss_curves(losses: dict[str, pd.DataFrame], path: Path) -> None:
    """Draw the losses of each trainer: one panel a trainer, one line a loss, faint as recorded, firm as a running mean.

    ``losses`` maps a trainer's name to its table: the column step, and one for each loss.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        for axes, (trainer, table) in zip(
            figure.subplots(1, len(losses), squeeze=False)[0], losses.items(), strict=True
        ):
            names = [column for column in table if column != "step"]
            window = max(1, len(table) // 25)
            for name, colour in zip(names, cycle(LOSS_COLOURS)):
                axes.plot(table.step, table[name], color=colour, alpha=0.2, linewidth=0.7)
                mean = table[name].rolling(window, min_periods=1).mean()
                axes.plot(table.step, mean, color=colour, linewidth=1.4, label=name.replace("_", " "))
            axes.set(title=trainer, xlabel="update", yscale="log")
            axes.legend(ncols=2, fontsize=8)
        _save(figure, path)


def precision_recall(curves: pd.DataFrame, path: Path) -> None:
    """Draw the PR curves of one product at image and pixel level, one colour an arm, one line a seed.

    ``curves`` has the columns trained_on, seed, level, precision and recall, the latter two in [0, 1].
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, level in zip(figure.subplots(1, 2, sharey=True), ("image", "pixel"), strict=True):
            shown = curves[curves.level == level]
            for arm in arms_in_order(shown.trained_on):
                for number, (_, curve) in enumerate(shown[shown.trained_on == arm].groupby("seed")):
                    label = ARM_LABELS.get(arm, arm) if number == 0 else None
                    axes.plot(curve.recall, curve.precision, color=ARM_COLOURS.get(arm), linewidth=1.3, label=label)
            axes.set(title=f"{level} level", xlabel="recall", xlim=(0, 1.01), ylim=(0, 1.02))
        figure.axes[0].set_ylabel("precision")
        figure.axes[1].legend(loc="lower left")
        _save(figure, path)


def arms_chart(results: pd.DataFrame, metrics: Sequence[tuple[str, str]], path: Path) -> None:
    """Draw what each arm scores on each product: a dot a seed, a bar at their mean.

    ``results`` are rows of the result table of one model; an empty product is drawn last as the mean.
    ``metrics`` are pairs of level and metric, one panel each.
    """
    products = [*sorted(set(results["product"]) - {""}), *([""] if (results["product"] == "").any() else [])]
    arms = arms_in_order(results.trained_on)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(min(11.0, 4.5 + 0.9 * len(products)), 2.6 * len(metrics)), layout="constrained")
        panels = figure.subplots(len(metrics), 1, squeeze=False)[:, 0]
        for axes, (level, metric) in zip(panels, metrics, strict=True):
            shown = results[(results.level == level) & (results.metric == metric)]
            for number, arm in enumerate(arms):
                offset = (number - (len(arms) - 1) / 2) * 0.8 / len(arms)
                _draw_arm(axes, shown[shown.trained_on == arm], products, offset, arm, 0.6 / len(arms))
            axes.set(title=metric_label(level, metric), ylabel="per cent", xlim=(-0.6, len(products) - 0.4))
            axes.set_xticks(range(len(products)), [product or "mean" for product in products])
            axes.grid(visible=False, axis="x")
            axes.margins(y=0.15)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
        _save(figure, path)


def _draw_arm(axes: Axes, scores: pd.DataFrame, products: list[str], offset: float, arm: str, width: float) -> None:
    colour = ARM_COLOURS.get(arm)
    places = scores["product"].map(products.index) + offset
    axes.scatter(places, scores.value, s=14, color=colour, alpha=0.6, linewidths=0, label=ARM_LABELS.get(arm, arm))
    for place, values in scores.value.groupby(places):
        axes.hlines(values.mean(), place - width / 2, place + width / 2, color=colour, linewidth=2.2)


def shots_chart(scores: pd.DataFrame, metrics: Sequence[tuple[str, str]], path: Path) -> None:
    """Draw what each arm scores against the number of shots: a dot a seed, a line through their means.

    ``scores`` are rows of the result table of one model and one product, with the column shots.
    ``metrics`` are pairs of level and metric, one panel each.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 3.6), layout="constrained")
        panels = figure.subplots(1, len(metrics), squeeze=False)[0]
        for axes, (level, metric) in zip(panels, metrics, strict=True):
            shown = scores[(scores.level == level) & (scores.metric == metric)]
            for arm in arms_in_order(shown.trained_on):
                of_arm = shown[shown.trained_on == arm]
                means = of_arm.groupby("shots").value.mean()
                colour = ARM_COLOURS.get(arm)
                axes.plot(means.index, means, color=colour, linewidth=1.6, label=ARM_LABELS.get(arm, arm))
                axes.scatter(of_arm.shots, of_arm.value, s=14, color=colour, alpha=0.6, linewidths=0)
            axes.set(title=metric_label(level, metric), xlabel="shots of each type", xscale="log")
            ticks = sorted(shown.shots.unique())
            axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
        panels[0].set_ylabel("per cent")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        _save(figure, path)


def arms_in_order(trained_on: pd.Series) -> list[str]:
    """The arms that occur, the known ones in the order of ``ARM_LABELS``, others after them by name."""
    found = set(trained_on)
    return [arm for arm in ARM_LABELS if arm in found] + sorted(found - set(ARM_LABELS))


def _save(figure: Figure, path: Path) -> None:
    with writing_file(path) as partial:
        figure.savefig(partial, metadata={"Software": None})
