"""Where a run stands: which product is at which stage, what is at work, what failed, and where its log is."""

import re
import time
from collections.abc import Iterable
from typing import NamedTuple

from seas.plan import Job, planned
from seas.runs import alive_holder
from seas.workflow import Workflow

STAGES = ("index", "split", "generator", "rmp", "generation", "crop_and_paste", "metrics")
SHORT = {"crop_and_paste": "paste"}
METER = re.compile(r"(\d+)/(\d+) \[")
"""The end of a progress line: steps done of all."""
TAIL_BYTES = 20_000
SILENT_SECONDS = {"metrics": 3600, "report": 3600}
"""Metrics print a line for each type, 1000 images in the paper's networks on a CPU; the report prints none."""
SILENT_SECONDS_OF_OTHERS = 180
"""Any other job that computes prints a line every 5 s; the longest breaks are the loading and the writing of a base."""


class State(NamedTuple):
    """done, running, silent (running by the run, not by its log), stopped (begun, nobody works on it), failed, or waiting;
    ``note``: how far, or the log's last word."""

    name: str
    note: str = ""


def state(job: Job, begun: float | None) -> State:
    """The state of one job; ``begun`` is when the run that is at work began (seconds since the epoch), None without one."""
    if job.finished:
        return State("done")
    try:
        with open(job.log, "rb") as file:
            file.seek(max(0, job.log.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        written = job.log.stat().st_mtime
    except OSError:
        return State("waiting")
    told = [number for number, line in enumerate(lines) if line.startswith("seas: ")]
    if told and all(line.startswith("  ") for line in lines[told[-1] + 1 :]):  # of several faults, one a line
        return State("failed", " ".join(map(str.strip, lines[told[-1] :])).removeprefix("seas: "))
    meters = [found.groups() for line in lines if (found := METER.search(line))]
    far = f"{meters[-1][0]} of {meters[-1][1]}" if meters else "begun"
    if begun is not None and written >= begun:
        silent = time.time() - written
        if silent > SILENT_SECONDS.get(job.stage, SILENT_SECONDS_OF_OTHERS):
            return State("silent", f"{far}, silent for {silent / 60:.0f} min: waiting to be resubmitted, or dead")
        return State("running", f"{far}, {silent:.0f} s ago")
    return State("stopped", far)


def progress_page(flow: Workflow) -> str:
    """The state of every job of a configuration, as a page of text."""
    holder = alive_holder()
    begun = holder.since if holder else None
    jobs = list(planned(flow).values())
    states = {job.output: state(job, begun) for job in jobs}
    done = sum(found.name == "done" for found in states.values())
    at_work = f"{holder} is running the workflow" if holder else "no run is at work"
    lines = [f"{done} of {len(jobs)} jobs are done; {at_work}", ""]

    for run in sorted({job.run for job in jobs if job.stage in STAGES and job.stage != "index"}):
        dataset = run.split("/")[0]
        of_run = [job for job in jobs if job.run == run or job.run == dataset]
        products = sorted({job.subject for job in of_run if job.stage in STAGES and job.stage != "index"})
        stages = [stage for stage in STAGES if any(job.stage == stage for job in of_run)]
        rows = [["", *(SHORT.get(stage, stage) for stage in stages)]]
        for product in products:
            cells = {job.stage: _cell(states[job.output]) for job in of_run if job.subject == product}
            rows.append([product, *(cells.get(stage, "") for stage in stages)])
        lines += [run, *_aligned(rows), ""]
    others = [job for job in jobs if job.stage in ("base", "downstream", "report")]
    lines += _aligned([[_title(job), _cell(states[job.output])] for job in others])

    headings = {"running": "running", "silent": "silent", "stopped": "stopped, to be continued", "failed": "failed"}
    for name, heading in headings.items():
        chosen = [job for job in jobs if states[job.output].name == name]
        if chosen:
            lines += ["", f"{heading}:"]
        for job in chosen:
            lines += [f"  {_title(job)}: {states[job.output].note}", f"    log: {job.log}"]
    return "\n".join(lines)


def _title(job: Job) -> str:
    return " ".join(filter(None, (job.run, job.stage, job.subject if job.subject != job.stage else "")))


def _cell(found: State) -> str:
    if found.name == "waiting":
        return "-"
    if found.name == "running" and (far := re.match(r"(\d+) of (\d+)", found.note)):
        return f"{100 * int(far[1]) // int(far[2])} %"
    return found.name


def _aligned(rows: Iterable[list[str]]) -> list[str]:
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
