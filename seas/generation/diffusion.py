"""Generation of a product's pairs and normals, in pieces that survive an interruption."""

import json
import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from seas.artifacts import MEASURED, Provenance, link_or_copy, read_table, working_folder, write_json, writing_folder
from seas.errors import InputError
from seas.generation.sampler import PairSampler
from seas.generation.settings import STAGE_VERSION, GenerationSettings, limit_of_type
from seas.generation.tree import TABLE, write_generated, write_images_table
from seas.generator.encoded import load_encoded
from seas.generator.pipeline import load_pipeline
from seas.generator.prompts import Prompts, models_of
from seas.rmp.train import load_rmp
from seas.settings import ComputeSettings
from seas.training import prepare_device, progress

FINISHED_BATCHES = "[0-9]*.json"
"""The records of finished batches; what a killed write left of one begins with a dot."""
WRITERS = 2
"""Threads that compress and write images."""


def generate_product(
    generator: Path,
    rmp: Path,
    settings: GenerationSettings,
    compute: ComputeSettings,
    seed: int,
    *,
    shard: int | None = None,
    output: Path,
) -> None:
    """Write ``pairs_per_type`` pairs of each of the generator's types and ``normals`` normals as an MVTec-AD tree.

    With ``shard``, a number below ``settings.shards``, only that shard's images of each type.

    Raises InputError when the generator or the mask branch is missing, damaged or of another base.
    """
    wanted = _wanted(generator, settings)
    if shard is not None:
        wanted = {name: _part(indices, shard, settings.shards) for name, indices in wanted.items()}
    generate_tree(generator, rmp, wanted, settings, compute, seed, output=output)


def merge_shards(
    shards: Sequence[Path],
    generator: Path,
    rmp: Path,
    settings: GenerationSettings,
    compute: ComputeSettings,
    seed: int,
    *,
    output: Path,
) -> None:
    """Write the tree of ``generate_product`` from its finished shards; the files are linked, nothing is computed.

    Times and peaks in its run.json are those of the shards' making.
    """
    provenance = _provenance(generator, rmp, _wanted(generator, settings), settings, compute, seed)
    with writing_folder(output, provenance, joined=shards) as folder:
        for shard in shards:
            _link_parts(shard, folder)
        tables = [read_table(shard / TABLE) for shard in shards]
        write_images_table([row for table in tables for row in table.to_dict("records")], folder)


def _wanted(generator: Path, settings: GenerationSettings) -> dict[str, range]:
    types = [name for model in models_of(generator) for name in Prompts.load(model).types]
    return {name: range(settings.pairs_per_type) for name in types} | {"good": range(settings.normals)}


def _part(indices: range, shard: int, shards: int) -> range:
    return indices[len(indices) * shard // shards : len(indices) * (shard + 1) // shards]


def _provenance(
    generator: Path,
    rmp: Path | None,
    wanted: Mapping[str, Sequence[int]],
    settings: GenerationSettings,
    compute: ComputeSettings,
    seed: int,
) -> Provenance:
    obeyed = {"generation": settings.obeyed(), "compute": compute.obeyed()}
    obeyed["wanted"] = {name: [min(indices), max(indices)] for name, indices in wanted.items() if len(indices)}
    inputs = {"generator": generator} | ({"rmp": rmp} if rmp else {})
    return Provenance.of("generation", STAGE_VERSION, obeyed, seed, inputs)


def _link_parts(tree: Path, folder: Path) -> None:
    for part in ("train", "test", "ground_truth"):
        if (tree / part).is_dir():
            shutil.copytree(tree / part, folder / part, copy_function=link_or_copy, dirs_exist_ok=True)


def generate_tree(
    generator: Path,
    rmp: Path | None,
    wanted: Mapping[str, Sequence[int]],
    settings: GenerationSettings,
    compute: ComputeSettings,
    seed: int,
    *,
    output: Path,
) -> None:
    """Write the images of ``wanted``: type → indices, "good" for normals. ``rmp`` may be None when only normals are wanted.

    Every finished batch is kept across interruptions; because an image is a function of (seed, type, index), the
    same tree comes out whatever was made before, beside it, or on another machine's shard.
    """
    device = prepare_device(compute)
    provenance = _provenance(generator, rmp, wanted, settings, compute, seed)

    models = models_of(generator)
    known = {name: model for model in models for name in Prompts.load(model).types}
    for name in wanted:
        if name != "good" and name not in known:
            product = Prompts.load(models[0]).product
            raise InputError(f"'{name}' is no anomaly type of {product}; its types are {', '.join(known)}")
    if rmp is None and set(wanted) != {"good"}:
        raise InputError("masks need the mask branch; name the folder of a finished rmp")
    pieces = working_folder(output, provenance)
    for number, model in enumerate(models):
        prompts = Prompts.load(model)
        # Models of single types share the normals.
        shares = {name: indices for name, indices in wanted.items() if known.get(name) == model}
        shares |= {"good": [index for index in wanted.get("good", ()) if index % len(models) == number]}
        if not any(map(len, shares.values())):
            continue
        pipeline = load_pipeline(model, device)
        branch = rmp if model == generator or rmp is None else rmp / model.name
        network = load_rmp(branch, pipeline, device) if branch else None
        images = load_encoded(model)
        sampler = PairSampler(pipeline, network, prompts, images.start_normals(), settings, compute, seed)
        for name, indices in shares.items():
            limit = None if name == "good" else limit_of_type(settings.largest_mask, images.shares(name))
            _make(sampler, name, indices, limit, pieces, f"generation {prompts.product} {name}")
        del sampler, network, pipeline  # before the next one is loaded
    rows = [row for name in wanted for row in _recorded(pieces, name)]
    if len(rows) < (total := sum(map(len, wanted.values()))):
        raise InputError(f"{pieces}: {total - len(rows)} images that were made cannot be read again; start once more")
    with writing_folder(output, provenance) as folder:
        _link_parts(pieces / "tree", folder)
        write_images_table(rows, folder)


def _make(
    sampler: PairSampler,
    anomaly_type: str,
    indices: Sequence[int],
    largest_mask: float | None,
    pieces: Path,
    label: str,
) -> None:
    """Make the images that no record counts as done; threads write a batch while the next one is made."""
    records = pieces / "records" / anomaly_type
    done = {row["index"] for row in _recorded(pieces, anomaly_type)}
    waiting = deque((index, 0) for index in indices if index not in done)
    bar = progress(range(len(waiting)), label, done=len(indices) - len(waiting))
    next(bar, None)
    settings, started, new = sampler.settings, time.monotonic(), len(waiting)
    with ThreadPoolExecutor(WRITERS) as writers:
        written: list[Future] = []
        while waiting:
            batch = [waiting.popleft() for _ in range(min(sampler.batch_size, len(waiting)))]
            made_now = sampler.make(anomaly_type, batch)
            _record(written, records)
            written = []
            for (index, attempt), made in zip(batch, made_now, strict=True):
                again = anomaly_type != "good" and settings.draws_again(made.mask, largest_mask)
                if again and attempt < settings.redraws:
                    waiting.append((index, attempt + 1))
                    continue
                facts = {"source_normal": made.source_normal, "draws": attempt + 1}
                pair = (anomaly_type, index, made.image, made.mask)
                written.append(writers.submit(write_generated, pieces / "tree", *pair, **facts))
                next(bar, None)
        _record(written, records)
    if anomaly_type != "good":  # a normal needs no mask branch: Tab. 7 counts images with masks
        MEASURED.update(pairs=new, pair_seconds=time.monotonic() - started)


def _recorded(pieces: Path, anomaly_type: str) -> list[dict]:
    """The rows of a type's finished batches. A batch of which a power loss has emptied a file is forgotten, and made again."""
    rows = []
    for file in sorted((pieces / "records" / anomaly_type).glob(FINISHED_BATCHES)):
        if of_batch := _whole_batch(file, pieces / "tree"):
            rows += of_batch
        else:
            print(f"{file.name} of {anomaly_type} is damaged; its images are made again", flush=True)
            file.unlink()
    return rows


def _whole_batch(record: Path, tree: Path) -> list[dict]:
    try:
        rows = json.loads(record.read_text())
        images = [tree / row[kind] for row in rows for kind in ("image", "mask") if row[kind]]
        return rows if all(image.stat().st_size for image in images) else []
    except (OSError, ValueError):
        return []


def _record(written: Sequence[Future], records: Path) -> None:
    """Count a batch as done, once all its files are there."""
    rows = [future.result() for future in written]
    if rows:
        write_json(rows, records / f"{rows[0]['index']:06d}.json")
