"""Artifacts: whole or absent, and carrying what they are made of."""

import errno
import hashlib
import json
import os
import random
import stat
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from seas import artifacts
from seas.artifacts import (
    MEASURED,
    Provenance,
    damage,
    has_manifest,
    link_or_copy,
    read_manifest,
    read_table,
    run_facts,
    sha256,
    stale,
    working_folder,
    write_json,
    write_table,
    writing_file,
    writing_folder,
)
from seas.errors import InputError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
MADE = Provenance("stage", 1, {"a": 1}, 0, {})


def make(path, provenance=MADE, content="abc"):
    with writing_folder(path, provenance) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file.txt").write_text(content)


def test_sha256_of_a_file_is_the_standards(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f") == ABC


def test_manifest_is_a_function_of_the_inputs_alone(tmp_path):
    make(tmp_path / "one")
    make(tmp_path / "two")
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "two/manifest.json").read_bytes()
    manifest = read_manifest(tmp_path / "one")
    assert manifest["content"] == {"sub/file.txt": ABC}
    assert "wall_seconds" in json.loads((tmp_path / "one/run.json").read_text())


def test_the_commit_and_what_is_not_committed(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=ada", "-c", "user.email=ada@example.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def recorded():
        make(tmp_path / "out")
        return run_facts(tmp_path / "out")["commit"]

    (tmp_path / "house/results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "house")
    git("init", "-q")
    assert recorded() is None, "nothing is committed yet"
    for file in (code := Path("code.py"), numbers := Path("results/metrics.json")):
        file.write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    assert len(commit) == 40 and recorded() == commit
    numbers.write_text("2")
    assert recorded() == commit, "what a run itself writes counts as a change"
    code.write_text("2")
    assert recorded() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert recorded() is None, "there is no git"


def test_what_a_download_hides_in_a_folder_and_its_documents_do_not_count(tmp_path):
    for name, hidden in (("one", "a"), ("two", "longer")):
        cache = tmp_path / name / ".cache/huggingface/download"
        cache.mkdir(parents=True)
        (cache / "model.metadata").write_text(hidden)
        (tmp_path / name / "model").write_text("weights")
        (tmp_path / name / "README.md").write_text(f"a card that says {hidden}")
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two")
    (tmp_path / "two/model").write_text("other weights")
    assert sha256(tmp_path / "one") != sha256(tmp_path / "two")


def test_other_weights_of_the_same_names_and_sizes_are_another_folder(tmp_path):
    weights = random.Random(0).randbytes(10**6)
    (tmp_path / "base/unet").mkdir(parents=True)
    (tmp_path / "base/unet/model").write_bytes(weights)
    before = sha256(tmp_path / "base")
    (tmp_path / "base/unet/model").write_bytes(weights)
    assert sha256(tmp_path / "base") == before
    for changed in (bytes(10**6), weights[: 5 * 10**5] + bytes(5 * 10**5), bytes(5 * 10**4) + weights[5 * 10**4 :]):
        (tmp_path / "base/unet/model").write_bytes(changed)
        assert sha256(tmp_path / "base") != before


def test_a_folder_input_is_hashed_by_its_manifest(tmp_path):
    make(tmp_path / "one")
    make(tmp_path / "other", content="abd")
    hashes = Provenance.of("s", 1, {}, 0, {"a": tmp_path / "one", "b": tmp_path / "other"}).inputs
    assert hashes["a"] == sha256(tmp_path / "one/manifest.json")
    assert hashes["a"] != hashes["b"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_others_may_read_and_write_what_the_umask_says(umask, mode, tmp_path):
    before = os.umask(umask)
    with writing_folder(tmp_path / "made", MADE) as folder:
        (folder / "inner").mkdir()
        (tmp_path / "base").write_text("x")
        (tmp_path / "base").chmod(0o444)
        (folder / "linked").hardlink_to(tmp_path / "base")
        save_file({"a": torch.zeros(1)}, folder / "inner/weights.safetensors")
    with writing_file(tmp_path / "one.safetensors") as partial:
        save_file({"a": torch.zeros(1)}, partial)
    os.umask(before)
    files = [tmp_path / "made/inner/weights.safetensors", tmp_path / "made/manifest.json", tmp_path / "one.safetensors"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {mode}
    assert stat.S_IMODE((tmp_path / "base").stat().st_mode) == 0o444


def test_a_failed_writer_leaves_what_was_there(tmp_path):
    make(tmp_path / "out")
    before = (tmp_path / "out/manifest.json").read_bytes()
    with pytest.raises(OSError), writing_folder(tmp_path / "out", MADE) as folder:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "out/manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failed_file_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.json"
    write_json({"a": 1}, path)
    with pytest.raises(RuntimeError), writing_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_working_folder_keeps_the_same_work_and_forgets_other_work(tmp_path):
    out = tmp_path / "out"
    folder = working_folder(out, MADE)
    (folder / "piece").write_text("1")
    assert (working_folder(out, MADE) / "piece").exists()
    other = Provenance("stage", 1, {"a": 2}, 0, {})
    assert not (working_folder(out, other) / "piece").exists()
    make(out, other)
    assert not folder.exists()


def test_table_round_trip_and_faults(tmp_path):
    table = pd.DataFrame({"a": [1, 2], "b": ["x", ""]})
    write_table(table, tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet"), table)
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="bad.parquet cannot be read"):
        read_table(tmp_path / "bad.parquet")
    with pytest.raises(InputError, match="gone.parquet does not exist"):
        read_table(tmp_path / "gone.parquet")


def test_damaged_manifest_is_named(tmp_path):
    with pytest.raises(InputError, match="is not a finished artifact"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="manifest.json is damaged"):
        read_manifest(tmp_path)


def test_a_table_carries_its_manifest(tmp_path):
    path = tmp_path / "t.parquet"
    table = pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": [0.1, float("nan")]})
    write_table(table, path, MADE)
    manifest = read_manifest(path)
    assert (manifest["stage"], manifest["settings"], manifest["seed"]) == ("stage", {"a": 1}, 0)
    assert damage(path) is None and has_manifest(path)
    pd.testing.assert_frame_equal(read_table(path), pd.read_parquet(path))
    first = path.read_bytes()
    write_table(table, path, MADE)
    assert path.read_bytes() == first
    write_table(table, path)
    assert not has_manifest(path)
    with pytest.raises(InputError, match="carries no manifest"):
        read_manifest(path)


def test_a_table_tells_of_its_run_beside_its_manifest(tmp_path, monkeypatch):
    for name in list(MEASURED):
        monkeypatch.delitem(MEASURED, name)
    paths = first, second, other = [tmp_path / f"{name}.parquet" for name in ("first", "second", "other")]
    for path, value, seconds in zip(paths, (1, 1, 2), (7000, 50, 50), strict=True):
        monkeypatch.setattr(artifacts, "STARTED", time.time() - seconds)
        monkeypatch.setitem(MEASURED, "pairs", seconds)
        write_table(pd.DataFrame({"a": [value]}), path, MADE, facts=True)
    make(tmp_path / "folder")
    facts = run_facts(first)
    assert facts.keys() == run_facts(tmp_path / "folder").keys()
    assert facts["wall_seconds"] == pytest.approx(7000, abs=50) and facts["measured"] == {"pairs": 7000}
    # Neither its content nor what follows from it knows of the run.
    assert first.read_bytes() != second.read_bytes()
    assert read_manifest(first) == read_manifest(second) != read_manifest(other)
    assert sha256(first) == sha256(second) != sha256(other)
    pd.testing.assert_frame_equal(read_table(first), read_table(second))
    assert damage(first) is None
    write_table(pd.DataFrame({"a": [1]}), second, MADE)
    assert read_manifest(first) == read_manifest(second)


def test_what_tells_nothing_of_its_run(tmp_path):
    make(tmp_path / "folder")
    (tmp_path / "folder/run.json").unlink()
    write_table(pd.DataFrame({"a": [1]}), table := tmp_path / "table.parquet", MADE)
    (damaged := tmp_path / "damaged.parquet").write_bytes(b"abc")
    for path in (tmp_path / "folder", table, damaged, tmp_path / "missing", tmp_path / "missing.parquet"):
        assert run_facts(path) == {}
    assert sha256(table) == hashlib.sha256(table.read_bytes()).hexdigest() and sha256(damaged) == ABC


def test_damage_names_the_file(tmp_path):
    make(tmp_path / "out")
    assert damage(tmp_path / "out") is None
    (tmp_path / "out/.snakemake_timestamp").write_text("")
    (tmp_path / "out/run.json").write_text("{}")
    assert damage(tmp_path / "out") is None
    (tmp_path / "out/more").write_text("")
    assert damage(tmp_path / "out") == f"{tmp_path}/out/more does not belong to it"
    (tmp_path / "out/more").unlink()
    (tmp_path / "out/sub/file.txt").write_text("abd")
    assert damage(tmp_path / "out") == f"{tmp_path}/out/sub/file.txt is damaged: it is not what was written"
    (tmp_path / "out/sub/file.txt").unlink()
    assert damage(tmp_path / "out") == f"{tmp_path}/out/sub/file.txt is missing"


@pytest.mark.parametrize("links", [True, False])
def test_a_disk_without_hard_links_gets_copies(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no links")))
    (tmp_path / "a").write_text("abc")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "abc" and (tmp_path / "a").stat().st_nlink == 1 + links
    if links:
        with pytest.raises(FileExistsError):
            link_or_copy(tmp_path / "a", tmp_path / "b")


def test_what_was_set_aside_goes_when_it_is_made_anew(tmp_path):
    for path in (tmp_path / "folder", tmp_path / "table.parquet"):
        stale(path).mkdir()
    make(tmp_path / "folder")
    write_table(pd.DataFrame({"a": [1]}), tmp_path / "table.parquet", MADE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "table.parquet"]


def test_a_folder_that_git_keeps_has_no_manifest(tmp_path):
    with writing_folder(tmp_path / "plots", None) as folder:
        (folder / "a.csv").write_text("1")
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["a.csv"]
