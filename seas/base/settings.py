"""Settings of the base: a given pipeline, or the small one that the workflow pre-trains."""

from typing import Literal

from pydantic import model_validator

from seas.settings import SAFE_NAME, StationSettings, setting

STAGE_VERSION = 2
CHANNELS_OF_A_VAE_GROUP = 8
"""Of the VAE's first level; the deeper levels have as many groups as that one."""
UNET_GROUPS = 16
PAPER_BASE = "sd_v1_4"
"""The name of Stable Diffusion v1-4: a base that bears it must have its number of parameters."""


class BaseSettings(StationSettings):
    """The Stable-Diffusion-shaped model that every generator starts from (Sec. 3.1)."""

    name: str = setting(
        PAPER_BASE,
        "name of the base in results/base/; a base named sd_v1_4 must have Stable Diffusion v1-4's number of parameters",
        pattern=SAFE_NAME,
    )
    pretrained: str | None = setting(
        "models/stable-diffusion-v1-4",
        "a finished pipeline in diffusers' layout: its folder, or owner/name@revision where the model hub's cache on this "
        "machine holds it; null: the workflow trains a small one with the settings below",
        source="Sec. 4.1",
    )
    image_size: int = setting(
        64, "side of the images that a trained base is made for", unit="px", source="ours", ge=16, multiple_of=16
    )
    vae_channels: tuple[int, ...] = setting(
        (16, 32, 64), "VAE channels by level; each level after the first halves the side", source="ours", min_length=2
    )
    latent_channels: int = setting(4, "channels of the latents", source="SD v1-4", ge=1)
    unet_channels: tuple[int, int, int, int] = setting(
        (64, 96, 128, 128), "U-Net channels by level; cross-attention on all but the last, as SD has it", source="ours"
    )
    text_width: int = setting(128, "width of the text encoder", source="ours", ge=8, multiple_of=8)
    text_layers: int = setting(2, "layers of the text encoder", source="ours", ge=1)
    text_length: int = setting(32, "tokens of a prompt", source="ours", ge=16)
    prediction_type: Literal["epsilon", "v_prediction"] = setting(
        "epsilon", "what a trained U-Net predicts", source="SD v1-4"
    )
    corpus_images: int = setting(2048, "pictures of the corpus to train on", unit="images", source="ours", ge=8)
    vae_updates: int = setting(350, "updates of the VAE", source="ours", ge=1)
    vae_batch_size: int = setting(8, "pictures of a VAE batch", unit="images", source="ours", ge=1)
    vae_learning_rate: float = setting(
        6e-4, "Adam's peak rate for the VAE; it falls along a cosine", source="ours", gt=0
    )
    unet_updates: int = setting(350, "updates of the U-Net and the text encoder", source="ours", ge=1)
    unet_batch_size: int = setting(16, "latents of a U-Net batch", unit="images", source="ours", ge=1)
    unet_learning_rate: float = setting(
        1e-3, "AdamW's peak rate for U-Net and text encoder; it falls along a cosine", source="ours", gt=0
    )
    ema_decay: float = setting(0.99, "decay of the averaged weights that are kept", source="ours", ge=0, lt=1)
    dropped_captions: float = setting(0.1, "share of captions left empty, for guidance", source="SD v1-4", ge=0, lt=1)
    seed: int = setting(0, "seed of corpus and training; the base is shared by all runs", source="ours", ge=0)
    checkpoint_every: int = setting(100, "updates between two checkpoints", unit="updates", source="ours", ge=1)

    @model_validator(mode="after")
    def _levels_fit_the_image(self) -> "BaseSettings":
        deepest = 2 ** (len(self.vae_channels) - 1) * 2 ** (len(self.unet_channels) - 1)
        if self.pretrained is None and self.image_size % deepest:
            raise ValueError(
                f"image_size is {self.image_size}; VAE and U-Net divide it by {deepest} in all; give a multiple of {deepest}"
            )
        return self

    @property
    def vae_groups(self) -> int:
        """Groups of channels that the VAE normalises."""
        return max(1, self.vae_channels[0] // CHANNELS_OF_A_VAE_GROUP)

    @model_validator(mode="after")
    def _channels_fit_the_networks(self) -> "BaseSettings":
        if self.pretrained is not None:
            return self
        if any(channels < 1 or channels % UNET_GROUPS for channels in self.unet_channels):
            raise ValueError(f"unet_channels is {self.unet_channels}: each must be a multiple of {UNET_GROUPS}")
        if self.vae_channels[0] < 3 or any(channels % self.vae_groups for channels in self.vae_channels):
            raise ValueError(
                f"vae_channels is {self.vae_channels}: the first, 3 or more, makes {self.vae_groups} groups, and each must be a "
                "multiple of that"
            )
        most = min(3 * 4 ** (len(self.vae_channels) - 1), min(self.vae_channels[-2:]) - 1)
        if self.latent_channels > most:
            raise ValueError(
                f"latent_channels is {self.latent_channels}, but with vae_channels {self.vae_channels} {most} is the most: the "
                "VAE starts as a linear code of its patches, and one channel of each of its last two levels stays constant"
            )
        return self
