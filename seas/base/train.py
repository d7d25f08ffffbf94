"""Pre-training of the small base on the corpus: first the VAE, then U-Net and text encoder on its latents."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from seas.artifacts import Provenance, working_folder, write_table, writing_folder
from seas.base.corpus import corpus_image, vocabulary
from seas.base.model import build_base, training_target
from seas.base.settings import STAGE_VERSION, BaseSettings
from seas.base.vae import LinearCode, narrow_posterior, start_at_code, vae_losses
from seas.images import to_tensor
from seas.seeding import rng, seed_of, torch_rng
from seas.settings import ComputeSettings
from seas.training import autocast, prepare_device, progress, train

WARM_UP = 0.05
"""Share of the updates in which the rate rises."""
DRAWN_AT_ONCE = 64 * 64**2
"""Pixels of the pictures that a process draws before it hands them over, through shared memory, of which a container has little."""
ENCODED_AT_ONCE = 64
FITTED_TO = 256
"""Pictures that the linear code is fitted to."""


def train_base(
    settings: BaseSettings, compute: ComputeSettings, *, output: Path, tensorboard: Path | None = None
) -> None:
    """Pre-train a base and write it, in half precision, as a folder that ``StableDiffusionPipeline.from_pretrained`` loads."""
    device = prepare_device(compute)
    obeyed = {"base": settings.obeyed(), "compute": compute.obeyed()}
    provenance = Provenance.of("base", STAGE_VERSION, obeyed, settings.seed, {})
    working = working_folder(output, provenance)

    images, captions = _corpus(settings, compute.threads)
    torch.manual_seed(seed_of(settings.seed, "base weights"))
    pipeline = build_base(settings, vocabulary())
    pipeline.to(device)
    vae_table = _train_vae(pipeline, images, settings, compute, working / "vae", tensorboard)
    latents = _encoded(pipeline, images, settings)
    del images
    unet_table = _train_unet(pipeline, latents, captions, settings, compute, working / "unet", tensorboard)
    with writing_folder(output, provenance) as folder:
        pipeline.to(torch.float16).save_pretrained(folder)
        write_table(vae_table, folder / "vae_losses.parquet")
        write_table(unet_table, folder / "unet_losses.parquet")


class _Drawings(Dataset):
    """The corpus's pictures, uint8 (S, S, 3), and their captions, each drawn when it is asked for."""

    def __init__(self, settings: BaseSettings) -> None:
        self.settings = settings

    def __len__(self) -> int:
        return self.settings.corpus_images

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        return corpus_image(self.settings.seed, index, self.settings.image_size)


def _put_together(pictures: list[tuple[np.ndarray, str]]) -> tuple[Tensor, list[str]]:
    """As a tensor, which goes through shared memory: an array would fill the pipe, and a process whose parent is killed wait for ever."""
    images, captions = zip(*pictures, strict=True)
    return torch.from_numpy(np.stack(images)), list(captions)


def _corpus(settings: BaseSettings, processes: int) -> tuple[np.ndarray, list[str]]:
    at_once = max(1, DRAWN_AT_ONCE // settings.image_size**2)
    drawn = DataLoader(
        _Drawings(settings),
        batch_size=at_once,
        num_workers=processes if processes > 1 else 0,
        collate_fn=_put_together,
    )
    images = np.empty((settings.corpus_images, settings.image_size, settings.image_size, 3), np.uint8)
    captions = []
    starts = progress(range(0, len(images), at_once), f"base {settings.name}: corpus")
    for start, (some, words) in zip(starts, drawn, strict=True):
        images[start : start + len(some)] = some
        captions += words
    return images, captions


def rate(step: int, updates: int) -> float:
    """The learning rate at a step as a share of its peak: a short rise, then a cosine down to 2 %."""
    warm = max(1, round(WARM_UP * updates))
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, updates - warm)))


def _set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def _train_vae(
    pipeline, images, settings: BaseSettings, compute: ComputeSettings, working: Path, tensorboard: Path | None
):
    vae = pipeline.vae
    side = 2 ** (len(settings.vae_channels) - 1)
    first = to_tensor(images[:FITTED_TO]).to(pipeline.device)
    code = LinearCode(first, side, settings.latent_channels)
    start_at_code(vae, code, first)
    optimizer = torch.optim.Adam(vae.parameters(), lr=settings.vae_learning_rate, betas=(0.9, 0.99), fused=True)
    grid = (settings.vae_batch_size, settings.latent_channels, settings.image_size // side, settings.image_size // side)

    def update(step: int) -> dict[str, Tensor]:
        _set_rate(optimizer, settings.vae_learning_rate * rate(step, settings.vae_updates))
        chosen = rng(settings.seed, "vae batch", step).integers(len(images), size=settings.vae_batch_size)
        noise = torch.randn(grid, generator=torch_rng(settings.seed, "vae noise", step)).to(pipeline.device)
        with autocast(compute):
            losses = vae_losses(vae, code, to_tensor(images[chosen]).to(pipeline.device), noise)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {name: value.detach() for name, value in losses.items()}

    vae.train()
    table = train(
        update,
        settings.vae_updates,
        {"vae": vae, "optimizer": optimizer},
        working=working,
        label=f"base {settings.name}: VAE",
        checkpoint_every=settings.checkpoint_every,
        checkpoint_at_end=True,  # the U-Net's training, which follows, may be interrupted, too
        tensorboard=tensorboard and tensorboard / "vae",
    )
    narrow_posterior(vae)
    vae.eval().requires_grad_(False)
    return table


@torch.no_grad()
def _encoded(pipeline, images: np.ndarray, settings: BaseSettings) -> Tensor:
    """The corpus's latents (n, C, h, w) in units of their own deviation; the VAE learns its scaling factor."""
    latents = torch.cat(
        [
            pipeline.vae.encode(
                to_tensor(images[start : start + ENCODED_AT_ONCE]).to(pipeline.device)
            ).latent_dist.mean.float()
            for start in progress(range(0, len(images), ENCODED_AT_ONCE), f"base {settings.name}: latents")
        ]
    )
    factor = 1 / float(latents.std())
    pipeline.vae.register_to_config(scaling_factor=factor)
    return latents * factor


def _train_unet(
    pipeline,
    latents,
    captions,
    settings: BaseSettings,
    compute: ComputeSettings,
    working: Path,
    tensorboard: Path | None,
):
    unet, text_encoder, scheduler = pipeline.unet, pipeline.text_encoder, pipeline.scheduler
    networks = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).train()
    averaged = AveragedModel(networks, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
    optimizer = torch.optim.AdamW(networks.parameters(), lr=settings.unet_learning_rate, weight_decay=0.01, fused=True)
    padded = {"padding": "max_length", "truncation": True, "max_length": settings.text_length, "return_tensors": "pt"}
    input_ids = pipeline.tokenizer(["", *captions], **padded).input_ids.to(pipeline.device)

    def update(step: int) -> dict[str, Tensor]:
        _set_rate(optimizer, settings.unet_learning_rate * rate(step, settings.unet_updates))
        draws = rng(settings.seed, "unet batch", step)
        chosen = torch.from_numpy(draws.integers(len(latents), size=settings.unet_batch_size)).to(pipeline.device)
        dropped = torch.from_numpy(draws.random(settings.unet_batch_size) < settings.dropped_captions).to(
            pipeline.device
        )
        random = torch_rng(settings.seed, "unet noise", step)
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=random).to(pipeline.device)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), generator=random).to(
            pipeline.device
        )
        noisy = scheduler.add_noise(clean, noise, timesteps)
        with autocast(compute):
            context = text_encoder(input_ids[torch.where(dropped, 0, chosen + 1)])[0]
            prediction = unet(noisy, timesteps, context).sample
        loss = torch.nn.functional.mse_loss(prediction.float(), training_target(scheduler, clean, noise, timesteps))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averaged.update_parameters(networks)
        return {"loss": loss.detach()}

    table = train(
        update,
        settings.unet_updates,
        {"networks": networks, "averaged": averaged, "optimizer": optimizer},
        working=working,
        label=f"base {settings.name}: U-Net",
        checkpoint_every=settings.checkpoint_every,
        tensorboard=tensorboard and tensorboard / "unet",
    )
    networks.load_state_dict(averaged.module.state_dict())
    networks.eval().requires_grad_(False)
    return table
