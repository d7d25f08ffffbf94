"""Separation and Sharing fine-tuning of a base on one product (Sec. 3.2)."""

from pathlib import Path

import torch
from torch import Tensor

from seas.artifacts import Provenance, read_table, working_folder, write_table, writing_folder
from seas.base.model import training_target
from seas.data.settings import DataSettings
from seas.generator.attention import AttentionMaps
from seas.generator.batches import Batch, TrainingBatches
from seas.generator.embeddings import add_tokens, fold_tokens
from seas.generator.losses import DecoupledAnomalyAlignmentLoss, masked_mse, valid_cells
from seas.generator.pipeline import load_pipeline, save_start_normals, tokenise
from seas.generator.prompts import Prompts, token_ids, token_positions
from seas.generator.settings import STAGE_VERSION, GeneratorSettings
from seas.seeding import torch_rng
from seas.settings import ComputeSettings
from seas.training import accumulated_update, autocast, prepare_device, train


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
    tokens), the encoded training normals and losses.parquet beside the pipeline's parts.

    Raises InputError for a base that cannot be loaded or does not fit the settings.
    """
    device = prepare_device(compute)
    obeyed = {
        name: part.model_dump(mode="json")
        for name, part in (("generator", settings), ("data", data), ("compute", compute))
    }
    provenance = Provenance.of("generator", STAGE_VERSION, obeyed, seed, {"base": base, "split": split})
    working = working_folder(output, provenance)

    samples = read_table(split)
    pipeline = load_pipeline(base, device)
    prompts = prompts_of(samples, settings)
    batches = TrainingBatches(
        samples,
        root,
        data,
        pipeline.vae,
        prompts,
        seed=seed,
        abnormal_per_batch=settings.abnormal_per_batch,
        normal_per_batch=settings.normal_per_batch,
    )
    trainer = GeneratorTrainer(pipeline, prompts, batches, settings, compute, seed)
    losses = train(
        trainer.update,
        settings.updates_per_type * len(prompts.types),
        trainer.state,
        working=working,
        label=f"generator {prompts.product}",
        checkpoint_every=settings.checkpoint_every,
        tensorboard=tensorboard,
    )
    trainer.finish()
    with writing_folder(output, provenance) as folder:
        pipeline.save_pretrained(folder)
        prompts.save(folder)
        save_start_normals(batches.start_normals(), folder)
        write_table(losses, folder / "losses.parquet")


def prompts_of(split, settings: GeneratorSettings) -> Prompts:
    """The product's prompts, its types numbered as the split table numbers them."""
    shots = split[split.role == "shot"]
    types = shots.drop_duplicates("type").sort_values("type_index").type
    return Prompts.of(
        split["product"].iloc[0],
        list(types),
        normal=settings.normal_tokens,
        anomaly=settings.anomaly_tokens,
        commas=settings.prompt_commas,
    )


class GeneratorTrainer:
    """One update of the fine-tuning: L = L_df + L_ob (Eq. 4 to 6)."""

    def __init__(
        self,
        pipeline,
        prompts: Prompts,
        batches: TrainingBatches,
        settings: GeneratorSettings,
        compute: ComputeSettings,
        seed: int,
    ) -> None:
        self.pipeline, self.prompts, self.batches = pipeline, prompts, batches
        self.settings, self.compute, self.seed = settings, compute, seed
        self.device = pipeline.device
        self.embeddings = add_tokens(
            pipeline, prompts, normal_word=settings.normal_word, anomaly_word=settings.anomaly_word
        ).to(self.device)
        pipeline.unet.requires_grad_(True).train()
        if settings.trained_embeddings == "all":
            self.embeddings.table.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(pipeline.unet.parameters()), "lr": settings.unet_learning_rate},
                {
                    "params": [p for p in self.embeddings.parameters() if p.requires_grad],
                    "lr": settings.embedding_learning_rate,
                },
            ],
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.alignment = DecoupledAnomalyAlignmentLoss(settings.map_normalisation, settings.second_term)
        self.maps = AttentionMaps(pipeline.unet, settings.attention_layers, settings.map_softmax)
        self.input_ids = {
            prompt: tokenise(pipeline, [prompt])[0]
            for prompt in (prompts.normal(), *(prompts.abnormal(name) for name in prompts.types))
        }
        self.anomaly_positions = {
            name: self._positions(prompts.abnormal(name), tokens) for name, tokens in prompts.anomaly_tokens.items()
        }
        self.normal_positions = {
            name: self._positions(prompts.abnormal(name), prompts.normal_tokens) for name in prompts.types
        }

    @property
    def state(self) -> dict:
        """Everything that an update changes."""
        return {"unet": self.pipeline.unet, "embeddings": self.embeddings, "optimizer": self.optimizer}

    def update(self, step: int) -> dict[str, Tensor]:
        """One optimizer update; gives its losses."""
        return accumulated_update(self.losses, step, self.settings.gradient_accumulation, self.optimizer)

    def losses(self, draw: int) -> dict[str, Tensor]:
        """The losses of one batch: L_df = L_DA + MSE on the abnormal images, L_ob = MSE on the normals."""
        batch = self.batches.batch(draw)
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

        abnormal, normal = batch.is_abnormal.to(self.device), ~batch.is_abnormal.to(self.device)
        valid = batch.valid.to(self.device)
        cells = valid_cells(valid, tuple(latents.shape[2:]))
        first, second = self._alignment_of(batch, latents)
        df_mse = masked_mse(prediction[abnormal], target[abnormal], cells[abnormal])
        ob_mse = masked_mse(prediction[normal], target[normal], cells[normal])
        loss = self.settings.da_weight * (first + second) + df_mse + self.settings.normal_weight * ob_mse
        return {"loss": loss, "da_first": first, "da_second": second, "df_mse": df_mse, "ob_mse": ob_mse}

    def finish(self) -> None:
        """Leave a plain pipeline behind, ready to be saved."""
        self.maps.remove()
        fold_tokens(self.pipeline, self.embeddings)
        self.pipeline.unet.requires_grad_(False).eval()

    def _alignment_of(self, batch: Batch, latents: Tensor) -> tuple[Tensor, Tensor]:
        types = [name for name in batch.types if name != "good"]
        abnormal = batch.is_abnormal.to(self.device)
        maps = {layer: m[abnormal] for layer, m in self.maps.read(*latents.shape[2:]).items()}
        return self.alignment(
            maps,
            torch.stack([self.anomaly_positions[name] for name in types]),
            torch.stack([self.normal_positions[name] for name in types]),
            batch.mask.to(self.device)[abnormal],
        )

    def _positions(self, prompt: str, tokens: list[str]) -> Tensor:
        ids = token_ids(self.pipeline.tokenizer, tokens)
        return torch.tensor(token_positions(self.input_ids[prompt].tolist(), ids), device=self.device)
