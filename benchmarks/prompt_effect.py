"""Does a generator know what a defect looks like? What the abnormal prompt changes, inside the masks and outside, by type.

A training shot is noised and the U-Net predicts once under ``a <ob>`` and once under its type's own prompt. Printed are the
mean squared errors of the prediction in the cells of the masks, the root mean square of the difference that the prompt
makes inside and outside, and what the anomaly tokens take of the attention of the finest level. Where the prompt
changes nothing inside, nothing will be drawn. ``draws`` is how often the training drew each shot. The workflow trains
what is not trained yet::

    .venv/bin/python benchmarks/prompt_effect.py --dataset miniature --experiments seas
"""

from pathlib import Path

import pandas as pd
import torch
from attention import generator_folder, make_generators, parser_of_runs, workflow_of

from seas.artifacts import read_table
from seas.base.model import training_target
from seas.generator.attention import AttentionMaps, token_maps
from seas.generator.pipeline import encode_prompts, load_pipeline, tokenise
from seas.generator.prompts import Prompts, models_of, token_positions
from seas.images import load_fitted, shrink_mask, to_tensor
from seas.seeding import torch_rng

SHOTS = 16
"""Shots of a type that are looked at."""


@torch.no_grad()
def prompt_effect(
    generator: Path, shots: pd.DataFrame, root: Path, data, level: int, timestep: int
) -> dict[str, float]:
    """The numbers of one type: ``shots`` are its own, ``generator`` is the pipeline that learned it."""
    pipeline, prompts = load_pipeline(generator), Prompts.load(generator)
    name = shots.type.iloc[0]
    fitted = [load_fitted(root, row, data.image_size, data.fit) for row in shots.itertuples()]
    images = torch.cat([to_tensor(item.image[None]) for item in fitted])
    latents = pipeline.vae.encode(images).latent_dist.mean * pipeline.vae.config.scaling_factor
    masks = torch.stack([torch.from_numpy(item.mask)[None].float() for item in fitted])
    noise = torch.randn(latents.shape, generator=torch_rng("prompt effect", name, timestep))
    timesteps = torch.full((len(latents),), timestep)
    noisy = pipeline.scheduler.add_noise(latents, noise, timesteps)
    target = training_target(pipeline.scheduler, latents, noise, timesteps)
    recorder = AttentionMaps(pipeline.unet, [level])
    normal, own = (
        pipeline.unet(noisy, timesteps, encode_prompts(pipeline, [prompt] * len(latents))).sample
        for prompt in (prompts.normal(), prompts.abnormal(name))
    )
    maps = recorder.read(*latents.shape[2:])[level]
    ids, tokens = tokenise(pipeline, [prompts.abnormal(name)])[0].tolist(), prompts.anomaly_tokens[name]
    _, places = token_positions(pipeline.tokenizer, ids, prompts.normal_tokens, tokens)
    taken = token_maps(maps, torch.tensor([places] * len(latents))).sum(1)
    inside = shrink_mask(masks, tuple(latents.shape[2:]))[:, 0] > 0
    attended = shrink_mask(masks, tuple(taken.shape[1:]))[:, 0] > 0
    change = (own - normal).square().mean(1)
    return {
        "error_normal_prompt": float((normal - target).square().mean(1)[inside].mean()),
        "error_own_prompt": float((own - target).square().mean(1)[inside].mean()),
        "change_inside": float(change[inside].mean().sqrt()),
        "change_outside": float(change[~inside].mean().sqrt()),
        "attention_inside": float(taken[attended].mean()),
        "attention_outside": float(taken[~attended].mean()),
    }


def main() -> None:
    parser = parser_of_runs(__doc__.splitlines()[0], experiments=["seas"], seeds=[0])
    parser.add_argument("--timestep", type=int, default=400)
    arguments = parser.parse_args()

    dataset, experiments, seeds = arguments.dataset, arguments.experiments, arguments.seeds
    flow = workflow_of(arguments)
    make_generators(flow, dataset, arguments.config)
    torch.set_num_threads(2)
    rows = []
    for experiment in experiments:
        settings = flow.settings(dataset, experiment)
        for seed in seeds:
            for product in flow.products(dataset):
                split = read_table(Path(flow.split(dataset, experiment, seed, product)))
                shots = split[split.role == "shot"]
                for model in models_of(Path(generator_folder(flow, dataset, experiment, seed, product))):
                    learned = shots[shots.type.isin(Prompts.load(model).types)]
                    updates = settings.generator.updates_with_shots(learned.type.nunique(), len(learned))
                    images = settings.generator.abnormal_per_batch * settings.generator.gradient_accumulation
                    for name, of_type in learned.groupby("type"):
                        seen = (of_type.head(SHOTS), flow.datasets[dataset].root, settings.data)
                        level = min(settings.generator.attention_layers)
                        found = prompt_effect(model, *seen, level, arguments.timestep)
                        run = {"experiment": experiment, "seed": seed, "product": product, "type": name}
                        rows.append(run | {"draws": round(updates * images / len(learned)), **found})
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
