"""A base that the user brings: what its folder must hold."""

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
