"""Versions: what counts as up to date when results come back, and two revisions side by side."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from seas import artifacts as artifact_files
from seas import runs, versions
from seas.artifacts import Provenance, damage, read_manifest, stale, write_table, writing_folder
from seas.compare import changed_settings, compare, difference
from seas.config import overlaid
from seas.downstream.settings import TREES
from seas.errors import InputError
from seas.report.published import settings_of_stages
from seas.versions import artifacts, finished, record, reported_runs, restore, set_apart
from seas.workflow import Workflow

RUN = Path("results/mine/seas/seed0")
PUBLISHED = {"metrics.json": "{}\n", "settings.json": "{}\n", "plots/losses/a.csv": "step,loss\n1,2\n"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with one dataset of one product, as the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/bolt/train/good").mkdir(parents=True)
    (tmp_path / "photos/bolt/train/good/0.png").write_bytes(b"0")
    for name, content in {
        "datasets/mine": {"root": "photos"},
        "experiments/seas": {},
        "experiments/tau": {"extends": "seas", "settings": {"generation": {"threshold": 0.3}}},
    }.items():
        path = tmp_path / f"config/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(versions, "published_files", lambda runs: PUBLISHED)
    return tmp_path


def flow(**changes):
    return Workflow(overlaid({"datasets": ["mine"], "base": {"name": "b", "pretrained": None}}, changes))


def make(workflow: Workflow) -> None:
    """Write every artifact of the configuration, with a little content, as its stage would."""
    for artifact in artifacts(workflow):
        origin = artifact.stage, artifact.stage_version, artifact.settings, artifact.seed, artifact.inputs
        if artifact.path.suffix:
            shots = pd.DataFrame({"type": ["dent"], "role": ["shot"]})
            write_table(shots, artifact.path, Provenance.of(*origin), facts=artifact.stage == "metrics")
        else:
            with writing_folder(artifact.path, Provenance.of(*origin)) as folder:
                (folder / "weights").write_text(str(artifact.path))
    for name, text in PUBLISHED.items():
        path = Path("results") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_what_agrees_is_up_to_date(project):
    make(flow())
    found = set_apart(flow())
    assert (found.aside, found.missing) == ({}, [])
    assert found.fresh == sorted(Path(path) for path in flow().results())
    assert read_manifest(RUN / "generation/bolt")["settings"]["wanted"] == {"dent": [0, 999], "good": [0, 999]}


def test_a_damaged_file_is_named_and_what_follows_is_not_up_to_date(project):
    make(flow())
    (RUN / "rmp/bolt/weights").write_text("damaged")
    found = set_apart(flow())
    assert found.aside[RUN / "rmp/bolt"] == f"{RUN}/rmp/bolt/weights is damaged: it is not what was written"
    assert set(found.aside) == {
        RUN / "rmp/bolt",
        RUN / "generation/bolt",
        RUN / "metrics/bolt.parquet",
        RUN / "downstream/bisenet_v2/generated/all",
        Path("results/report"),
    }
    assert found.aside[RUN / "generation/bolt"] == f"its input {RUN}/rmp/bolt is not up to date"
    assert not (RUN / "rmp/bolt").exists() and stale(RUN / "rmp/bolt").is_dir()


@pytest.mark.parametrize("name", ["weights", "manifest.json"])
def test_a_missing_file_is_named(project, name):
    make(flow())
    (RUN / "generator/bolt" / name).unlink()
    assert name in set_apart(flow()).aside[RUN / "generator/bolt"]


def test_a_surplus_file_is_named(project):
    make(flow())
    (RUN / "generator/bolt/more").write_text("x")
    assert set_apart(flow()).aside[RUN / "generator/bolt"] == f"{RUN}/generator/bolt/more does not belong to it"


def test_a_damaged_table_is_named(project):
    make(flow())
    path = RUN / "split/bolt.parquet"
    manifest = read_manifest(path)
    origin = Provenance(**{name: manifest[name] for name in ("stage", "stage_version", "settings", "seed", "inputs")})
    write_table(pd.DataFrame({"type": ["rust"], "role": ["shot"]}), path, origin)
    assert damage(path) is None
    forged = path.read_bytes().replace(b"rust", b"dent")
    path.write_bytes(forged)
    assert "is damaged" in set_apart(flow()).aside[path]


def test_other_settings_are_named_and_the_right_ones_bring_everything_back(project):
    make(flow())
    found = set_apart(flow(rmp={"learning_rate": 0.25}))
    assert found.aside[RUN / "rmp/bolt"] == ("it was made with rmp.learning_rate = 0.0005, and the settings say 0.25")
    assert RUN / "generator/bolt" in found.fresh and len(found.aside) == 5
    again = set_apart(flow())
    assert not again.aside and not again.missing


def test_what_was_pulled_without_its_inputs_is_left_alone(project):
    make(flow())
    split, generator = RUN / "split/bolt.parquet", RUN / "generator/bolt"
    (RUN / "crop_and_paste/bolt/weights").write_text("damaged")
    split.rename("away")
    found = set_apart(flow())
    assert found.unchecked[generator] == f"{split} is missing (pull it, too)"
    assert found.unchecked[RUN / "generation/bolt"] == f"its input {generator} is not checked"
    assert [*found.aside] == [RUN / "crop_and_paste/bolt"] and found.missing == [split]
    assert Path("results/report") in found.unchecked and generator.is_dir()
    Path("away").rename(split)
    found = set_apart(flow())
    assert generator in found.fresh and RUN / "rmp/bolt" in found.fresh and not found.unchecked


def test_the_lock_is_held_while_results_are_recorded_and_restored(project, monkeypatch):
    make(flow())
    Path(".dvc").mkdir()
    held = {}
    monkeypatch.setattr(versions, "_run", lambda name, command: held.update({name: runs.alive_holder().pid}))
    record()
    restore(flow(), [])
    assert held == dict.fromkeys(("dvc add", "git add", "Snakemake"), os.getpid())
    assert not runs.LOCK.exists()


def test_what_was_set_aside_is_named_when_snakemake_fails(project, monkeypatch):
    make(flow())

    def fails(name, command):
        raise InputError(f"{name} failed: why")

    monkeypatch.setattr(versions, "_run", fails)
    with pytest.raises(InputError, match=f"Snakemake failed: why\n  set aside before: {RUN}/rmp/bolt\n"):
        restore(flow(rmp={"channels": 96}), [])


def test_what_snakemake_would_refuse_sets_nothing_aside(project):
    make(flow())
    with pytest.raises(InputError, match="which is no folder"):
        restore(flow(base={"name": "other", "pretrained": "no/such/base"}), [])
    assert (RUN / "generator/bolt").exists()


def test_another_version_of_a_stage_is_named(project, monkeypatch):
    make(flow())
    monkeypatch.setattr(versions.rmp_settings, "STAGE_VERSION", 99)
    assert "should be 99" in set_apart(flow()).aside[RUN / "rmp/bolt"]


def test_another_input_is_named(project):
    make(flow())
    (split,) = (artifact for artifact in artifacts(flow()) if artifact.stage == "split")
    origin = Provenance.of(split.stage, split.stage_version, split.settings, split.seed, split.inputs)
    write_table(pd.DataFrame({"type": ["dent", "dent"], "role": ["shot", "test"]}), split.path, origin)
    found = set_apart(flow())
    assert split.path in found.fresh
    assert found.aside[RUN / "generator/bolt"] == f"it was made from another {split.path}"


def test_a_table_of_metrics_that_another_run_made_is_the_same_input(project, monkeypatch):
    make(flow())
    (table,) = (artifact for artifact in artifacts(flow()) if artifact.stage == "metrics")
    before = table.path.read_bytes()
    monkeypatch.setattr(artifact_files, "STARTED", 0.0)
    origin = Provenance.of(table.stage, table.stage_version, table.settings, table.seed, table.inputs)
    shots = pd.DataFrame({"type": ["dent"], "role": ["shot"]})
    write_table(shots, table.path, origin, facts=True)
    assert table.path.read_bytes() != before
    assert Path("results/report") in set_apart(flow()).fresh
    write_table(shots.assign(role="test"), table.path, origin, facts=True)
    assert set_apart(flow()).aside == {Path("results/report"): f"it was made from another {table.path}"}


def test_what_the_page_says_is_a_part_of_the_report(project):
    make(flow())
    described = Path("config/experiments/seas.yaml")
    described.write_text("description: what it is")
    said = "it was made with runs.mine/seas/seed0.descriptions = [], and the settings say ['what it is']"
    assert set_apart(flow()).aside == {Path("results/report"): said}
    make(flow())
    assert not set_apart(flow()).aside


def test_another_base_is_a_changed_setting(project):
    def told(**changes):
        made = flow(base={"name": "b", "pretrained": None} | changes)
        make(made)
        return settings_of_stages(reported_runs(made))

    before, same, other = told(), told(), told(unet_updates=99)
    assert before["mine"]["seas"]["base"]["base"]["name"] == "b"
    assert not changed_settings(before, same)
    ((setting, was, now),) = changed_settings(before, other)
    assert (
        setting == "base.sha256"
        and was != now
        and changed_settings(before, other)[setting, was, now] == {"mine/seas": ["base"]}
    )


def test_other_photographs_are_a_changed_setting(project):
    def told():
        make(flow())
        return settings_of_stages(reported_runs(flow()))

    before = told()
    Path("photos/bolt/train/good/0.png").write_bytes(b"00")
    assert [setting for setting, _, _ in changed_settings(before, told())] == ["photographs"]


def test_a_setting_of_one_side_alone_is_a_changed_one():
    before = {"mine": {"seas": {"rmp": {"rmp": {"skip": True}}, "old": {"old": {"a": None}}}}}
    after = {"mine": {"seas": {"rmp": {"rmp": {"skip": True, "mrms": None}}}}}
    assert changed_settings(before, after) == {
        ("rmp.mrms", "absent", "null"): {"mine/seas": ["rmp"]},
        ("old.a", "null", "absent"): {"mine/seas": ["old"]},
    }


@pytest.mark.parametrize("product", ["bolt", "nut"])
def test_another_file_of_groups_of_any_product_is_a_changed_setting(project, product):
    for name in ("bolt", "nut"):
        photographs = Path(f"photos/{name}/train/good")
        photographs.mkdir(parents=True, exist_ok=True)
        photographs.joinpath("0.png").write_bytes(b"0")
        Path(f"photos/{name}/groups.csv").write_text(f"image,group\n{name},x\n")

    def told():
        grouped = flow(data={"groups": "groups.csv"})
        make(grouped)
        return settings_of_stages(reported_runs(grouped))

    before = told()
    Path(f"photos/{product}/groups.csv").write_text("image,group\nother,y\n")
    ((setting, was, now),) = changed_settings(before, told())
    assert setting == "groups" and len(json.loads(was)) == len(json.loads(now)) == 2


def test_nothing_is_set_aside_or_recorded_while_a_run_is_at_work(project):
    make(flow())
    (RUN / "rmp/bolt/weights").write_text("damaged")
    Path(".dvc").mkdir()
    runs.LOCK.write_text(json.dumps(runs.Holder("elsewhere", 7, "boot-1", "ada", 0.0, "", False, "")._asdict()))
    for work in (lambda: restore(flow(), []), record):
        with pytest.raises(InputError, match="process 7 of ada on elsewhere is running the workflow"):
            work()
    assert (RUN / "rmp/bolt").exists()


def test_changed_photographs_are_noticed_and_absent_ones_are_not_missed(project):
    make(flow())
    image = Path("photos/bolt/train/good/0.png")
    image.write_bytes(b"00")
    assert "fingerprint" in set_apart(flow()).aside[Path("results/mine/data/bolt.parquet")]
    image.write_bytes(b"0")
    assert not set_apart(flow()).aside
    Path("photos").rename("elsewhere")
    assert flow().products("mine") == ["bolt"]
    assert not set_apart(flow()).aside
    Path("results/mine/data/bolt.parquet").write_bytes(b"damaged")
    with pytest.raises(InputError, match="the table results/mine/data/bolt.parquet cannot be read"):
        flow().check()
    Path("results/mine/data/bolt.parquet").unlink()
    with pytest.raises(
        InputError, match="'root' is 'photos', which is no folder, and results/mine/data holds no index"
    ):
        flow()


def test_a_made_again_artifact_replaces_what_was_set_aside(project):
    make(flow())
    (RUN / "rmp/bolt/weights").write_text("damaged")
    set_apart(flow())
    make(flow())
    assert not stale(RUN / "rmp/bolt").exists() and not set_apart(flow()).aside
    assert not list(Path("results").rglob(".*.stale"))


def test_what_was_set_aside_is_not_lost_to_what_a_checkout_laid_in_its_place(project):
    """A was made and not recorded; `seas restore` by B's settings sets it aside, and DVC brings B."""
    of_b = flow(rmp={"channels": 96})
    make(of_b)
    shutil.copytree(RUN / "rmp/bolt", "recorded")
    make(flow())
    assert RUN / "rmp/bolt" in set_apart(of_b).aside
    shutil.copytree("recorded", RUN / "rmp/bolt")
    assert RUN / "rmp/bolt" in set_apart(of_b).fresh and stale(RUN / "rmp/bolt").exists()
    assert RUN / "rmp/bolt" in set_apart(flow()).fresh, "A does not come back"
    assert RUN / "rmp/bolt" in set_apart(of_b).fresh, "nor B after it"
    with pytest.raises(InputError, match=r"rmp/bolt is to be set aside, and .*\.bolt\.stale, .* would be lost"):
        set_apart(flow(rmp={"channels": 288}, generator={"updates_per_type": 9}))
    assert (RUN / "rmp/bolt").exists() and stale(RUN / "rmp/bolt").exists()
    assert (RUN / "generator/bolt").exists(), "it was set aside before the fault was found"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_changed_text_of_git_is_named(project, name):
    make(flow())
    (Path("results") / name).write_text("changed")
    output = Path("results") / name.split("/")[0]
    assert set_apart(flow()).aside == {output: f"results/{name} is not what the finished stages give"}


@pytest.mark.parametrize("arm", TREES)
def test_what_an_arm_reads_is_looked_at_with_it(project, arm):
    """Or a right model is set aside, because its input was never found up to date."""
    found = list(artifacts(flow(downstream={"trained_on": [arm]})))
    paths = {artifact.path for artifact in found}
    (model,) = (artifact for artifact in found if artifact.stage == "downstream")
    assert set(model.inputs.values()) <= paths


def test_an_ablation_shares_the_parents_artifacts(project):
    make(flow(experiments=["seas"]))
    missing = set_apart(flow(experiments=["seas", "tau"])).missing
    assert {path.parts[2:5:2] for path in missing} == {("tau", "generation"), ("tau", "metrics"), ("tau", "downstream")}


def test_finished_results_are_folders_and_tables_with_a_manifest(project):
    make(flow())
    Path("results/logs/x").mkdir(parents=True)
    Path("results/mine/seas/seed0/generator/.half.partial").mkdir()
    shutil.copytree(RUN / "generation/bolt", RUN / "shards/bolt/0")
    pd.DataFrame({"a": [1]}).to_parquet("results/mine/data/no_origin.parquet")
    assert finished() == sorted(artifact.path for artifact in artifacts(flow()))


@pytest.mark.parametrize(
    ("before", "after", "delta", "limit", "verdict"),
    [
        # t(0.975, 4) = 2.7764 · √(1/3 + 1/3)
        ([1.0, 2.0, 3.0], [3.0, 4.0, 5.0], 2.0, 2.2669, "within chance"),
        ([1.0, 2.0, 3.0], [3.5, 4.5, 5.5], 2.5, 2.2669, "BEYOND CHANCE"),
        ([1.0, 2.0, 3.0], [4.0], 2.0, None, "one seed: not judged"),
        ([1.0, 1.0], [1.5, 1.5], 0.5, 0.0, "BEYOND CHANCE"),
    ],
)
def test_a_difference_is_judged_by_the_spread_over_seeds(before, after, delta, limit, verdict):
    found = difference(before, after)
    assert found.delta == pytest.approx(delta)
    assert found.limit == (None if limit is None else pytest.approx(limit, abs=1e-3))
    assert found.verdict == verdict


def test_of_equal_distributions_one_in_twenty_is_beyond_chance():
    draws = np.random.default_rng(0).normal(0, 1, (2000, 2, 3)).tolist()
    beyond = np.mean([difference(*sides).verdict == "BEYOND CHANCE" for sides in draws])
    assert 0.03 < beyond < 0.06


def test_changed_settings_are_gathered():
    before = {"d": {"seas": {"rmp": {"rmp": {"rate": 1}, "stage_version": 1}}, "old": {"rmp": {"rmp": {"rate": 1}}}}}
    after = {"d": {"seas": {"rmp": {"rmp": {"rate": 2}, "stage_version": 1}}, "new": {"rmp": {"rmp": {"rate": 3}}}}}
    assert changed_settings(before, after) == {("rmp.rate", "1", "2"): {"d/seas": ["rmp"]}}


def write_results(values: dict[str, list[float | None]], rate: float) -> None:
    name = "d/{}/seas/-/-/pixel/ap/seas/generated/seed{}"
    numbers = {name.format(product, seed): v for product, seeds in values.items() for seed, v in enumerate(seeds)}
    Path("results").mkdir(exist_ok=True)
    Path("results/metrics.json").write_text(json.dumps(numbers))
    Path("results/settings.json").write_text(json.dumps({"d": {"seas": {"rmp": {"rmp": {"rate": rate}}}}}))


def git(*arguments):
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(["git", *name, *arguments], check=True, capture_output=True, text=True).stdout


def test_two_revisions_side_by_side(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    write_results({"bolt": [50.0, 51.0, 52.0], "nut": [10.0, 20.0, 30.0], "cap": [1.0, 1.0, None], "old": [1.0]}, 0.1)
    git("add", "-A")
    git("commit", "-qm", "one")
    write_results({"bolt": [60.0, 61.0, 62.0], "nut": [11.0, 19.0, 33.0], "cap": [1.0, 1.0, None], "new": [1.0]}, 0.2)
    text = compare("HEAD", None)
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.startswith("  ")}
    assert rows["rmp.rate:"] == "0.1 → 0.2 (d/seas: rmp)"
    assert rows["bolt"] == "pixel AP, - on generated 51.00 ± 1.00 61.00 ± 1.00 +10.00 BEYOND CHANCE"
    assert rows["nut"] == "pixel AP, - on generated 20.00 ± 10.00 21.00 ± 11.14 +1.00 within chance"
    assert "cap" not in rows
    assert "1 of 3 numbers are equal, 2 differ." in text
    assert "1 numbers are gone: d/seas." in text and "1 numbers are new: d/seas." in text
    assert "2 differences were judged, 1 are beyond chance" in text
    assert "4 of 4 numbers are equal, 0 differ." in compare("HEAD", "HEAD")
    git("update-ref", "refs/exps/ab/cdef/tau", "HEAD")
    assert "4 of 4 numbers are equal, 0 differ." in compare("HEAD", "tau")
    with pytest.raises(InputError, match="'nowhere' is no revision"):
        compare("nowhere", None)
    git("rm", "-q", "--cached", "results/metrics.json")
    git("commit", "-qm", "two")
    with pytest.raises(InputError, match="the revision 'HEAD' has no results/metrics.json"):
        compare("HEAD", None)
