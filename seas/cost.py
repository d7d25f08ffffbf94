"""What a run costs before it is begun: jobs, hours, disk, memory of a stage's largest job and the longest path, from settings
and the times of steps.

The seconds of a step come from finished stages that were made with the same settings (``run_facts``) where there are some
with the same device; else from ``seas.resources``, where each is a measurement on a CPU, a goal or a guess. The page says
which.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from seas.artifacts import run_facts
from seas.plan import Job, planned
from seas.resources import MEASURED, Rate, memory_mb, rate
from seas.versions import made_as_wanted
from seas.workflow import Workflow

STARTING_SECONDS = {"index": 10, "split": 10, "report": 30}
A_START = 40
"""Seconds of a job that are not its steps: Snakemake twice, the libraries, loading the model. 10 to 60 were measured."""
FINISHED = "finished stages"
BYTES_A_PARAMETER = {"base": 2.5, "fp32": 5.0, "bf16": 2.5}
"""On the disk, for each parameter of the U-Net: a base in fp16, whose VAE and text encoder are a quarter more; a generator by
its precision (bf16 is saved in fp16), whose text encoder is a seventh more, and whose VAE is a link to the base's file. The
encoded images are in it: 10 MB of 58 in the demo, and by their shapes 180 MB of Stable Diffusion's with 27 shots."""
BYTES_A_PIXEL = 2.0
"""An image with its mask as PNG, at most: 2.0 were measured on the miniature at 64 px, 0.5 on magnetic tiles at 512 px."""
FOLDER_BYTES = {"rmp": 5e6, "downstream": 19.2e6, "report": 8e6}
"""Measured on the demo."""


def rates_of_finished(jobs: Mapping[Path, Job]) -> dict[tuple[str, str], float]:
    """(stage, device) → seconds of one step, over the finished ones of ``jobs`` that tell how long they took.

    Of a stage that counts its updates or pairs, they and their seconds tell, in its last start if it was interrupted; of
    another the whole time does.
    """
    seconds, steps = defaultdict(float), defaultdict(float)
    told = {job.merged or job.output: job for job in jobs.values() if job.work.steps}
    for folder, job in told.items():
        run, key = run_facts(folder), (job.work.stage, job.work.device)
        if not run or (run["device"] == "cpu") != (job.work.device == "cpu"):
            continue
        measured = run.get("measured", {})
        if job.work.counted:
            # An update can have several steps; an image without a mask takes about as long as a pair.
            of_one = job.work.steps / job.work.counted if measured.get("updates") else 1
            seconds[key] += measured.get("update_seconds", 0) + measured.get("pair_seconds", 0)
            steps[key] += of_one * (measured.get("updates", 0) + measured.get("pairs", 0))
        else:
            seconds[key] += run["wall_seconds"]
            steps[key] += job.work.steps
    return {key: seconds[key] / steps[key] for key in seconds if steps[key]}


def expected_rate(job: Job, finished: Mapping[tuple[str, str], float]) -> Rate:
    """Seconds of one step of a job, and where they come from."""
    key = (job.work.stage, job.work.device)
    return Rate(finished[key], FINISHED) if key in finished else rate(job.work)


def seconds(job: Job, finished: Mapping[tuple[str, str], float]) -> float:
    """The wall time of one job."""
    return STARTING_SECONDS.get(job.stage, A_START) + job.work.steps * expected_rate(job, finished).seconds


def disk_bytes(job: Job) -> float:
    """What a job leaves on the disk."""
    if job.stage in ("generator", "base"):
        kind = "base" if job.stage == "base" else job.work.precision
        return BYTES_A_PARAMETER[kind] * job.work.parameters * job.work.models
    if job.stage in ("generation", "crop_and_paste", "generation_shard"):  # merging makes no image
        return BYTES_A_PIXEL * job.work.pixels * job.work.steps
    return FOLDER_BYTES.get(job.stage, 0) * job.work.models


def longest_path(jobs: Mapping[Path, Job], finished: Mapping[tuple[str, str], float]) -> tuple[float, list[Job]]:
    """Seconds and jobs of the chain that no number of machines shortens."""
    ends: dict[Path, float] = {}
    before: dict[Path, Path | None] = {}
    for output, job in jobs.items():
        latest = max((path for path in job.after if path in ends), key=ends.__getitem__, default=None)
        before[output] = latest
        ends[output] = (ends[latest] if latest else 0) + seconds(job, finished)
    step = max(ends, key=ends.__getitem__)
    total, chain = ends[step], []
    while step:
        chain.append(jobs[step])
        step = before[step]
    return total, chain[::-1]


def cost_page(flow: Workflow) -> str:
    """The estimate for a configuration, as a page of text."""
    jobs = planned(flow)
    made = made_as_wanted(flow)
    finished = rates_of_finished({path: job for path, job in jobs.items() if (job.merged or path) in made})
    stages = list(dict.fromkeys(job.stage for job in jobs.values()))
    rows = [["stage", "jobs", "steps", "s a step", "from", "GPU-hours", "CPU-hours", "GB disk", "GB memory"]]
    totals = [0.0, 0.0, 0.0]
    for stage in stages:
        of_stage = [job for job in jobs.values() if job.stage == stage]
        gpu = sum(seconds(job, finished) for job in of_stage if job.gpu) / 3600
        cpu = sum(seconds(job, finished) for job in of_stage if not job.gpu) / 3600
        disk = sum(map(disk_bytes, of_stage)) / 1e9
        steps = sum(job.work.steps for job in of_stage)
        expected = expected_rate(of_stage[0], finished)
        told = [f"{expected.seconds:.3f}", expected.source] if steps else ["", MEASURED]
        memory = max(memory_mb(job.work) for job in of_stage) / 1000
        hours = [f"{gpu:.1f}", f"{cpu:.1f}"]
        rows.append([stage, f"{len(of_stage)}", f"{steps}", *told, *hours, f"{disk:.1f}", f"{memory:.1f}"])
        totals = [total + part for total, part in zip(totals, (gpu, cpu, disk), strict=True)]
    rows.append(["all", f"{len(jobs)}", "", "", "", *(f"{total:.1f}" for total in totals), ""])
    total, chain = longest_path(jobs, finished)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    names = " → ".join(dict.fromkeys(job.stage for job in chain))
    lines += ["", f"longest path: {total / 3600:.1f} hours ({names}); nothing is counted for waiting in the queue"]
    return "\n".join(lines)
