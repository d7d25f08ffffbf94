"""What the networks will see of a dataset, shown before any job runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from seas.artifacts import sha256
from seas.data.index import fitted_anomalies, index_samples
from seas.data.settings import DataSettings
from seas.data.split import read_groups, split_samples
from seas.errors import InputError
from seas.images import has_sixteen_bits, load_fitted, outlined, read_image, turned_by_exif, write_image

CELL = 128
COLUMNS = 8
MARGIN = 18
KEPT_OF_AN_ANOMALY = 0.5
SMALL = 4
LARGEST_SHARE = 0.6
"""A mask that covers more of its image is shown as doubtful."""
DARK = {8: 32, 16: 64}
"""Grey levels of 255: a photograph of so many bits that is hardly anywhere brighter is shown as dark."""
BRIGHTEST = 99.9
"""Per cent of a photograph's values that are as dark: a hot pixel or a label may be brighter."""
OTHER_LIGHT = 20
"""Grey levels of 255 between the mean brightness of what trains and of what tests, from which on it is said."""
ALIKE = 0.9
"""Share of the pairs of a training and a test image in which the same one is the brighter, up to which it is not."""
FEWEST_COMPARED = 4


def check_dataset(root: Path, layout: str, data: DataSettings, output: Path, products: Sequence[str]) -> str:
    """Index, split and fit each product; write a contact sheet each to ``output`` and give the findings as text.

    Raises InputError when a product has faults, after all products were looked at; the message holds the findings too.
    """
    findings, faulty = [], 0
    for product in products:
        try:
            findings.append(_check_product(Path(root), layout, data, Path(output), product))
        except InputError as fault:
            faulty += 1
            findings.append(f"{product}: FAULTY\n  {fault}")
    text = "\n".join(findings)
    if faulty:
        raise InputError(f"{faulty} of {len(products)} products cannot be used\n{text}")
    return text


def _check_product(root: Path, layout: str, data: DataSettings, output: Path, product: str) -> str:
    table = index_samples(root, layout, product)
    groups = read_groups(root, product, data.groups) if data.groups else {}
    split = split_samples(table, data, 0, groups)
    roles = split.groupby("role").size()
    sizes = sorted(set(zip(table.width, table.height, strict=True)))
    lines = [
        f"{product}: {len(table)} images of {len(sizes)} sizes ({_size(sizes[0])} to {_size(sizes[-1])}), fitted to "
        f"{data.image_size}×{data.image_size} by '{data.fit}'",
        f"  good: {roles.get('normal', 0)} train the generator, {roles.get('reserve', 0)} more in train/good, "
        f"{((split.type == 'good') & (split.role == 'test')).sum()} test",
    ]
    if data.groups:
        lines.append(f"  {len(groups)} images are in {len(set(groups.values()))} groups of {data.groups}")
    for name, rows in split[split.type != "good"].groupby("type"):
        counts = rows.role.value_counts()
        area = 100 * rows.anomaly_pixels / (rows.width * rows.height)
        lines.append(
            f"  {name}: {counts.get('shot', 0)} shots, {counts.get('test', 0)} test"
            + (
                f", {counts['left_out']} left out (grouped with a training image, or not drawn)"
                if "left_out" in counts
                else ""
            )
            + f"; the defect covers {area.min():.3g} to {area.max():.3g} % of the image"
        )
    anomalies = list(fitted_anomalies(split, root, data))
    abnormal = split[split.type != "good"]
    most = abnormal[abnormal.anomaly_pixels > LARGEST_SHARE * abnormal.width * abnormal.height]
    for what, images in (
        (
            "lose their whole defect by fitting (an error when the chain runs)",
            [a.image for a in anomalies if not a.pixels],
        ),
        ("lose more than half of it", [a.image for a in anomalies if a.pixels and a.inside < KEPT_OF_AN_ANOMALY]),
        ("lose some of several defects", [a.image for a in anomalies if a.pixels and a.lost]),
        (
            f"keep a defect of fewer than {SMALL} pixels (`seas windows` cuts photographs up)",
            [a.image for a in anomalies if 0 < a.pixels < SMALL],
        ),
        ("have a mask over most of the image (is it inverted?)", list(most.image)),
        (
            "are turned as their EXIF says, their masks are not (do the outlines lie on the defects?)",
            [r.image for r in abnormal.itertuples() if turned_by_exif(root / r.image) > turned_by_exif(root / r.mask)],
        ),
    ):
        if images:
            lines.append(
                f"  {len(images)} abnormal images {what}: {', '.join(images[:5])}{', …' if len(images) > 5 else ''}"
            )
    if copies := _tested_copies(split, root):
        lines.append(
            f"  {len(copies)} test images are copies of training images (put both into one group, data.groups): "
            f"{', '.join(copies[:5])}{', …' if len(copies) > 5 else ''}"
        )
    light = pd.DataFrame([_light(root / image) for image in split.image], index=split.image)
    lines += _of_other_light(split.assign(brightness=light.brightness.to_numpy()))
    for bits, level in DARK.items():
        if dark := list(light.index[(light.bits == bits) & (light.brightest <= level)]):
            lines.append(
                f"  {len(dark)} images of {bits} bits are dark, {BRIGHTEST} % of the values not above {level} of 255"
                f"{' (12 or 14 bits, stored in 16? multiply by 16 or 4, and save them again)' if bits == 16 else ''}: "
                f"{', '.join(dark[:5])}{', …' if len(dark) > 5 else ''}"
            )
    if not ((split.type == "good") & (split.role == "test")).any():
        lines.append("  no good image is left to test: scores at image level will be undefined")
    write_image(_contact_sheet(split, root, data), output / f"{product}.png")
    return "\n".join(lines)


def _light(path: Path) -> dict[str, float]:
    values = read_image(path)
    return {
        "bits": 16 if has_sixteen_bits(path) else 8,
        "brightness": float(values.mean()),
        "brightest": float(np.percentile(values, BRIGHTEST)),
    }


def _of_other_light(split: pd.DataFrame) -> list[str]:
    """A line for each type whose training images are nearly all darker, or nearly all brighter, than its test images."""
    lines = []
    for name, rows in split.groupby("type"):
        trained = rows[rows.role.isin(["shot", "normal", "reserve"])].brightness.to_numpy()
        tested = rows[rows.role == "test"].brightness.to_numpy()
        if min(len(trained), len(tested)) < FEWEST_COMPARED:
            continue
        brighter, darker = ((sign * trained[:, None] > sign * tested).mean() for sign in (1, -1))
        difference = trained.mean() - tested.mean()
        if abs(difference) >= OTHER_LIGHT and max(brighter, darker) > ALIKE:
            lines.append(
                f"  {name}: the training images are {'brighter' if difference > 0 else 'darker'} than the test images, in the "
                f"mean {trained.mean():.0f} for {tested.mean():.0f} of 255 (do the names follow the light?)"
            )
    return lines


def _tested_copies(split: pd.DataFrame, root: Path) -> list[str]:
    """The test images whose file is, byte for byte, one that trains."""
    alike = split[split.bytes.duplicated(keep=False)]
    trained = {sha256(root / image) for image in alike[alike.role.isin(["shot", "normal", "reserve"])].image}
    return [image for image in alike[alike.role == "test"].image if sha256(root / image) in trained]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _contact_sheet(split: pd.DataFrame, root: Path, data: DataSettings) -> np.ndarray:
    """One line a type: its first shots and, after them, its first test images; masks outlined. uint8 (H, W, 3)."""
    lines = []
    for name in ["good", *sorted(set(split.type) - {"good"})]:
        rows = split[split.type == name]
        trains = rows[rows.role.isin(["shot", "normal"])].head(COLUMNS // 2)
        lines.append((name, pd.concat([trains, rows[rows.role == "test"].head(COLUMNS - len(trains))])))
    sheet = Image.new("RGB", (COLUMNS * CELL, len(lines) * (CELL + MARGIN)), "white")
    draw = ImageDraw.Draw(sheet)
    for line, (name, rows) in enumerate(lines):
        top = line * (CELL + MARGIN)
        for column, row in enumerate(rows.itertuples()):
            fitted = load_fitted(root, row, data.image_size, data.fit)
            large = np.asarray(Image.fromarray(fitted.image).resize((CELL, CELL), Image.Resampling.BICUBIC))
            sheet.paste(Image.fromarray(outlined(large, fitted.mask, width=1)), (column * CELL, top + MARGIN))
            draw.text((column * CELL + 3, top + 3), f"{name} {row.role} {Path(row.image).stem}", fill="black")
    return np.asarray(sheet)
