"""Generation by hand, from the folder of a finished generator."""

import json
from pathlib import Path

from seas.artifacts import read_manifest, require_new
from seas.errors import InputError
from seas.generation.diffusion import generate_tree
from seas.generation.settings import GenerationSettings
from seas.settings import ComputeSettings


def generate_by_hand(
    generator: Path,
    *,
    anomaly_type: str,
    number: int,
    first: int = 0,
    output: Path,
    seed: int | None,
    rmp: Path | None,
    device: str,
) -> None:
    """Write the images ``first`` to ``first + number - 1`` of one type as an MVTec-AD tree.

    The mask branch and the settings are those that the workflow used beside the generator, so that the images are
    the workflow's own, and more of them; without a finished generation there the paper's settings are taken.
    ``device`` alone is chosen here, and ``seed``, the generator's own if None.

    Raises InputError for an existing output, an unknown type, or a missing or damaged folder.
    """
    generator, output = Path(generator), Path(output)
    require_new(output)
    trained_seed = read_manifest(generator)["seed"]
    run, product = generator.resolve().parent.parent, generator.resolve().name
    beside = rmp or run / "rmp" / product
    if anomaly_type == "good":
        beside = None
    elif not beside.is_dir():
        raise InputError(f"there is no mask branch at {beside}; name its folder with --rmp")
    settings, compute = _settings_beside(run / "generation" / product, device)
    print(f"settings: {json.dumps(settings.model_dump(mode='json'))}", flush=True)
    wanted = {anomaly_type: range(first, first + number)}
    generate_tree(generator, beside, wanted, settings, compute, trained_seed if seed is None else seed, output=output)


def _settings_beside(generation: Path, device: str) -> tuple[GenerationSettings, ComputeSettings]:
    if not generation.is_dir():
        print(
            f"There is no finished generation at {generation}, whose settings would be taken: these are the paper's.",
            flush=True,
        )
        precision = "fp32" if device == "cpu" else "bf16"
        return GenerationSettings(), ComputeSettings(device=device, precision=precision, threads=1)
    settings = read_manifest(generation)["settings"]
    compute = ComputeSettings.of_job(settings["compute"] | {"device": device}, threads=1)
    return GenerationSettings(**settings["generation"]), compute
