"""One run at a time: who is refused, whose lock is taken over, and what of a dead run is ended."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
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
    another = runs.Holder(socket.gethostname(), os.getpid(), "boot-1", "ada", 0.0, "", False, "")
    runs.LOCK.write_text(json.dumps(another._asdict()))
    assert take().returncode == 0


@pytest.mark.parametrize(
    ("silent", "refused"), [(0, True), (runs.SILENT_SECONDS - 60, True), (runs.SILENT_SECONDS + 5, False)]
)
def test_a_lock_of_another_host_is_judged_by_its_silence(silent, refused):
    runs.LOCK.parent.mkdir()
    runs.LOCK.write_text(json.dumps(runs.Holder("elsewhere", 1, "boot-1", "ada", 0.0, "", False, "")._asdict()))
    os.utime(runs.LOCK, (time.time() - silent,) * 2)
    result = take()
    assert (result.returncode == 1) is refused, result.stderr
    assert ("process 1 of ada on elsewhere" in result.stderr) is refused


def test_a_requeued_run_takes_its_own_lock_on_another_node(monkeypatch):
    runs.LOCK.parent.mkdir()
    runs.LOCK.write_text(json.dumps(runs.Holder("elsewhere", 1, "boot-1", "ada", 0.0, "77", False, "")._asdict()))
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


@pytest.mark.parametrize("interrupts", [signal.SIG_DFL, signal.SIG_IGN], ids=["foreground", "background of a script"])
def test_a_living_run_touches_its_lock_and_stops_when_it_was_taken(interrupts):
    living = subprocess.Popen(
        [sys.executable, "-c", LIVING],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts),
    )
    living.stdout.readline()
    os.utime(runs.LOCK, (0, 0))
    deadline = time.monotonic() + 30
    while time.time() - runs.LOCK.stat().st_mtime > 60 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.time() - runs.LOCK.stat().st_mtime < 60
    other = json.dumps(runs.Holder("elsewhere", 1, "boot-1", "ada", 0.0, "", False, "")._asdict())
    runs.LOCK.with_suffix(".new").write_text(other)
    os.replace(runs.LOCK.with_suffix(".new"), runs.LOCK)
    assert living.wait(timeout=30) != 0
    assert runs.LOCK.read_text() == other


def test_of_many_at_once_one_gets_a_dead_runs_lock():
    runs.LOCK.parent.mkdir()
    runs.LOCK.write_text(
        json.dumps(runs.Holder(socket.gethostname(), 2**22 + 1, "boot-1", "ada", 0.0, "", False, "")._asdict())
    )
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER.format(90)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    while len(holders := [taker for taker in takers if taker.poll() is None]) > 1:
        time.sleep(0.05)
    for holder in holders:
        assert holder.stdout.readline() == "taken\n"
        holder.kill()
    taken = ["taken\n"] * len(holders) + [taker.communicate()[0] for taker in takers if taker not in holders]
    assert sorted(taken) == [*[""] * 5, "taken\n"]


def test_a_lock_that_was_renewed_meanwhile_is_put_back(monkeypatch):
    """Between the look at a dead run's lock and its removal another run may have taken it."""
    runs.LOCK.parent.mkdir()
    dead, living = (runs.Holder("elsewhere", pid, "boot-1", "ada", 0.0, "", False, "") for pid in (1, 2))
    runs.LOCK.write_text(json.dumps(dead._asdict()))
    ticket = runs.LOCK.with_name(".run.here.3")
    ticket.touch()
    monkeypatch.setattr(runs, "_alive", lambda *_: runs.LOCK.write_text(json.dumps(living._asdict())) == 0)
    runs._bury(runs.LOCK, ticket)
    assert json.loads(runs.LOCK.read_text())["pid"] == 2


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


def program(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def dead(**fields):
    """Write the lock of a run on this host that is dead."""
    holder = runs.Holder(socket.gethostname(), 2**22 + 1, "boot-1", "ada", 0.0, "", False, str(Path.cwd()))
    runs.LOCK.parent.mkdir(exist_ok=True)
    runs.LOCK.write_text(json.dumps(holder._replace(**fields)._asdict()))


@pytest.mark.parametrize("installed", [True, False])
def test_a_dead_run_whose_cluster_does_not_answer_is_not_followed(house, installed):
    """That matters where the dead run submitted jobs, and only there; asking twice does not help."""
    if installed:
        program(house / "squeue", "echo no controller >&2\nexit 1")
    dead(on_cluster=False)
    assert take().returncode == 0
    dead(on_cluster=True)
    sentence = "SLURM does not say what it left: no controller" if installed else "there is no squeue here that knows"
    for _ in range(2):
        result = take()
        assert result.returncode == 1 and sentence in result.stderr
    assert json.loads(runs.LOCK.read_text())["on_cluster"] and [*Path("results").iterdir()] == [runs.LOCK]


@pytest.mark.parametrize(("said", "warned"), [("300 sec", False), ("60 sec", True), (None, False)])
def test_a_cluster_that_forgets_jobs_too_soon_is_named(house, said, warned):
    if said:
        program(house / "scontrol", f"echo 'MessageTimeout          = 10 sec'\necho 'MinJobAge               = {said}'")
    sentence = runs.forgetful_cluster()
    assert ("after 60 s (MinJobAge)" in sentence) if warned else sentence is None


def test_orphans_are_known_by_the_dead_runs_folder(house, monkeypatch):
    """Two clones whose results are one folder: what the run in the other clone left is ended, another workflow's is not."""
    theirs, elsewhere = house / "theirs", house / "elsewhere"
    theirs.mkdir()
    name = f"seas_{'0' * 36}"
    jobs = {1: (name, theirs), 2: (name, elsewhere), 3: (name, house), 4: ("mine", theirs)}
    queue = "".join(f"test -e {house}/{job} || echo '{job}|{of}|{where}'\n" for job, (of, where) in jobs.items())
    program(house / "squeue", queue)
    program(house / "scancel", f"for job; do : > {house}/$job; done")
    environment = os.environ | {runs.MARK: "another run"}
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    processes = [subprocess.Popen(sleep, cwd=where, env=environment) for where in (theirs, house.parent)]
    try:
        dead(on_cluster=True, folder=str(theirs))
        assert take().returncode == 0
        assert [job for job in jobs if (house / str(job)).exists()] == [1, 3]
        assert processes[0].wait(timeout=10) == -signal.SIGKILL and processes[1].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_run_that_proc_hides_is_known_by_its_touches(monkeypatch):
    """/proc mounted with hidepid shows nobody another person's process."""
    dead()
    kill = os.kill

    def forbidden(pid, number):
        if pid == 2**22 + 1:
            raise PermissionError
        kill(pid, number)

    monkeypatch.setattr(os, "kill", forbidden)
    with pytest.raises(InputError, match="process 4194305 of ada"):
        runs.take_lock(on_cluster=False)
    os.utime(runs.LOCK, (time.time() - runs.SILENT_SECONDS - 5,) * 2)
    with runs.locked():
        assert json.loads(runs.LOCK.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("links", [True, False])
def test_held_for_a_block(monkeypatch, links):
    """Also where the disk has no hard links."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links")))
    with runs.locked():
        result = take()
        assert result.returncode == 1 and f"process {os.getpid()} of " in result.stderr
    assert not [*Path("results").iterdir()] and runs.MARK not in os.environ
    assert take().returncode == 0


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe"])
def test_a_damaged_lock_is_named(content):
    runs.LOCK.parent.mkdir()
    runs.LOCK.write_bytes(content)
    with pytest.raises(InputError, match=r"results/.run is damaged; .* start again in 3 minutes, or remove it"):
        runs.take_lock(on_cluster=False)
    os.utime(runs.LOCK, (0, 0))
    runs.take_lock(on_cluster=False)()
    assert not runs.LOCK.exists()


def test_a_lock_that_cannot_be_looked_at_ends_no_run(monkeypatch):
    release = runs.take_lock(on_cluster=False)
    me = runs.Holder(**json.loads(runs.LOCK.read_text()))
    looks = []

    def fails(lock, me):
        looks.append(lock)
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(runs, "_held", fails)
    monkeypatch.setattr(runs, "TOUCH_SECONDS", 0.01)
    over = threading.Event()
    keeper = threading.Thread(target=runs._keep, args=(runs.LOCK, me, over))
    keeper.start()
    while len(looks) < 3 and keeper.is_alive():
        time.sleep(0.01)
    assert keeper.is_alive()
    over.set()
    keeper.join()
    monkeypatch.undo()
    release()
