"""Ten kills of the stress program (`kills.py`): eight of a stage, two of the whole group."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_ten_kills_leave_the_artifacts_of_an_undisturbed_run():
    program = Path(__file__).with_name("kills.py")
    command = [sys.executable, str(program), "--stage", "8", "--group", "2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=program.parent.parent)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "10 kills" in result.stdout
