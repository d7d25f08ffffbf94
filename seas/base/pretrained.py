"""A base that the user brings: where it lies, and what its folder must hold. Nothing here loads a network."""

import functools
import json
import math
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from seas.errors import InputError
from seas.weights import STABLE_DIFFUSION

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""The weights' file of each part, without its ending; large ones come in pieces."""
CONFIGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
WORDS = ("tokenizer/vocab.json", "tokenizer/merges.txt")
"""What a tokenizer needs that does not lie whole in tokenizer.json."""
CLASSES = {
    "_class_name": "StableDiffusionPipeline",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}
"""What model_index.json must name."""
SCHEDULERS = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
"""Whose noise levels the trainers read as √ᾱ x + √(1 - ᾱ) ε; those of other classes scale their inputs otherwise."""
PREDICTIONS = ("epsilon", "v_prediction")
"""What the U-Net may predict, as the scheduler's prediction_type names it."""
HUB_NAME = r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})"


def find_base(pretrained: str) -> Path:
    """The folder of a base that is given as a folder, or as ``owner/name@revision`` of the model hub.

    A revision is the 40 digits of a commit. It is looked for in the hub's cache on this machine and never fetched:
    jobs may run where there is no internet.

    Raises InputError when the cache does not hold it.
    """
    match = re.fullmatch(HUB_NAME, pretrained)
    if match is None:
        return Path(pretrained)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision = match["repository"], match["revision"]
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise InputError(
            f"base.pretrained is '{pretrained}', which is not in the hub's cache {constants.HF_HUB_CACHE}; run "
            f"`hf download {repository} --revision {revision}` on a machine with internet, or give a folder"
        ) from None


def check_base(folder: Path) -> None:
    """Look at the names in a pipeline's folder, and at the classes that it names, without loading it.

    Raises InputError that names the folder, and the first missing file or wrong class in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"base.pretrained is '{folder}', which is no folder; put Stable Diffusion v1-4 in diffusers' layout there "
            f"(`{STABLE_DIFFUSION.download(folder)}`), name a pipeline in the hub's cache with its revision "
            "(owner/name@revision, 40 digits), or set base.pretrained to null to train a small base"
        )
    for config in CONFIGS:
        if not (folder / config).is_file():
            raise InputError(f"the pipeline '{folder}' lacks {config}")
    for file in WORDS:
        if not (folder / file).is_file() and not (folder / "tokenizer/tokenizer.json").is_file():
            raise InputError(f"the pipeline '{folder}' lacks {file}")
    for part, stem in PARTS.items():
        names = sorted(path.name for path in (folder / part).iterdir())
        read = rf"{stem}(-\d+-of-\d+)?\.safetensors"
        if not any(re.fullmatch(read, name) for name in names):
            others = [name for name in names if name.endswith((".safetensors", ".bin"))]
            raise InputError(
                f"the pipeline '{folder}' lacks {part}/{stem}.safetensors"
                + (f"; {others[0]} is not read in its place" if others else "")
            )
    try:
        index = json.loads((folder / "model_index.json").read_text())
        named = {part: index[part] if part == "_class_name" else index[part][1] for part in CLASSES}
    except (ValueError, LookupError, TypeError):
        raise InputError(f"the model_index.json of the pipeline '{folder}' is damaged") from None
    for part, wanted in CLASSES.items():
        if named[part] != wanted:
            raise InputError(
                f"the model_index.json of the pipeline '{folder}' gives {named[part]} as {part}; SeaS needs {wanted}"
            )
    try:
        scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        name, predicts = scheduler["_class_name"], scheduler.get("prediction_type", "epsilon")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InputError(f"the scheduler/scheduler_config.json of the pipeline '{folder}' is damaged") from None
    if name not in SCHEDULERS:
        raise InputError(
            f"the scheduler of the pipeline '{folder}' is a {name}; SeaS needs one of {', '.join(SCHEDULERS)}"
        )
    if predicts not in PREDICTIONS:
        raise InputError(
            f"the base '{folder}' predicts '{predicts}' (prediction_type); SeaS needs one of {', '.join(PREDICTIONS)}"
        )


def check_stable_diffusion(folder: Path) -> None:
    """See that the networks of a checked folder have as many parameters as those of Stable Diffusion v1-4.

    Raises InputError for the first that has not.
    """
    for part, wanted in STABLE_DIFFUSION.parameters.items():
        found = count_parameters(Path(folder) / part)
        if found != wanted:
            raise InputError(
                f"the {part} of '{folder}' has {found:,} parameters, that of Stable Diffusion v1-4 {wanted:,}; "
                "give another base.name to a base that is not Stable Diffusion v1-4"
            )


@functools.cache
def count_parameters(folder: Path) -> int:
    """How many parameters the weights of one part have, read from the heads of its safetensors files.

    Raises InputError for a damaged file.
    """
    whole = [path for path in sorted(folder.glob("*.safetensors")) if path.stem in ("model", "diffusion_pytorch_model")]
    total = 0
    for path in whole or sorted(folder.glob("*-of-*.safetensors")):
        try:
            with safe_open(path, "np") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as fault:
            raise InputError(f"{path} cannot be read: {fault}") from None
        # SD v1-4 saves the numbers of the positions, which are no parameters.
        total += sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith("position_ids"))
    return total
