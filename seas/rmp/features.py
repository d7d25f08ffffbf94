"""What the mask branch reads of the frozen networks: outputs of U-Net up blocks, and inner features of the VAE."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from seas.errors import InputError


class UnetFeatures:
    """Records the outputs of the U-Net's up blocks at each of its forward passes, detached.

    ``blocks`` counts the up blocks from 1 as the paper does; of Stable Diffusion at 512 px,
    block 2 gives (B, 1280, 32, 32) and block 3 (B, 640, 64, 64).
    """

    def __init__(self, unet: UNet2DConditionModel, blocks: Sequence[int]) -> None:
        self._blocks = tuple(blocks)
        self._outputs: dict[int, Tensor] = {}
        self._hooks = [unet.up_blocks[block - 1].register_forward_hook(self._record(block)) for block in blocks]

    def _record(self, block: int):
        def hook(module, arguments, output: Tensor) -> None:
            # Contiguous: convolutions of torch 2.13 crash on the strides that some blocks leave.
            self._outputs[block] = output.detach().contiguous()

        return hook

    def read(self) -> tuple[Tensor, ...]:
        """The features of the last forward pass, in the order of ``blocks``, and forget them."""
        return tuple(self._outputs.pop(block) for block in self._blocks)

    def remove(self) -> None:
        """Take the recorder off the U-Net."""
        for hook in self._hooks:
            hook.remove()
        self._outputs.clear()


def previous_latents(
    scheduler: Any, model_output: Tensor, timesteps: Tensor, latents: Tensor, random: torch.Generator | None = None
) -> Tensor:
    """x_{t-1} from x_t: one step of the scheduler's whole chain, deterministic (DDIM with eta = 0) unless ``random`` is given.

    x̂_0 and ε̂ are what the prediction says of ``latents``; then
    x_{t-1} = √ᾱ_{t-1} x̂_0 + √(1 - ᾱ_{t-1} - σ²) ε̂ + σ z, with ᾱ_{-1} = 1, so that t = 0 gives x̂_0. z is drawn from
    ``random`` with σ² = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) · (1 - ᾱ_t / ᾱ_{t-1}), the ancestral step of DDPM; else σ = 0.

    scheduler: any with ``alphas_cumprod`` and ``config.prediction_type``. model_output, latents: (B, C, h, w).
    timesteps: (B,) or a scalar, whole numbers from 0 on. Raises InputError for a prediction type other than
    epsilon and v_prediction.
    """
    latents, model_output = latents.float(), model_output.float()
    signals = scheduler.alphas_cumprod.to(latents)
    timesteps = torch.as_tensor(timesteps, device=latents.device).long().reshape(-1, 1, 1, 1)
    now = signals[timesteps]
    before = torch.where(timesteps > 0, signals[(timesteps - 1).clamp(min=0)], 1.0)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        noise = model_output
        clean = (latents - (1 - now).sqrt() * noise) / now.sqrt()
    elif kind == "v_prediction":
        noise = now.sqrt() * model_output + (1 - now).sqrt() * latents
        clean = now.sqrt() * latents - (1 - now).sqrt() * model_output
    else:
        raise InputError(f"the base's scheduler predicts '{kind}'; the mask branch reads epsilon and v_prediction")
    if random is None:
        return before.sqrt() * clean + (1 - before).sqrt() * noise
    variance = (1 - before) / (1 - now) * (1 - now / before)
    drawn = torch.randn(latents.shape, generator=random).to(latents)
    return before.sqrt() * clean + (1 - before - variance).clamp(min=0).sqrt() * noise + variance.sqrt() * drawn


def latents_to_decode(
    vae_latent: Literal["x_t", "x_prev", "stochastic"],
    scheduler: Any,
    model_output: Tensor,
    timesteps: Tensor,
    latents: Tensor,
    *,
    random: torch.Generator | None = None,
) -> Tensor:
    """The latents whose VAE features refine the mask: ``latents`` themselves, or those a step earlier.

    model_output: the U-Net's prediction under the prompt, without guidance, as in the training. random: given in
    training, for "stochastic"; in generation that means ``latents``.
    """
    if vae_latent == "x_t" or (vae_latent == "stochastic" and random is None):
        return latents
    return previous_latents(scheduler, model_output, timesteps, latents, random if vae_latent == "stochastic" else None)


def vae_features(
    vae: AutoencoderKL, latents: Tensor, levels: Sequence[int], part: Literal["decoder", "encoder"] = "decoder"
) -> list[Tensor]:
    """Inner features of the VAE for scaled latents (B, C, h, w), detached, one (B, C_k, 2^k h, 2^k w) for each level k.

    Decoder: the outputs of its up blocks 1 … n; it is run no further than the largest level.
    Encoder: of the decoded image, the outputs of its down blocks before their downsampling.
    """
    if not levels:
        return []
    with torch.no_grad():
        features = _decoder_features(vae, latents, levels) if part == "decoder" else _encoder_features(vae, latents)
    return [features[level].contiguous() for level in levels]


def _decoder_features(vae: AutoencoderKL, latents: Tensor, levels: Sequence[int]) -> dict[int, Tensor]:
    sample = latents / vae.config.scaling_factor
    if vae.post_quant_conv is not None:
        sample = vae.post_quant_conv(sample)
    sample = vae.decoder.mid_block(vae.decoder.conv_in(sample))
    features = {}
    for level, block in enumerate(vae.decoder.up_blocks[: max(levels)], start=1):
        sample = block(sample)
        features[level] = sample
    return features


def _encoder_features(vae: AutoencoderKL, latents: Tensor) -> dict[int, Tensor]:
    sample = vae.encoder.conv_in(vae.decode(latents / vae.config.scaling_factor).sample)
    features = {}
    for level, block in zip(range(len(vae.encoder.down_blocks) - 1, 0, -1), vae.encoder.down_blocks, strict=False):
        for resnet in block.resnets:
            sample = resnet(sample, None)
        features[level] = sample
        for downsampler in block.downsamplers:
            sample = downsampler(sample)
    return features
