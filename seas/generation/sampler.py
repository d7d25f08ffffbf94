"""From a noised normal to an image and its mask (Sec. 3.3)."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from scipy.ndimage import distance_transform_cdt, gaussian_filter
from skimage.filters import apply_hysteresis_threshold
from torch import Tensor

from seas.errors import InputError
from seas.generation.settings import GenerationSettings
from seas.generator.encoded import StartNormals
from seas.generator.pipeline import encode_prompts
from seas.generator.prompts import Prompts
from seas.images import to_uint8
from seas.rmp.features import UnetFeatures, latents_to_decode, vae_features
from seas.rmp.network import RefinedMaskPrediction
from seas.seeding import torch_rng
from seas.settings import ComputeSettings
from seas.training import autocast


class Generated(NamedTuple):
    """One image uint8 (H, W, 3) with its mask bool (H, W), the name of the normal it started from ("" for pure noise)."""

    image: np.ndarray
    mask: np.ndarray
    source_normal: str


def first_timestep(alphas_cumprod: Tensor, initial_signal: float) -> int:
    """The timestep whose signal coefficient √ᾱ comes nearest to ``initial_signal``; the last one for 0."""
    if initial_signal == 0:
        return len(alphas_cumprod) - 1
    return int((alphas_cumprod.sqrt() - initial_signal).abs().argmin())


def timesteps_from(first: int, steps: int) -> list[int]:
    """Evenly spaced timesteps from ``first`` down, 0 left out.

    Raises InputError when there are more steps than timesteps.
    """
    if steps > first:
        raise InputError(
            f"generation.steps is {steps}, but generation.initial_signal leaves only {first} timesteps; lower one of them"
        )
    return np.linspace(0, first, steps + 1).round().astype(int)[:0:-1].tolist()


def sampling_scheduler(config, sampler: str) -> DPMSolverMultistepScheduler:
    """The scheduler that removes noise, with the noise levels and prediction type of the base's own.

    DPM-Solver++ of the second order, or of the first, which is DDIM without noise.
    """
    return DPMSolverMultistepScheduler.from_config(
        config,
        algorithm_type="dpmsolver++",
        solver_order=1 if sampler == "ddim" else 2,
        timestep_spacing="linspace",
        # The timesteps are ours: a base that asks for others' noise levels would refuse them.
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        use_lu_lambdas=False,
    )


def mask_of(probability: np.ndarray, threshold: float, peak_threshold: float | None) -> np.ndarray:
    """Where the anomaly's probability (H, W) is above ``threshold``, but for regions that never come above ``peak_threshold``."""
    if peak_threshold is None:
        return probability > threshold
    return apply_hysteresis_threshold(probability, threshold, peak_threshold)


FARTHEST = 1e-3
"""The share of the ring in what surrounds a pixel below which the mean of the whole ring counts more than what is near."""


def on_background(image: np.ndarray, mask: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The image inside of its mask, with its surroundings' colours shifted to the background's, softly going over into it.

    A 32nd of the side around the mask is the image's, too. The shift is the mean difference on the ring around this, where it
    is near; deep inside a large mask that of the whole ring. Without a ring there is none; without a mask all is background.

    image, background: uint8 (H, W, 3). mask: bool (H, W).
    """
    if not mask.any():
        return background.copy()
    margin = max(1, round(max(mask.shape) / 32))
    distance = distance_transform_cdt(~mask, "taxicab")
    kept = distance <= margin
    ring = ((distance <= 3 * margin) & ~kept).astype(np.float32)[..., None]
    difference = ring * (background.astype(np.float32) - image)
    near, weight = (gaussian_filter(values, 2 * margin, axes=(0, 1)) for values in (difference, ring))
    anywhere = difference.sum((0, 1)) / max(ring.sum(), 1)
    shift = (near + FARTHEST * anywhere) / (weight + FARTHEST)
    share = gaussian_filter(kept.astype(np.float32), margin / 2)[..., None]
    return (share * (image + shift) + (1 - share) * background).round().clip(0, 255).astype(np.uint8)


class PairSampler:
    """Makes image i of a type as a function of (seed, type, i, try), whatever is made beside it."""

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        rmp: RefinedMaskPrediction | None,
        prompts: Prompts,
        start: StartNormals,
        settings: GenerationSettings,
        compute: ComputeSettings,
        seed: int,
    ) -> None:
        """``rmp`` may be None when only normals are made."""
        self.pipeline, self.rmp, self.prompts, self.start = pipeline, rmp, prompts, start
        self.settings, self.compute, self.seed = settings, compute, seed
        side = start.latents.shape[-1] * pipeline.vae_scale_factor
        self.batch_size = settings.images_at_once(compute.device, side)
        signals = pipeline.scheduler.alphas_cumprod
        begins_last = settings.first_timestep == "last"
        self.first = len(signals) - 1 if begins_last else first_timestep(signals, settings.initial_signal)
        self.timesteps = timesteps_from(self.first, settings.steps)
        self._encoded: dict[tuple[str, ...], Tensor] = {}

    def make(self, anomaly_type: str, wanted: Sequence[tuple[int, int]]) -> list[Generated]:
        """The images of ``wanted``, pairs of (index, try); ``anomaly_type`` "good" makes normals, with an empty mask.

        At most ``batch_size`` at once: a smaller batch is filled up, so that an image's bits do not depend on its company.
        Where the device's memory does not hold that many, ``batch_size`` is halved from then on.
        """
        while True:
            try:
                batches = [wanted[k : k + self.batch_size] for k in range(0, len(wanted), self.batch_size)]
                return [made for batch in batches for made in self._make(anomaly_type, batch)]
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise InputError("the device's memory does not hold the making of one image") from None
            self.batch_size //= 2
            torch.cuda.empty_cache()
            print(f"out of memory: {self.batch_size} images at once from here on", flush=True)

    @torch.no_grad()
    def _make(self, anomaly_type: str, wanted: Sequence[tuple[int, int]]) -> list[Generated]:
        settings, pipeline = self.settings, self.pipeline
        filled = [*wanted, *([wanted[-1]] * (self.batch_size - len(wanted)))]
        latents, sources = self._first_latents(anomaly_type, filled)
        normal = anomaly_type == "good"
        prompt = self.prompts.normal() if normal else self.prompts.abnormal(anomaly_type)
        prompts = (prompt,) if settings.guidance == 1 else ("", prompt)
        context = self._context(prompts).repeat_interleave(len(filled), 0)
        scheduler = sampling_scheduler(pipeline.scheduler.config, settings.sampler)
        scheduler.set_timesteps(timesteps=self.timesteps, device=pipeline.device)
        masks: list[Tensor] = []
        with ExitStack() as hooks:
            features = None if normal else UnetFeatures(pipeline.unet, self.rmp.settings.unet_blocks)
            if features:
                hooks.callback(features.remove)
            for number, timestep in enumerate(scheduler.timesteps):
                with autocast(self.compute):
                    output = pipeline.unet(latents.repeat(len(prompts), 1, 1, 1), timestep, context).sample.float()
                conditional = output[-len(filled) :]
                if features and number >= settings.steps - settings.mask_steps:
                    masks.append(self._mask(features, latents, conditional, timestep))
                unconditional = output[: len(filled)]
                guided = unconditional + settings.guidance * (conditional - unconditional)
                latents = scheduler.step(guided, timestep, latents).prev_sample
        with autocast(self.compute):
            images = to_uint8(pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample)
        probability = torch.stack(masks).mean(0).cpu().numpy() if masks else np.zeros(images.shape[:3], np.float32)
        return [self._finished(images[k], probability[k], sources[k], pair=not normal) for k in range(len(wanted))]

    def _context(self, prompts: tuple[str, ...]) -> Tensor:
        """The embeddings of ``prompts``, (len(prompts), T, C), computed once for all batches."""
        if prompts not in self._encoded:
            with autocast(self.compute):
                self._encoded[prompts] = encode_prompts(self.pipeline, prompts)
        return self._encoded[prompts]

    def _first_latents(self, anomaly_type: str, wanted: Sequence[tuple[int, int]]) -> tuple[Tensor, list[int]]:
        signal = torch.tensor(self.settings.initial_signal)
        above_the_last = self.first < len(self.pipeline.scheduler.alphas_cumprod) - 1
        if above_the_last and self.settings.first_timestep == "of_signal":
            signal = self.pipeline.scheduler.alphas_cumprod[self.first].sqrt()
        latents, sources = [], []
        for index, attempt in wanted:
            random = torch_rng(self.seed, "generation", anomaly_type, index, attempt)
            source = int(torch.randint(len(self.start.latents), (1,), generator=random))
            noise = torch.randn(self.start.latents.shape[1:], generator=random)
            latents.append(signal * self.start.latents[source] + (1 - signal**2).sqrt() * noise)
            sources.append(source)
        return torch.stack(latents).to(self.pipeline.device), sources

    def _mask(self, features: UnetFeatures, latents: Tensor, output: Tensor, timestep: Tensor) -> Tensor:
        """The anomaly's probability (B, S, S) at one step, from the conditional half of the batch."""
        pipeline, settings = self.pipeline, self.rmp.settings
        decoded = latents_to_decode(settings.vae_latent, pipeline.scheduler, output, timestep, latents)
        with autocast(self.compute):
            unet_maps = [feature[-len(latents) :] for feature in features.read()]
            vae_maps = vae_features(pipeline.vae, decoded, self.rmp.vae_levels, settings.vae_part)
            logits = self.rmp(unet_maps, vae_maps).refined
        return logits.float().softmax(1)[:, 1]

    def _finished(self, image: np.ndarray, probability: np.ndarray, source: int, *, pair: bool) -> Generated:
        """Without the padding of the drawn normal, inside of which the generator learned the product; on its background."""
        top, left, height, width = self.start.boxes[source].tolist()
        part = (slice(top, top + height), slice(left, left + width))
        image, mask = image[part], mask_of(probability[part], self.settings.threshold, self.settings.peak_threshold)
        if pair and self.settings.background == "photographed":
            image = on_background(image, mask, self.start.images[source].numpy()[part])
        return Generated(image, mask, self.start.names[source] if self.settings.initial_signal else "")
