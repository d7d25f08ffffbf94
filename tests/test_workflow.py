"""The workflow itself, run for real on a tiny configuration: everything, nothing, one chain, one product."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from test_config import SHIPPED, added_jobs

from seas.data.miniature import write_miniature
from seas.plan import planned as planned_jobs
from seas.workflow import load_workflow

REPOSITORY = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

TINY = {
    "datasets": ["mine"],
    "base": {
        "name": "tiny",
        "pretrained": None,
        "image_size": 32,
        "vae_channels": [8, 8, 8],
        "unet_channels": [16, 16, 32, 32],  # a level of one cell, seen by one image, has no norm of single channels
        "text_width": 16,
        "text_layers": 1,
        "corpus_images": 8,
        "vae_updates": 2,
        "vae_batch_size": 2,
        "unet_updates": 2,
        "unet_batch_size": 2,
    },
    "compute": {"threads": {"base": 1, "generator": 1, "rmp": 1, "generation": 1, "metrics": 1, "downstream": 1}},
    "data": {"image_size": 32, "normals": 4},
    "generator": {"updates_per_type": 2},
    "rmp": {"updates_per_type": 2},
    "generation": {"pairs_per_type": 3, "normals": 4, "steps": 3, "redraws": 0},
    "downstream": {"image_size": 64, "updates": 2, "batch_size": 2},
}


def make_house(folder: Path) -> Path:
    """A working folder with the project's workflow and configuration, and a small dataset of one product."""
    for name in ("config", "workflow", "profiles", "Snakefile"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    write_miniature(folder / "data/all", seed=0, size=48, normals=8, test_normals=2, abnormal=4)
    shutil.copytree(folder / "data/all/washer", folder / "data/mine/washer")
    (folder / "config/datasets/mine.yaml").write_text("root: data/mine\n")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


def command(*arguments):
    files = ["config/demo.yaml", "tiny.yaml", *(a for a in arguments if a.endswith(".yaml"))]
    options = [a for a in arguments if not a.endswith(".yaml")]
    return [sys.executable, "-m", "snakemake", "--configfile", *files, *options]


def snakemake(house, *arguments, fails=False):
    result = subprocess.run(command(*arguments), cwd=house, capture_output=True, text=True)
    text = result.stdout + result.stderr
    assert (result.returncode != 0) is fails, text
    return text


def planned(house, *arguments):
    """The rules that a dry run would run, with how often."""
    text = snakemake(house, "-n", *arguments)
    if "Nothing to be done" in text:
        return {}
    table = text[text.index("Job stats:") :].splitlines()[3:]
    counts = dict(line.split()[:2] for line in table[: next(k for k, line in enumerate(table) if not line.strip())])
    return {rule: int(count) for rule, count in counts.items() if rule not in ("total", "all")}


def changed(house, **sections):
    (house / "changed.yaml").write_text(yaml.safe_dump(sections))
    return "changed.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    house = make_house(tmp_path_factory.mktemp("house") / "house")
    snakemake(house)
    return house


CHAIN = {
    "base_model",
    "index",
    "split",
    "generator",
    "rmp",
    "generation",
    "crop_and_paste",
    "metrics",
    "downstream",
    "report",
}


class TestRuns:
    def test_a_fresh_house_plans_every_station(self, tmp_path):
        house = make_house(tmp_path / "house")
        assert planned(house) == dict.fromkeys(CHAIN, 1) | {"downstream": 3}

    def test_everything_is_there(self, finished):
        numbers = json.loads((finished / "results/metrics.json").read_text())
        assert {name.split("/")[6] for name in numbers} >= {"auroc", "ap", "f1_max", "iou", "is", "kid", "ic_lpips"}
        page = (finished / "results/report/index.html").read_text()
        assert "washer" in page and not re.search(r"(src|href)=\"https?:", page)
        assert not list(finished.glob("results/**/.*.working")) and not list(finished.glob("results/**/.*.partial"))

    def test_again_there_is_nothing_to_do(self, finished):
        assert planned(finished) == {}

    def test_a_changed_rmp_setting_reruns_what_follows_and_nothing_else(self, finished):
        file = changed(finished, rmp={"learning_rate": 1e-3})
        assert planned(finished, file) == {"rmp": 1, "generation": 1, "metrics": 1, "downstream": 1, "report": 1}

    @pytest.mark.parametrize(
        ("sections", "expected"),
        [
            ({"metrics": {"kid_subset_size": 3}}, {"metrics": 1, "report": 1}),
            ({"downstream": {"updates": 3}}, {"downstream": 3, "report": 1}),
            ({"downstream": {"trained_on": ["real", "real+generated"]}}, {"downstream": 1, "report": 1}),
            ({"generation": {"steps": 4}}, {"generation": 1, "metrics": 1, "downstream": 1, "report": 1}),
            (
                {"generator": {"da_weight": 0.5}},
                {"generator": 1, "rmp": 1, "generation": 1, "metrics": 1, "downstream": 1, "report": 1},
            ),
        ],
    )
    def test_one_changed_setting_reruns_its_own_chain(self, finished, sections, expected):
        assert planned(finished, changed(finished, **sections)) == expected

    def test_what_no_result_is_a_function_of_reruns_nothing(self, finished):
        card = {"checkpoint_every": 7, "gradient_checkpointing": True, "offload_optimizer": True}
        file = changed(
            finished,
            generator=card,
            rmp={"checkpoint_every": 7},
            metrics={"weights_folder": None},
            downstream={"checkpoint_every": 7},
        )
        assert planned(finished, file) == {}

    def test_a_lost_tree_of_crop_and_paste_is_made_again(self, finished):
        tree, away = finished / "results/mine/seas/seed0/crop_and_paste/washer", finished / "away"
        tree.rename(away)
        plan = planned(finished)
        away.rename(tree)
        assert plan == {"crop_and_paste": 1, "downstream": 1, "report": 1}

    def test_an_experiment_on_the_threshold_trains_no_generator_and_no_mask_branch(self, finished):
        file = changed(finished, experiments=["seas", "tau_0.1"])
        assert planned(finished, file) == {"generation": 1, "metrics": 1, "downstream": 1, "report": 1}

    def test_the_shipped_experiments_together_plan_what_each_adds(self, finished):
        # A third of a type has one image here.
        fitting = sorted(set(SHIPPED) - {"shots_2", "shots_4", "shots_8", "h_2"})
        expected = sum((Counter(added_jobs(experiment)) for experiment in fitting), Counter(report=1))
        expected["base_model"] = expected.pop("base")
        assert planned(finished, changed(finished, experiments=fitting)) == expected

    def test_one_product_is_rerun_by_naming_its_folder(self, finished):
        folder = "results/mine/seas/seed0/rmp/washer"
        assert planned(finished, folder, "--force") == {"rmp": 1}

    def test_a_second_product_leaves_the_first_alone(self, finished):
        shutil.copytree(finished / "data/all/fabric", finished / "data/mine/fabric")
        plan = planned(finished)
        shutil.rmtree(finished / "data/mine/fabric")
        # one unified model for both products: its three arms are new
        alone = dict.fromkeys(CHAIN - {"base_model", "downstream", "report"}, 1)
        assert plan == alone | {"downstream": 3, "report": 1}

    def test_a_changed_photograph_is_noticed(self, finished):
        image = finished / "data/mine/washer/train/good/000.png"
        before = image.read_bytes()
        image.write_bytes(before + b"\0")
        plan = planned(finished)
        image.write_bytes(before)
        assert plan["index"] == 1

    def test_photographs_in_another_place_are_the_same_photographs(self, finished):
        file = finished / "config/datasets/mine.yaml"
        before = file.read_text()
        (finished / "data/mine").rename(finished / "data/moved")
        file.write_text("root: data/moved\n")
        plan = planned(finished)
        (finished / "data/moved").rename(finished / "data/mine")
        file.write_text(before)
        assert plan == {"report": 1}

    def test_a_given_base_in_another_place_is_the_same_base(self, finished, tmp_path):
        house, target = make_house(tmp_path / "house"), "results/mine/seas/seed0/generator/washer"

        def given(folder):
            return changed(house, base={"name": "given", "pretrained": folder})

        not_ours = shutil.ignore_patterns("manifest.json")  # by which a base of the workflow's own is known
        shutil.copytree(finished / "results/base/tiny", house / "models/here", ignore=not_ours)
        snakemake(house, given("models/here"), "--", target)
        (house / "models/here").rename(house / "models/there")
        assert planned(house, given("models/there"), "--", target) == {}
        weights = house / "models/there/unet/diffusion_pytorch_model.safetensors"
        content = weights.read_bytes()
        half = len(content) // 2
        weights.write_bytes(content[:half] + bytes(byte ^ 1 for byte in content[half:]))
        assert planned(house, given("models/there"), "--", target) == {"generator": 1}

    def test_the_plan_of_cost_and_progress_is_snakemakes(self, finished, monkeypatch):
        monkeypatch.chdir(finished)
        jobs = planned_jobs(load_workflow([Path("config/demo.yaml"), Path("tiny.yaml")])).values()
        rules = {"base": "base_model"}
        assert Counter(rules.get(job.stage, job.stage) for job in jobs) == dict.fromkeys(CHAIN, 1) | {"downstream": 3}
        for job in jobs:
            assert job.finished and job.log.is_file(), job
            assert all(path.exists() for path in job.after)

    def test_shards_change_no_image(self, finished, tmp_path):
        house = tmp_path / "house"
        shutil.copytree(finished, house, symlinks=True)
        tree = Path("results/mine/seas/seed0/generation/washer")
        shutil.rmtree(house / tree)
        file = changed(house, generation={"shards": 2})
        assert planned(house, file, "--", str(tree)) == {"generation_shard": 2, "generation": 1}
        snakemake(house, file, "--", str(tree))
        assert contents(house)[str(tree / "manifest.json")] == contents(finished)[str(tree / "manifest.json")]
        assert not list((house / tree.parent.parent / "shards").rglob("*.png"))


class TestClusterProfile:
    """What a job would ask for, by a dry run through the slurm profile; tests/test_slurm.py submits it."""

    def asked(self, house, *arguments, **sections):
        (house / "slurm").unlink(missing_ok=True)
        (house / "slurm").symlink_to("workflow/profiles/slurm")
        text = snakemake(house, "-n", "--forceall", "--profile", "slurm", changed(house, **sections), *arguments)
        found = {}
        for block in re.split(r"\n\s*(?=rule |localrule )", text)[1:]:
            numbers = re.search(r"resources: (.*)", block)
            found[block.split()[1].rstrip(":")] = dict(part.split("=", 1) for part in numbers[1].split(", "))
        return found

    def test_the_jobs_that_ask_for_a_gpu(self, finished):
        found = self.asked(finished, compute={"device": "cuda"})
        with_gpu = {rule for rule, asked in found.items() if asked.get("gpu") == "1"}
        assert with_gpu == {"base_model", "generator", "rmp", "generation", "metrics", "downstream"}
        assert not any(asked.get("gpu") == "1" for asked in self.asked(finished).values())

    def test_the_sites_block_of_the_profile(self, finished):
        """The commented entries, with their comment signs taken away."""
        profile = finished / "workflow/profiles/slurm/profile.yaml"
        before = profile.read_text()
        entry = (
            r"set-resources|slurm_\w+|gpu_model|base_model|generator|rmp|generation_shard|generation|metrics|downstream"
        )
        profile.write_text(re.sub(rf"(?m)^( *)# ( *(?:{entry}):)", r"\1\2", before))
        found = self.asked(finished, compute={"device": "cuda"})
        profile.write_text(before)
        on_gpu = {"base_model", "generator", "rmp", "generation", "metrics", "downstream"}
        assert {rule for rule, asked in found.items() if asked.get("gpu_model") == "a100"} == on_gpu
        assert all(asked["slurm_partition"] == ("gpu" if rule in on_gpu else "cpu") for rule, asked in found.items())
        assert {asked["slurm_account"] for asked in found.values()} == {"myproject"}

    def test_a_request_is_cut_to_the_sites_limits(self, finished):
        found = self.asked(finished, "--resources", "runtime=7", "mem_mb=900")
        assert (found["generator"]["runtime"], found["generator"]["mem_mb"]) == ("7", "900")


class TestFaults:
    def test_a_wrong_key_ends_before_the_first_job(self, finished):
        text = snakemake(finished, changed(finished, rmp={"skipp": True}), fails=True)
        assert "'rmp.skipp' is no setting; did you mean 'skip'?" in text
        assert "Traceback" not in text

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (["--config", "products=[washr]"], "products: 'washr' is in none of the datasets; known are washer"),
            (["--config", "datasets=[report]"], "'report' cannot name the dataset"),
            (["--config", "data={shots: 0}"], "'data.shots' is 0: Input should be greater than or equal to 1"),
            (["results/mine/sea/seed0/rmp/washer"], "No rule to produce"),
            (["results/mine/seas/seed0/rmp/washr"], "No rule to produce"),
            (["results/mine/seas/seed0/downstream/bisenet_v2/genrated/all"], "No rule to produce"),
            (["results/mine/seas/seed0/downstream/bisenet_v3/generated/all"], "No rule to produce"),
        ],
    )
    def test_a_typo_ends_before_the_first_job(self, finished, options, sentence):
        text = snakemake(finished, "-n", *options, fails=True)
        assert sentence in text and "Traceback" not in text and not re.search(r"seas/\w+\.py", text)

    def test_a_wrong_mask_ends_in_one_sentence_and_keeps_what_is_finished(self, finished):
        mask = finished / "data/mine/washer/ground_truth/rust/001_mask.png"
        before = mask.read_bytes()
        mask.write_bytes(b"damaged, and longer than before")
        text = snakemake(finished, fails=True)
        mask.write_bytes(before)
        assert (
            "seas: the image data/mine/washer/ground_truth/rust/001_mask.png cannot be read: it is no picture" in text
        )
        assert "Traceback" not in text
        assert (finished / "results/mine/seas/seed0/generator/washer/manifest.json").exists()
        # The failed job's table is missing now, though the report is there.
        assert planned(finished)["index"] == 1
        snakemake(finished)
        assert planned(finished) == {}


def contents(house):
    """Hashes of all trained weights and generated images."""
    wanted = {}
    for manifest in (house / "results").rglob("manifest.json"):
        if "report" not in manifest.parts:
            wanted[str(manifest.relative_to(house))] = json.loads(manifest.read_text())["content"]
    return wanted
