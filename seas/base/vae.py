"""Training a small VAE in minutes: it starts as the linear code of the corpus's patches, and its latents stay near that code."""

import math

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, l1_loss, mse_loss, pixel_unshuffle, unfold

ANCHOR_WEIGHT = 0.1
CHROMA_WEIGHT = 2.0
L1_WEIGHT = 0.2
LATENT_NOISE = 0.02
"""Deviation of the noise on the latents that the decoder learns to bear, and that of the encoder's posterior."""
STEADY = 6.0
"""Value of the channel that keeps a group norm from dividing a picture's brightness away, in deviations of the code."""
RIDGE = 1e-6
FITTED_AT_ONCE = 16
"""Pictures whose patches are held at once, in double precision, for a fit."""


class LinearCode:
    """The first principal components of a corpus's patches, each divided by the square root of its deviation.

    So scaled, equal errors in all channels cost least in the picture: neither unit variance, where errors of the
    brightness weigh most, nor the plain components, where fine detail drowns in noise.
    """

    def __init__(self, images: Tensor, side: int, channels: int) -> None:
        """``images`` (B, 3, H, W) in [-1, 1]; a patch is ``side`` × ``side`` pixels."""
        patches = pixel_unshuffle(images, side).movedim(1, -1).flatten(0, -2)
        self.side = side
        self.mean = patches.mean(0)
        _, deviations, directions = torch.linalg.svd((patches - self.mean).double(), full_matrices=False)
        scale = (deviations[:channels] / len(patches) ** 0.5).clamp(min=1e-6).sqrt()
        self.rows = (directions[:channels] / scale[:, None]).float()

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, channels, H / side, W / side)."""
        patches = pixel_unshuffle(images, self.side) - self.mean[None, :, None, None]
        return conv2d(patches, self.rows[:, :, None, None])


@torch.no_grad()
def start_at_code(vae: AutoencoderKL, code: LinearCode, images: Tensor) -> None:
    """Give the VAE weights with which it encodes and decodes nearly as the linear code does, images (B, 3, H, W) in [-1, 1].

    Residual blocks pass their input on; the encoder gathers the pixels of a patch in its channels; the decoder
    interpolates; the layers before the latents and before the picture are fitted by least squares. A channel of
    constant value runs beside the others, so that the group norms keep the brightness.
    """
    target = code(images)
    latents = target.shape[1]
    for name, module in vae.named_modules():
        if name.endswith("conv2"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif name.endswith("conv_shortcut") or name.endswith("quant_conv"):
            nn.init.dirac_(module.weight)
            nn.init.zeros_(module.bias)
        elif "upsamplers.0.conv" in name:
            _interpolate(module)
    _pass_on(vae.encoder.conv_in, 3)
    downsamplers = [block.downsamplers[0].conv for block in vae.encoder.down_blocks[:-1]]
    carried = 3
    for convolution in downsamplers[:-1]:
        carried = _gather(convolution, carried)
    _fit(downsamplers[-1], lambda: vae.encoder(images), target)
    downsamplers[-1].weight[latents] = 0
    downsamplers[-1].bias[latents] = STEADY
    _fit(vae.encoder.conv_out, lambda: vae.encoder(images), target)
    _pass_on(vae.decoder.conv_in, latents)
    vae.decoder.conv_in.weight[latents] = 0
    vae.decoder.conv_in.bias[latents] = STEADY
    _fit(vae.decoder.conv_out, lambda: vae.decode(target), images)


@torch.no_grad()
def narrow_posterior(vae: AutoencoderKL) -> None:
    """Give the posterior the same small deviation everywhere, that of the noise which the decoder learned to bear.

    No loss teaches the deviation: a KL term, however weak, would be all of its gradient, and Adam would follow it to
    unit variance, which drowns the latents of a fine-tuning in noise.
    """
    latents = vae.config.latent_channels
    vae.quant_conv.weight[latents:] = 0
    vae.quant_conv.bias[latents:] = 2 * math.log(LATENT_NOISE)


def _pass_on(convolution: nn.Conv2d, channels: int) -> None:
    """Copy the first ``channels``; the other outputs keep their random weights."""
    convolution.weight[:channels] = 0
    convolution.bias[:channels] = 0
    for channel in range(channels):
        convolution.weight[channel, channel, 1, 1] = 1


def _gather(convolution: nn.Conv2d, carried: int) -> int:
    """Put the pixels of each 2×2 block of ``carried`` channels beside each other; gives the number of channels that found room."""
    room = min(4 * carried, convolution.out_channels)
    convolution.weight[:room] = 0
    convolution.bias[:room] = 0
    for channel in range(room):
        pixel, source = divmod(channel, carried)
        convolution.weight[channel, source, pixel // 2, pixel % 2] = 1
    return room


def _interpolate(convolution: nn.Conv2d) -> None:
    """After the repetition of each pixel: bilinear interpolation."""
    tent = convolution.weight.new_tensor([1.0, 2.0, 1.0]) / 4
    nn.init.dirac_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    convolution.weight.copy_(convolution.weight.sum((2, 3), keepdim=True) * torch.outer(tent, tent))


def _fit(convolution: nn.Conv2d, run, target: Tensor) -> None:
    """Choose the weights of the first outputs so that they come nearest to ``target`` (B, C, h, w) when ``run`` is called."""
    seen: list[Tensor] = []
    hook = convolution.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    run()
    hook.remove()
    square = product = cells = 0
    for inputs, wanted in zip(seen[0].split(FITTED_AT_ONCE), target.split(FITTED_AT_ONCE), strict=True):
        patches = unfold(inputs, convolution.kernel_size, padding=convolution.padding, stride=convolution.stride)
        columns = patches.movedim(1, -1).flatten(0, -2).double()
        columns = torch.cat([columns, torch.ones_like(columns[:, :1])], dim=1)
        square += columns.T @ columns
        product += columns.T @ wanted.movedim(1, -1).flatten(0, -2).double()
        cells += len(columns)
    square = square / cells + RIDGE * torch.eye(len(square), dtype=square.dtype, device=square.device)
    solution = torch.linalg.solve(square, product / cells).T.float()
    outputs = len(solution)
    convolution.weight[:outputs] = solution[:, :-1].unflatten(1, convolution.weight.shape[1:])
    convolution.bias[:outputs] = solution[:, -1]


def vae_losses(vae: AutoencoderKL, code: LinearCode, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """The losses of one batch, images (B, 3, H, W) in [-1, 1]; ``noise`` is standard normal in the shape of the latents.

    Reconstruction is MSE + L1 + the MSE of 4×4 means of the chroma; the anchor is the MSE between latents and linear code.
    """
    posterior = vae.encode(images).latent_dist
    decoded = vae.decode(posterior.mean + LATENT_NOISE * noise).sample
    chroma = [avg_pool2d(picture - picture.mean(1, keepdim=True), 4) for picture in (decoded, images)]
    losses = {
        "mse": mse_loss(decoded, images),
        "l1": l1_loss(decoded, images),
        "chroma": mse_loss(*chroma),
        "anchor": mse_loss(posterior.mean, code(images)),
    }
    reconstruction = losses["mse"] + L1_WEIGHT * losses["l1"] + CHROMA_WEIGHT * losses["chroma"]
    return {"loss": reconstruction + ANCHOR_WEIGHT * losses["anchor"], **losses}
