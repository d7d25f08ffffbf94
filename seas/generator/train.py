"""Separation and Sharing fine-tuning of a base on one product (Sec. 3.2)."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from seas.artifacts import Provenance, read_table
from seas.base.model import training_target
from seas.data.settings import DataSettings
from seas.generator.attention import AttentionMaps
from seas.generator.batches import Batch, TrainingBatches
from seas.generator.embeddings import add_tokens, fold_tokens
from seas.generator.encoded import EncodedImages, encode_images
from seas.generator.losses import DecoupledAnomalyAlignmentLoss, masked_mse, valid_cells
from seas.generator.pipeline import load_pipeline, save_generator, tokenise
from seas.generator.prompts import Prompts, token_positions
from seas.generator.settings import STAGE_VERSION, GeneratorSettings
from seas.seeding import torch_rng
from seas.settings import ComputeSettings
from seas.training import OffloadedAdamW, accumulated_update, autocast, prepare_device, train, write_trained


def train_generator(
    base: Path,
    split: Path,
    root: Path,
    settings: GeneratorSettings,
    data: DataSettings,
    compute: ComputeSettings,
    seed: int,
    *,
    output: Path,
    tensorboard: Path | None = None,
) -> None:
    """Fine-tune the base on the split's shots and normals, and write the generator's folder.

    The folder is what ``StableDiffusionPipeline.from_pretrained`` loads, with prompts.json (the learned
    tokens), the encoded training images and losses.parquet beside the pipeline's parts. Trained in bf16, it is saved
    in fp16. Without ``mixed_training`` it holds such a folder for each type.

    Raises InputError for a base that cannot be loaded or does not fit the settings.
    """
    device = prepare_device(compute)
    obeyed = {"generator": settings.obeyed(), "data": data.obeyed(), "compute": compute.obeyed()}
    provenance = Provenance.of("generator", STAGE_VERSION, obeyed, seed, {"base": base, "split": split})
    samples = read_table(split)
    encoded: EncodedImages | None = None

    def trained(rows: pd.DataFrame, working: Path) -> Callable[[Path], pd.DataFrame]:
        nonlocal encoded
        pipeline = load_pipeline(base, device)
        encoded = encoded or encode_images(samples, root, data, pipeline.vae, shifted=settings.shifts)
        prompts = prompts_of(rows, settings)
        images = encoded.of_types(prompts.types)
        trainer = GeneratorTrainer(pipeline, prompts, images, settings, compute, seed)
        losses = train(
            trainer.update,
            trainer.updates,
            trainer.state,
            working=working,
            label=" ".join(["generator", prompts.product, *([] if settings.mixed_training else prompts.types)]),
            checkpoint_every=settings.checkpoint_every,
            tensorboard=tensorboard and tensorboard / ("" if settings.mixed_training else prompts.types[0]),
        )
        trainer.finish()

        def save(folder: Path) -> pd.DataFrame:
            save_generator(pipeline, base, folder, half=compute.precision == "bf16")
            prompts.save(folder)
            images.save(folder)
            return losses

        return save

    write_trained(output, provenance, {name: partial(trained, rows) for name, rows in parts_of(samples, settings)})


def parts_of(samples: pd.DataFrame, settings: GeneratorSettings) -> Iterator[tuple[str, pd.DataFrame]]:
    """What each model trains on: the whole split under the name "", or each type with the normals."""
    if settings.mixed_training:
        yield "", samples
        return
    for name in prompts_of(samples, settings).types:
        yield name, samples[samples.type.isin([name, "good"])]


def prompts_of(split, settings: GeneratorSettings) -> Prompts:
    """The product's prompts, its types numbered as the split table numbers them."""
    shots = split[split.role == "shot"]
    types = list(shots.drop_duplicates("type").sort_values("type_index").type)
    if settings.prompt == "typical":
        return Prompts.typical(split["product"].iloc[0], types, anomaly_word=settings.anomaly_word)
    return Prompts.of(
        split["product"].iloc[0],
        types,
        normal=settings.normal_tokens,
        anomaly=settings.anomaly_tokens,
        commas=settings.prompt_commas,
    )


def cosine_decay(step: int, updates: int) -> float:
    """The share of a learning rate that is left at a step: 1 at the first, towards 0 after the last."""
    return (1 + math.cos(math.pi * step / updates)) / 2


class GeneratorTrainer:
    """One update of the fine-tuning: L = L_df + L_ob (Eq. 4 to 6)."""

    def __init__(
        self,
        pipeline,
        prompts: Prompts,
        images: EncodedImages,
        settings: GeneratorSettings,
        compute: ComputeSettings,
        seed: int,
    ) -> None:
        self.pipeline, self.prompts = pipeline, prompts
        self.settings, self.compute, self.seed = settings, compute, seed
        self.batches = TrainingBatches(images, prompts, settings, seed)
        self.updates = settings.updates_per_type * len(prompts.types)
        shots = int((images.rows.role == "shot").sum())
        self.updates_with_shots = settings.updates_with_shots(len(prompts.types), shots)
        self.device = pipeline.device
        self.embeddings = add_tokens(
            pipeline, prompts, normal_word=settings.normal_word, anomaly_word=settings.anomaly_word
        ).to(self.device)
        pipeline.unet.requires_grad_(True).train()
        if settings.trained_embeddings == "all":
            self.embeddings.table.requires_grad_(True)
        if settings.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        groups = [
            {"params": list(pipeline.unet.parameters()), "lr": settings.unet_learning_rate},
            {
                "params": [p for p in self.embeddings.parameters() if p.requires_grad],
                "lr": settings.embedding_learning_rate,
            },
        ]
        kind = OffloadedAdamW if settings.offload_optimizer else torch.optim.AdamW
        self.optimizer = kind(groups, weight_decay=settings.weight_decay, fused=True)
        self.alignment = DecoupledAnomalyAlignmentLoss(settings.map_normalisation, settings.second_term)
        self.maps = AttentionMaps(pipeline.unet, settings.attention_layers, settings.map_softmax)
        self.input_ids = {
            prompt: tokenise(pipeline, [prompt])[0]
            for prompt in (prompts.normal(), *(prompts.abnormal(name) for name in prompts.types))
        }
        self.normal_positions, self.anomaly_positions = {}, {}
        for name in ("good", *prompts.types):
            prompt = prompts.normal() if name == "good" else prompts.abnormal(name)
            normal, anomaly = token_positions(
                pipeline.tokenizer,
                self.input_ids[prompt].tolist(),
                prompts.normal_tokens,
                prompts.anomaly_tokens.get(name, ()),
            )
            self.normal_positions[name] = torch.tensor(normal, device=self.device)
            self.anomaly_positions[name] = torch.tensor(anomaly, device=self.device)

    @property
    def state(self) -> dict:
        """Everything that an update changes."""
        return {"unet": self.pipeline.unet, "embeddings": self.embeddings, "optimizer": self.optimizer}

    def update(self, step: int) -> dict[str, Tensor]:
        """One optimizer update; gives its losses."""
        share = cosine_decay(step, self.updates) if self.settings.learning_rate_decay == "cosine" else 1.0
        peaks = (self.settings.unet_learning_rate, self.settings.embedding_learning_rate)
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * share
        settings = self.settings
        return accumulated_update(
            self.losses, step, settings.gradient_accumulation, self.optimizer, settings.largest_gradient_norm
        )

    def losses(self, draw: int) -> dict[str, Tensor]:
        """The losses of one batch: L_df = L_DA + MSE on the abnormal images, L_ob = MSE on the normals.

        A kind of images that the schedule leaves out of the batch adds 0 to "loss", and has no losses of its own.
        """
        batch = self._scheduled(draw)
        scheduler = self.pipeline.scheduler
        latents = batch.latents.to(self.device)
        random = torch_rng(self.seed, "noise", draw)
        noise = torch.randn(latents.shape, generator=random).to(self.device)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=random).to(
            self.device
        )
        noisy = scheduler.add_noise(latents, noise, timesteps)
        input_ids = torch.stack([self.input_ids[prompt] for prompt in batch.prompts]).to(self.device)
        with autocast(self.compute):
            context = self.pipeline.text_encoder(input_ids)[0]
            prediction = self.pipeline.unet(noisy, timesteps, context).sample
        target = training_target(scheduler, latents, noise, timesteps)

        # Slices, not masks: counting a mask would wait for the device.
        count = int(batch.is_abnormal.sum())
        cells = valid_cells(batch.valid.to(self.device), tuple(latents.shape[2:]))
        df_mse = masked_mse(prediction[:count], target[:count], cells[:count])
        ob_mse = masked_mse(prediction[count:], target[count:], cells[count:])
        first, second, complement = self._alignment_of(batch, latents)
        loss = self.settings.da_weight * (first + second) + df_mse
        loss = loss + self.settings.normal_weight * (ob_mse + complement)
        of_abnormal, of_normal = {"da_first": first, "da_second": second, "df_mse": df_mse}, {"ob_mse": ob_mse}
        if self.settings.second_term == "complement":
            shown = of_abnormal if self.settings.complement_on == "abnormal" else of_normal
            shown["complement"] = complement
        return {"loss": loss} | (of_abnormal if count else {}) | (of_normal if count < len(latents) else {})

    def finish(self) -> None:
        """Leave a plain pipeline behind, ready to be saved."""
        self.maps.remove()
        fold_tokens(self.pipeline, self.embeddings)
        self.pipeline.unet.disable_gradient_checkpointing()
        self.pipeline.unet.requires_grad_(False).eval()

    def _scheduled(self, draw: int) -> Batch:
        """The batch of a draw, or those of its images that the schedule and the limit for each shot let train."""
        update, part = divmod(draw, self.settings.gradient_accumulation)
        with_shots, after = (number * self.updates_with_shots // self.updates for number in (update, update + 1))
        batch = self.batches.batch(draw, with_shots * self.settings.gradient_accumulation + part)
        if with_shots == after:
            return batch.only(abnormal=False)
        if self.settings.schedule == "mixed":
            return batch
        first_half = 2 * update < self.updates
        return batch.only(abnormal=first_half == (self.settings.schedule == "abnormal_then_normal"))

    def _alignment_of(self, batch: Batch, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two terms of L_DA, and the one that ``complement`` adds to L_ob; 0 where there is no image for it."""
        first = second = complement = latents.new_zeros(())
        maps, mask = self.maps.read(*latents.shape[2:]), batch.mask.to(self.device)
        normal_positions = torch.stack([self.normal_positions[name] for name in batch.types])
        count = int(batch.is_abnormal.sum())
        if count:
            first, second = self.alignment(
                {layer: m[:count] for layer, m in maps.items()},
                torch.stack([self.anomaly_positions[name] for name in batch.types[:count]]),
                normal_positions[:count],
                mask[:count],
            )
        part = slice(0, count) if self.settings.complement_on == "abnormal" else slice(count, None)
        if self.settings.second_term == "complement" and len(mask[part]):
            shown = {layer: m[part] for layer, m in maps.items()}
            complement = self.alignment.complement(shown, normal_positions[part], mask[part])
        return first, second, complement
