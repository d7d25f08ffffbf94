"""DVC for real over the tiny chain: recorded, pushed, pulled into a fresh clone, checked, compared, and run by DVC itself."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from test_workflow import REPOSITORY, make_house, planned, snakemake

from seas.artifacts import has_manifest

pytestmark = pytest.mark.slow

CONFIGURATION = ["--config", "config/demo.yaml", "--config", "tiny.yaml"]
SECRET = "a-token-that-nobody-may-see"
RUN = Path("results/mine/seas/seed0")
ALONE = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(REPOSITORY),
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b.c",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b.c",
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "A_SERVICES_TOKEN": SECRET,
}


@pytest.fixture(autouse=True, scope="module")
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ALONE.items():
            patch.setenv(name, value)
        yield


def run(folder, *command):
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    return text


def seas(folder, *arguments):
    return run(folder, sys.executable, "-m", "seas.cli", *arguments)


def dvc(folder, *arguments):
    return run(folder, sys.executable, "-m", "dvc", *arguments)


def commit(folder, message):
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", message)


@pytest.fixture(scope="module")
def house(tmp_path_factory, environment):
    """A clone in which the chain ran, its pairs in two shards, and was recorded; its dataset has an absolute path."""
    house = make_house(tmp_path_factory.mktemp("versions") / "house")
    tiny = yaml.safe_load((house / "tiny.yaml").read_text())
    tiny["generation"] |= {"shards": 2, "largest_mask": 0.9}
    (house / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    for name in (".gitignore", ".dvcignore", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, house / name)
    (house / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(REPOSITORY / ".dvc" / name, house / ".dvc" / name)
    (house / "config/datasets/mine.yaml").write_text(f"root: {house / 'data/mine'}\n")
    run(house, "git", "init", "-q")
    text = (house / "dvc.yaml").read_text()
    assert 'arguments: ""' in text
    text = text.replace('arguments: ""', 'arguments: "--configfile config/demo.yaml tiny.yaml"')
    (house / "dvc.yaml").write_text(text)
    commit(house, "no results")
    snakemake(house)
    assert "12 results are recorded" in seas(house, "record")
    run(house, "git", "commit", "-qm", "results")
    return house


@pytest.fixture(scope="module")
def store(house):
    """A remote in a local folder, with everything pushed."""
    folder = house.parent / "store"
    dvc(house, "remote", "add", "--default", "store", str(folder))
    commit(house, "remote")
    dvc(house, "push")
    return folder


@pytest.fixture(scope="module")
def clone(house, store):
    """A fresh clone with everything pulled."""
    clone = house.parent / "clone"
    run(house.parent, "git", "clone", "-q", str(house), str(clone))
    dvc(clone, "pull")
    return clone


@pytest.fixture
def no_photographs(house):
    """Nobody has the dataset, until the function that is given is called."""
    away = house.parent / "photographs"
    (house / "data").rename(away)

    def bring() -> None:
        if away.exists():
            away.rename(house / "data")

    yield bring
    bring()


def test_recording_leaves_nothing_to_do_and_nothing_untracked(house):
    assert planned(house) == {}
    assert run(house, "git", "status", "--porcelain") == ""
    tracked = run(house, "git", "ls-files", "results").split()
    assert {"results/metrics.json", "results/settings.json", "results/report.dvc"} <= set(tracked)
    assert "results/plots/losses/mine/seas/seed0/rmp/washer.csv" in tracked
    assert not [name for name in tracked if not name.endswith((".dvc", ".csv", ".json"))]
    seas(house, "record")
    assert run(house, "git", "status", "--porcelain") == ""


def test_no_secret_and_no_absolute_path_is_kept(house):
    kept = [house / name for name in run(house, "git", "ls-files", "results", "dvc.yaml", ".dvc").split()]
    kept += [path for path in (house / "results").rglob("*") if path.is_file() and "logs" not in path.parts]
    assert len(kept) > 150
    for path in kept:
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += pd.read_parquet(path).to_csv().encode() + str(pq.read_schema(path).metadata).encode()
        assert SECRET.encode() not in content, path
        assert str(house.parent).encode() not in content and str(REPOSITORY).encode() not in content, path
    for log in (house / "results/logs").rglob("*.log"):
        assert SECRET not in log.read_text()


def test_every_result_has_its_own_dvc_file(house):
    recorded = {path.with_suffix("") for path in (house / "results").rglob("*.dvc")}
    manifests = {path.parent for path in (house / "results").rglob("manifest.json")}
    tables = {path for path in (house / "results/mine").rglob("*/washer.parquet") if has_manifest(path)}
    assert recorded == manifests | tables and len(tables) == 3


def test_a_fresh_clone_without_photographs_has_nothing_to_do_after_restore(clone, no_photographs):
    assert not (clone / ".snakemake").exists()
    assert "15 results are up to date; the next run makes 0 anew" in seas(clone, "restore", *CONFIGURATION)
    assert planned(clone) == {}
    assert run(clone, "git", "status", "--porcelain") == ""
    # and Snakemake notices later changes, as where the results were made
    (clone / "changed.yaml").write_text("rmp: {learning_rate: 0.001}")
    again = {"rmp": 1, "generation_shard": 2, "generation": 1, "metrics": 1, "downstream": 1, "report": 1}
    assert planned(clone, "changed.yaml") == again
    (clone / "changed.yaml").unlink()


def test_a_damaged_file_is_named_and_made_anew(clone, house, no_photographs):
    file = clone / RUN / "downstream/bisenet_v2/generated/all/model.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    text = seas(clone, "restore", *CONFIGURATION)
    assert f"set aside: {RUN}/downstream/bisenet_v2/generated/all: {file.relative_to(clone)} is damaged" in text
    assert "set aside: results/report: its input" in text and text.count("set aside") == 2
    assert planned(clone) == {"downstream": 1, "report": 1}
    failed = snakemake(clone, fails=True)
    assert re.search(rf"seas: the image {house}/data/mine/washer/\S+ does not exist", failed), failed
    assert "Traceback" not in failed
    no_photographs()
    snakemake(clone)
    assert file.read_bytes() == before
    assert planned(clone) == {}
    assert "15 results are up to date" in seas(clone, "restore", *CONFIGURATION)
    assert run(clone, "git", "status", "--porcelain") == ""


def test_one_products_generator_alone(house, store):
    alone = house.parent / "alone"
    run(house.parent, "git", "clone", "-q", str(house), str(alone))
    dvc(alone, "pull", f"{RUN}/generator/washer", f"{RUN}/rmp/washer")
    present = {path.parent.relative_to(alone) for path in (alone / "results").rglob("manifest.json")}
    assert present == {RUN / "generator/washer", RUN / "rmp/washer"}


def test_push_and_pull_to_an_s3_server(house, tmp_path):
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/results", method="PUT"))
        dvc(house, "remote", "add", "--local", "cloud", "s3://results/seas")
        dvc(house, "remote", "modify", "--local", "cloud", "endpointurl", f"http://{host}:{port}")
        assert "files pushed" in dvc(house, "push", "--remote", "cloud")
        run(tmp_path, "git", "clone", "-q", str(house), "clone")
        shutil.copy(house / ".dvc/config.local", tmp_path / "clone/.dvc/config.local")
        dvc(tmp_path / "clone", "pull", "--remote", "cloud")
        for name in ("generator/washer/manifest.json", "split/washer.parquet"):
            assert (tmp_path / "clone" / RUN / name).read_bytes() == (house / RUN / name).read_bytes()
        assert run(tmp_path / "clone", "git", "status", "--porcelain") == ""
    finally:
        server.stop()
        dvc(house, "remote", "remove", "--local", "cloud")


def test_dvc_runs_and_compares_an_ablation(house):
    """`dvc exp run` trains nothing anew for τ, and all comparisons see it."""
    times = {stage: (house / RUN / stage / "washer/run.json").stat().st_mtime_ns for stage in ("generator", "rmp")}
    assert "Nothing to be done" in dvc(house, "repro")
    commit(house, "lock")
    text = dvc(house, "exp", "run", "--name", "tau", "-S", "config/config.yaml:generation.threshold=0.45")
    assert "Ran experiment(s): tau" in text and "rule generation" in text
    assert not {"rule generator", "rule rmp", "rule crop_and_paste"} & set(text.replace(":", "").splitlines())
    assert times == {stage: (house / RUN / stage / "washer/run.json").stat().st_mtime_ns for stage in times}
    metrics = dvc(house, "metrics", "diff", "HEAD", "tau", "--json")
    changed = json.loads(metrics)["results/metrics.json"]
    assert changed and all("/generation/" in name or "/generated/" in name for name in changed)
    params = json.loads(dvc(house, "params", "diff", "HEAD", "tau", "--json"))
    assert params["config/config.yaml"]["generation.threshold"]["new"] == 0.45
    assert params["results/settings.json"]["mine.seas.generation.generation.threshold"]["new"] == 0.45
    dvc(house, "plots", "diff", "HEAD", "tau", "--out", str(house.parent / "plots"))
    page = (house.parent / "plots/index.html").read_text()
    assert "downstream/bisenet_v2/generated/all" in page and "tau" in page
    text = seas(house, "compare", "HEAD", "tau")
    assert "generation.threshold: 0.2 → 0.45" in text and "one seed: not judged" in text
    assert "on generated" in text and "on real" not in text
    # back to the recorded revision, and everything is up to date again
    run(house, "git", "reset", "-q", "--hard")
    dvc(house, "checkout")
    seas(house, "restore", *CONFIGURATION)
    assert planned(house) == {}


def test_a_changed_config_alone_is_not_called_fresh(house):
    other = yaml.safe_dump({"rmp": {"learning_rate": 0.125}})
    (house / "other.yaml").write_text(other)
    text = seas(house, "restore", *CONFIGURATION, "--config", "other.yaml")
    assert f"set aside: {RUN}/rmp/washer: it was made with rmp.learning_rate = 0.0005" in text
    assert f"set aside: {RUN}/generation/washer: its input {RUN}/rmp/washer is not up to date" in text
    assert f"{RUN}/generator/washer" not in text
    again = {"rmp", "generation_shard", "generation", "metrics", "downstream", "report"}
    assert planned(house, "other.yaml").keys() == again
    (house / "other.yaml").unlink()
    assert "15 results are up to date" in seas(house, "restore", *CONFIGURATION)
    assert planned(house) == {}
