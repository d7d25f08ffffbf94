"""Generation of a product's pairs and normals, in pieces that survive an interruption."""

import json
import os
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from seas.artifacts import Provenance, working_folder, write_json, writing_folder
from seas.errors import InputError
from seas.generation.sampler import PairSampler
from seas.generation.settings import STAGE_VERSION, GenerationSettings
from seas.generation.tree import write_generated, write_images_table
from seas.generator.pipeline import load_pipeline, load_start_normals
from seas.generator.prompts import Prompts
from seas.rmp.train import load_rmp
from seas.settings import ComputeSettings
from seas.training import prepare_device, progress

FINISHED_BATCHES = "[0-9]*.json"
"""The records of finished batches; what a killed write left of one begins with a dot."""


def generate_product(
    generator: Path, rmp: Path, settings: GenerationSettings, compute: ComputeSettings, seed: int, *, output: Path
) -> None:
    """Write ``pairs_per_type`` pairs of each of the generator's types and ``normals`` normals as an MVTec-AD tree.

    Raises InputError when the generator or the mask branch is missing, damaged or of another base.
    """
    prompts = Prompts.load(generator)
    wanted = {name: range(settings.pairs_per_type) for name in prompts.types} | {"good": range(settings.normals)}
    generate_tree(generator, rmp, wanted, settings, compute, seed, output=output)


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
    obeyed = {name: part.model_dump(mode="json") for name, part in (("generation", settings), ("compute", compute))}
    obeyed["wanted"] = {name: [min(indices), max(indices)] for name, indices in wanted.items() if len(indices)}
    inputs = {"generator": generator} | ({"rmp": rmp} if rmp else {})
    provenance = Provenance.of("generation", STAGE_VERSION, obeyed, seed, inputs)

    prompts = Prompts.load(generator)
    for name in wanted:
        if name != "good":
            prompts.abnormal(name)
    if rmp is None and set(wanted) != {"good"}:
        raise InputError("masks need the mask branch; name the folder of a finished rmp")
    pipeline = load_pipeline(generator, device)
    network = load_rmp(rmp, pipeline, device) if rmp else None
    sampler = PairSampler(pipeline, network, prompts, load_start_normals(generator), settings, compute, seed)
    pieces = working_folder(output, provenance)
    for name, indices in wanted.items():
        _make(sampler, name, indices, pieces, f"generation {prompts.product} {name}")
    rows = [
        row for file in sorted((pieces / "records").rglob(FINISHED_BATCHES)) for row in json.loads(file.read_text())
    ]
    with writing_folder(output, provenance) as folder:
        for part in ("train", "test", "ground_truth"):
            if (pieces / "tree" / part).is_dir():
                shutil.copytree(pieces / "tree" / part, folder / part, copy_function=os.link)
        write_images_table(rows, folder)


def _make(sampler: PairSampler, anomaly_type: str, indices: Sequence[int], pieces: Path, label: str) -> None:
    records = pieces / "records" / anomaly_type
    done = {row["index"] for file in records.glob(FINISHED_BATCHES) for row in json.loads(file.read_text())}
    waiting = deque((index, 0) for index in indices if index not in done)
    bar = progress(range(len(waiting)), label, done=len(indices) - len(waiting))
    next(bar, None)
    settings = sampler.settings
    while waiting:
        batch = [waiting.popleft() for _ in range(min(settings.batch_size, len(waiting)))]
        rows = []
        for (index, attempt), made in zip(batch, sampler.make(anomaly_type, batch), strict=True):
            empty = anomaly_type != "good" and not made.mask.any()
            if empty and settings.empty_mask == "redraw" and attempt < settings.redraws:
                waiting.append((index, attempt + 1))
                continue
            facts = {"source_normal": made.source_normal, "draws": attempt + 1}
            rows.append(write_generated(pieces / "tree", anomaly_type, index, made.image, made.mask, **facts))
            next(bar, None)
        if rows:
            write_json(rows, records / f"{rows[0]['index']:06d}.json")
