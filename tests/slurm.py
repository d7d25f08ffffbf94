"""A real SLURM on loopback for the tests: munge, slurmctld and two slurmd, all processes of the test's own user, root.

The second node has two pretended GPUs (clones of /dev/null): they are scheduled and named in CUDA_VISIBLE_DEVICES.
There are no cgroups: memory is scheduled, not enforced.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
REQUIRE = "SEAS_REQUIRE_SLURM"
"""With this environment variable missing packages are installed, and a test that cannot run fails."""
SITE = Path("/etc/slurm/slurm.conf")
"""The one file outside the test's folder: the plugin strips SLURM_CONF from the environment of the srun in a job."""
POLICY = Path("/usr/sbin/policy-rc.d")
NODES = ("node1", "node2")
CPUS = max(4, (os.cpu_count() or 1) + 1)
"""What each node claims: more than this machine has, so that what limits a job to this machine is seen."""
CONF = """
ClusterName=seas
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
GresTypes=gpu
DefMemPerCPU=100
MinJobAge=3600
SlurmdTimeout=10
ReturnToService=2
KillWait=2
JobRequeue=1
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobs.txt
AccountingStorageType=accounting_storage/none
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=12000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=12000 Gres=gpu:fake:2
PartitionName=cpu Nodes=node1,node2 Default=YES MaxTime=600 State=UP
PartitionName=gpu Nodes=node2 MaxTime=600 State=UP
"""


class Unavailable(Exception):
    """Why there can be no SLURM here."""


class Slurm:
    """The cluster while it runs, for jobs of folders below ``houses``. ``start`` may raise Unavailable; ``stop`` ends all
    that was started."""

    def __init__(self, houses: Path) -> None:
        self.houses = houses.resolve()
        # Not pytest's folder: munged wants one that everybody may enter.
        self.folder = Path(tempfile.mkdtemp(prefix="seas-slurm-"))
        self.folder.chmod(0o755)

    def start(self) -> None:
        if os.getuid() != 0:
            raise Unavailable("slurmd must be started by root")
        if SITE.exists() or SITE.is_symlink():
            raise Unavailable(f"{SITE} exists: this machine has a SLURM of its own")
        if running := [name for name in _process_names() if name in ("slurmctld", "slurmd", "slurmdbd", "munged")]:
            raise Unavailable(f"{running[0]} is running already")
        if "SLURM_CONF" in os.environ:
            raise Unavailable(f"SLURM_CONF names a SLURM already: {os.environ['SLURM_CONF']}")
        if _which("scontrol") and subprocess.run([_which("scontrol"), "ping"], capture_output=True).returncode == 0:
            raise Unavailable("a controller answers `scontrol ping` already")
        if missing := [name for name in PROGRAMS if not _which(name)]:
            if not os.environ.get(REQUIRE):
                raise Unavailable(f"{missing[0]} is not installed; {REQUIRE}=1 installs {', '.join(PACKAGES)}")
            _install()
        for name in ("run", "log", "state", "dev", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        devices = [self.folder / f"dev/gpu{number}" for number in (0, 1)]
        for device in devices:
            os.mknod(device, 0o20666, os.makedev(1, 3))
        conf = CONF.format(folder=self.folder, host=socket.gethostname().split(".")[0], ports=_free_ports(3), cpus=CPUS)
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text(f"NodeName=node2 Name=gpu Type=fake File={self.folder}/dev/gpu[0-1]\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        self.made_site = not SITE.parent.exists()
        SITE.parent.mkdir(exist_ok=True)
        SITE.symlink_to(self.folder / "slurm.conf")

        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        run = self.folder / "run"
        options = [f"--key-file={key}", f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid"]
        self.daemon("munged", *options, f"--log-file={self.folder}/log/munged.log", f"--seed-file={run}/munged.seed")
        self.daemon("slurmctld")
        for node in NODES:
            self.daemon("slurmd", "-N", node)
        until(lambda: self.ask("sinfo", "-h", "-N", "-p", "cpu", "-o", "%t").split() == ["idle"] * 2, 60)

    def daemon(self, program: str, *options: str) -> None:
        # SLURM looks for gres.conf and cgroup.conf beside the name by which it was given slurm.conf.
        result = subprocess.run([_which(program), *options], capture_output=True, text=True, env=self._environment)
        assert result.returncode == 0, result.stderr

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """What a command of this SLURM prints."""
        return subprocess.run(command, capture_output=True, text=True, env=self._environment).stdout

    def records(self) -> list[dict[str, str]]:
        """The scheduler's own record of each job, finished or not, as name → value."""
        text = self.ask("scontrol", "show", "job", "--oneliner")
        # Values may hold spaces; names are words before a "=".
        jobs = []
        for line in text.splitlines():
            fields, last = {}, None
            for part in line.split(" "):
                name, equals, value = part.partition("=")
                if equals and name.replace("/", "").replace(":", "").isalnum():
                    fields[name], last = value, name
                elif last:
                    fields[last] += f" {part}"
            if fields:
                jobs.append(fields)
        return sorted(jobs, key=lambda fields: int(fields["JobId"]))

    def completions(self) -> dict[str, str]:
        """Number → final state of each job, from the file that slurmctld writes when jobs end."""
        path = self.folder / "log/jobs.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in lines]
        return {row["JobId"]: row["JobState"] for row in rows}

    def freeze(self, job: str) -> None:
        """Let a job hang: SIGSTOP to its Python processes."""
        for pid in _pids():
            with contextlib.suppress(OSError):
                mine = f"SLURM_JOB_ID={job}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if mine and _name(pid).startswith("python"):
                    os.kill(pid, signal.SIGSTOP)

    def lose_power(self, node: str) -> None:
        """SIGKILL a node's slurmd, its step daemons and all that runs below them; they are told by their environment."""
        slurmd = int((self.folder / f"run/{node}.pid").read_text())
        marked = f"SLURMD_NODENAME={node}".encode()
        for _ in range(3):  # a process that is born meanwhile dies in the next round
            for pid in _pids():
                with contextlib.suppress(OSError):
                    if marked in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                        for victim in (_parent(pid), pid):
                            if victim == pid or _name(victim) == "slurmstepd":
                                os.kill(victim, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.kill(slurmd, signal.SIGKILL)
        (self.folder / f"run/{node}.pid").unlink(missing_ok=True)

    def restore_power(self, node: str) -> None:
        self.daemon("slurmd", "-N", node)
        until(lambda: self.ask("sinfo", "-h", "-n", node, "-o", "%t").split()[:1] == ["idle"], 60)

    def stop(self) -> None:
        """Cancel the jobs, end the daemons, remove the link and the folder."""
        if SITE.is_symlink() and SITE.readlink() == self.folder / "slurm.conf":
            self._end()
            SITE.unlink()
            if self.made_site:
                SITE.parent.rmdir()
        shutil.rmtree(self.folder)

    def _jobs(self) -> list[str]:
        """The waiting and running jobs of the houses."""
        rows = [line.split("|", 1) for line in self.ask("squeue", "-h", "-o", "%A|%Z").splitlines()]
        return [job for job, folder in rows if Path(folder).is_relative_to(self.houses)]

    def _end(self) -> None:
        if jobs := self._jobs():
            self.ask("scancel", *jobs)
            with contextlib.suppress(TimeoutError):
                until(lambda: not self._jobs(), 30)
        for path in sorted((self.folder / "run").glob("*.pid"), key=lambda path: path.stem == "munged"):
            pid = int(path.read_text())
            for kill in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    os.kill(pid, kill)
                    until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 15)


def until(done, seconds: float) -> None:
    """Wait until ``done()`` is true; raise TimeoutError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.2)


def processes_in(folder: Path) -> list[int]:
    """The processes that work in a folder."""
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cwd").readlink() == folder:
                found.append(pid)
    return found


def _install() -> None:
    """Install the packages, with no service started by their scripts."""
    mine = not POLICY.exists()
    if mine:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *PACKAGES]):
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            result = subprocess.run(["apt-get", *command], capture_output=True, text=True, env=environment)
            if result.returncode:
                raise Unavailable(f"apt-get {command[0]} failed: {result.stderr.strip()[-300:]}")
    except FileNotFoundError:
        raise Unavailable("there is no apt-get to install SLURM with") from None
    finally:
        if mine:
            POLICY.unlink()


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _process_names() -> list[str]:
    return [_name(pid) for pid in _pids()]
