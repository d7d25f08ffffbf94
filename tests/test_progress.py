"""The plan of a configuration, where its run stands, and what it will cost."""

import json
import os
import socket
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from seas import artifacts, runs
from seas.artifacts import Provenance, write_json, write_table
from seas.cost import cost_page, disk_bytes, longest_path, rates_of_finished, seconds
from seas.plan import planned
from seas.progress import progress_page, state
from seas.versions import artifacts as artifacts_of
from seas.workflow import Workflow

RUN = Path("results/mine/seas/seed0")


@pytest.fixture
def flow(tmp_path, monkeypatch):
    """Two products of two types each, on a CPU, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    for product in ("bolt", "nut"):
        for folder in ("train/good", "test/good", "test/bent", "test/rust"):
            (tmp_path / "photos" / product / folder).mkdir(parents=True)
    for name, content in (("datasets/mine", {"root": "photos"}), ("experiments/seas", {}), ("experiments/tau", TAU)):
        path = tmp_path / f"config/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    return lambda **changes: Workflow(BASE | changes)


TAU = {"extends": "seas", "settings": {"generation": {"threshold": 0.3}}}
BASE = {
    "datasets": ["mine"],
    "base": {"name": "b", "pretrained": None, "vae_updates": 100, "unet_updates": 100},
    "compute": {"device": "cpu", "precision": "fp32"},
    "data": {"image_size": 64},
    "generator": {"updates_per_type": 500},
    "generation": {"pairs_per_type": 20, "normals": 20},
}


def finish(folder, wall_seconds=None, measured=None):
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    if wall_seconds:
        run = {"wall_seconds": wall_seconds, "device": "cpu", "measured": measured or {}}
        (folder / "run.json").write_text(json.dumps(run))


class TestPlan:
    def test_each_job_waits_for_what_it_reads(self, flow):
        jobs = planned(flow())
        assert jobs[RUN / "rmp/bolt"].after == (RUN / "generator/bolt",)
        arm = jobs[RUN / "downstream/bisenet_v2/generated/all"]
        trees = [RUN / "generation/bolt", RUN / "generation/nut"]
        assert arm.after == (RUN / "split/bolt.parquet", RUN / "split/nut.parquet", *trees)
        assert all(set(job.after) <= set(jobs) for job in jobs.values())

    def test_downstream_and_report_grow_with_photographs_and_products(self, flow):
        """Few test photographs are fewer than the 200 training images that a model's thresholds are chosen on."""
        scored = Path("downstream/bisenet_v2/generated/all")
        assert planned(flow(downstream={"image_size": 32}))[RUN / scored].work.tested == 200 * 32**2
        for number in range(203):
            (flow().datasets["mine"].root / f"nut/test/bent/{number}.png").touch()
        jobs = planned(flow(downstream={"image_size": 32}))
        assert jobs[RUN / scored].work.tested == 203 * 32**2
        assert jobs[Path("results/report")].work.steps == 2

    def test_what_experiments_share_stands_once(self, flow):
        alone, both = planned(flow()), planned(flow(experiments=["seas", "tau"]))
        new = sorted(job.stage for output, job in both.items() if output not in alone)
        assert new == ["downstream", *["generation"] * 2, *["metrics"] * 2]

    def test_shards_are_jobs_and_their_merging_uses_no_gpu(self, flow):
        compute = {"device": "cuda"}
        jobs = planned(flow(compute=compute, generation=BASE["generation"] | {"shards": 4}))
        shards = [job for job in jobs.values() if job.stage == "generation_shard"]
        assert len(shards) == 8 and {job.work.steps for job in shards} == {15} and {job.gpu for job in shards} == {1}
        merged = jobs[RUN / "generation/nut"]
        assert (merged.gpu, merged.work.steps) == (0, 0) and RUN / "shards/nut/3" in merged.after

    def test_a_shard_is_done_once_it_is_merged(self, flow):
        sharded = flow(generation=BASE["generation"] | {"shards": 2})
        log = Path("results/logs/mine/seas/seed0/shards/nut/0.log")
        log.parent.mkdir(parents=True)
        log.write_text("generation nut dent: 1/20 [00:01<00:19]\n")
        assert "nut.0: 1 of 20" in progress_page(sharded)
        finish(RUN / "generation/nut", wall_seconds=1)
        assert "nut.0" not in progress_page(sharded)

    def test_experiments_that_share_a_set_make_it_once_in_its_owners_shards(self, flow):
        Path("config/experiments/sharded.yaml").write_text("extends: seas\nsettings: {generation: {shards: 2}}\n")
        jobs = planned(flow(experiments=["seas", "sharded"]))
        assert not [job for job in jobs.values() if job.stage == "generation_shard"]


class TestCost:
    def test_hours_and_path_by_value(self, flow):
        jobs = planned(flow())
        # 1000 updates at the measured 0.065 s of a U-Net of 7.4 M parameters instead of 11.4 M, and the start
        generator = jobs[RUN / "generator/bolt"]
        parameters = 160 * (64**2 + 96**2 + 128**2 * 2)
        assert seconds(generator, {}) == pytest.approx(40 + 1000 * 0.065 * parameters / 11_447_496)
        total, chain = longest_path(jobs, {})
        assert [job.stage for job in chain][-2:] == ["downstream", "report"]
        assert total == pytest.approx(sum(seconds(job, {}) for job in chain))
        assert disk_bytes(generator) == 5.0 * parameters
        assert disk_bytes(jobs[RUN / "generation/bolt"]) == 2 * 64**2 * 60

    def test_disk_of_weights_in_half_precision_and_of_a_model_for_each_type(self, flow):
        base, generator, rmp = Path("results/base/b"), RUN / "generator/bolt", RUN / "rmp/bolt"
        plain = planned(flow())
        half = planned(flow(compute={"device": "cuda"}))
        apart = planned(flow(generator=BASE["generator"] | {"mixed_training": False}))
        assert disk_bytes(half[generator]) == disk_bytes(plain[generator]) / 2
        assert disk_bytes(half[base]) == disk_bytes(plain[base])
        assert disk_bytes(apart[generator]) == 2 * disk_bytes(plain[generator])
        assert disk_bytes(apart[rmp]) == 2 * disk_bytes(plain[rmp])

    def test_of_an_interrupted_stage_the_last_start_tells(self, flow):
        finish(RUN / "generator/bolt", wall_seconds=140, measured={"updates": 50, "update_seconds": 100.0})
        finish(RUN / "generator/nut", wall_seconds=1000, measured={"updates": 1000, "update_seconds": 950.0})
        finish(RUN / "generation/bolt", wall_seconds=30, measured={"pairs": 20, "pair_seconds": 20.0})
        finish(RUN / "generation/nut", wall_seconds=30, measured={"pairs": 0, "pair_seconds": 0.0})
        assert rates_of_finished(planned(flow())) == {("generator", "cpu"): 1.0, ("generation", "cpu"): 1.0}
        twice = flow(generator=BASE["generator"] | {"gradient_accumulation": 2})
        assert rates_of_finished(planned(twice))["generator", "cpu"] == 0.5
        shards = flow(generation=BASE["generation"] | {"shards": 2})
        assert rates_of_finished(planned(shards))["generation", "cpu"] == 1.0

    def test_finished_stages_tell_it_better(self, flow):
        finish(RUN / "generator/bolt", wall_seconds=2040, measured={"updates": 1000, "update_seconds": 2000.0})
        jobs = planned(flow())
        finished = rates_of_finished(jobs)
        assert finished == {("generator", "cpu"): 2.0}
        assert seconds(jobs[RUN / "generator/nut"], finished) == 40 + 1000 * 2.0
        assert rates_of_finished(planned(flow(compute={"device": "cuda"}))) == {}

    def test_a_table_of_metrics_tells_it_too(self, flow, monkeypatch):
        path, origin = RUN / "metrics/bolt.parquet", Provenance("metrics", 1, {}, 0, {})
        write_table(pd.DataFrame({"a": [1]}), path, origin)
        assert rates_of_finished(planned(flow())) == {}
        monkeypatch.setattr(artifacts, "STARTED", time.time() - 6000)
        write_table(pd.DataFrame({"a": [1]}), path, origin, facts=True)
        # 20 pairs of each of two types, and 20 normals
        assert rates_of_finished(planned(flow())) == {("metrics", "cpu"): pytest.approx(100, rel=0.01)}

    def test_the_page_says_where_its_numbers_come_from(self, flow):
        finish(RUN / "rmp/bolt", wall_seconds=200, measured={"updates": 1600, "update_seconds": 160.0})
        wanted = next(artifact for artifact in artifacts_of(flow()) if artifact.path == RUN / "rmp/bolt")
        manifest = {"stage": "rmp", "stage_version": wanted.stage_version, "settings": wanted.settings, "seed": 0}
        write_json(manifest | {"inputs": {}, "content": {}}, RUN / "rmp/bolt/manifest.json")
        page = cost_page(flow())
        rows = {line.split("  ")[0]: line for line in page.splitlines() if "  " in line}
        assert "finished stages" in rows["rmp"] and "0.100" in rows["rmp"]
        other = cost_page(flow(rmp={"channels": 96}))
        assert "finished stages" not in other, "it was made with other settings"
        assert "developers' CPU" in rows["generator"]
        assert rows["index"].split()[-1] == "1.4", "800 MB and Snakemake's 600"
        page = cost_page(flow(compute={"device": "cuda"}))
        rows = {line.split("  ")[0]: line for line in page.splitlines() if "  " in line}
        assert "goal" in rows["generator"] and "guess" in rows["downstream"] and "longest path: " in page


class TestProgress:
    @pytest.fixture(autouse=True)
    def now(self, monkeypatch):
        """The time, which stands still: a busy machine does not make a log older."""
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now)
        return now

    def write(self, log, text, age=0):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text)
        os.utime(log, (time.time() - age,) * 2)

    @pytest.mark.parametrize(
        ("text", "age", "begun_ago", "expected"),
        [
            (
                "generator bolt:  30%|███   | 300/1000 [00:05<00:02,  2.99it/s]\n",
                3,
                60,
                ("running", "300 of 1000, 3 s ago"),
            ),
            ("generator bolt:  30%|███   | 300/1000 [00:05<00:02,  2.99it/s]\n", 90, 60, ("stopped", "300 of 1000")),
            ("generator bolt:  30%|███   | 300/1000 [00:05<00:02,  2.99it/s]\n", 3, None, ("stopped", "300 of 1000")),
            (
                "generator bolt:  30%|███   | 300/1000 [00:05<00:02,  2.99it/s]\n",
                170,
                600,
                ("running", "300 of 1000, 170 s ago"),
            ),
            (
                "generator bolt:  30%|███   | 300/1000 [00:05<00:02,  2.99it/s]\n",
                420,
                600,
                ("silent", "300 of 1000, silent for 7 min: waiting to be resubmitted, or dead"),
            ),
            ("loading\n", 3, None, ("stopped", "begun")),
            ("1/9 [\nseas: the disk is full\n", 3, 60, ("failed", "the disk is full")),
            ("seas: bolt has 2 faults:\n  a\n  b\n", 3, 60, ("failed", "bolt has 2 faults: a b")),
            ("seas: bolt has 2 faults:\n  a\n  b\n1/9 [\n", 3, 60, ("running", "1 of 9, 3 s ago")),
            ("seas: the disk is full\n2/9 [\n", 3, None, ("stopped", "2 of 9")),
            (None, 0, 60, ("waiting", "")),
        ],
    )
    def test_a_job_by_its_log(self, flow, text, age, begun_ago, expected):
        job = planned(flow())[RUN / "generator/bolt"]
        if text:
            self.write(job.log, text, age)
        assert state(job, None if begun_ago is None else time.time() - begun_ago) == expected

    def test_a_finished_job_is_done_whatever_its_log_says(self, flow):
        job = planned(flow())[RUN / "generator/bolt"]
        self.write(job.log, "seas: the disk is full\n")
        finish(RUN / "generator/bolt")
        assert state(job, None).name == "done"

    def test_the_page(self, flow):
        finish(RUN / "generator/bolt")
        jobs = planned(flow())
        self.write(jobs[RUN / "rmp/bolt"].log, "rmp bolt:  50%|█ | 800/1600 [00:05<00:02]\n")
        self.write(jobs[RUN / "generator/nut"].log, "seas: the mask x is empty\n")
        holder = runs.Holder(
            socket.gethostname(), os.getpid(), runs._started(os.getpid()), "ada", time.time() - 60, "", False, ""
        )
        runs.LOCK.write_text(json.dumps(holder._asdict()))
        page = progress_page(flow())
        rows = {line.split()[0]: line.split() for line in page.splitlines() if line.strip()}
        assert rows["bolt"][1:] == ["-", "-", "done", "50", "%", "-", "-", "-"]
        assert rows["nut"][3] == "failed"
        assert page.startswith(f"1 of 19 jobs are done; process {os.getpid()} of ada on ")
        assert "mine/seas/seed0 generator nut: the mask x is empty" in page
        assert "log: results/logs/mine/seas/seed0/generator/nut.log" in page
