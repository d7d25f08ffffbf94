"""A full disk: one sentence, whole artifacts or none, and the run goes on after room is made."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_workflow import make_house, planned, snakemake

from seas.artifacts import damage, has_manifest

pytestmark = pytest.mark.slow


@pytest.fixture
def resize(tmp_path):
    """Mounts a small disk at house/results, and changes its size. Only root may mount one."""
    results = make_house(tmp_path / "house") / "results"
    results.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(results)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(results)], check=True)
    subprocess.run(["umount", "--lazy", str(results)], check=True)


def artifacts(house: Path) -> list[Path]:
    found = [manifest.parent for manifest in (house / "results").rglob("manifest.json")]
    return found + [table for table in (house / "results/mine").glob("**/washer.parquet") if has_manifest(table)]


def test_a_full_disk_is_told_in_one_sentence_and_the_run_goes_on(resize, tmp_path):
    house, finished = tmp_path / "house", [0]
    for size in ("100k", "1500k"):
        resize(size)
        text = snakemake(house, fails=True)
        assert "seas: no space is left on the disk; make room and start again, finished work is kept" in text
        assert [damage(path) for path in artifacts(house)] == [None] * len(artifacts(house))
        finished.append(len(artifacts(house)))
    assert finished == sorted(set(finished)) and finished[-1] < 12
    resize("200M")
    snakemake(house)
    assert planned(house) == {}
    command = [sys.executable, "-m", "seas.cli", "restore", "--config", "config/demo.yaml", "--config", "tiny.yaml"]
    restored = subprocess.run(command, cwd=house, capture_output=True, text=True).stdout
    assert restored == "15 results are up to date; the next run makes 0 anew\n"
