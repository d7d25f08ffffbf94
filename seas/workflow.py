"""The configuration as a workflow: which experiment owns each stage, in which folder each result lies, what a job does."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from seas.artifacts import flat, read_manifest, read_table, sha256
from seas.base.pretrained import check_base, check_stable_diffusion, count_parameters, find_base
from seas.base.settings import PAPER_BASE
from seas.config import (
    DATASETS,
    EXPERIMENTS,
    Config,
    DatasetFile,
    ExperimentFile,
    Settings,
    lineage,
    of_command_line,
    overlaid,
    read_dataset,
    read_experiment,
    read_yaml,
    stored_index,
    validated,
)
from seas.data.layouts import READERS
from seas.data.third import require_shots, third_of
from seas.downstream.settings import IMAGES_FOR_THRESHOLDS, TREES
from seas.errors import InputError
from seas.resources import Work, work
from seas.weights import has_paper_weights


class Workflow:
    """What Snakemake asks of the configuration: settings by (dataset, experiment), owners, paths."""

    def __init__(self, content: Mapping[str, Any], files: Sequence[Path | str] = ()) -> None:
        """``content`` is the merged configuration, ``files`` are what it was merged from, below what --config gave.

        Raises InputError for any fault in it, in the datasets' files or in the experiments' files.
        """
        for file in files:  # Snakemake keeps the last of two equal keys without a word
            read_yaml(Path(file))
        where = f"configuration ({', '.join(map(str, files))}, --config)" if files else "configuration"
        self.config: Config = validated(Config, content, where)
        self._sections = {
            name: value for name, value in self.config.model_dump(mode="json").items() if name in Settings.model_fields
        }
        self.datasets = {name: read_dataset(name) for name in self.config.datasets}
        self._settings: dict[tuple[str, str], Settings] = {}
        for dataset in self.datasets:
            for experiment in self.config.experiments:
                for ancestor in reversed(lineage(experiment)):  # a fault is that of the file that has it
                    self.settings(dataset, ancestor)

    def settings(self, dataset: str, experiment: str) -> Settings:
        """The settings of one experiment on one dataset."""
        if (dataset, experiment) not in self._settings:
            content = overlaid(self._sections, self._differences(DATASETS / f"{dataset}.yaml", self.datasets[dataset]))
            for name in reversed(lineage(experiment)):
                content = overlaid(content, self._differences(EXPERIMENTS / f"{name}.yaml", read_experiment(name)))
            where = f"{EXPERIMENTS / experiment}.yaml on {DATASETS / dataset}.yaml"
            self._settings[dataset, experiment] = validated(Settings, content, where)
        return self._settings[dataset, experiment]

    def check(self) -> None:
        """Look, before the first job, at what the jobs will need: products, bases, weights.

        Raises InputError for the first that is missing or does not fit.
        """
        for dataset in self.datasets:
            self.products(dataset)
        self.check_groups()
        self._check_shots()
        self._check_bases()
        for dataset, experiment, settings in self._made("metrics"):
            metrics = settings.metrics
            if metrics.extractors == "paper" and not has_paper_weights(metrics.lpips_backbone, metrics.weights_folder):
                raise InputError(
                    f"metrics.extractors is 'paper' in {experiment} on {dataset}, but metrics.weights_folder "
                    f"({metrics.weights_folder}) lacks the weights; README.md names the files"
                )
        for dataset, experiment, settings in self._made("rmp"):
            where = f"{experiment} on {dataset}"
            blocks, levels = self._unet_sizes(settings)
            if not blocks - 1 <= max(settings.rmp.unet_blocks) <= blocks:
                raise InputError(
                    f"rmp.unet_blocks is {list(settings.rmp.unet_blocks)} in {where}, but the base's U-Net has {blocks} up blocks; "
                    f"the last of them must be {blocks - 1} or {blocks}"
                )
            if max(settings.generator.attention_layers) > levels:
                raise InputError(
                    f"generator.attention_layers is {list(settings.generator.attention_layers)} in {where}, "
                    f"but the base's U-Net has {levels} levels of cross-attention"
                )

    def check_groups(self) -> None:
        """Raise InputError for a file of groups that no product of its dataset has."""
        for dataset, _, settings in self._made("split"):
            file = self.datasets[dataset]
            if settings.data.groups and file.root.is_dir():
                READERS[file.layout].require_groups(file.root, self.all_products(dataset), settings.data.groups)

    def _check_shots(self) -> None:
        """As the split will, but before any job, and without groups, which may make a third smaller."""
        for dataset, _, settings in self._made("split"):
            file, data = self.datasets[dataset], settings.data
            if data.shots == "all" or not file.root.is_dir():
                continue
            for product in self.products(dataset):
                for name, images in READERS[file.layout].count_images(file.root, product).items():
                    if images:  # why a type is empty is the index's to say
                        require_shots(product, name, third_of(product, name, images, data), data)

    @functools.cache
    def _made(self, stage: str) -> tuple[tuple[str, str, Settings], ...]:
        """(dataset, experiment, its settings) of each result of a stage that runs: experiments that share it stand once."""
        runs = dict.fromkeys((dataset, experiment) for dataset, experiment, _ in self.runs())
        owners = dict.fromkeys((dataset, self.owner(dataset, experiment, stage)) for dataset, experiment in runs)
        return tuple((*owner, self.settings(*owner)) for owner in owners)

    def measures_as_the_paper(self, dataset: str, experiment: str, seed: int | str, product: str) -> bool:
        """Whether a product's metrics are those of the paper's networks: by the settings and the weights that are there, or,
        where they are not and need not be, because they were when its table was made, which stays good. Where they come to
        be, the metrics are computed anew."""
        metrics = self.settings(dataset, experiment).metrics
        if metrics.as_the_paper():
            return True
        if metrics.extractors != "auto":
            return False
        table = Path(self.folder(dataset, experiment, seed, "metrics")) / f"{product}.parquet"
        try:
            return read_manifest(table)["settings"]["paper_weights"]
        except InputError:
            return False

    @staticmethod
    def _unet_sizes(settings: Settings) -> tuple[int, int]:
        """Up blocks of the base's U-Net, and its levels of cross-attention, the middle among them."""
        if not settings.base.pretrained:  # all but the coarsest block attend, as in Stable Diffusion
            return len(settings.base.unet_channels), len(settings.base.unet_channels)
        unet = read_yaml(find_base(settings.base.pretrained) / "unet/config.json")
        attending = [name for name in unet["down_block_types"] if name.startswith("CrossAttn")]
        return len(unet["block_out_channels"]), len(attending) + 1

    def _check_bases(self) -> None:
        for dataset, experiment, settings in self._made("generator"):
            if settings.base.pretrained:
                try:
                    folder = find_base(settings.base.pretrained)
                    check_base(folder)
                    if settings.base.name == PAPER_BASE:
                        check_stable_diffusion(folder)
                    count_parameters(folder / "unet")  # a damaged file is told now
                except InputError as fault:
                    raise InputError(f"{experiment} on {dataset}: {fault}") from None
        built: dict[str, tuple[str, dict[str, Any]]] = {}
        for (dataset, experiment), settings in self._settings.items():
            if settings.base.pretrained:
                continue
            where, made_of = f"{experiment} on {dataset}", flat(self.parameters(settings, "base", stage="base"))
            other, first = built.setdefault(settings.base.name, (where, made_of))
            if first != made_of:
                key = next(key for key in made_of if first.get(key) != made_of[key])
                raise InputError(
                    f"base.name is '{settings.base.name}' in {other} and in {where}, but their settings differ ({key})"
                )

    @staticmethod
    def _differences(path: Path, file: DatasetFile | ExperimentFile) -> dict[str, Any]:
        for section in file.settings:
            if section == "report":
                raise InputError(
                    f"{path}: 'settings.report' has no effect; the one report obeys the configuration file's"
                )
            if section not in Settings.model_fields:
                raise InputError(
                    f"{path}: 'settings.{section}' is no station; known are {', '.join(Settings.model_fields)}"
                )
        return file.settings

    def owner(self, dataset: str, experiment: str, stage: str) -> str:
        """The experiment whose folder holds this stage: the farthest ancestor with equal settings up to the stage."""
        own = self.settings(dataset, experiment).obeyed_by(stage)
        owner = experiment
        for ancestor in lineage(experiment)[1:]:
            if self.settings(dataset, ancestor).obeyed_by(stage) != own:
                break
            owner = ancestor
        return owner

    def all_shots(self, dataset: str, experiment: str) -> str:
        """The farthest ancestor that differs in the number of shots alone."""
        own = self._apart_from_shots(dataset, experiment)
        line = itertools.takewhile(lambda name: self._apart_from_shots(dataset, name) == own, lineage(experiment))
        return list(line)[-1]

    def _apart_from_shots(self, dataset: str, experiment: str) -> Settings:
        settings = self.settings(dataset, experiment)
        return settings.model_copy(update={"data": settings.data.model_copy(update={"shots": "third"})})

    def folder(self, dataset: str, experiment: str, seed: int | str, stage: str) -> str:
        """The folder of a stage, results/{dataset}/{owner}/seed{n}/{stage}."""
        return f"results/{dataset}/{self.owner(dataset, experiment, stage)}/seed{seed}/{stage}"

    def downstream(
        self, dataset: str, experiment: str, seed: int | str, model: str, trained_on: str, scope: str
    ) -> str:
        """The folder of one downstream model."""
        owner = self.owner(dataset, experiment, f"downstream/{trained_on}")
        return f"results/{dataset}/{owner}/seed{seed}/downstream/{model}/{trained_on}/{scope}"

    def split(self, dataset: str, experiment: str, seed: int | str, product: str) -> str:
        """The split table of a product."""
        return f"{self.folder(dataset, experiment, seed, 'split')}/{product}.parquet"

    def shards(self, dataset: str, experiment: str, seed: int | str, product: str) -> list[str]:
        """The folders in which the shards of a product's generated set are made; none where it is made in one piece.

        In how many it is made says the experiment whose set it is.
        """
        owner = self.owner(dataset, experiment, "generation")
        number = self.settings(dataset, owner).generation.shards
        folder = self.folder(dataset, experiment, seed, "generation").removesuffix("generation") + f"shards/{product}"
        return [f"{folder}/{shard}" for shard in range(number)] if number > 1 else []

    def base(self, dataset: str, experiment: str) -> str:
        """The folder of the base that an experiment starts from."""
        base = self.settings(dataset, experiment).base
        return str(find_base(base.pretrained)) if base.pretrained else f"results/base/{base.name}"

    @functools.cache
    def given_base(self, dataset: str, experiment: str) -> str | None:
        """A hash of a base that is given; None of one that the workflow trains, which Snakemake judges by its time."""
        return (
            sha256(Path(self.base(dataset, experiment))) if self.settings(dataset, experiment).base.pretrained else None
        )

    def base_named(self, name: str) -> Settings:
        """The settings that a base of this name is built with."""
        return next(settings for settings in self._building() if settings.base.name == name)

    def built_bases(self) -> list[str]:
        """The names of the bases that the workflow trains."""
        return sorted({settings.base.name for settings in self._building()})

    def _building(self) -> list[Settings]:
        return [settings for settings in self._settings.values() if not settings.base.pretrained]

    def parameters(self, settings: Settings, *sections: str, stage: str | None = None) -> dict[str, Any]:
        """The named sections as plain values, as a rule's params; with ``stage``, how that stage computes, too."""
        content = {name: getattr(settings, name).obeyed() for name in sections}
        if stage:
            content["compute"] = settings.compute.of(stage).obeyed()
        return content

    def gpus(self, dataset: str, experiment: str) -> int:
        """GPUs of one job that computes on the device."""
        return int(self.settings(dataset, experiment).compute.device == "cuda")

    def threads(self, dataset: str, experiment: str, stage: str) -> int:
        """CPU threads of one job."""
        return self.settings(dataset, experiment).compute.threads[stage]

    def work(self, stage: str, wildcards: Mapping[str, str]) -> Work:
        """What one job does; ``wildcards`` name it as its rule does."""
        if stage == "report":
            return self._work_of_report()
        if "base" in wildcards:
            settings = self.base_named(wildcards["base"])
        elif "experiment" in wildcards:
            settings = self.settings(wildcards["dataset"], wildcards["experiment"])
        else:
            return Work(stage)
        types = len(self.types(wildcards["dataset"], wildcards["product"])) if "product" in wildcards else 0
        products = self.products_of(wildcards["dataset"], wildcards["scope"]) if "scope" in wildcards else []
        scored = [self.tested(wildcards["dataset"], product) for product in products]
        tested = max([2 * IMAGES_FOR_THRESHOLDS, *scored])
        return work(stage, settings, types=types, parameters=self._unet_parameters(settings), tested=tested)

    def _work_of_report(self) -> Work:
        shown = {(dataset, experiment) for dataset, experiment, _ in self.runs()}  # the pictures are of one seed
        types = sum(len(self.types(dataset, product)) for dataset, _ in shown for product in self.products(dataset))
        settings = [self.settings(*run) for run in shown]
        return Work(
            "report",
            steps=sum(len(self.products(dataset)) for dataset, _, _ in self.runs()),
            pixels=max(run.data.image_size**2 for run in settings),
            parameters=max(map(self._unet_parameters, settings)),
            shown=types * self.config.report.examples_per_type,
        )

    @functools.cache
    def tested(self, dataset: str, product: str) -> int:
        """How many photographs of a product are in test/; where they are not here, by its index."""
        file = self.datasets[dataset]
        if file.root.is_dir():
            return READERS[file.layout].count_tested(file.root, product)
        index = read_table(Path(f"results/{dataset}/data/{product}.parquet"))
        return int((index.folder == "test").sum())

    @functools.cache
    def types(self, dataset: str, product: str) -> list[str]:
        """The anomaly types of a product, without opening an image; where its photographs are not, those of its index."""
        file = self.datasets[dataset]
        if file.root.is_dir():
            return READERS[file.layout].list_types(file.root, product)
        index = read_table(Path(f"results/{dataset}/data/{product}.parquet"))
        return sorted(set(index["type"]) - {"good"})

    @staticmethod
    def _unet_parameters(settings: Settings) -> int:
        if settings.base.pretrained:
            return count_parameters(find_base(settings.base.pretrained) / "unet")
        # Measured: 11.4 M for (64, 128, 160, 160), 7.4 M for (64, 96, 128, 128).
        return 160 * sum(channels**2 for channels in settings.base.unet_channels)

    def runs(self) -> list[tuple[str, str, int]]:
        """Every (dataset, experiment, seed) that was asked for."""
        return [
            (dataset, experiment, seed)
            for dataset in self.datasets
            if self.products(dataset)
            for experiment in self.config.experiments
            for seed in self.config.seeds
        ]

    def products(self, dataset: str) -> list[str]:
        """The products of a dataset that run, without opening an image.

        Raises InputError when a wanted product is in no dataset.
        """
        known = self.all_products(dataset)
        wanted = self.config.products
        if wanted is None:
            return known
        for product in wanted:
            if product not in self.every_product():
                raise InputError(
                    f"products: '{product}' is in none of the datasets; known are {', '.join(self.every_product())}"
                )
        return [product for product in known if product in wanted]

    def every_product(self) -> list[str]:
        """All products of all datasets that run."""
        return sorted({product for dataset in self.datasets for product in self.all_products(dataset)})

    def experiments(self) -> list[str]:
        """The experiments that run, and their ancestors."""
        return sorted({name for experiment in self.config.experiments for name in lineage(experiment)})

    @functools.cache
    def all_products(self, dataset: str) -> list[str]:
        """All products of a dataset; where its photographs are not, those of the stored index.

        Raises InputError when there is none, or when a stored index is damaged.
        """
        file = self.datasets[dataset]
        if not file.root.is_dir():
            return [product for product, table in stored_index(dataset).items() if read_manifest(table)]
        products = READERS[file.layout].list_products(file.root)
        if not products:
            raise InputError(
                f"{DATASETS / dataset}.yaml: the folder {file.root} holds no product (a folder with train/good in it)"
            )
        return products

    def scopes(self, dataset: str, settings: Settings) -> list[str]:
        """The scopes of the downstream models: "all" for one unified model, else the products' names."""
        products = self.products(dataset)
        unified = settings.downstream.scope == "unified" and products == self.all_products(dataset)
        return ["all"] if unified else products

    def products_of(self, dataset: str, scope: str) -> list[str]:
        """The products of a downstream scope."""
        return self.all_products(dataset) if scope == "all" else [scope]

    def fingerprint(self, dataset: str, product: str) -> str:
        """A hash of a product's files, as its layout's reader makes it; where they are not, that of the stored index."""
        file = self.datasets[dataset]
        if not file.root.is_dir():
            return read_manifest(stored_index(dataset)[product])["settings"]["fingerprint"]
        return READERS[file.layout].fingerprint(file.root, product)

    def groups(self, dataset: str, experiment: str, product: str) -> str | None:
        """A hash of the file of a product's groups, None where it has none; without photographs, that of a stored split."""
        file = self.settings(dataset, experiment).data.groups
        if file and not self.datasets[dataset].root.is_dir():
            owner = self.owner(dataset, experiment, "split")
            stored = sorted(Path(f"results/{dataset}/{owner}").glob(f"seed*/split/{product}.parquet"))
            return read_manifest(stored[0])["settings"]["groups"] if stored else None
        path = self.datasets[dataset].root / product / file if file else None
        return sha256(path) if path and path.is_file() else None

    def results(self) -> list[str]:
        """Everything that a whole run leaves. Each stage is named: a lost intermediate result is made again."""
        found = {"results/report", "results/metrics.json", "results/settings.json", "results/plots"}
        for dataset, experiment, seed in self.runs():
            run = self.reported_run(dataset, experiment, seed)
            found.add(self.base(dataset, experiment))
            found |= {f"results/{dataset}/data/{product}.parquet" for product in self.products(dataset)}
            found |= {path for stages in run["products"].values() for path in stages.values()}
            for arm in run["downstream"]:
                found.add(arm["folder"])
                trees = (self.folder(dataset, experiment, seed, tree) for tree in TREES[arm["trained_on"]])
                found |= {f"{tree}/{product}" for tree in trees for product in self.products_of(dataset, arm["scope"])}
        return sorted(found)

    def reported_run(self, dataset: str, experiment: str, seed: int) -> dict[str, Any]:
        """One run as the report reads it: what it is, and where its stages' results lie."""
        settings = self.settings(dataset, experiment)
        described = (self.datasets[dataset].description, read_experiment(experiment).description)

        def folder(stage: str, product: str) -> str:
            return f"{self.folder(dataset, experiment, seed, stage)}/{product}"

        stages = ("generator", "rmp", "generation")
        return {
            "dataset": dataset,
            "experiment": experiment,
            "seed": seed,
            "base": settings.base.name,
            "descriptions": [text for text in described if text],
            "root": str(self.datasets[dataset].root),
            "image_size": settings.data.image_size,
            "fit": settings.data.fit,
            "all_shots": self.all_shots(dataset, experiment),
            "variant": read_experiment(experiment).variant,
            "products": {
                product: {
                    "split": self.split(dataset, experiment, seed, product),
                    **{stage: folder(stage, product) for stage in stages},
                    "metrics": folder("metrics", product) + ".parquet",
                }
                for product in self.products(dataset)
            },
            "downstream": [
                {
                    "model": model,
                    "trained_on": trained_on,
                    "scope": scope,
                    "folder": self.downstream(dataset, experiment, seed, model, trained_on, scope),
                }
                for model in settings.downstream.models
                for trained_on in settings.downstream.trained_on
                for scope in self.scopes(dataset, settings)
            ],
        }


def load_workflow(given: Sequence[Path | str], **changes: Any) -> Workflow:
    """The workflow's configuration as Snakemake would see it, for the command line.

    ``given`` are what Snakemake takes after ``--configfile`` (files) and ``--config`` (texts "key=value", value in YAML).

    Raises InputError for any fault in it.
    """
    content = read_yaml(Path("config/config.yaml"))
    for file in files_of(given):
        content = overlaid(content, read_yaml(Path(file)))
    for text in settings_of(given):
        key, value = text.split("=", 1)
        try:
            content = overlaid(content, of_command_line({key: yaml.load(value, Loader=yaml.BaseLoader)}))
        except yaml.YAMLError:
            raise InputError(f"'{text}' is no 'key=value' with a value in YAML") from None
    return Workflow(overlaid(content, changes), ["config/config.yaml", *files_of(given)])


def files_of(given: Sequence[Path | str]) -> list[str]:
    """Of what was given for a configuration, the files."""
    return [str(part) for part in given if "=" not in str(part)]


def settings_of(given: Sequence[Path | str]) -> list[str]:
    """Of what was given for a configuration, the texts "key=value"."""
    return [str(part) for part in given if "=" in str(part)]
