"""What the report is about: the finished runs and where their results lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ProductResults:
    """The results of one product of a run: folders, and the tables ``split`` and ``metrics``."""

    split: Path
    generator: Path
    rmp: Path
    generation: Path
    metrics: Path


@dataclass(frozen=True)
class DownstreamResults:
    """One trained and scored downstream model. ``trained_on`` names its arm, ``scope`` its products."""

    model: str
    trained_on: str
    scope: str
    folder: Path


@dataclass(frozen=True)
class ReportedRun:
    """One experiment on one dataset with one seed.

    ``base`` is the base's name. ``descriptions`` are those of the dataset and of the experiment, where their files have one.
    ``variant`` is the paper's name of the experiment where it is one of its ablations, else "".
    ``root`` is the folder of the dataset's photographs, ``all_shots`` the experiment that differs in the number of shots
    alone and has them all.
    """

    dataset: str
    experiment: str
    seed: int
    descriptions: list[str]
    base: str
    root: Path
    image_size: int
    fit: str
    all_shots: str
    variant: str
    products: dict[str, ProductResults]
    downstream: list[DownstreamResults]

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "ReportedRun":
        """A run from what Snakemake hands over: the same names, with nested mappings and paths as text.

        Raises TypeError when a name is missing or unknown.
        """
        products = {
            product: ProductResults(**{name: Path(path) for name, path in results.items()})
            for product, results in plain["products"].items()
        }
        downstream = [DownstreamResults(**{**arm, "folder": Path(arm["folder"])}) for arm in plain["downstream"]]
        changed = {"root": Path(plain["root"]), "products": products, "downstream": downstream}
        return cls(**{**plain, **changed})

    @property
    def unified(self) -> bool:
        """Whether one segmentation model of an arm is that of all products."""
        return all(arm.scope == "all" for arm in self.downstream)

    @property
    def said(self) -> dict[str, Any]:
        """What the page says of the run that none of its artifacts holds."""
        return {name: getattr(self, name) for name in ("descriptions", "base", "variant", "all_shots")}

    def artifacts(self) -> list[Path]:
        """The finished stages that the report is made of, from left to right."""
        stages = [path for results in self.products.values() for path in vars(results).values()]
        return [*stages, *(arm.folder for arm in self.downstream)]

    def indices(self) -> list[Path]:
        """The tables of the products' photographs, where they are here: they tell when photographs or masks changed."""
        splits = (results.split for results in self.products.values())
        tables = (split.parents[3] / "data" / split.name for split in splits)
        return [table for table in tables if table.is_file()]


def said_of(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """What the page says of the runs that no input holds, by plain names: a part of the report's provenance."""
    return {f"{run.dataset}/{run.experiment}/seed{run.seed}": run.said for run in runs}


def inputs_of(runs: Sequence[ReportedRun]) -> dict[str, Path]:
    """The inputs of the report by plain names."""
    inputs = {}
    for run in runs:
        name = f"{run.dataset}/{run.experiment}/seed{run.seed}"
        for product, results in run.products.items():
            inputs |= {f"{name}/{product}/{stage}": path for stage, path in vars(results).items()}
        inputs |= {f"{name}/{arm.model}/{arm.trained_on}/{arm.scope}": arm.folder for arm in run.downstream}
    return inputs
