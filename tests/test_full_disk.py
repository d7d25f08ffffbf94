"""A full disk: one sentence, whole artifacts or none, and the run goes on after room is made."""

import subprocess
from pathlib import Path

import pytest
from kills import fingerprint
from test_workflow import make_house, snakemake

from seas.artifacts import damage, has_manifest

pytestmark = pytest.mark.slow

SENTENCE = "no space is left on the disk"


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, and how its size is changed. Only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    yield folder, resize
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The artifacts of an undisturbed run."""
    house = make_house(tmp_path_factory.mktemp("whole") / "house")
    snakemake(house)
    return fingerprint(house)


def artifacts(house: Path) -> list[Path]:
    found = [manifest.parent for manifest in (house / "results").rglob("manifest.json")]
    return found + [table for table in (house / "results").rglob("*.parquet") if has_manifest(table)]


def test_results_on_a_full_disk(small_disk, wanted, tmp_path):
    disk, resize = small_disk
    house = make_house(tmp_path / "house")
    (house / "results").symlink_to(disk)
    finished = []
    for size in ("100k", "1M", "2M", "3M", "4M", "5M", "6M", "7M"):
        resize(size)
        text = snakemake(house, check=False)
        if "100%" in text and "Nothing" not in text and SENTENCE not in text:
            break
        assert SENTENCE in text and "Traceback" not in text, text
        assert not [path for path in artifacts(house) if damage(path)]
        finished.append(len(artifacts(house)))
    resize("200M")
    snakemake(house)
    assert finished == sorted(finished) and len(set(finished)) > 2
    assert fingerprint(house) == wanted
