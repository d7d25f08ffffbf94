"""Every job of a configuration: what it makes, where its log is, what it waits for. As the rules have it; a test compares them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from seas.artifacts import MANIFEST
from seas.downstream.settings import TREES
from seas.resources import Work
from seas.workflow import Workflow


class Job(NamedTuple):
    """One job. ``run`` is dataset/experiment/seed, or the dataset alone; ``subject`` is the product, the arm or the base.

    ``merged`` is what a shard's output becomes part of, which outlives it.
    """

    stage: str
    run: str
    subject: str
    output: Path
    log: Path
    after: tuple[Path, ...]
    work: Work
    merged: Path | None = None

    @property
    def gpu(self) -> int:
        """GPUs that it asks for."""
        return int(self.work.device == "cuda")

    @property
    def finished(self) -> bool:
        """Whether its output, or the whole that it was merged into, is there; a folder counts once it is whole."""
        outputs = filter(None, (self.output, self.merged))
        return any(output.is_file() or (output / MANIFEST).is_file() for output in outputs)


def planned(flow: Workflow) -> dict[Path, Job]:
    """The jobs of a configuration by their output, each after those that it waits for; what runs share stands once."""
    jobs: dict[Path, Job] = {}
    for dataset, experiment, seed in flow.runs():
        for job in _of_a_run(flow, dataset, experiment, seed):
            jobs.setdefault(job.output, job)
    report = Path("results/report")
    jobs[report] = Job("report", "", "report", report, _log(report), tuple(jobs), flow.work("report", {}))
    return jobs


def _of_a_run(flow: Workflow, dataset: str, experiment: str, seed: int) -> Iterator[Job]:
    settings = flow.settings(dataset, experiment)
    base = Path(flow.base(dataset, experiment))
    if not settings.base.pretrained:
        yield Job("base", "", base.name, base, _log(base), (), flow.work("base", {"base": base.name}))

    def job(stage: str, subject: str, output: str, *after: str, work: str = "", log: Path | None = None, **wildcards):
        path = Path(output)
        run = dataset if stage == "index" else "/".join(path.parts[1:4])
        owner = experiment if stage == "index" else path.parts[2]  # whose settings the job obeys
        about = {"dataset": dataset, "experiment": owner} | wildcards
        done = flow.work(work or stage, about)
        return Job(stage, run, subject, path, log or _log(path), tuple(map(Path, after)), done)

    arms = settings.downstream.trained_on
    scopes = flow.scopes(dataset, settings)
    for product in sorted({product for scope in scopes for product in flow.products_of(dataset, scope)}):

        def folder(stage: str, product: str = product) -> str:
            return f"{flow.folder(dataset, experiment, seed, stage)}/{product}"

        index, split = f"results/{dataset}/data/{product}.parquet", folder("split") + ".parquet"
        generator, rmp, generation = folder("generator"), folder("rmp"), folder("generation")
        yield job("index", product, index, log=Path(f"results/logs/{dataset}/index/{product}.log"))
        yield job("split", product, split, index)
        yield job("generator", product, generator, str(base), split, product=product)
        yield job("rmp", product, rmp, generator, product=product)
        shards = flow.shards(dataset, experiment, seed, product)
        for shard in shards:
            name = f"{product}.{Path(shard).name}"
            made = job("generation_shard", name, shard, generator, rmp, work="generation", product=product)
            yield made._replace(merged=Path(generation))
        work = "merge" if shards else "generation"
        yield job("generation", product, generation, generator, rmp, *shards, work=work, product=product)
        if any("crop_and_paste" in TREES[arm] for arm in arms):
            yield job("crop_and_paste", product, folder("crop_and_paste"), split, product=product)
        yield job("metrics", product, folder("metrics") + ".parquet", generation, split, product=product)
    for model in settings.downstream.models:
        for arm in arms:
            for scope in scopes:
                products = flow.products_of(dataset, scope)
                after = [flow.split(dataset, experiment, seed, product) for product in products]
                after += [
                    f"{flow.folder(dataset, experiment, seed, tree)}/{p}" for tree in TREES[arm] for p in products
                ]
                output = flow.downstream(dataset, experiment, seed, model, arm, scope)
                yield job("downstream", f"{model}/{arm}/{scope}", output, *after, scope=scope)


def _log(output: Path) -> Path:
    inside = output.relative_to("results")
    name = inside.stem if inside.suffix == ".parquet" else inside.name
    return Path("results/logs") / inside.with_name(f"{name}.log")
