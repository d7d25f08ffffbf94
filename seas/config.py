"""The configuration: which settings each stage obeys, and in which folder each result lies.

Station settings live beside the code that obeys them; this module only composes them. Three files
are laid over each other, the more particular over the more general: config/config.yaml (with what
``--configfile`` and ``--config`` change), config/datasets/<dataset>.yaml, config/experiments/<experiment>.yaml.
"""

import difflib
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError, field_validator, model_validator

from seas.artifacts import read_manifest, read_table, sha256
from seas.base.pretrained import check_base, check_stable_diffusion, find_base, parameters
from seas.base.settings import PAPER_BASE, BaseSettings
from seas.data.mvtec_ad import require_groups
from seas.data.settings import DataSettings
from seas.downstream.settings import IMAGES_FOR_THRESHOLDS, DownstreamSettings
from seas.errors import InputError
from seas.generation.settings import GenerationSettings
from seas.generator.settings import GeneratorSettings
from seas.metrics.settings import MetricsSettings
from seas.report.settings import ReportSettings
from seas.resources import Work, work
from seas.rmp.settings import RmpSettings
from seas.settings import SAFE_NAME, ComputeSettings, EachOnce, StationSettings, setting
from seas.weights import has_paper_weights

RESERVED_NAMES = {"dataset": ("base", "report", "plots", "logs", "check"), "experiment": ("data",)}
"""Folders of results/ that are no dataset's, and of a dataset's that are no experiment's."""
DATASETS = Path("config/datasets")
EXPERIMENTS = Path("config/experiments")

_GENERATED = ("compute", "data", "base", "generator", "rmp", "generation")
_PASTED = ("generation.pairs_per_type", "generation.largest_mask")
STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "split": ("data",),
    "generator": _GENERATED[:4],
    "rmp": _GENERATED[:5],
    "generation": _GENERATED,
    "crop_and_paste": ("data", *_PASTED),
    "metrics": (*_GENERATED, "metrics"),
    "downstream/real": ("compute", "data", "downstream"),
    "downstream/crop_and_paste": ("compute", "data", *_PASTED, "downstream"),
    "downstream/real+crop_and_paste": ("compute", "data", *_PASTED, "downstream"),
    "downstream/generated": (*_GENERATED, "downstream"),
    "downstream/real+generated": (*_GENERATED, "downstream"),
}
"""For each stage the settings that it and all stages left of it obey."""


class Compute(StationSettings):
    """How the stages compute: one device and precision, and the CPU threads of one job of each stage."""

    device: Literal["cpu", "cuda"] = setting("cuda", "where the networks run", source="ours")
    precision: Literal["fp32", "bf16"] = setting(
        "bf16", "precision of forward and backward passes (bf16: autocast, master weights stay fp32)", source="ours"
    )
    threads: dict[str, int] = setting(
        {"base": 8, "generator": 8, "rmp": 8, "generation": 8, "metrics": 8, "downstream": 8},
        "CPU threads of one job, by stage; on the CPU they are part of the result",
        source="ours",
    )

    @field_validator("threads")
    @classmethod
    def _threads_of_stages(cls, threads: dict[str, int]) -> dict[str, int]:
        stages = {"base", "generator", "rmp", "generation", "metrics", "downstream"}
        if unknown := sorted(set(threads) - stages):
            raise ValueError(f"{unknown[0]} is no stage; the stages are {', '.join(sorted(stages))}")
        if missing := sorted(stages - set(threads)):
            raise ValueError(f"the stage {missing[0]} is missing")
        if wrong := [stage for stage, count in threads.items() if count < 1]:
            raise ValueError(f"{wrong[0]} has {threads[wrong[0]]} threads; give 1 or more")
        return threads

    def of(self, stage: str) -> ComputeSettings:
        """What one stage obeys."""
        return ComputeSettings(device=self.device, precision=self.precision, threads=self.threads[stage])


class Settings(StationSettings):
    """The settings of all stations for one run."""

    compute: Compute = Compute()
    base: BaseSettings = BaseSettings()
    data: DataSettings = DataSettings()
    generator: GeneratorSettings = GeneratorSettings()
    rmp: RmpSettings = RmpSettings()
    generation: GenerationSettings = GenerationSettings()
    metrics: MetricsSettings = MetricsSettings()
    downstream: DownstreamSettings = DownstreamSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def _shifted_images_need_their_mirror_images(self) -> "Settings":
        if self.generator.shifts and self.data.augmentation in ("half_turn", "none"):
            raise ValueError(
                f"generator.shifts needs a data.augmentation that mirrors; '{self.data.augmentation}' does not"
            )
        return self

    def obeyed_by(self, stage: str) -> dict[str, Any]:
        """The settings that the stage and all stages left of it obey, as plain values."""
        content = {name: getattr(self, name).obeyed() for name in Settings.model_fields}
        return {path: functools.reduce(dict.__getitem__, path.split("."), content) for path in STAGE_SECTIONS[stage]}


class Config(Settings):
    """The whole configuration file: what runs, and the settings it runs with."""

    datasets: EachOnce[list[str]] = setting(..., "files of config/datasets/ to run", min_length=1)
    products: EachOnce[list[str] | None] = setting(
        None, "products to run; all products of the datasets when absent", min_length=1
    )
    experiments: EachOnce[list[str]] = setting(["seas"], "files of config/experiments/ to run", min_length=1)
    seeds: list[int] = setting([0], "seeds to run", min_length=1)

    @field_validator("seeds")
    @classmethod
    def _seeds_count_from_zero(cls, seeds: list[int]) -> list[int]:
        if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds is {seeds}; give different whole numbers from 0")
        return seeds


class DatasetFile(StationSettings):
    """A file of config/datasets/: where the photographs lie, and what is particular to them."""

    root: Path = setting(..., "folder of the dataset; a relative one counts from the repository's root")
    layout: Literal["mvtec_ad"] = setting("mvtec_ad", "how the folder is laid out")
    description: str = setting("", "what it is, for the report")
    settings: dict[str, Any] = setting({}, "settings of the stations that differ for this dataset")


class ExperimentFile(StationSettings):
    """A file of config/experiments/: one parent, and only the differences from it."""

    extends: str | None = setting(None, "the parent experiment; none for the root")
    description: str = setting("", "what it shows, for the report")
    variant: str = setting("", "the paper's name of it, as the column variant of seas/report/paper_results.csv has it")
    settings: dict[str, Any] = setting({}, "settings of the stations that differ from the parent's")


def validated(model: type[StationSettings], content: Any, where: str) -> Any:
    """``model`` made from ``content``.

    Raises InputError: one sentence a fault, naming the key, its value and what is allowed.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: expected keys and values, found {content!r}")
    try:
        return model.model_validate(dict(content))
    except ValidationError as faults:
        sentences = [_sentence(model, fault) for fault in faults.errors()]
        raise InputError("; ".join(f"{where}: {sentence}" for sentence in sentences)) from None


def _sentence(model: type[StationSettings], fault: Mapping[str, Any]) -> str:
    path = [str(part) for part in fault["loc"] if not re.match(r"literal\[|constrained-int|int$", str(part))]
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        guess = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
        return f"'{key}' is no setting; {guess}"
    if fault["type"] == "missing":
        return f"'{key}' is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if not key:  # settings of several stations that do not go together
        return message
    return f"'{key}': {message}" if isinstance(fault["input"], Mapping) else f"'{key}' is {fault['input']!r}: {message}"


def _known_keys(model: type[StationSettings], path: Sequence[str]) -> list[str]:
    for name in path:
        field = model.model_fields.get(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, StationSettings)):
            return []
        model = field.annotation
    return list(model.model_fields)


class _EachKeyOnce(yaml.SafeLoader):
    """YAML's loader, which else keeps the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1 and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"'{name}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The content of a YAML file of keys and values; an empty file is an empty mapping.

    Raises InputError when it cannot be read, is no YAML, names a key twice, or holds something else.
    """
    try:
        content = yaml.load(Path(path).read_text(), Loader=_EachKeyOnce) or {}
    except OSError as fault:
        raise InputError(f"{path} cannot be read: {fault.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise InputError(f"{path} is no YAML: {' '.join(str(fault).split())}") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected keys and values, found {content!r}")
    return content


def _named_file(folder: Path, name: str, what: str) -> Path:
    path = folder / f"{name}.yaml"
    if not re.fullmatch(SAFE_NAME, name) or name in RESERVED_NAMES[what]:
        raise InputError(
            f"'{name}' cannot name the {what}: use letters, digits, '_', '.' and '-', and none of "
            f"{', '.join(RESERVED_NAMES[what])}"
        )
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise InputError(f"there is no {what} '{name}': {path} does not exist; known are {', '.join(known) or 'none'}")
    return path


def read_dataset(name: str) -> DatasetFile:
    """A dataset's file by name.

    Raises InputError when there is none, when its content is wrong, or when neither its root nor a stored index is there.
    """
    path = _named_file(DATASETS, name, "dataset")
    dataset = validated(DatasetFile, read_yaml(path), str(path))
    try:
        root = dataset.root.expanduser()
    except RuntimeError:
        raise InputError(f"{path}: 'root' is {str(dataset.root)!r}, but there is no such home folder") from None
    if not root.is_dir() and not stored_index(name):
        raise InputError(
            f"{path}: 'root' is {str(dataset.root)!r}, which is no folder, and results/{name}/data holds no index of it"
        )
    return dataset.model_copy(update={"root": root})


def stored_index(dataset: str) -> dict[str, Path]:
    """The samples tables of a dataset's products in results/: what is known of it where its photographs are not."""
    return {path.stem: path for path in sorted(Path(f"results/{dataset}/data").glob("[!.]*.parquet"))}


def read_experiment(name: str) -> ExperimentFile:
    """An experiment's file by name.

    Raises InputError when there is none or its content is wrong.
    """
    path = _named_file(EXPERIMENTS, name, "experiment")
    return _experiment_of(path, path.absolute(), path.stat().st_mtime_ns)


@functools.cache
def _experiment_of(path: Path, absolute: Path, changed: int) -> ExperimentFile:
    return validated(ExperimentFile, read_yaml(path), str(path))


def lineage(experiment: str) -> list[str]:
    """The experiment and its ancestors, itself first.

    Raises InputError when an experiment is its own ancestor.
    """
    line = [experiment]
    while (parent := read_experiment(line[-1]).extends) is not None:
        if parent in line:
            raise InputError(f"{EXPERIMENTS / (line[-1] + '.yaml')}: 'extends' leads back to '{parent}'")
        line.append(parent)
    return line


def experiment_settings(experiment: str) -> Settings:
    """The settings of an experiment over the defaults, as config/config.yaml has them.

    Raises InputError when it or an ancestor of it has a fault.
    """
    content: dict[str, Any] = {}
    for name in reversed(lineage(experiment)):
        content = overlaid(content, read_experiment(name).settings)
    return validated(Settings, content, str(EXPERIMENTS / f"{experiment}.yaml"))


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; where both have a value, ``above`` wins."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = overlaid(result[key], value) if both else value
    return result


def of_command_line(given: Mapping[str, Any]) -> dict[str, Any]:
    """What ``--config`` gave, with its texts read as YAML, but for names: 01 is the product 01, not the number 1."""
    names = ("datasets", "products", "experiments")
    return {key: value if key in names and isinstance(value, list) else as_yaml(value) for key, value in given.items()}


def as_yaml(value: Any) -> Any:
    """A value of Snakemake's ``--config``, with its texts read as YAML.

    Of a value in braces or brackets Snakemake makes nothing but texts: {"shots": "4"} of ``data={shots: 4}``, "null" of null.
    """
    if isinstance(value, Mapping):
        return {key: as_yaml(part) for key, part in value.items()}
    if isinstance(value, list):
        return [as_yaml(part) for part in value]
    if not isinstance(value, str) or not value:
        return value
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return value if isinstance(read, dict | list) else read


class Workflow:
    """What Snakemake asks of the configuration: settings by (dataset, experiment), owners, paths."""

    def __init__(self, content: Mapping[str, Any], files: Sequence[Path | str] = ()) -> None:
        """``content`` is the merged configuration, ``files`` are what it was merged from, below what --config gave.

        Raises InputError for any fault in it, in the datasets' files or in the experiments' files.
        """
        where = f"configuration ({', '.join(map(str, files))}, --config)" if files else "configuration"
        self.config: Config = validated(Config, content, where)
        self._sections = {
            name: value for name, value in self.config.model_dump(mode="json").items() if name in Settings.model_fields
        }
        self.datasets = {name: read_dataset(name) for name in self.config.datasets}
        self._settings: dict[tuple[str, str], Settings] = {}
        for dataset in self.datasets:
            for experiment in self.config.experiments:
                for ancestor in lineage(experiment):
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
        self._check_bases()
        for (dataset, experiment), settings in self._settings.items():
            where = f"{experiment} on {dataset}"
            metrics = settings.metrics
            if metrics.extractors == "paper" and not has_paper_weights(metrics.lpips_backbone, metrics.weights_folder):
                raise InputError(
                    f"metrics.extractors is 'paper' in {where}, but metrics.weights_folder ({metrics.weights_folder}) "
                    "lacks the weights; README.md names the files"
                )
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
        for (dataset, _), settings in self._settings.items():
            root = self.datasets[dataset].root
            if settings.data.groups and root.is_dir():
                require_groups(root, self.all_products(dataset), settings.data.groups)

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
        built: dict[str, tuple[str, Any]] = {}
        for (dataset, experiment), settings in self._settings.items():
            if settings.base.pretrained:
                folder = find_base(settings.base.pretrained)
                check_base(folder)
                if settings.base.name == PAPER_BASE:
                    check_stable_diffusion(folder)
                parameters(folder / "unet")
                continue
            where, made_of = f"{experiment} on {dataset}", (settings.base, settings.compute)
            other, first = built.setdefault(settings.base.name, (where, made_of))
            if first != made_of:
                raise InputError(
                    f"base.name is '{settings.base.name}' in {other} and in {where}, but their settings differ"
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
            return self._readers()[file.layout].count_tested(file.root, product)
        index = read_table(Path(f"results/{dataset}/data/{product}.parquet"))
        return int((index.folder == "test").sum())

    @functools.cache
    def types(self, dataset: str, product: str) -> list[str]:
        """The anomaly types of a product, without opening an image; where its photographs are not, those of its index."""
        file = self.datasets[dataset]
        if file.root.is_dir():
            return self._readers()[file.layout].list_types(file.root, product)
        index = read_table(Path(f"results/{dataset}/data/{product}.parquet"))
        return sorted(set(index["type"]) - {"good"})

    @staticmethod
    def _unet_parameters(settings: Settings) -> int:
        if settings.base.pretrained:
            return parameters(find_base(settings.base.pretrained) / "unet")
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

    @functools.cache
    def _readers(self) -> Any:
        from seas.data import mvtec_ad

        return {"mvtec_ad": mvtec_ad}

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
        products = self._readers()[file.layout].list_products(file.root)
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
        return self._readers()[file.layout].fingerprint(file.root, product)

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
            found |= {arm["folder"] for arm in run["downstream"]}
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
