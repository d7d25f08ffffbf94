"""The mask branch: a coarse mask from U-Net features, refined by VAE features (Sec. 3.3)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import batch_norm, interpolate

from seas.errors import InputError
from seas.rmp.settings import RmpSettings

SHARES = {1: (3,), 2: (2, 1), 3: (1, 1, 1)}
"""How the U-Net features share the channels, in thirds, by their number; the paper names those of two: 128 and 64 of 192."""
HEADS = 8
TRANSFORMER_BLOCKS = 4
NORM_GROUPS = 32
CLASSES = 2


class MaskLogits(NamedTuple):
    """Logits of (background, anomaly).

    coarse: (B, 2, h, w), at the latent's size. refined: (B, 2, S, S), at the image's size.
    """

    coarse: Tensor
    refined: Tensor


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _enlarged(maps: Tensor, factor: int) -> Tensor:
    return _resized(maps, [side * factor for side in maps.shape[2:]])


class ConvBlock(nn.Sequential):
    """1×1 → 3×3 → 1×1 convolutions, each followed by BatchNorm and ReLU."""

    def __init__(self, channels: int) -> None:
        layers: list[nn.Module] = []
        for kernel in (1, 3, 1):
            convolution = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
            layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
        super().__init__(*layers)


class MaskRefinementModule(nn.Module):
    """Enlarge a mask feature x to a VAE feature's size and let the VAE feature sharpen it.

    u = up(x); s = B1(u) + B2(B1(u)) + C1(u); out = C3(v ⊙ s + u) with v = 1×1(VAE feature).
    The settings leave out branches of s, the skip u and the closing 3×3 convolution C3.
    """

    def __init__(self, channels: int, vae_channels: int, settings: RmpSettings) -> None:
        super().__init__()
        self.skip = settings.skip
        self.conv = nn.Conv2d(channels, channels, 1)
        self.block1 = ConvBlock(channels) if settings.mrm_branches != "conv" else None
        self.block2 = ConvBlock(channels) if settings.mrm_branches == "full" else None
        self.vae_conv = nn.Conv2d(vae_channels, channels, 1)
        self.closing_conv = nn.Conv2d(channels, channels, 3, padding=1) if settings.closing_conv else nn.Identity()

    def forward(self, feature: Tensor, vae_feature: Tensor) -> Tensor:
        """(B, C, h, w) and (B, C', H, W) → (B, C, H, W)."""
        upsampled = _resized(feature, vae_feature.shape[2:])
        mixed = self.conv(upsampled)
        if self.block1 is not None:
            block = self.block1(upsampled)
            mixed = mixed + block
            if self.block2 is not None:
                mixed = mixed + self.block2(block)
        product = self.vae_conv(vae_feature) * mixed
        return self.closing_conv(product + upsampled if self.skip else product)


class MaskHead(nn.Module):
    """BatchNorm, ReLU and a 3×3 convolution to two logits, shared by the coarse and the refined output.

    The weights are shared. The running statistics are not: features of the two sizes are distributed
    differently, and evaluation mode must normalise each as training did.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.coarse_norm = nn.BatchNorm2d(channels, affine=False)
        self.refined_norm = nn.BatchNorm2d(channels, affine=False)
        self.conv = nn.Conv2d(channels, CLASSES, 3, padding=1)

    def coarse(self, feature: Tensor) -> Tensor:
        """(B, C, h, w) → (B, 2, h, w), for features that passed no MRM."""
        return self._logits(feature, self.coarse_norm)

    def refined(self, feature: Tensor) -> Tensor:
        """(B, C, H, W) → (B, 2, H, W), for features out of an MRM."""
        return self._logits(feature, self.refined_norm)

    def _logits(self, feature: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        normed = batch_norm(
            feature,
            norm.running_mean,
            norm.running_var,
            self.weight,
            self.bias,
            norm.training,
            norm.momentum,
            norm.eps,
        )
        return self.conv(torch.relu(normed))


class RefinedMaskPrediction(nn.Module):
    """The mask branch.

    unet_channels: channels of the U-Net's features, in the order of ``settings.unet_blocks``.
    vae_channels: channels of the VAE's features, one for each MRM. upscaling: the image's side over the latent's.
    """

    def __init__(
        self, unet_channels: Sequence[int], vae_channels: Sequence[int], upscaling: int, settings: RmpSettings
    ) -> None:
        super().__init__()
        self.settings = settings
        self.unet_channels, self.vae_channels, self.upscaling = tuple(unet_channels), tuple(vae_channels), upscaling
        widths = [share * settings.channels // 3 for share in SHARES[len(self.unet_channels)]]
        self.projections = nn.ModuleList(
            nn.Conv2d(channels, width, 1) for channels, width in zip(unet_channels, widths, strict=True)
        )
        self.transformer = Transformer2DModel(
            HEADS,
            settings.channels // HEADS,
            settings.channels,
            num_layers=TRANSFORMER_BLOCKS,
            norm_num_groups=NORM_GROUPS,
        )
        self.mrms = nn.ModuleList(
            MaskRefinementModule(settings.channels, channels, settings) for channels in vae_channels
        )
        self.head = MaskHead(settings.channels)

    @classmethod
    def for_pipeline(
        cls, unet: UNet2DConditionModel, vae: AutoencoderKL, settings: RmpSettings
    ) -> "RefinedMaskPrediction":
        """The branch that fits a base's U-Net and VAE, by their configs.

        Raises InputError when the U-Net has no such block, or none of them has the latent's size.
        """
        unet_channels = tuple(reversed(unet.config.block_out_channels))
        blocks = len(unet_channels)
        # The last two up blocks give the latent's size: the last one does not upsample.
        if not blocks - 1 <= settings.unet_blocks[-1] <= blocks:
            raise InputError(
                f"rmp.unet_blocks is {list(settings.unet_blocks)}, but the U-Net has {blocks} up blocks; "
                f"the last of them must be {blocks - 1} or {blocks}"
            )
        vae_channels = vae.config.block_out_channels
        doublings = len(vae_channels) - 1
        levels = levels_of(doublings, settings)
        if settings.vae_part == "decoder":
            refining = [vae_channels[-level] for level in levels]
        else:
            refining = [vae_channels[doublings - level] for level in levels]
        return cls([unet_channels[block - 1] for block in settings.unet_blocks], refining, 2**doublings, settings)

    @property
    def vae_levels(self) -> tuple[int, ...]:
        """The VAE features that the MRMs read: level k has 2^k times the latent's side."""
        return levels_of(self.upscaling.bit_length() - 1, self.settings)

    def coarse(self, unet_features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """U-Net features (B, C_i, h_i, w_i) → the coarse feature (B, C, h, w) and its logits (B, 2, h, w)."""
        size = max(tuple(feature.shape[2:]) for feature in unet_features)
        projected = [
            _resized(projection(feature), size)
            for projection, feature in zip(self.projections, unet_features, strict=True)
        ]
        feature = self.transformer(torch.cat(projected, dim=1), return_dict=False)[0]
        return feature, self.head.coarse(feature)

    def refine(self, feature: Tensor, logits: Tensor, vae_features: Sequence[Tensor]) -> Tensor:
        """Coarse feature, its logits, a VAE feature (B, C_k, H_k, W_k) for each MRM → refined logits (B, 2, S, S)."""
        if not self.mrms:
            return _enlarged(logits, self.upscaling)
        for mrm, vae_feature in zip(self.mrms, vae_features, strict=True):
            feature = mrm(feature, vae_feature)
        return self.head.refined(feature)

    def enlarge(self, feature: Tensor, logits: Tensor) -> Tensor:
        """The coarse feature and logits of normal images, which pass no MRM → logits (B, 2, S, S)."""
        if self.settings.normal_upsample == "prediction":
            return _enlarged(logits, self.upscaling)
        return self.head.coarse(_enlarged(feature, self.upscaling))

    def forward(self, unet_features: Sequence[Tensor], vae_features: Sequence[Tensor]) -> MaskLogits:
        """The logits of abnormal images; softmax over dim 1 gives the probabilities of (background, anomaly)."""
        feature, logits = self.coarse(unet_features)
        return MaskLogits(logits, self.refine(feature, logits, vae_features))


def levels_of(doublings: int, settings: RmpSettings) -> tuple[int, ...]:
    """The levels 1 … ``doublings`` of the VAE that have an MRM."""
    levels = tuple(range(1, doublings + 1))
    return {"all": levels, "last": levels[-1:], "none": ()}[settings.mrms]
