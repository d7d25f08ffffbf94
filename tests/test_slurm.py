"""The shipped SLURM profile on a real SLURM: the chain, and jobs, nodes and controllers that die.

Run by `make test-slurm`. What the scheduler itself recorded is asserted, not only what lies on the disk.
"""

import json
import os
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

from slurm import REQUIRE, Slurm, Unavailable, until

pytestmark = pytest.mark.slurm

OVERLAY = ["--profile", "slurm", "--slurm-init-seconds-before-status-checks", "14", "--latency-wait", "10"]
GPU = ["generator:gpu=1", "generator:gpu_model=fake", "generator:slurm_partition=gpu"]
GENERATOR = Path("results/mine/seas/seed0/generator/washer")
CHECKPOINT = GENERATOR.with_name(".washer.working") / "checkpoint.safetensors"
LONG = {"updates_per_type": 200, "checkpoint_every": 10}
"""Some 20 s of training, so that there is time to be killed in."""


@pytest.fixture(scope="module")
def cluster():
    slurm = Slurm()
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

    def ended(self, seconds: float = 400) -> str:
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


def of_rule(cluster, rule, since=0):
    """The scheduler's records of a rule's or a group's jobs with a number above ``since``, in the order of submission."""
    found = [job for job in cluster.records() if job.get("Comment", "").startswith(f"rule_{rule}")]
    return [job for job in found if int(job["JobId"]) > since]


def memory(job):
    return int(job["MinMemoryNode"].removesuffix("M"))


def newest(cluster):
    return max((int(job["JobId"]) for job in cluster.records()), default=0)


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory):
    """The whole chain, with a photograph's mask that is damaged until the first job has failed over it."""
    house = make_house(tmp_path_factory.mktemp("slurm") / "house")
    (house / "slurm").symlink_to("workflow/profiles/slurm")
    (house / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"generator": LONG}))
    mask = house / "data/mine/washer/ground_truth/rust/001_mask.png"
    content = mask.read_bytes()
    mask.write_bytes(bytes(len(content)))  # the same size: the run's plan does not change when it is mended
    run = Run(house, "--set-resources", *GPU)
    until(lambda: "FAILED" in cluster.completions().values() or run.process.poll() is not None, 200)
    mask.write_bytes(content)
    house.joinpath("output.txt").write_text(run.ended())
    return house


def test_the_chain_from_data_to_report(finished, cluster):
    assert json.loads((finished / "results/metrics.json").read_text())
    assert (finished / "results/report/index.html").exists()
    states = cluster.completions()
    rules = ("base_model", "generator", "rmp", "generation", "crop_and_paste", "metrics", "downstream", "report")
    for rule in rules:
        jobs = of_rule(cluster, rule)
        assert len(jobs) == (3 if rule == "downstream" else 1), rule
        assert all(states[job["JobId"]] == "COMPLETED" for job in jobs)
    assert not (finished / "results/.run").exists()


def test_what_a_job_asks_of_the_scheduler(finished, cluster):
    with_gpu = [job for job in cluster.records() if "gpu" in job.get("TresPerJob", "")]
    assert [job["Comment"].split("_wildcards")[0] for job in with_gpu] == ["rule_generator"]
    assert with_gpu[0]["Partition"] == "gpu" and with_gpu[0]["NodeList"] == "node2"
    (report,) = of_rule(cluster, "report")
    assert (memory(report), report["TimeLimit"], report["NumCPUs"]) == (3100, "00:20:00", "1")


def test_a_job_that_failed_is_submitted_again_and_asks_for_more(finished, cluster):
    groups = [job for job in cluster.records() if job.get("Comment", "").startswith("rule_tables")]
    assert [cluster.completions()[job["JobId"]] for job in groups] == ["FAILED", "COMPLETED"]
    assert memory(groups[1]) > memory(groups[0])
    assert groups[1]["TimeLimit"] > groups[0]["TimeLimit"]
    # The log of the job that failed is on the screen.
    text = (finished / "output.txt").read_text()
    assert "ground_truth/rust/001_mask.png cannot be read: it is no picture" in text


def test_afterwards_there_is_nothing_to_do(finished):
    assert "Nothing to be done" in Run(finished, "-n").ended()


@pytest.fixture
def training(finished, cluster, tmp_path):
    """A copy of the finished house whose generator trains anew, stopped at its first checkpoint: house, run, its job."""
    house = tmp_path / "house"
    shutil.copytree(finished, house, symlinks=True)
    shutil.rmtree(house / GENERATOR)
    before = newest(cluster)
    run = Run(house, "--", str(GENERATOR))
    until(lambda: (house / CHECKPOINT).exists() or run.process.poll() is not None, 120)
    (job,) = of_rule(cluster, "generator", before)
    assert job["JobState"] == "RUNNING"
    return house, run, job


def same_weights(house, finished):
    contents = [json.loads((path / GENERATOR / "manifest.json").read_text())["content"] for path in (house, finished)]
    assert contents[0] == contents[1]
    log = house / "results/logs/mine/seas/seed0/generator/washer.log"
    assert "continues at update" in log.read_text()
    left = [path for path in (house / GENERATOR.parent).iterdir() if path.name.startswith(".")]
    assert not left and not (house / "results/.run").exists()


@pytest.mark.parametrize(
    ("command", "end"),
    [("scancel {id}", "CANCELLED"), ("scontrol update JobId={id} EndTime=now+1second", "TIMEOUT")],
)
def test_a_cancelled_or_timed_out_job_is_submitted_again_and_resumes(command, end, training, finished, cluster):
    house, run, job = training
    cluster.ask(*command.format(id=job["JobId"]).split())
    run.ended()
    first, second = of_rule(cluster, "generator", int(job["JobId"]) - 1)
    assert cluster.completions()[first["JobId"]] == end
    assert cluster.completions()[second["JobId"]] == "COMPLETED"
    assert memory(second) > memory(first)
    same_weights(house, finished)


def test_a_node_that_loses_power(training, finished, cluster):
    house, run, job = training
    cluster.lose_power(job["NodeList"])
    try:
        run.ended()
        first, second = of_rule(cluster, "generator", int(job["JobId"]) - 1)
        assert cluster.completions()[first["JobId"]] == "NODE_FAIL"
        assert cluster.completions()[second["JobId"]] == "COMPLETED"
        assert second["NodeList"] != job["NodeList"]
    finally:
        cluster.restore_power(job["NodeList"])
    same_weights(house, finished)


def test_a_killed_controller(training, finished, cluster):
    """Meanwhile a second run is refused; afterwards the next one cancels the orphan before it submits its successor."""
    house, run, job = training
    refused = Run(house, "--", str(GENERATOR))
    assert refused.process.wait(timeout=100) == 1
    host = socket.gethostname()
    assert f"process {run.process.pid} of " in refused.text and f"on {host} is running the workflow" in refused.text
    assert "Traceback" not in refused.text

    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    assert (house / "results/.run").exists()
    assert of_rule(cluster, "generator", int(job["JobId"]) - 1)[0]["JobState"] == "RUNNING"
    Run(house, "--", str(GENERATOR)).ended()
    first, second = of_rule(cluster, "generator", int(job["JobId"]) - 1)
    assert cluster.completions()[first["JobId"]] == "CANCELLED"
    assert cluster.completions()[second["JobId"]] == "COMPLETED"
    assert first["EndTime"] <= second["SubmitTime"]
    same_weights(house, finished)
