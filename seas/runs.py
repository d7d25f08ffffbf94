"""One run of the workflow at a time on one results folder, and nothing left over from a run that died.

A run holds ``results/.run``, a file that names its host, process, person and folder, and touches it now and then. The
lock of a dead run is taken over without asking anybody, after the jobs that it left are ended: processes on this host by
the mark in their environment, SLURM jobs by their name, both by their working folder (``results`` may be a link).
"""

import atexit
import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from seas.errors import InputError

LOCK = Path("results/.run")
MARK = "SEAS_RUN"
"""Environment variable that the processes of a run inherit."""
TOUCH_SECONDS = 20
SILENT_SECONDS = 180
"""The lock of another host is a dead run's when it was not touched for so long, by the file server's clock."""
PATIENCE_SECONDS = 60
"""How long cancelled jobs may take to end."""
MIN_JOB_AGE = 240
"""Seconds that SLURM has to remember a finished job: the executor looks every 180 s at most, and a job that it does not
find it takes for waiting."""
OWN_SLURM_JOB = os.environ.get("SLURM_JOB_ID", "")
"""The job that this process is in, if any; the executor takes it out of the environment later."""
JOB_NAME = re.compile(r"seas_[0-9a-f-]{36}")
"""Name of the SLURM jobs: the slurm profile's prefix, and the run that the executor numbered."""


class Holder(NamedTuple):
    """A run of the workflow. ``started`` tells the process from a later one with its number; ``since`` is when it began.

    ``slurm_job`` is the job that the run itself is in, if any; ``on_cluster`` tells whether it submits jobs; ``folder`` is
    where its jobs work.
    """

    host: str
    pid: int
    started: str
    user: str
    since: float
    slurm_job: str
    on_cluster: bool
    folder: str

    @property
    def mark(self) -> str:
        return f"{self.host}:{self.pid}:{self.started}"

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}"


def take_lock(*, on_cluster: bool, lock: Path = LOCK) -> Callable[[], None]:
    """Take the lock for this process until it ends, and end what a dead run left behind; gives what releases it earlier.

    ``on_cluster`` tells whether this run submits its jobs.

    Raises InputError that names host and process when another run is alive, or jobs that cannot be ended.
    """
    pid, here = os.getpid(), str(Path.cwd().resolve())
    me = Holder(socket.gethostname(), pid, _started(pid), _user(), time.time(), OWN_SLURM_JOB, on_cluster, here)
    lock.parent.mkdir(parents=True, exist_ok=True)
    ticket = lock.with_name(f".run.{me.host}.{me.pid}")
    ticket.write_text(json.dumps(me._asdict()))
    dead, over = None, threading.Event()
    try:
        while not _linked(ticket, lock):
            dead = _bury(lock, ticket) or dead
    finally:
        ticket.unlink(missing_ok=True)

    def release() -> None:
        over.set()
        _release(lock, me)

    atexit.register(release)
    # Held from here on: nobody else can start jobs in this folder.
    folders = {here, dead.folder} if dead else {here}
    try:
        _end_slurm_jobs(folders, surely=dead is not None and dead.on_cluster)
        _until(lambda: _killed(folders), "processes of an earlier run in this folder do not end")
    except InputError:
        if dead:
            _give_back(lock, dead)
        raise
    os.environ[MARK] = me.mark
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # begun behind a script's "&"; ``_keep`` must be able to stop it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_keep, args=(lock, me, over), daemon=True).start()
    return release


@contextmanager
def locked() -> Iterator[None]:
    """Hold the lock while the block is at work, as a run does.

    Raises InputError as ``take_lock`` does.
    """
    release = take_lock(on_cluster=False)
    try:
        yield
    finally:
        release()
        del os.environ[MARK]


def watch_run() -> None:
    """End this process, a job on the run's own host, when its run dies; a SLURM job is ended by the next run."""
    host, _, rest = os.environ.get(MARK, "").partition(":")
    if host != socket.gethostname() or "SLURM_JOB_ID" in os.environ:
        return
    pid, started = rest.split(":")

    def watch() -> None:
        while _started(int(pid)) == started:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def forgetful_cluster() -> str | None:
    """A warning where SLURM forgets finished jobs before the executor has looked at them."""
    if not shutil.which("scontrol"):
        return None
    settings = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True).stdout
    age = re.search(r"^MinJobAge\s*=\s*(\d+)", settings, re.MULTILINE)
    if not age or int(age[1]) >= MIN_JOB_AGE:
        return None
    return (
        f"warning: this SLURM forgets finished jobs after {age[1]} s (MinJobAge), and {MIN_JOB_AGE} s are needed: the run may "
        "wait for ever for a job that has ended; docs/cluster.md, When things die, says what to do"
    )


def alive_holder(lock: Path = LOCK) -> Holder | None:
    """The run that holds the lock, if it is alive."""
    try:
        holder, age = Holder(**json.loads(lock.read_text())), time.time() - lock.stat().st_mtime
    except (OSError, ValueError, TypeError):
        return None
    return holder if _alive(holder, age) else None


def _alive(holder: Holder, age: float) -> bool:
    if holder.host == socket.gethostname() and not _concealed(holder.pid):
        return _started(holder.pid) == holder.started
    requeued = holder.slurm_job != "" and holder.slurm_job == OWN_SLURM_JOB
    return age < SILENT_SECONDS and not requeued


def _concealed(pid: int) -> bool:
    """Whether a process is alive, another person's, and hidden (/proc mounted with hidepid): it is known by its touches."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}/stat").exists()
    except OSError:
        return False
    return False


def _linked(ticket: Path, lock: Path) -> bool:
    try:
        os.link(ticket, lock)
    except FileExistsError:
        return False
    except OSError:  # a disk without hard links
        try:
            with open(lock, "x") as file:
                file.write(ticket.read_text())
        except FileExistsError:
            return False
    return True


def _give_back(lock: Path, dead: Holder) -> None:
    """Leave the lock of a dead run, whose jobs could not be ended, to the next run."""
    grave = lock.with_suffix(".dead")
    grave.write_text(json.dumps(dead._asdict()))
    os.utime(grave, (0, 0))
    grave.replace(lock)


def _bury(lock: Path, ticket: Path) -> Holder | None:
    """Remove the lock of a dead run; gives that run. Raises InputError when its holder is alive."""
    try:
        content, age = lock.read_text(errors="replace"), _now(ticket) - lock.stat().st_mtime
        holder = Holder(**json.loads(content))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # a power loss or a full disk emptied it, or it is being written
        if age < SILENT_SECONDS:
            raise InputError(
                f"{lock} is damaged; if no run is at work in this folder, start again in {SILENT_SECONDS / 60:.0f} minutes, or remove it"
            ) from None
        holder = Holder("", 0, "", "", 0.0, "", False, str(Path.cwd().resolve()))
    if _alive(holder, age):
        raise InputError(f"{holder} is running the workflow in {Path.cwd()}; wait for it, or end it and start again")
    grave = ticket.with_suffix(".dead")
    try:
        lock.rename(grave)
    except FileNotFoundError:
        return None
    if grave.read_text(errors="replace") != content:  # another run was quicker: what was moved is its lock
        _linked(grave, lock)
    grave.unlink()
    return holder


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return str(os.getuid())


def _now(ticket: Path) -> float:
    os.utime(ticket)
    return ticket.stat().st_mtime


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks since the machine's start, with that start; "" when there is none."""
    try:
        # The name in the second field may hold anything, also spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot}-{fields[19]}"


def _release(lock: Path, me: Holder) -> None:
    with contextlib.suppress(OSError):
        if os.getpid() == me.pid and _held(lock, me):
            lock.unlink(missing_ok=True)


def _held(lock: Path, me: Holder) -> bool:
    """Whether the lock is ours. Raises OSError when it cannot be looked at, but for one that is gone."""
    try:
        return Holder(**json.loads(lock.read_text())) == me
    except (FileNotFoundError, ValueError, TypeError):
        return False


def _keep(lock: Path, me: Holder, over: threading.Event) -> None:
    """Touch the lock until the run is over; stop the run when another has taken it for dead."""
    while not over.wait(TOUCH_SECONDS):
        with contextlib.suppress(OSError):  # a file server that fails now may answer at the next look
            if not _held(lock, me):
                os.kill(me.pid, signal.SIGINT)
                return
            os.utime(lock)


def _killed(folders: set[str]) -> list[str]:
    """Kill the processes that earlier runs in these folders left on this host; gives their numbers."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"{MARK}=".encode() in (process / "environ").read_bytes()
            if mine and process.name != str(os.getpid()) and str((process / "cwd").readlink()) in folders:
                os.kill(int(process.name), signal.SIGKILL)
                left.append(process.name)
        except OSError:  # another person's, or gone
            continue
    return left


def _end_slurm_jobs(folders: set[str], *, surely: bool) -> None:
    """Cancel the SLURM jobs that earlier runs in these folders left, and wait until they are gone.

    Raises InputError when they do not end, or, with ``surely``, when SLURM does not answer.
    """
    where = " and ".join(sorted(folders))

    def left() -> list[str]:
        result = subprocess.run(["squeue", "--noheader", "--format=%i|%j|%Z"], capture_output=True, text=True)
        if result.returncode and surely:
            raise InputError(f"an earlier run in {where} died and SLURM does not say what it left: {result.stderr}")
        rows = [line.split("|", 2) for line in result.stdout.splitlines()]
        return [job for job, name, of in rows if JOB_NAME.fullmatch(name) and str(Path(of).resolve()) in folders]

    if not shutil.which("squeue"):
        if surely:
            raise InputError(
                f"an earlier run in {where} died and may have left SLURM jobs, but there is no squeue here that knows; "
                "start on a machine with SLURM's commands"
            )
    elif jobs := left():
        subprocess.run(["scancel", *jobs], capture_output=True)
        _until(left, f"SLURM jobs of an earlier run in {where} do not end; their owner can scancel them")


def _until(left: Callable[[], list[str]], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while found := left():
        if time.monotonic() > deadline:
            raise InputError(f"{otherwise}: {', '.join(found)}")
        time.sleep(0.2)
