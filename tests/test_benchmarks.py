"""The programs that measure: that each still runs, on little; what they print stands in benchmarks/README.md."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seas.artifacts import read_table
from seas.generation.tree import write_generated, write_images_table
from seas.images import read_mask

REPOSITORY = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def printed(program: str, *arguments: str) -> str:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / program), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("arm", [[], ["--channels-last"], ["--like-release"]], ids=["ours", "channels-last", "release"])
@pytest.mark.parametrize("kind", ["generator", "rmp", "generation"])
def test_speed(kind, arm):
    found = json.loads(printed("speed.py", "--one", kind, "--repeats", "1", *arm).splitlines()[-1])
    assert found["ms"] > 0 and found["peak_gb"] > 0.1


def test_ic_lpips_by_blocks_is_that_pair_by_pair():
    found = json.loads(printed("speed.py", "--one", "ic_lpips", "--lpips-images", "200").splitlines()[-1])
    assert found["difference"] < 1e-4


def test_the_memory_of_an_update_is_as_the_readme_has_it():
    rows = [line for line in printed("memory.py").splitlines() if "GB" in line and "---" not in line]
    readme = (REPOSITORY / "benchmarks/README.md").read_text()
    assert len(rows) == 5 and all(row in readme for row in rows)


def test_validation_never_touches_shots_their_groups_or_test_images():
    split = pd.DataFrame(
        [
            ("shot.png", "rust", "shot"),
            ("twin.png", "rust", "left_out"),
            ("other.png", "rust", "left_out"),
            ("alone.png", "good", "left_out"),
            ("test.png", "rust", "test"),
            ("normal.png", "good", "normal"),
        ],
        columns=["image", "type", "role"],
    )
    validation = runpy.run_path(str(REPOSITORY / "benchmarks/validate_arms.py"))["validation_split"]
    found = validation(split, {"shot.png": "a", "twin.png": "a", "other.png": "b"})
    assert list(found.role) == ["shot", "left_out", "test", "test", "reserve", "normal"]


def test_an_arm_takes_each_type_from_the_stage_that_it_is_told(tmp_path):
    rows = [
        write_generated(
            tmp_path / "tree", name, 0, np.zeros((4, 4, 3), np.uint8), np.eye(4) > 0, source_normal="", draws=1
        )
        for name in ("rust", "dent")
    ]
    write_images_table(rows, tmp_path / "tree")
    pairs_of = runpy.run_path(str(REPOSITORY / "benchmarks/validate_arms.py"))["pairs_of"]
    rust = pairs_of(tmp_path / "tree", "rust", tmp_path / "arm/rust")
    table = read_table(rust / "images.parquet")
    assert list(table.type) == ["rust"] and read_mask(rust / table["mask"][0]).sum() == 4
    with pytest.raises(SystemExit, match="has no pair of the type 'fray'"):
        pairs_of(tmp_path / "tree", "fray", tmp_path / "arm/fray")
