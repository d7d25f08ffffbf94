"""A base that the user brings: what its folder must hold."""

import functools
import json
import math
import struct
from pathlib import Path

from seas.errors import InputError

PARTS = {
    "unet": ("diffusion_pytorch_model",),
    "vae": ("diffusion_pytorch_model",),
    "text_encoder": ("model", "pytorch_model"),
}
CONFIGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
TOKENIZERS = ("tokenizer/vocab.json", "tokenizer/tokenizer.json")


def check_base(folder: Path) -> None:
    """Look at the names in a pipeline's folder, without loading it.

    Raises InputError that names the first missing file, or the folder, and where it was set.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"base.pretrained is '{folder}', which is no folder; put Stable Diffusion v1-4 in diffusers' layout there, "
            "or set base.pretrained to null to train a small base"
        )
    for config in CONFIGS:
        if not (folder / config).is_file():
            raise InputError(f"base.pretrained is '{folder}', which lacks {config}")
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise InputError(f"base.pretrained is '{folder}', which lacks {TOKENIZERS[0]}")
    for part, stems in PARTS.items():
        names = [file.name for file in (folder / part).iterdir()]
        if not any(name.startswith(stem) and name.endswith(".safetensors") for name in names for stem in stems):
            raise InputError(f"base.pretrained is '{folder}', which lacks {part}/{stems[0]}.safetensors")


@functools.cache
def count_parameters(folder: Path) -> int:
    """The parameters in a folder's safetensors (of one of its files when they are variants), from the files' heads alone.

    Raises InputError when the folder has none, or one that cannot be read.
    """
    counts = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                head = json.loads(file.read(length))
        except (OSError, ValueError, struct.error, MemoryError, OverflowError):
            raise InputError(f"{path} is damaged: it is no safetensors file") from None
        counts.append(sum(math.prod(entry["shape"]) for name, entry in head.items() if name != "__metadata__"))
    if not counts:
        raise InputError(f"{folder} holds no safetensors")
    return max(counts)
