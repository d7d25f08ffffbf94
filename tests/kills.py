"""Stress: the tiny chain killed (SIGKILL) at random moments, started again each time by the same command.

A kill hits one stage's own process, or Snakemake's whole process group. When a chain is whole, its artifacts are compared
with those of an undisturbed run, and it begins anew, until all kills are spent. From the repository's root::

    .venv/bin/python tests/kills.py --stage 180 --group 20

It prints a table, and ends with status 1 when an artifact differs, is damaged, or something was left behind.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml
from test_workflow import command, contents, make_house

from seas.artifacts import damage, has_manifest, sha256
from seas.runs import LOCK, alive_holder
from slurm import processes_in

LONGER = {
    "base": {"vae_updates": 20, "unet_updates": 20, "checkpoint_every": 5},
    "generator": {"updates_per_type": 6, "checkpoint_every": 5},
    "rmp": {"updates_per_type": 6, "checkpoint_every": 5},
    "generation": {"pairs_per_type": 8, "normals": 8, "batch_size": 2},
    "downstream": {"updates": 20, "checkpoint_every": 5},
}
"""Stages long enough to be killed within, with checkpoints to resume from."""
LATEST = 30.0
"""Seconds after the start within which a kill is drawn: Snakemake plans for about three, a stage loads for about five."""
BETWEEN = "(between two stages)"


def stages_of(session: int) -> dict[int, str]:
    """The running stage processes of a session: process → rule."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        rules = [match[1] for word in words if (match := re.search(r"\.snakemake/scripts/\w+\.(\w+)\.py$", word))]
        if rules and int(of) == session and state != "Z" and "python" in Path(words[0]).name:
            found[int(folder.name)] = rules[0]
    return found


def fingerprint(house: Path) -> dict:
    """What has to be equal: the hashes of all contents, of the tables, and of metrics.json."""
    results = house / "results"
    files = [*results.glob("*/data/*.parquet"), *results.glob("*/*/*/split/*.parquet")]
    files += [*results.glob("*/*/*/metrics/*.parquet"), results / "metrics.json"]
    return contents(house) | {str(file.relative_to(house)): sha256(file) for file in files}


def faults(house: Path, wanted: dict) -> list[str]:
    """What is wrong with a finished chain."""
    found = fingerprint(house)
    wrong = [f"{name} differs" for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    artifacts = [manifest.parent for manifest in (house / "results").rglob("manifest.json")]
    artifacts += [table for table in (house / "results").rglob("*.parquet") if has_manifest(table)]
    wrong += [sentence for path in artifacts if (sentence := damage(path))]
    left = [path for path in (house / "results").rglob(".*") if path.name != ".snakemake_timestamp"]
    # A run that was killed after its last job leaves its lock to the next run that has something to do.
    left = [path for path in left if path.name != LOCK.name or alive_holder(path)]
    wrong += [f"{path.relative_to(house)} is left behind" for path in left]
    return wrong + [f"process {process} is left behind" for process in processes_in(house)]


class Chain:
    """One house whose chain is started, killed and started again."""

    def __init__(self, house: Path, draws: random.Random) -> None:
        self.house, self.draws = house, draws
        self.killed: Counter[tuple[str, str]] = Counter()
        self.starts = 0

    def start(self, kill: str | None) -> bool:
        """Start once, and kill "stage" or "group" if the chain still runs then; whether the chain is whole.

        Raises SystemExit when an undisturbed run fails.
        """
        self.starts += 1
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                command("config/longer.yaml"), cwd=self.house, stdout=output, stderr=output, start_new_session=True
            )
            hit = self._kill(process, kill) if kill else False
            code = process.wait()
            output.seek(0)
            text = output.read()
        if code and not hit:
            sys.exit(f"a run that was not killed failed:\n{text}")
        return code == 0

    def _kill(self, process: subprocess.Popen, kind: str) -> bool:
        moment = time.monotonic() + self.draws.uniform(0, LATEST)
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.01)
        if kind == "stage":
            while process.poll() is None and not stages_of(process.pid):
                time.sleep(0.01)
            time.sleep(self.draws.uniform(0, 0.5))
        stages = stages_of(process.pid)
        if process.poll() is not None or (kind == "stage" and not stages):
            return False
        if kind == "stage":
            victim = self.draws.choice(sorted(stages))
            os.kill(victim, signal.SIGKILL)
            self.killed[kind, stages[victim]] += 1
        else:
            os.killpg(process.pid, signal.SIGKILL)
            self.killed[kind, " and ".join(sorted(stages.values())) or BETWEEN] += 1
        return True

    def begin_anew(self) -> None:
        """Forget all results and all of Snakemake's memory."""
        shutil.rmtree(self.house / "results")
        shutil.rmtree(self.house / ".snakemake")


def longer_house(folder: Path) -> Path:
    """A tiny house with the longer stages."""
    house = make_house(folder)
    (house / "config/longer.yaml").write_text(yaml.safe_dump(LONGER))
    return house


def main() -> None:
    """Run the stress and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, default=180, help="kills of a stage's own process")
    parser.add_argument("--group", type=int, default=20, help="kills of Snakemake's whole process group")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the kinds and moments")
    arguments = parser.parse_args()
    draws, began = random.Random(arguments.seed), time.monotonic()
    kills = ["stage"] * arguments.stage + ["group"] * arguments.group
    draws.shuffle(kills)
    print(f"seed {arguments.seed}", flush=True)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        reference = Chain(longer_house(Path(folder) / "reference"), draws)
        while not reference.start(None):
            pass
        wanted = fingerprint(reference.house)
        chain, chains = Chain(longer_house(Path(folder) / "house"), draws), 0
        while True:
            spent = chain.killed.total()
            whole = chain.start(kills[spent] if spent < len(kills) else None)
            if chain.killed.total() > spent:
                print(
                    f"{chain.killed.total()} of {len(kills)} kills, {chains} chains whole", file=sys.stderr, flush=True
                )
            if whole:
                chains += 1
                wrong += faults(chain.house, wanted)
                if spent == len(kills):
                    break
                chain.begin_anew()
    rules = sorted({rule for _, rule in chain.killed})
    print("| running when it was hit | kills of the stage | kills of the group |\n|---|---|---|")
    for rule in rules:
        print(f"| {rule} | {chain.killed['stage', rule]} | {chain.killed['group', rule]} |")
    print(f"| all | {arguments.stage} | {arguments.group} |\n")
    print(
        f"{chain.killed.total()} kills, {chain.starts} starts by one and the same command, {chains} whole chains of "
        f"{len(wanted)} compared artifacts; "
        f"faults: {len(wrong)}; {(time.monotonic() - began) / 60:.0f} minutes."
    )
    print("All hashes equal those of an undisturbed run." if not wrong else "\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
