"""Training a small VAE in minutes: its latents are anchored to the linear code of the corpus's patches."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, l1_loss, mse_loss, pixel_unshuffle

ANCHOR_ALONE = 0.3
"""Share of the updates in which the decoder is fed the linear code itself."""
ANCHOR_WEIGHT = 0.1
CHROMA_WEIGHT = 2.0
KL_WEIGHT = 2e-8
LATENT_NOISE = 0.02


class LinearCode:
    """The first principal components of a corpus's patches, each scaled to unit variance."""

    def __init__(self, images: Tensor, side: int, channels: int) -> None:
        """``images`` (B, 3, H, W) in [-1, 1]; a patch is ``side`` × ``side`` pixels."""
        patches = pixel_unshuffle(images, side).movedim(1, -1).flatten(0, -2)
        self.side = side
        self.mean = patches.mean(0)
        _, deviations, directions = torch.linalg.svd((patches - self.mean).double(), full_matrices=False)
        scale = (deviations[:channels] / len(patches) ** 0.5).clamp(min=1e-6)
        self.rows = (directions[:channels] / scale[:, None]).float()

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, channels, H / side, W / side)."""
        patches = pixel_unshuffle(images, self.side) - self.mean[None, :, None, None]
        return conv2d(patches, self.rows[:, :, None, None])


def start_near_identity(vae: AutoencoderKL) -> None:
    """Make residual blocks pass their input on, downsamplers average, and upsamplers repeat, so that training starts with a signal."""
    for name, module in vae.named_modules():
        if name.endswith("conv2") and isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif "samplers.0.conv" in name and isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
            nn.init.zeros_(module.bias)


def vae_losses(vae: AutoencoderKL, code: LinearCode, images: Tensor, share_done: float, noise: Tensor) -> dict[str, Tensor]:
    """The losses of one batch, images (B, 3, H, W) in [-1, 1]; ``noise`` is standard normal in the shape of the latents.

    Reconstruction is MSE + L1 + the MSE of 4×4 means of the chroma; the anchor is the MSE between latents and linear code.
    """
    posterior = vae.encode(images).latent_dist
    target = code(images)
    alone = share_done < ANCHOR_ALONE
    latents = target if alone else posterior.mean
    decoded = vae.decode(latents + LATENT_NOISE * noise).sample
    chroma = [avg_pool2d(picture - picture.mean(1, keepdim=True), 4) for picture in (decoded, images)]
    losses = {
        "mse": mse_loss(decoded, images),
        "l1": l1_loss(decoded, images),
        "chroma": mse_loss(*chroma),
        "anchor": mse_loss(posterior.mean, target),
        "kl": posterior.kl().mean(),
    }
    anchor_weight = 1.0 if alone else ANCHOR_WEIGHT
    loss = losses["mse"] + 0.2 * losses["l1"] + CHROMA_WEIGHT * losses["chroma"]
    return {"loss": loss + anchor_weight * losses["anchor"] + KL_WEIGHT * losses["kl"], **losses}
