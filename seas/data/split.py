"""Which photographs train and which test (Sec. 4.1)."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pandas as pd

from seas.data.settings import DataSettings
from seas.data.third import require_shots, third_of
from seas.errors import InputError
from seas.seeding import rng


def split_samples(table: pd.DataFrame, settings: DataSettings, seed: int, groups: Mapping[str, str]) -> pd.DataFrame:
    """The samples table with two more columns.

    role: "shot" (abnormal, trains), "normal" (the good images that generator and RMP train on, drawn by
    ``seed``), "reserve" (the other train/good), "test" (the complement of a third of the abnormal images), or
    "left_out" (of the complement, in one group with an image of the third or of train/good; of the third, not drawn).
    type_index: 1 to G for the anomaly types by name, 0 for good. A number of shots is drawn by ``seed`` from the
    third, fewer from among more, so that every number is tested on the same images (Tab. 11). With "all" every abnormal image
    is a shot, and none is tested.
    ``groups`` maps an image to its group; an image that it does not name is a group of its own.

    Raises InputError when a type has too few images to train and to test, or ``groups`` names another image.
    """
    table = table.sort_values(["folder", "type", "image"], ignore_index=True)
    if unknown := sorted(set(groups) - set(table.image)):
        raise InputError(
            f"data.groups names '{unknown[0]}', which is no image of {table['product'].iloc[0]} by this spelling"
        )
    group = table.image.map(lambda image: groups.get(image, f"image {image}"))
    types = sorted(set(table.type) - {"good"})
    role = pd.Series("test", index=table.index)
    role[table.folder == "train"] = "reserve"
    good = table.index[(table.type == "good") & (table.folder == "train")]
    chosen = rng(seed, "normals", table["product"].iloc[0]).permutation(len(good))[: settings.normals]
    role[good[chosen]] = "normal"
    for name in types:
        images = table[table.type == name]
        role[images.index if settings.shots == "all" else _third(images, group, settings)] = "shot"
    trains = set(group[role != "test"])
    role[(role == "test") & group.isin(trains)] = "left_out"
    untested = [name for name in types if not ((table.type == name) & (role == "test")).any()]
    if untested and settings.shots != "all" and not settings.train_only_small_types:
        raise InputError(
            f"{table['product'].iloc[0]}: no image of the type '{untested[0]}' is left to test; "
            "add images or set data.train_only_small_types"
        )
    if settings.shots == "all" and not (role == "test").any():
        raise InputError(
            f"{table['product'].iloc[0]}: with data.shots 'all' good images alone are left to test, and there is none in test/good "
            "that shares no group with a shot"
        )
    if isinstance(settings.shots, int):
        for name in types:
            third = table.index[(table.type == name) & (role == "shot")]
            product = table["product"].iloc[0]
            require_shots(product, name, len(third), settings)
            drawn = rng(seed, "shots", product, name).permutation(len(third))
            role[third[drawn[settings.shots :]]] = "left_out"
    return table.assign(
        role=role, type_index=table.type.map(lambda name: types.index(name) + 1 if name in types else 0)
    )


def _third(images: pd.DataFrame, group: pd.Series, settings: DataSettings) -> pd.Index:
    """The first third by name, in whole groups: a group that would lead over it is passed by."""
    product, name = images["product"].iloc[0], images.type.iloc[0]
    wanted = third_of(product, name, len(images), settings)
    if wanted == len(images):
        return images.index
    taken: list[int] = []
    for _, members in images.groupby(group[images.index], sort=False):
        if len(taken) + len(members) <= wanted:
            taken += list(members.index)
    if not taken:
        raise InputError(
            f"{product}: each group of the type '{name}' in data.groups has more images than its third, {wanted}"
        )
    return pd.Index(taken)


def read_groups(root: Path, product: str, file: str) -> dict[str, str]:
    """The groups of a product's images: image (relative to ``root``) → group; none when the product has no such file.

    The csv has a heading line; its first column names images relative to the product's folder, its second their groups. An
    image whose group is blank is not grouped.

    Raises InputError when the file is damaged, names what is no image of the product, or gives an image two groups.
    """
    path = root / product / file
    if not path.exists():
        return {}
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        images, groups = table.iloc[:, 0].str.strip(), table.iloc[:, 1].str.strip()
    except (ValueError, IndexError, UnicodeDecodeError):
        raise InputError(f"{path} is no csv with two columns, images and groups") from None
    if (root / product / table.columns[0]).is_file():
        raise InputError(f"{path} lacks a heading line: its first line is that of the image '{table.columns[0]}'")
    found: dict[str, str] = {}
    for image, group in zip(images, groups, strict=True):
        name = PurePosixPath(image).as_posix()  # as the samples are named: test/cut/0.png of ./test//cut/0.png
        if not (root / product / name).is_file():
            raise InputError(f"{path} names the image '{image}', which does not exist")
        if not name.startswith(("test/", "train/")):
            raise InputError(f"{path} names '{image}'; name images as test/<type>/<name> or train/good/<name>")
        if group and found.setdefault(f"{product}/{name}", group) != group:
            raise InputError(
                f"{path} gives the image '{image}' two groups, '{found[f'{product}/{name}']}' and '{group}'"
            )
    return found
