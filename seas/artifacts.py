"""Results on disk: written under a temporary name, renamed when whole, and carrying their origin.

A folder artifact holds two files beside its content:

``manifest.json``
    a function of its inputs alone: stage, stage_version, settings, seed, hashes of the
    inputs and of every file of the content;
``run.json``
    what differs from run to run (wall time, peak memory, device, versions, commit); never an input.

A table that is an artifact of its own carries its manifest in the parquet file's metadata; the hash of its content is
that of the table as csv. The tables of metrics carry their run's facts there, too. Index and split do not: they are hashed
as files, and equal inputs give equal bytes.
"""

import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from seas.errors import InputError

MANIFEST = "manifest.json"
RUN = "run.json"
TABLE = "table"
"""The name of a table's content in its manifest."""
_MANIFEST_KEY, _RUN_KEY = b"seas", b"seas_run"
"""The names of a table's manifest and of its run's facts in the parquet file's metadata."""
STARTED = time.time()
"""When this process began its stage: a job of the workflow is one process."""
MEASURED: Counter[str] = Counter()
"""What this process did and how long it took: updates and update_seconds, pairs and pair_seconds."""
SAMPLES, BLOCK_BYTES = 64, 4096
"""Parts of a large file of a folder that is no artifact, as ``sha256`` reads it."""
RECORDED_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "snakemake")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder artifact, that of its manifest; of another folder, of its files' names, sizes
    and ``SAMPLES`` blocks of each: other weights of the same architecture differ in any block.

    Of a table that carries its run's facts it is that of its manifest, too: the facts are never an input.
    Hidden files do not count: a download of Stable Diffusion leaves a cache of its own that differs between machines.
    Nor do a folder's documents (.md).
    """
    path = Path(path)
    if path.is_dir() and not (path / MANIFEST).exists():
        files = ((file.relative_to(path), file) for file in path.rglob("*") if file.is_file())
        counted = ((name, file) for name, file in files if not hidden(name) and name.suffix != ".md")
        listing = sorted((str(name), file.stat().st_size, sampled_sha256(file)) for name, file in counted)
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    if path.is_dir():
        path = path / MANIFEST
    elif path.suffix == ".parquet" and run_facts(path):
        return hashlib.sha256(_carried(path)[_MANIFEST_KEY]).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_sha256(file: Path) -> str:
    """SHA-256 of ``SAMPLES`` blocks, spread over the file; of a short one, of all its bytes."""
    size, digest = file.stat().st_size, hashlib.sha256()
    with open(file, "rb") as content:
        for start in range(0, size, max(BLOCK_BYTES, size // SAMPLES)):
            content.seek(start)
            digest.update(content.read(BLOCK_BYTES))
    return digest.hexdigest()


def hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@dataclass(frozen=True)
class Provenance:
    """What an artifact is made of. Two artifacts with equal provenance are the same artifact."""

    stage: str
    stage_version: int
    settings: dict[str, Any]
    seed: int | None
    inputs: dict[str, str]

    @classmethod
    def of(
        cls, stage: str, stage_version: int, settings: Mapping[str, Any], seed: int | None, inputs: Mapping[str, Path]
    ) -> "Provenance":
        """Hash the inputs, a mapping from a plain name ("base", "split") to a file or a folder artifact."""
        hashes = {name: sha256(path) for name, path in sorted(inputs.items())}
        return cls(stage, stage_version, json.loads(json.dumps(settings)), seed, hashes)


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def stale(path: Path) -> Path:
    """Where an artifact lies that was set aside because it is not what its manifest or the settings say."""
    return _sibling(Path(path), "stale")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it when the block ends, remove it when the block fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(path, "partial" + path.suffix)
    try:
        yield partial
        _as_the_umask_wants(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    remove(stale(path))


def flat(settings: Any, key: str = "") -> dict[str, Any]:
    """Nested settings as "station.name" → value, below ``key``; of a plain value ``key`` → the value."""
    if not isinstance(settings, dict):
        return {key: settings}
    parts = [flat(part, f"{key}.{name}".lstrip(".")) for name, part in settings.items()]
    return {name: value for part in parts for name, value in part.items()}


def require_new(path: Path) -> None:
    """Raise InputError where there is a file or a folder already."""
    if path.exists():
        raise InputError(f"{path} exists already; name a folder that does not")


@contextmanager
def writing_folder(path: Path, provenance: Provenance | None, *, joined: Sequence[Path] = ()) -> Iterator[Path]:
    """Give an empty temporary folder; when the block ends, add manifest.json and run.json and rename it to ``path``.

    When the block fails, nothing is left of it and an earlier ``path`` is as it was. A working folder that was
    opened for ``path`` is removed once the artifact is whole. Without ``provenance`` the folder carries no origin.
    ``joined`` are finished artifacts that this one only puts together: what was measured of them is its run's.
    """
    path = Path(path)
    partial = _sibling(path, "partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if provenance:
            write_json(asdict(provenance) | {"content": _content(partial)}, partial / MANIFEST)
            write_json(_run_facts() | _joined(joined), partial / RUN)
        for file in partial.rglob("*"):
            if file.is_file() and file.stat().st_nlink == 1:  # a link is another artifact's file
                _as_the_umask_wants(file)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(_sibling(path, "working"), ignore_errors=True)
    remove(stale(path))


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """Make ``target`` the file that ``source`` is, or a copy where the disk has no hard links.

    Raises FileExistsError when ``target`` is there.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


_UMASK = threading.Lock()


def _as_the_umask_wants(file: Path) -> None:
    """Give a file the permissions that any new file has; safetensors writes files that nobody else may read."""
    with _UMASK:  # one thread at a time: it is the process's, and is read by setting it
        umask = os.umask(0)
        os.umask(umask)
    file.chmod(0o666 & ~umask)


def _content(folder: Path) -> dict[str, str]:
    """The hash of each file of a folder artifact but its manifest, its run's facts and hidden files."""
    return {
        str(file.relative_to(folder)): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(".") and file not in (folder / MANIFEST, folder / RUN)
    }


def working_folder(path: Path, provenance: Provenance) -> Path:
    """The folder where the making of ``path`` keeps its checkpoints and finished pieces across restarts.

    It lies beside ``path``, not in it, because Snakemake deletes a declared output before it reruns
    its rule. What an earlier run with another provenance left there is removed.
    """
    folder = _sibling(Path(path), "working")
    identity = hashlib.sha256(json.dumps(asdict(provenance), sort_keys=True).encode()).hexdigest()
    marker = folder / "identity"
    if folder.exists() and (not marker.exists() or marker.read_text() != identity):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with writing_file(marker) as partial:
        partial.write_text(identity)
    return folder


def _commit() -> str | None:
    """The commit in this folder, with "-dirty" where a tracked file outside results/ differs from it; None without git."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "--verify", "--quiet", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!results")
    except OSError:  # a node or a container without git
        return None
    return f"{commit}-dirty" if commit and changed else commit or None


def _run_facts() -> dict[str, Any]:
    facts = {
        "wall_seconds": round(time.time() - STARTED, 2),
        "cpu_seconds": round(time.process_time(), 2),
        "measured": {name: round(value, 3) for name, value in sorted(MEASURED.items())},
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in RECORDED_PACKAGES},
        "commit": _commit(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        facts["device"] = torch.cuda.get_device_name()
        facts["peak_device_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
    else:
        facts["device"] = "cpu"
    return facts


def run_facts(artifact: Path) -> dict[str, Any]:
    """What run.json, or a table, tells of the making of an artifact; nothing where it is missing or damaged."""
    artifact = Path(artifact)
    try:
        text = _carried(artifact).get(_RUN_KEY, "{}") if artifact.is_file() else (artifact / RUN).read_text()
        return json.loads(text)
    except (OSError, ValueError, InputError):
        return {}


def _joined(parts: Sequence[Path]) -> dict[str, Any]:
    """Of the runs that made ``parts``: the sum of what they measured, their largest peaks, their devices."""
    runs = [run_facts(part) for part in parts]
    facts: dict[str, Any] = {
        peak: max(run[peak] for run in runs if peak in run)
        for peak in ("peak_memory_mib", "peak_device_memory_mib")
        if any(peak in run for run in runs)
    }
    if devices := {run["device"] for run in runs if "device" in run}:
        facts["device"] = ", ".join(sorted(devices))
        facts["measured"] = dict(sum((Counter(run["measured"]) for run in runs if "measured" in run), Counter()))
    return facts


def read_manifest(artifact: Path) -> dict[str, Any]:
    """The manifest of a folder artifact, or of a table that is one.

    Raises InputError when it is no artifact of this project, or its manifest is damaged.
    """
    artifact = Path(artifact)
    if artifact.suffix == ".parquet" and artifact.is_file():
        return _manifest_of_table(artifact)
    file = artifact / MANIFEST
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{artifact} is not a finished artifact: it has no {MANIFEST}") from None
    except ValueError as fault:
        raise InputError(f"{file} is damaged: {fault}") from None


def has_manifest(table: Path) -> bool:
    """Whether a parquet table is an artifact of its own.

    Raises InputError when it cannot be read.
    """
    return _MANIFEST_KEY in _carried(table)


def _carried(table: Path) -> dict[bytes, bytes]:
    """The metadata of a parquet file."""
    try:
        return pq.read_schema(table).metadata or {}
    except (OSError, ValueError) as fault:
        raise InputError(f"the table {table} cannot be read: {fault}") from None


def _manifest_of_table(path: Path) -> dict[str, Any]:
    if not has_manifest(path):
        raise InputError(f"{path} is not a finished artifact: it carries no manifest")
    return json.loads(_carried(path)[_MANIFEST_KEY])


def damage(artifact: Path) -> str | None:
    """What of an artifact's content is not as its manifest says: a sentence that names the first such file, or None.

    Raises InputError when the manifest cannot be read.
    """
    artifact = Path(artifact)
    recorded = read_manifest(artifact)["content"]
    found = {TABLE: _hash_of_table(read_table(artifact))} if artifact.is_file() else _content(artifact)
    for name in sorted(recorded.keys() | found.keys()):
        path = artifact if artifact.is_file() else artifact / name
        if name not in found:
            return f"{path} is missing"
        if name not in recorded:
            return f"{path} does not belong to it"
        if found[name] != recorded[name]:
            return f"{path} is damaged: it is not what was written"
    return None


def write_json(content: Any, path: Path) -> None:
    """Write JSON with sorted keys, so that equal content gives equal bytes."""
    with writing_file(path) as partial:
        partial.write_text(json_text(content))


def json_text(content: Any) -> str:
    """JSON with sorted keys, so that equal content gives equal bytes."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def write_table(table: pd.DataFrame, path: Path, provenance: Provenance | None = None, *, facts: bool = False) -> None:
    """Write a table as parquet; with ``provenance`` when it is an artifact of its own.

    With ``facts`` such an artifact carries its run's, too, and its bytes differ from run to run.
    """
    content = pa.Table.from_pandas(table, preserve_index=False)
    if provenance:
        manifest = asdict(provenance) | {"content": {TABLE: _hash_of_table(content.to_pandas())}}
        carried = {_MANIFEST_KEY: manifest} | ({_RUN_KEY: _run_facts()} if facts else {})
        texts = {key: json.dumps(value, sort_keys=True).encode() for key, value in carried.items()}
        content = content.replace_schema_metadata(content.schema.metadata | texts)
    with writing_file(path) as partial:
        pq.write_table(content, partial)


def _hash_of_table(table: pd.DataFrame) -> str:
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet table.

    Raises InputError when the file is missing or is no parquet.
    """
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"the table {path} does not exist") from None
    except (OSError, ValueError) as fault:
        raise InputError(f"the table {path} cannot be read: {fault}") from None
