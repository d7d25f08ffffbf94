"""What the runs cost, computed from their folders (Tab. 7)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seas.artifacts import read_table, run_facts
from seas.report.page import Block
from seas.report.runs import ReportedRun
from seas.report.tables import MISSING, TextTable, paper_results
from seas.training import LOSSES


def cost(runs: Sequence[ReportedRun]) -> Block:
    """One row for each run, and the paper's.

    Hours are those of all updates of all products one after the other, at the rate of the updates that were timed:
    an interrupted training keeps the times of its last start alone. Milliseconds are those of an image with its mask.
    """
    rows = []
    for run in runs:
        generators = [results.generator for results in run.products.values()]
        branches = [results.rmp for results in run.products.values()]
        hours = [sum(map(hours_of, trained)) for trained in (generators, branches)]
        images = [results.generation for results in run.products.values()]
        folders = [*generators, *branches, *images]
        peak = max(map(peak_memory, folders), default=np.nan)
        devices = sorted({str(run_facts(folder).get("device", MISSING)) for folder in folders})
        numbers = [_shown(hours[0]), _shown(hours[1]), _shown(sum(hours)), _shown(ms_an_image(images)), _shown(peak)]
        rows.append([run.dataset, run.experiment, str(run.seed), *numbers, ", ".join(devices)])
    printed = paper_results().query("level == 'cost' and method == 'seas'").set_index("metric").paper
    paper = [_shown(printed["train_hours"]), _shown(printed["ms_per_image"])]
    rows.append(["mvtec_ad", "paper (Tab. 7)", MISSING, MISSING, MISSING, *paper, MISSING, "A100 40 GB"])
    headings = [
        "dataset",
        "experiment",
        "seed",
        "generator h",
        "mask branch h",
        "both h",
        "ms an image",
        "GB",
        "device",
    ]
    sentences = [
        "Hours of training, products one after the other, and milliseconds an image with its mask, as this machine took "
        "them; GB is the largest peak of the device's memory, on a CPU of the process."
    ]
    return Block("Cost", sentences, TextTable(headings, rows))


def hours_of(folder: Path) -> float:
    """Hours of one product's training; NaN where no update was timed."""
    measured = run_facts(folder).get("measured", {})
    if not measured.get("updates"):
        return np.nan
    losses = sorted(folder.glob(f"*/{LOSSES}")) or [folder / LOSSES]  # of each type's model, or of the one of all types
    updates = sum(read_table(file).step.iloc[-1] for file in losses)
    return measured["update_seconds"] / measured["updates"] * updates / 3600


def ms_an_image(folders: Sequence[Path]) -> float:
    """Milliseconds of one image with its mask, mean over the pairs of all folders that were timed; NaN where none was."""
    measured = [run_facts(folder).get("measured", {}) for folder in folders]
    pairs = sum(part.get("pairs", 0) for part in measured)
    return 1000 * sum(part.get("pair_seconds", 0) for part in measured) / pairs if pairs else np.nan


def peak_memory(folder: Path) -> float:
    """The peak in GB (10⁹ bytes) of the device's memory, on a CPU of the process's."""
    facts = run_facts(folder)
    peak = facts.get("peak_device_memory_mib", facts.get("peak_memory_mib"))
    return np.nan if peak is None else peak * 2**20 / 1e9


def _shown(value: float) -> str:
    return MISSING if np.isnan(value) else f"{value:.3g}"
