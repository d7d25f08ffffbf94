"""The programs that measure: that each still runs, on little; what they print stands in benchmarks/README.md."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

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
