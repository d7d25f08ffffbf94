"""The pipeline of a base or a generator: loaded, saved, and what it makes of prompts."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from seas.artifacts import link_or_copy
from seas.base.model import load_base

VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"


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
