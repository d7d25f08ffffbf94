"""One run at a time: who is refused, whose lock is taken over, and what of a dead run is ended."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seas import runs
from seas.errors import InputError

HOLDER = """
import subprocess, sys, time
from seas.runs import take_lock
take_lock(on_cluster=False)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
TAKER = "from seas.runs import take_lock; take_lock(on_cluster=False); import time; print('taken', flush=True); time.sleep({})"


@pytest.fixture(autouse=True)
def house(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM
    return tmp_path


@pytest.fixture
def holder():
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process, child
    for pid in (process.pid, child):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def take(seconds=0):
    return subprocess.run([sys.executable, "-c", TAKER.format(seconds)], capture_output=True, text=True)


def alive(pid):
    return runs._started(pid) != ""


def test_the_second_run_is_refused_by_host_and_process(holder):
    result = take()
    assert result.returncode == 1
    assert f"process {holder[0].pid} of " in result.stderr and f"on {socket.gethostname()} is running" in result.stderr
    assert alive(holder[1])


def test_the_lock_is_released_at_the_end():
    assert take().returncode == 0
    assert not runs.LOCK.exists() and not list(Path("results").iterdir())
    assert take().returncode == 0


def test_a_dead_run_needs_nobody_and_its_jobs_end_first(holder):
    process, child = holder
    process.kill()
    process.wait()
    assert runs.LOCK.exists() and alive(child)
    result = take()
    assert result.stdout == "taken\n", result.stderr
    assert not alive(child)


def test_a_process_with_the_number_of_the_dead_one_is_not_taken_for_it():
    runs.LOCK.parent.mkdir()
    another = runs.Holder(socket.gethostname(), os.getpid(), "boot-1", "ada", 0.0, "", False)
    runs.LOCK.write_text(json.dumps(another._asdict()))
    assert take().returncode == 0


@pytest.mark.parametrize(
    ("silent", "refused"), [(0, True), (runs.SILENT_SECONDS - 60, True), (runs.SILENT_SECONDS + 5, False)]
)
def test_a_lock_of_another_host_is_judged_by_its_silence(silent, refused):
    runs.LOCK.parent.mkdir()
    runs.LOCK.write_text(json.dumps(runs.Holder("elsewhere", 1, "boot-1", "ada", 0.0, "", False)._asdict()))
    os.utime(runs.LOCK, (time.time() - silent,) * 2)
    result = take()
    assert (result.returncode == 1) is refused, result.stderr
    assert ("process 1 of ada on elsewhere" in result.stderr) is refused


def test_a_requeued_run_takes_its_own_lock_on_another_node(monkeypatch):
    runs.LOCK.parent.mkdir()
    runs.LOCK.write_text(json.dumps(runs.Holder("elsewhere", 1, "boot-1", "ada", 0.0, "77", False)._asdict()))
    monkeypatch.setenv("SLURM_JOB_ID", "76")
    assert take().returncode == 1
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert take().returncode == 0


LIVING = """
import time
from seas import runs
runs.TOUCH_SECONDS = 0.05
runs.take_lock(on_cluster=False)
print("taken", flush=True)
time.sleep(60)
"""


def test_a_living_run_touches_its_lock_and_stops_when_it_was_taken():
    living = subprocess.Popen([sys.executable, "-c", LIVING], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    living.stdout.readline()
    os.utime(runs.LOCK, (0, 0))
    deadline = time.monotonic() + 30
    while time.time() - runs.LOCK.stat().st_mtime > 60 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.time() - runs.LOCK.stat().st_mtime < 60
    other = json.dumps(runs.Holder("elsewhere", 1, "boot-1", "ada", 0.0, "", False)._asdict())
    runs.LOCK.with_suffix(".new").write_text(other)
    os.replace(runs.LOCK.with_suffix(".new"), runs.LOCK)
    assert living.wait(timeout=30) != 0
    assert runs.LOCK.read_text() == other


def test_of_many_at_once_one_gets_a_dead_runs_lock():
    runs.LOCK.parent.mkdir()
    runs.LOCK.write_text(
        json.dumps(runs.Holder(socket.gethostname(), 2**22 + 1, "boot-1", "ada", 0.0, "", False)._asdict())
    )
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER.format(5)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    taken = [taker.communicate()[0] for taker in takers]
    assert sorted(taken) == [*[""] * 5, "taken\n"]


def test_a_job_ends_with_its_run(holder):
    process, child = holder
    mark = json.loads(runs.LOCK.read_text())
    environment = os.environ | {runs.MARK: runs.Holder(**mark).mark}
    code = "from seas.runs import watch_run; watch_run(); import time; time.sleep(600)"
    job = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        time.sleep(2)
        assert job.poll() is None
        process.kill()
        process.wait()
        assert job.wait(timeout=30) == 1
    finally:
        job.kill()


def test_a_dead_run_whose_cluster_does_not_answer_is_not_followed(house):
    """SLURM is installed, but silent: that matters where the dead run submitted jobs, and only there."""
    (house / "squeue").write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
    (house / "squeue").chmod(0o755)
    runs.LOCK.parent.mkdir()
    for on_cluster, status in ((False, 0), (True, 1)):
        dead = runs.Holder(socket.gethostname(), os.getpid(), "boot-1", "ada", 0.0, "", on_cluster)
        runs.LOCK.write_text(json.dumps(dead._asdict()))
        result = take()
        assert result.returncode == status
        assert ("SLURM does not say what it left: no controller" in result.stderr) is on_cluster


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_damaged_lock_is_named(content):
    runs.LOCK.parent.mkdir()
    runs.LOCK.write_text(content)
    with pytest.raises(InputError, match=r"results/.run is damaged"):
        runs.take_lock(on_cluster=False)
