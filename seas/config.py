"""The configuration: its files, and which settings each stage obeys.

Station settings live beside the code that obeys them; this module only composes them. Three files
are laid over each other, the more particular over the more general: config/config.yaml (with what
``--configfile`` and ``--config`` change), config/datasets/<dataset>.yaml, config/experiments/<experiment>.yaml.
"""

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError, field_validator, model_validator

from seas.base.settings import BaseSettings
from seas.data.settings import DataSettings
from seas.downstream.settings import DownstreamSettings
from seas.errors import InputError
from seas.generation.settings import GenerationSettings
from seas.generator.settings import GeneratorSettings
from seas.metrics.settings import MetricsSettings
from seas.report.settings import ReportSettings
from seas.rmp.settings import RmpSettings
from seas.settings import SAFE_NAME, ComputeSettings, EachOnce, StationSettings, setting

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
        content["compute"] = {
            name: self.compute.of(name).obeyed() for name in self.compute.threads.keys() & STAGE_SECTIONS[stage]
        }
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
