"""Versions of results: recorded in DVC as they lie in results/, and checked against their manifests when they come back.

Snakemake alone decides what is made. A clone has no memory of its runs, and files that git or DVC wrote bear the time of
their writing; so what came back is first held against its manifest and the settings, and only what agrees is
declared up to date.
"""

import os
import subprocess
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seas.artifacts import MANIFEST, damage, flat, has_manifest, read_manifest, read_table, remove, sha256, stale
from seas.base import settings as base_settings
from seas.config import Settings
from seas.data import settings as data_settings
from seas.downstream import settings as downstream_settings
from seas.errors import InputError
from seas.generation import settings as generation_settings
from seas.generator import settings as generator_settings
from seas.metrics import settings as metrics_settings
from seas.report import settings as report_settings
from seas.report.published import PLOTS, published_files
from seas.report.runs import ReportedRun, inputs_of, said_of
from seas.rmp import settings as rmp_settings
from seas.runs import locked
from seas.workflow import Workflow, files_of, settings_of

RESULTS = Path("results")
NOT_RECORDED = ("logs", "check", PLOTS)
"""Folders of results/ that are no artifacts: git keeps the plots, nobody the others."""
SHARDS = "results/*/*/seed*/shards"
"""Parts of generated sets, until they are merged."""
AT_ONCE = 200
"""Artifacts of one call of DVC."""


@dataclass(frozen=True)
class Artifact:
    """A result of the workflow, and what it has to be made of by the configuration; ``inputs`` maps names to paths."""

    path: Path
    stage: str
    stage_version: int
    settings: dict[str, Any]
    seed: int | None
    inputs: dict[str, Path]


def artifacts(flow: Workflow) -> Iterator[Artifact]:
    """Every artifact of the configuration, once each, inputs first; the report last."""
    seen = set()
    for artifact in _of_all_runs(flow):
        if artifact.path not in seen:
            seen.add(artifact.path)
            yield artifact
    runs = reported_runs(flow)
    settings = flow.parameters(flow.config, "report") | {"runs": said_of(runs)}
    yield Artifact(RESULTS / "report", "report", report_settings.STAGE_VERSION, settings, None, inputs_of(runs))


def reported_runs(flow: Workflow) -> list[ReportedRun]:
    """The runs of the configuration as the report reads them."""
    return [ReportedRun.from_plain(flow.reported_run(*run)) for run in flow.runs()]


def _of_all_runs(flow: Workflow) -> Iterator[Artifact]:
    for dataset, experiment, seed in flow.runs():
        settings = flow.settings(dataset, experiment)
        if not settings.base.pretrained:
            obeyed = flow.parameters(settings, "base", stage="base")
            path = Path(flow.base(dataset, experiment))
            yield Artifact(path, "base", base_settings.STAGE_VERSION, obeyed, settings.base.seed, {})
        products = {
            arm["scope"]: flow.products_of(dataset, arm["scope"]) for arm in _arms(flow, dataset, experiment, seed)
        }
        wanted = {*flow.products(dataset), *(product for scope in products.values() for product in scope)}
        for product in sorted(wanted):
            yield from _of_product(flow, settings, dataset, experiment, seed, product)
        for arm in _arms(flow, dataset, experiment, seed):
            yield _downstream(flow, settings, dataset, experiment, seed, arm, products[arm["scope"]])


def _arms(flow: Workflow, dataset: str, experiment: str, seed: int) -> list[dict[str, Any]]:
    return flow.reported_run(dataset, experiment, seed)["downstream"]


def _of_product(
    flow: Workflow, settings: Settings, dataset: str, experiment: str, seed: int, product: str
) -> Iterator[Artifact]:
    def path(stage: str) -> Path:
        return Path(flow.folder(dataset, experiment, seed, stage)) / product

    index = RESULTS / dataset / "data" / f"{product}.parquet"
    split = Path(flow.split(dataset, experiment, seed, product))
    base = Path(flow.base(dataset, experiment))
    trees = {tree for source in settings.downstream.trained_on for tree in downstream_settings.TREES[source]}

    read = {"layout": flow.datasets[dataset].layout, "fingerprint": flow.fingerprint(dataset, product)}
    yield Artifact(index, "index", data_settings.INDEX_STAGE_VERSION, read, None, {})

    obeyed = flow.parameters(settings, "data") | {"groups": flow.groups(dataset, experiment, product)}
    yield Artifact(split, "split", data_settings.SPLIT_STAGE_VERSION, obeyed, seed, {"index": index})

    obeyed = flow.parameters(settings, "generator", "data", stage="generator")
    inputs = {"base": base, "split": split}
    yield Artifact(path("generator"), "generator", generator_settings.STAGE_VERSION, obeyed, seed, inputs)

    obeyed = flow.parameters(settings, "rmp", stage="rmp")
    inputs = {"generator": path("generator")}
    yield Artifact(path("rmp"), "rmp", rmp_settings.STAGE_VERSION, obeyed, seed, inputs)

    obeyed = flow.parameters(settings, "generation", stage="generation")
    counts = dict.fromkeys(_types(split), settings.generation.pairs_per_type) | {"good": settings.generation.normals}
    obeyed["wanted"] = {name: [0, count - 1] for name, count in counts.items() if count}
    inputs = {"generator": path("generator"), "rmp": path("rmp")}
    yield Artifact(path("generation"), "generation", generation_settings.STAGE_VERSION, obeyed, seed, inputs)

    if "crop_and_paste" in trees:
        pasted = settings.generation.model_dump(mode="json", include={"pairs_per_type", "largest_mask"})
        obeyed = flow.parameters(settings, "data") | pasted
        version = generation_settings.CROP_AND_PASTE_STAGE_VERSION
        yield Artifact(path("crop_and_paste"), "crop_and_paste", version, obeyed, seed, {"split": split})

    table = path("metrics").with_name(f"{product}.parquet")
    obeyed = flow.parameters(settings, "metrics", "data", stage="metrics")
    obeyed["paper_weights"] = flow.measures_as_the_paper(dataset, experiment, seed, product)
    inputs = {"generation": path("generation"), "split": split}
    yield Artifact(table, "metrics", metrics_settings.STAGE_VERSION, obeyed, seed, inputs)


def _types(split: Path) -> list[str]:
    """The anomaly types of a product; none where its split cannot be read, whose fault is told elsewhere."""
    try:
        table = read_table(split)
    except InputError:
        return []
    return sorted(table[table.role == "shot"].type.unique())


def _downstream(
    flow: Workflow,
    settings: Settings,
    dataset: str,
    experiment: str,
    seed: int,
    arm: dict[str, Any],
    products: Sequence[str],
) -> Artifact:
    trained_on = arm["trained_on"]
    obeyed = flow.parameters(settings, "downstream", "data", stage="downstream")
    obeyed["downstream"] |= {"model": arm["model"], "trained_on": trained_on}
    inputs = {f"split {product}": Path(flow.split(dataset, experiment, seed, product)) for product in products}
    for tree in downstream_settings.TREES[trained_on]:
        folder = Path(flow.folder(dataset, experiment, seed, tree))
        inputs |= {f"{tree} {product}": folder / product for product in products}
    return Artifact(Path(arm["folder"]), "downstream", downstream_settings.STAGE_VERSION, obeyed, seed, inputs)


def _damage(artifact: Path) -> str | None:
    try:
        return damage(artifact)
    except InputError as sentence:
        return str(sentence)


def _absent(artifact: Artifact, aside: Container[Path], unchecked: Container[Path]) -> str | None:
    """Which input of an artifact is not here to be compared with."""
    for path in artifact.inputs.values():
        if not path.exists() and path not in aside:
            return f"{path} is missing (pull it, too)"
        if path in unchecked:
            return f"its input {path} is not checked"
    return None


def made_as_wanted(flow: Workflow) -> set[Path]:
    """The artifacts that lie in results/ and were made with the settings and versions of the configuration."""
    found = set()
    for artifact in artifacts(flow):
        with suppress(InputError):  # a damaged manifest
            if artifact.path.exists() and _made_otherwise(artifact) is None:
                found.add(artifact.path)
    return found


def _disagreement(artifact: Artifact, fresh: set[Path]) -> str | None:
    """Why an artifact that is whole is not up to date: a sentence, or None when settings, version and inputs agree.

    ``fresh`` are the artifacts of the workflow that are known to be up to date.
    """
    if told := _made_otherwise(artifact):
        return told
    for path in artifact.inputs.values():
        if path.is_relative_to(RESULTS) and path not in fresh:
            return f"its input {path} is not up to date"
    hashes = {name: sha256(path) for name, path in artifact.inputs.items()}
    manifest = read_manifest(artifact.path)
    for name in sorted(hashes.keys() | manifest["inputs"].keys()):
        if hashes.get(name) != manifest["inputs"].get(name):
            return f"it was made from another {artifact.inputs.get(name, name)}"
    return None


def _made_otherwise(artifact: Artifact) -> str | None:
    """Which version, seed or setting an artifact was made with that is not the configuration's: a sentence."""
    manifest = read_manifest(artifact.path)
    for name in ("stage", "stage_version", "seed"):
        if manifest[name] != getattr(artifact, name):
            return f"{name} is {manifest[name]} in its manifest and should be {getattr(artifact, name)}"
    was, should = flat(manifest["settings"]), flat(artifact.settings)
    for key in sorted(was.keys() | should.keys()):
        if was.get(key) != should.get(key):
            return f"it was made with {key} = {was.get(key)}, and the settings say {should.get(key)}"
    return None


@dataclass(frozen=True)
class Restored:
    """What a check found: artifacts that are up to date, those set aside and those that cannot be checked, each with the
    reason, and those that are missing."""

    fresh: list[Path]
    aside: dict[Path, str]
    unchecked: dict[Path, str]
    missing: list[Path]


def set_apart(flow: Workflow) -> Restored:
    """Hold every artifact of the configuration against its manifest and the settings.

    What does not agree is renamed to a hidden name beside it, so that the next run makes it anew; it comes back when
    a later check with other settings finds that it agrees. What was made from something that is not here stays.

    Raises InputError, before any is renamed, for two results of one name, one of them set aside earlier, that both do not agree.
    """
    fresh: set[Path] = set()
    aside: dict[Path, str] = {}
    unchecked: dict[Path, str] = {}
    missing = []
    for artifact in artifacts(flow):
        _bring_back(artifact.path)
        if not artifact.path.exists():
            missing.append(artifact.path)
        elif not (reason := _damage(artifact.path)) and (absent := _absent(artifact, aside, unchecked)):
            unchecked[artifact.path] = absent
        elif not (reason := reason or _disagreement(artifact, fresh)) or _earlier_agrees(artifact, fresh):
            fresh.add(artifact.path)
        else:
            aside[artifact.path] = reason
    for path in aside:
        if stale(path).exists():
            raise InputError(
                f"{path} is to be set aside, and {stale(path)}, which was set aside earlier, would be lost: record or remove one of them"
            )
    for path in aside:
        os.replace(path, stale(path))
    if RESULTS / "report" in fresh:
        _check_published(flow, fresh, aside, missing)
    return Restored(sorted(fresh), aside, unchecked, missing)


def _check_published(flow: Workflow, fresh: set[Path], aside: dict[Path, str], missing: list[Path]) -> None:
    """What git keeps is a function of the stages; it is compared with what they say."""
    texts = published_files(reported_runs(flow))
    outputs: dict[Path, dict[str, str]] = {}
    for name, text in texts.items():
        outputs.setdefault(RESULTS / name.split("/")[0], {})[name] = text
    for output, files in outputs.items():
        _bring_back(output)
        wrong = [name for name, text in files.items() if not _has_text(RESULTS / name, text)]
        if not output.exists():
            missing.append(output)
        elif wrong:
            remove(stale(output))
            os.replace(output, stale(output))
            aside[output] = f"{RESULTS / wrong[0]} is not what the finished stages give"
        else:
            fresh.add(output)


def _has_text(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _earlier_agrees(artifact: Artifact, fresh: set[Path]) -> bool:
    """Whether what was set aside earlier agrees, which then has changed places with what came since."""
    if not stale(artifact.path).exists():
        return False
    _exchange(artifact.path)
    with suppress(InputError):
        if _damage(artifact.path) is None and _disagreement(artifact, fresh) is None:
            return True
    _exchange(artifact.path)
    return False


def _exchange(path: Path) -> None:
    between = stale(stale(path))
    os.replace(path, between)
    os.replace(stale(path), path)
    os.replace(between, stale(path))


def _bring_back(path: Path) -> None:
    if not path.exists() and stale(path).exists():
        os.replace(stale(path), path)


def restore(flow: Workflow, given: Sequence[Path | str]) -> Restored:
    """``set_apart``, then tell Snakemake that the artifacts that agree are up to date, with the parameters they have now.

    ``given`` is what the configuration was loaded from.

    Raises InputError while a run is at work here, for a configuration that Snakemake would refuse, or when Snakemake fails,
    which then names what was set aside.
    """
    flow.check()
    with locked():
        found = set_apart(flow)
        if found.fresh:
            files, settings = files_of(given), settings_of(given)
            options = [*(["--configfile", *files] if files else []), *(["--config", *settings] if settings else [])]
            # Without hooks: the lock is held here.
            options += ["--touch", "--forceall", "--no-hooks", "--quiet", "all"]
            try:
                _run("Snakemake", [sys.executable, "-m", "snakemake", *options, "--", *map(str, found.fresh)])
            except InputError as fault:
                raise InputError("\n  set aside before: ".join([str(fault), *map(str, found.aside)])) from None
    return found


def finished() -> list[Path]:
    """Every artifact in results/ that DVC records: folders with a manifest, and tables that carry one."""
    return sorted(_finished_below(RESULTS))


def _finished_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or (folder == RESULTS and path.name in NOT_RECORDED) or path.match(SHARDS):
            continue
        if path.is_dir() and not (path / MANIFEST).is_file():
            yield from _finished_below(path)
        elif path.is_dir() or (path.suffix == ".parquet" and has_manifest(path)):
            yield path


def record() -> list[Path]:
    """Give every finished artifact to DVC: its content into DVC's cache, a .dvc file beside it, staged in git.

    DVC writes recorded tables anew; their times, by which Snakemake judges them, are set back.

    Raises InputError outside a clone, while a run is at work here, when nothing is finished, or when DVC or git fails.
    """
    if not Path(".dvc").is_dir():
        raise InputError("there is no .dvc here; results are recorded in the root of a clone of this project")
    with locked():
        found = finished()
        if not found:
            raise InputError("results/ holds nothing that is finished")
        times = {path: path.stat() for path in found if path.is_file()}
        try:
            for start in range(0, len(found), AT_ONCE):
                paths = map(str, found[start : start + AT_ONCE])
                _run("dvc add", [sys.executable, "-m", "dvc", "add", "--quiet", *paths])
        finally:
            for path, before in times.items():
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        _run("git add", ["git", "add", str(RESULTS)])
    return found


def _run(name: str, command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise InputError(f"{name} failed: {(result.stderr or result.stdout).strip()}")
