"""Stable Diffusion v1-4's architecture with random weights, for whoever has not the real ones: tests and benchmarks.

The values are those of its published configuration files.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from seas.base.corpus import vocabulary
from seas.base.model import build_tokenizer

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
TEXT_ENCODER = {
    "vocab_size": 49_408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""The names of the VAE's attention layers → those that Stable Diffusion v1-4 was saved with."""


def build_networks() -> dict[str, torch.nn.Module]:
    """U-Net, VAE and text encoder with fresh weights; under ``torch.device("meta")`` without memory."""
    return {
        "unet": UNet2DConditionModel(**UNET),
        "vae": AutoencoderKL(**VAE),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)),
    }


def build_stable_diffusion() -> StableDiffusionPipeline:
    """The whole pipeline, 4.3 GB in fp32; its tokenizer knows the words of the procedural corpus and as many ids as SD's."""
    return StableDiffusionPipeline(
        **build_networks(),
        tokenizer=build_tokenizer(vocabulary(), TEXT_ENCODER["max_position_embeddings"], TEXT_ENCODER["vocab_size"]),
        scheduler=PNDMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def old_names(part: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of one part under the names that Stable Diffusion v1-4 was saved with."""
    if part == "text_encoder":
        positions = torch.arange(state["embeddings.position_embedding.weight"].shape[0])[None]
        renamed = {f"text_model.{name}": value for name, value in state.items() if not name.endswith("position_ids")}
        return renamed | {"text_model.embeddings.position_ids": positions}
    if part == "vae":
        return {_old_attention(name): value for name, value in state.items()}
    return state


def _old_attention(name: str) -> str:
    for new, old in OLD_ATTENTION.items():
        if ".attentions." in name:
            name = name.replace(f".{new}.", f".{old}.")
    return name


def rename_to_old(folder: Path) -> None:
    """Give the weights in a saved pipeline's folder the names that Stable Diffusion v1-4 was saved with."""
    for part, file in (("vae", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")):
        path = folder / part / file
        save_file(old_names(part, load_file(path)), path, {"format": "pt"})
