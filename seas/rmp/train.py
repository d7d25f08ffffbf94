"""Training of the mask branch on the features of a finished generator (Sec. 3.3)."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seas.artifacts import Provenance, write_json
from seas.errors import InputError
from seas.generator.batches import TrainingBatches
from seas.generator.encoded import EncodedImages, load_encoded
from seas.generator.pipeline import encode_prompts, load_pipeline
from seas.generator.prompts import Prompts, models_of
from seas.rmp.features import UnetFeatures, latents_to_decode, vae_features
from seas.rmp.losses import mask_losses
from seas.rmp.network import MaskLogits, RefinedMaskPrediction
from seas.rmp.settings import STAGE_VERSION, RmpSettings
from seas.seeding import seed_of, torch_rng
from seas.settings import ComputeSettings
from seas.training import accumulated_update, autocast, prepare_device, train, write_trained

WEIGHTS = "rmp.safetensors"
CONFIG = "config.json"


def train_rmp(
    generator: Path,
    settings: RmpSettings,
    compute: ComputeSettings,
    seed: int,
    *,
    output: Path,
    tensorboard: Path | None = None,
) -> None:
    """Train the mask branch on a generator's frozen networks and encoded images, and write its folder.

    The folder holds rmp.safetensors, config.json (what ``load_rmp`` rebuilds it from) and losses.parquet; of a
    generator with a model for each type, such a folder for each type.

    Raises InputError for a generator that cannot be loaded or does not fit the settings.
    """
    device = prepare_device(compute)
    obeyed = {"rmp": settings.obeyed(), "compute": compute.obeyed()}
    provenance = Provenance.of("rmp", STAGE_VERSION, obeyed, seed, {"generator": generator})
    models = models_of(generator)

    def trained(model: Path, working: Path) -> Callable[[Path], pd.DataFrame]:
        pipeline = load_pipeline(model, device)
        prompts = Prompts.load(model)
        trainer = RmpTrainer(pipeline, prompts, load_encoded(model), settings, compute, seed)
        losses = train(
            trainer.update,
            settings.updates_per_type * len(prompts.types),
            trainer.state,
            working=working,
            label=" ".join(["rmp", prompts.product, *([] if model == generator else prompts.types)]),
            checkpoint_every=settings.checkpoint_every,
            tensorboard=tensorboard and tensorboard / ("" if model == generator else model.name),
        )

        def save(folder: Path) -> pd.DataFrame:
            save_rmp(trainer.network, folder)
            return losses

        return save

    named = {"" if model == generator else model.name: partial(trained, model) for model in models}
    write_trained(output, provenance, named)


class RmpTrainer:
    """One update of the mask branch (Eq. 7); U-Net, VAE and text encoder stay as they are."""

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        prompts: Prompts,
        images: EncodedImages,
        settings: RmpSettings,
        compute: ComputeSettings,
        seed: int,
    ) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.compute, self.seed, self.device = compute, seed, pipeline.device
        self.batches = TrainingBatches(images, prompts, settings, seed)
        # Layers draw their first weights from the global generator: seeded for this block alone.
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed_of(seed, "rmp weights"))
            self.network = RefinedMaskPrediction.for_pipeline(pipeline.unet, pipeline.vae, settings)
        self.network.to(self.device).train()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.features = UnetFeatures(pipeline.unet, settings.unet_blocks)
        texts = [prompts.normal(), *(prompts.abnormal(name) for name in prompts.types)]
        with torch.no_grad(), autocast(compute):
            self.context = dict(zip(texts, encode_prompts(pipeline, texts), strict=True))

    @property
    def state(self) -> dict:
        """Everything that an update changes."""
        return {"rmp": self.network, "optimizer": self.optimizer}

    def update(self, step: int) -> dict[str, Tensor]:
        """One optimizer update; gives its losses."""
        return accumulated_update(self.losses, step, self.settings.gradient_accumulation, self.optimizer)

    def losses(self, draw: int) -> dict[str, Tensor]:
        """The terms of Eq. 7 on one batch."""
        settings, batch = self.settings, self.batches.batch(draw)
        abnormal = int(batch.is_abnormal.sum())
        unet_features, refining = self._frozen_features(batch.latents.to(self.device), batch.prompts, abnormal, draw)
        with autocast(self.compute):
            feature, coarse = self.network.coarse(unet_features)
            refined = self.network.refine(feature[:abnormal], coarse[:abnormal], refining)
            enlarged = self.network.enlarge(feature[abnormal:], coarse[abnormal:])
        return mask_losses(
            MaskLogits(coarse[:abnormal], refined),
            MaskLogits(coarse[abnormal:], enlarged),
            batch.mask[:abnormal].to(self.device),
            batch.valid.to(self.device),
            gamma=settings.focal_gamma,
            smoothing=settings.label_smoothing,
            coarse_supervision=settings.coarse_supervision,
            normal_supervision=settings.normal_supervision,
        )

    def _frozen_features(
        self, latents: Tensor, prompts: list[str], abnormal: int, draw: int
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """The U-Net's features of all images and the VAE's of the first ``abnormal`` ones, at drawn timesteps."""
        scheduler, settings = self.pipeline.scheduler, self.settings
        random = torch_rng(self.seed, "rmp noise", draw)
        noise = torch.randn(latents.shape, generator=random).to(self.device)
        count = scheduler.config.num_train_timesteps
        if settings.timesteps == "last_fraction":
            count = max(1, round(count * settings.last_fraction))
        timesteps = torch.randint(count, (len(latents),), generator=random).to(self.device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        context = torch.stack([self.context[prompt] for prompt in prompts])
        with torch.no_grad(), autocast(self.compute):
            prediction = self.pipeline.unet(noisy, timesteps, context).sample
            decoded = latents_to_decode(
                settings.vae_latent,
                scheduler,
                prediction[:abnormal],
                timesteps[:abnormal],
                noisy[:abnormal],
                random=torch_rng(self.seed, "rmp step", draw),
            )
            refining = vae_features(self.pipeline.vae, decoded, self.network.vae_levels, settings.vae_part)
        return self.features.read(), refining


def save_rmp(network: RefinedMaskPrediction, folder: Path) -> None:
    """Write the weights, the running statistics and the config of a mask branch into ``folder``."""
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
    write_json(_config_of(network), folder / CONFIG)


def load_rmp(
    folder: Path, pipeline: StableDiffusionPipeline, device: torch.device | str = "cpu"
) -> RefinedMaskPrediction:
    """The trained mask branch of a generator, in evaluation mode and without gradients.

    Raises InputError when it is missing or damaged, or was trained for networks of other sizes.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text())
        settings = RmpSettings(**config["settings"])
        weights = load_file(folder / WEIGHTS)
    except FileNotFoundError as fault:
        raise InputError(
            f"{folder} is no finished mask branch: {Path(fault.filename or WEIGHTS).name} is missing"
        ) from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as fault:
        raise InputError(f"{folder} is no finished mask branch: {fault}") from None
    network = RefinedMaskPrediction.for_pipeline(pipeline.unet, pipeline.vae, settings)
    if _config_of(network) != config | {"settings": settings.obeyed()}:
        raise InputError(f"the mask branch {folder} was trained for another base than this generator's")
    try:
        network.load_state_dict(weights)
    except RuntimeError as fault:
        raise InputError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {fault}") from None
    return network.to(device).eval().requires_grad_(False)


def _config_of(network: RefinedMaskPrediction) -> dict:
    return {
        "unet_channels": list(network.unet_channels),
        "vae_channels": list(network.vae_channels),
        "upscaling": network.upscaling,
        "settings": network.settings.obeyed(),
    }
