"""Settings of the Refined Mask Prediction branch."""

from typing import Literal

from pydantic import field_validator

from seas.settings import TrainerSettings, setting

STAGE_VERSION = 3


class RmpSettings(TrainerSettings):
    """Refined Mask Prediction (Sec. 3.3)."""

    learning_rate: float = setting(5e-4, "AdamW's constant rate", source="Sec. A.2", gt=0)
    weight_decay: float = setting(0.01, "AdamW's decay", source="released code", ge=0)
    channels: int = setting(
        192, "channels of the branch's features", unit="channels", source="Sec. 3.3", ge=96, multiple_of=96
    )
    unet_blocks: tuple[int, ...] = setting(
        (2, 3),
        "up blocks of the U-Net, counted from 1, whose outputs the coarse path reads",
        source="Sec. 3.3, Tab. 14",
        min_length=1,
        max_length=3,
    )
    vae_part: Literal["decoder", "encoder"] = setting(
        "decoder", "half of the VAE whose features refine the mask", source="Sec. 3.3, Tab. 15"
    )
    vae_latent: Literal["x_t", "x_prev", "stochastic"] = setting(
        "x_prev",
        "latent that the VAE decodes for its features, in training and in generation: "
        "the step's noisy latent, or the one a deterministic step earlier in the chain; "
        "stochastic: the one a random step earlier in training, the step's own in generation",
        source="Sec. 3.3; released code: stochastic",
    )
    mrms: Literal["all", "last", "none"] = setting(
        "all",
        "Mask Refinement Modules: one for each doubling from the latent's to the image's size, "
        "one on the largest VAE feature, or none",
        source="Sec. 3.3, Tab. 6",
    )
    mrm_branches: Literal["conv", "conv_block", "full"] = setting(
        "full",
        "branches of an MRM: its 1×1 convolution; that and one block; that, one block and both blocks in a row",
        source="Sec. 3.3, Tab. 17",
    )
    closing_conv: bool = setting(True, "3×3 convolution at the end of an MRM", source="Sec. 3.3; released code: false")
    skip: bool = setting(True, "an MRM adds its upsampled input to its product", source="ours, released code")
    normal_upsample: Literal["prediction", "feature"] = setting(
        "prediction",
        "what is enlarged to the image's size for a normal image: the coarse logits, or the feature before the head",
        source="Sec. 3.3; released code: feature",
    )
    timesteps: Literal["all", "last_fraction"] = setting(
        "all", "timesteps of the training: all, or the share next to the clean image", source="released code"
    )
    last_fraction: float = setting(
        0.16,
        "share of the timesteps that timesteps: last_fraction draws from; "
        "0.16 of 1000 holds the last three of 25 steps (t = 120, 80, 40 at most)",
        source="ours",
        gt=0,
        le=1,
    )
    focal_gamma: float = setting(2.0, "exponent of the focal loss", source="Eq. 7", ge=0)
    label_smoothing: float = setting(
        0.0, "share of the other class in a pixel's target", source="ours; released code: 1e-5", ge=0, lt=0.5
    )
    coarse_supervision: bool = setting(True, "Eq. 7's terms at the latent's size", source="Eq. 7, Tab. 6")
    normal_supervision: bool = setting(True, "Eq. 7's terms of the normal images", source="Eq. 7, Tab. 16")

    @field_validator("unet_blocks")
    @classmethod
    def _rising(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if list(blocks) != sorted(set(blocks)) or blocks[0] < 1:
            raise ValueError(f"unet_blocks is {list(blocks)}; give rising numbers from 1 on")
        return blocks
