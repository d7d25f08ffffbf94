"""The shipped SLURM profile on a real SLURM: the chain, and jobs, nodes and controllers that die.

Run by `make test-slurm`. What the scheduler itself recorded is asserted, not only what lies on the disk.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_workflow import TINY, make_house

from slurm import CPUS, REQUIRE, Slurm, Unavailable, processes_in, until

pytestmark = pytest.mark.slurm

OVERLAY = ["--profile", "slurm", "--slurm-init-seconds-before-status-checks", "14", "--latency-wait", "10"]
GPU = ["generator:gpu=1", "generator:gpu_model=fake", "generator:slurm_partition=gpu"]
GENERATOR = Path("results/mine/seas/seed0/generator/washer")
CHECKPOINT = GENERATOR.with_name(".washer.working") / "checkpoint.safetensors"
LONG = {"updates_per_type": 60, "checkpoint_every": 10}
"""Some 8 s of training, so that there is time to be stopped in."""


def interrupt_once(*_) -> None:
    """SIGTERM, which `timeout` sends, as Ctrl-C: pytest ends its fixtures, and no daemon outlives the tests."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    signal.signal(signal.SIGTERM, interrupt_once)
    slurm = Slurm(tmp_path_factory.getbasetemp())
    try:
        slurm.start()
        yield slurm
    except Unavailable as reason:
        (pytest.fail if os.environ.get(REQUIRE) else pytest.skip)(f"no SLURM for the tests: {reason}")
    finally:
        slurm.stop()


class Run:
    """`snakemake --profile slurm` in a house, with its output."""

    def __init__(self, house: Path, *options: str) -> None:
        files = ["--configfile", "config/demo.yaml", "tiny.yaml"]
        command = [sys.executable, "-m", "snakemake", *OVERLAY, *files, *options]
        self.file = house / f"run{time.monotonic_ns()}.txt"
        with open(self.file, "w") as output:
            self.process = subprocess.Popen(command, cwd=house, stdout=output, stderr=output, start_new_session=True)

    def ended(self, seconds: float = 900) -> str:
        """What it printed, once it ended well."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.returncode == 0, self.text
        return self.text

    @property
    def text(self) -> str:
        return self.file.read_text()


def of_rule(cluster, house, rule):
    """The scheduler's records of a rule's or a group's jobs in a house, in the order of submission."""
    jobs = [job for job in cluster.records() if job["WorkDir"] == str(house)]
    return [job for job in jobs if job.get("Comment", "").startswith(f"rule_{rule}")]


def memory(job):
    return int(job["MinMemoryNode"].removesuffix("M"))


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory):
    """The whole chain, with a photograph that is damaged until the first job has failed over it."""
    house = make_house(tmp_path_factory.mktemp("slurm") / "house")
    (house / "slurm").symlink_to("workflow/profiles/slurm")
    compute = {"threads": TINY["compute"]["threads"] | {"metrics": CPUS}}
    (house / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"generator": LONG, "compute": compute}))
    photograph = house / "data/mine/washer/test/rust/001.png"
    content = photograph.read_bytes()
    photograph.write_bytes(bytes(len(content)))  # the same size: the run's plan does not change when it is mended
    run = Run(house, "--set-resources", *GPU)
    until(lambda: "FAILED" in cluster.completions().values() or run.process.poll() is not None, 200)
    photograph.write_bytes(content)
    house.joinpath("output.txt").write_text(run.ended())
    return house


def test_the_chain_from_data_to_report(finished, cluster):
    assert json.loads((finished / "results/metrics.json").read_text())
    assert (finished / "results/report/index.html").exists()
    states = cluster.completions()
    rules = ("base_model", "generator", "rmp", "generation", "crop_and_paste", "metrics", "downstream", "report")
    for rule in rules:
        jobs = of_rule(cluster, finished, rule)
        assert len(jobs) == (3 if rule == "downstream" else 1), rule
        assert all(states[job["JobId"]] == "COMPLETED" for job in jobs)
    assert not (finished / "results/.run").exists()


def test_what_a_job_asks_of_the_scheduler(finished, cluster):
    with_gpu = [job for job in cluster.records() if "gpu" in job.get("TresPerJob", "")]
    assert [job["Comment"].split("_wildcards")[0] for job in with_gpu] == ["rule_generator"]
    assert with_gpu[0]["Partition"] == "gpu" and with_gpu[0]["NodeList"] == "node2"
    # The machine that submits limits neither the threads of a job nor the number of GPU jobs.
    assert of_rule(cluster, finished, "metrics")[0]["NumCPUs"] == str(CPUS)
    (provided,) = re.findall("Provided resources: .*", (finished / "output.txt").read_text())
    assert "runtime" in provided and "gpu" not in provided
    (report,) = of_rule(cluster, finished, "report")
    assert (memory(report), report["TimeLimit"], report["NumCPUs"]) == (3061, "00:20:00", "1")
    # The retry is Snakemake's, which asks for more; SLURM would by its default start a lost node's jobs again as they were.
    assert {job["Requeue"] for job in cluster.records()} == {"0"}


def test_a_job_that_failed_is_submitted_again_and_asks_for_more(finished, cluster):
    groups = of_rule(cluster, finished, "tables")
    assert [cluster.completions()[job["JobId"]] for job in groups] == ["FAILED", "COMPLETED"]
    assert memory(groups[1]) > memory(groups[0])
    assert groups[1]["TimeLimit"] > groups[0]["TimeLimit"]
    # The log of the job that failed is on the screen.
    text = (finished / "output.txt").read_text()
    assert "test/rust/001.png cannot be read: it is no picture" in text


def test_a_products_bad_photograph_costs_no_other_product_its_tables(cluster, tmp_path):
    house = make_house(tmp_path / "house")
    (house / "slurm").symlink_to("workflow/profiles/slurm")
    shutil.copytree(house / "data/all/fabric", house / "data/mine/fabric")
    mask = house / "data/mine/washer/ground_truth/rust/001_mask.png"
    mask.write_bytes(bytes(mask.stat().st_size))
    splits = {product: f"results/mine/seas/seed0/split/{product}.parquet" for product in ("washer", "fabric")}
    run = Run(house, "--retries", "0", "--", *splits.values())
    assert run.process.wait(timeout=900) == 1, run.text
    jobs = of_rule(cluster, house, "tables")
    assert sorted(cluster.completions()[job["JobId"]] for job in jobs) == ["COMPLETED", "FAILED"]
    assert (house / splits["fabric"]).exists() and not (house / splits["washer"]).exists()


def test_afterwards_there_is_nothing_to_do(finished):
    assert "Nothing to be done" in Run(finished, "-n").ended()


def in_training(finished, cluster, house):
    """A copy of the finished house whose generator trains anew and hangs at its first checkpoint: the run, and its job."""
    shutil.copytree(finished, house, symlinks=True)
    shutil.rmtree(house / GENERATOR)
    run = Run(house, "--", str(GENERATOR))
    until(lambda: (house / CHECKPOINT).exists() or run.process.poll() is not None, 120)
    (job,) = of_rule(cluster, house, "generator")
    assert job["JobState"] == "RUNNING", run.text
    cluster.freeze(job["JobId"])
    return run, job


def ended_as(states, cluster, house, finished):
    """The jobs of the generator; they ended as ``states``, and the weights are those of the undisturbed run."""
    jobs = of_rule(cluster, house, "generator")
    assert [cluster.completions()[job["JobId"]] for job in jobs] == states
    contents = [json.loads((path / GENERATOR / "manifest.json").read_text())["content"] for path in (house, finished)]
    assert contents[0] == contents[1]
    log = house / "results/logs/mine/seas/seed0/generator/washer.log"
    assert "continues at update" in log.read_text()
    left = [path for path in (house / GENERATOR.parent).iterdir() if path.name.startswith(".")]
    assert not left and not (house / "results/.run").exists()
    until(lambda: not processes_in(house), 10)  # SLURM's own last process may outlive the record of the end
    return jobs


def test_jobs_that_are_cancelled_or_out_of_time_are_submitted_again_and_resume(finished, cluster, tmp_path):
    commands = {"CANCELLED": "scancel {id}", "TIMEOUT": "scontrol update JobId={id} EndTime=now+1second"}
    runs = {}
    for state, command in commands.items():
        runs[state], job = in_training(finished, cluster, tmp_path / state)
        cluster.ask(*command.format(id=job["JobId"]).split())
    for state, run in runs.items():
        run.ended()
        first, second = ended_as([state, "COMPLETED"], cluster, tmp_path / state, finished)
        assert memory(second) > memory(first)


def test_a_node_that_loses_power(finished, cluster, tmp_path):
    run, job = in_training(finished, cluster, tmp_path / "house")
    cluster.lose_power(job["NodeList"])
    try:
        run.ended()
    finally:
        cluster.restore_power(job["NodeList"])
    first, second = ended_as(["NODE_FAIL", "COMPLETED"], cluster, tmp_path / "house", finished)
    assert second["NodeList"] != first["NodeList"]


def test_a_killed_controller(finished, cluster, tmp_path):
    """While it lives a second run is refused; then the next one cancels the orphan before it submits its successor."""
    house = tmp_path / "house"
    run, job = in_training(finished, cluster, house)
    refused = Run(house, "--", str(GENERATOR))
    assert refused.process.wait(timeout=300) == 1
    assert f"\nseas: process {run.process.pid} of " in refused.text
    assert f"on {socket.gethostname()} is running the workflow in {house}" in refused.text
    assert "Traceback" not in refused.text and "Error" not in refused.text

    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    assert (house / "results/.run").exists()
    assert of_rule(cluster, house, "generator")[0]["JobState"] == "RUNNING"
    Run(house, "--", str(GENERATOR)).ended()
    first, second = ended_as(["CANCELLED", "COMPLETED"], cluster, house, finished)
    assert first["EndTime"] <= second["SubmitTime"]
