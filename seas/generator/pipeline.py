"""A finished generator, loaded: the pipeline, its learned tokens, and the normals that generation starts from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from seas.artifacts import link_or_copy, write_json
from seas.base.model import load_base
from seas.errors import InputError

START_LATENTS = "start_latents.safetensors"
START_NAMES = "start_normals.json"
VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"


class StartNormals(NamedTuple):
    """The training normals as generation needs them.

    latents: (n, C, h, w), posterior means times the scaling factor. boxes: (n, 4), the part of each
    fitted image that is no padding: top, left, height, width in pixels. names: their paths in the dataset.
    """

    latents: Tensor
    boxes: Tensor
    names: list[str]


def load_pipeline(folder: Path, device: torch.device | str = "cpu") -> StableDiffusionPipeline:
    """A base or generator in evaluation mode, without gradients, in fp32.

    Raises InputError when a part is missing or damaged.
    """
    pipeline = load_base(Path(folder)).to(device)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval().requires_grad_(False)
    return pipeline


def save_generator(pipeline: StableDiffusionPipeline, base: Path, folder: Path, *, half: bool) -> None:
    """Write a fine-tuned pipeline, ``half`` in fp16 (U-Net and text encoder then are in fp16 themselves).

    The VAE's weights, which no update changes, are the base's own file: a hard link where the disk allows it.
    """
    if half:
        pipeline.unet.half()
        pipeline.text_encoder.half()
    pipeline.save_pretrained(folder)
    for unchanged in sorted((Path(base) / "vae").glob(VAE_WEIGHTS)):
        saved = folder / "vae" / unchanged.name
        saved.unlink()
        link_or_copy(unchanged.resolve(), saved)


def tokenise(pipeline: StableDiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    """Token ids (B, T), padded to the text encoder's length."""
    tokenizer = pipeline.tokenizer
    return tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids


def encode_prompts(pipeline: StableDiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    """Embeddings (B, T, C) of the prompts, the same for a prompt whatever stands beside it."""
    unique = sorted(set(prompts))
    encoded = dict(zip(unique, pipeline.text_encoder(tokenise(pipeline, unique).to(pipeline.device))[0], strict=True))
    return torch.stack([encoded[prompt] for prompt in prompts])


def save_start_normals(normals: StartNormals, folder: Path) -> None:
    """Write the start normals into a generator's folder."""
    save_file({"latents": normals.latents.contiguous(), "boxes": normals.boxes}, folder / START_LATENTS)
    write_json(normals.names, folder / START_NAMES)


def load_start_normals(folder: Path) -> StartNormals:
    """Read the start normals of a generator.

    Raises InputError when they are missing or damaged.
    """
    folder = Path(folder)
    try:
        tensors = load_file(folder / START_LATENTS)
        return StartNormals(tensors["latents"], tensors["boxes"], json.loads((folder / START_NAMES).read_text()))
    except Exception as fault:
        raise InputError(f"{folder / START_LATENTS} cannot be read: {fault}") from None
