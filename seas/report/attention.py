"""Where each learned token looks in a generated image."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch.nn.functional import interpolate

from seas.generator.attention import AttentionMaps, token_maps
from seas.generator.pipeline import encode_prompts, tokenise
from seas.generator.prompts import Prompts, token_positions
from seas.images import to_tensor
from seas.seeding import torch_rng


@torch.no_grad()
def token_attention(
    pipeline: StableDiffusionPipeline,
    prompts: Prompts,
    anomaly_type: str,
    images: np.ndarray,
    *,
    layers: Sequence[int],
    timestep: int,
    seed: int,
) -> np.ndarray:
    """Cross-attention maps of a type's tokens in images of that type, uint8 (B, S, S, 3) → float (B, N + N', S, S).

    The images are encoded, noised to ``timestep`` (of 1000) and shown to the U-Net once with the type's prompt.
    A map is the softmax over the tokens (Eq. 2), in [0, 1], averaged over heads and ``layers`` (levels of the
    encoder) and enlarged bilinearly. The N anomaly tokens come first, then the N' normal tokens.
    """
    prompt = prompts.abnormal(anomaly_type)
    ids, tokens = tokenise(pipeline, [prompt])[0].tolist(), prompts.anomaly_tokens[anomaly_type]
    normal, anomaly = token_positions(pipeline.tokenizer, ids, prompts.normal_tokens, tokens)
    positions = [*anomaly, *normal]

    steps = pipeline.scheduler.config.num_train_timesteps
    timesteps = torch.full((1,), timestep * steps // 1000)
    context = encode_prompts(pipeline, [prompt])
    generator = torch_rng(seed, "report", "attention", prompts.product, anomaly_type)
    recorder = AttentionMaps(pipeline.unet, layers)
    found = []
    for image in to_tensor(images).split(1):  # together, those of Stable Diffusion would need gigabytes
        latents = pipeline.vae.encode(image).latent_dist.mean * pipeline.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        pipeline.unet(pipeline.scheduler.add_noise(latents, noise, timesteps), timesteps, context)
        maps = recorder.read(*latents.shape[2:]).values()
        of_tokens = [token_maps(of_layer, torch.tensor([positions])) for of_layer in maps]
        enlarged = [interpolate(tokens, images.shape[1:3], mode="bilinear") for tokens in of_tokens]
        found.append(torch.stack(enlarged).mean(dim=0))
    recorder.remove()
    return torch.cat(found).numpy()
