"""Where do the anomaly tokens look? Pixel AP of their attention on held-out abnormal images, experiment by experiment.

For each seed and product one generator is trained for each experiment, all from one base: with the DA loss and without
it, or with other normalisations of its maps (``--experiments seas without_da_loss map_min_max map_none``). On every abnormal test
image the U-Net is run once at a few noise levels with the type's prompt; the mean map of the
anomaly tokens, min-max scaled to each image, is scored against the mask, pixels pooled within the product. Beside it
stands the position prior: the mean mask of the type's training shots. The workflow trains what is not trained yet. Run it
from the repository's root after ``make demo``::

    .venv/bin/python benchmarks/attention.py --seeds 0 1 2
"""

import argparse
import itertools
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score

from seas.artifacts import read_table
from seas.generator.attention import AttentionMaps, token_maps
from seas.generator.losses import min_max
from seas.generator.pipeline import encode_prompts, load_pipeline, tokenise
from seas.generator.prompts import Prompts, models_of, token_positions
from seas.images import load_fitted, to_tensor
from seas.seeding import torch_rng
from seas.workflow import Workflow, load_workflow

TIMESTEPS = (100, 300, 500)
IMAGES_AT_ONCE = 32


def attention_scores(generator: Path, test: pd.DataFrame, root: Path, data, layers, device: torch.device) -> np.ndarray:
    """The anomaly tokens' maps of the test images, float (n, S, S), each of the model that learned the image's type."""
    models = {name: model for model in models_of(generator) for name in Prompts.load(model).types}
    maps = {}
    for name, rows in test.groupby("type"):
        pipeline, prompts = load_pipeline(models[name], device), Prompts.load(models[name])
        recorder, prompt = AttentionMaps(pipeline.unet, layers), prompts.abnormal(name)
        ids, tokens = tokenise(pipeline, [prompt])[0].tolist(), prompts.anomaly_tokens[name]
        _, positions = token_positions(pipeline.tokenizer, ids, prompts.normal_tokens, tokens)
        for start in range(0, len(rows), IMAGES_AT_ONCE):
            batch = rows[start : start + IMAGES_AT_ONCE]
            images = np.stack([load_fitted(root, row, data.image_size, data.fit).image for row in batch.itertuples()])
            with torch.no_grad():
                latents = pipeline.vae.encode(to_tensor(images).to(device)).latent_dist.mean
                latents = latents * pipeline.vae.config.scaling_factor
                noise = [
                    torch.randn(latents.shape[1:], generator=torch_rng("benchmark", image)) for image in batch.image
                ]
                context = encode_prompts(pipeline, [prompt] * len(batch))
                here, seen = torch.tensor([positions] * len(batch), device=device), []
                for timestep in TIMESTEPS:
                    steps = torch.full((len(batch),), timestep, device=device)
                    noisy = pipeline.scheduler.add_noise(latents, torch.stack(noise).to(device), steps)
                    pipeline.unet(noisy, steps, context)
                    for layer_maps in recorder.read(*latents.shape[2:]).values():
                        mean = token_maps(layer_maps, here).mean(1, keepdim=True)
                        seen.append(torch.nn.functional.interpolate(mean, images.shape[1:3], mode="bilinear"))
            maps |= dict(zip(batch.index, min_max(torch.stack(seen).mean(0)[:, 0]).cpu().numpy(), strict=True))
    return np.stack([maps[index] for index in test.index])


def position_prior(split: pd.DataFrame, test: pd.DataFrame, root: Path, data) -> np.ndarray:
    """The mean mask of each type's shots, for each test image, float (n, S, S)."""
    means = {
        name: np.mean([load_fitted(root, row, data.image_size, data.fit).mask for row in shots.itertuples()], axis=0)
        for name, shots in split[split.role == "shot"].groupby("type")
    }
    return np.stack([means[name] for name in test.type])


def pixel_ap(maps: np.ndarray, test: pd.DataFrame, root: Path, data) -> float:
    """Average precision over all pixels of all images that are no padding."""
    fitted = [load_fitted(root, row, data.image_size, data.fit) for row in test.itertuples()]
    valid = np.stack([item.valid for item in fitted])
    return float(average_precision_score(np.stack([item.mask for item in fitted])[valid], maps[valid]))


def generator_folder(flow: Workflow, dataset: str, experiment: str, seed: int, product: str) -> str:
    """The folder of a product's generator."""
    return f"{flow.folder(dataset, experiment, seed, 'generator')}/{product}"


def attention_aps(
    flow: Workflow, dataset: str, experiments: list[str], seed: int, product: str
) -> dict[str, float | int]:
    """The experiments' AP on the abnormal test images of a product, that of the position prior and of chance, and the images' number."""
    data, root = flow.settings(dataset, experiments[0]).data, flow.datasets[dataset].root
    device = torch.device(flow.settings(dataset, experiments[0]).compute.device)
    split = read_table(Path(flow.split(dataset, experiments[0], seed, product)))
    test = split[(split.role == "test") & (split.type != "good")]
    seen = (test, root, data)
    row: dict[str, float | int] = {"images": len(test)}
    for experiment in experiments:
        folder = Path(generator_folder(flow, dataset, experiment, seed, product))
        layers = flow.settings(dataset, experiment).generator.attention_layers
        row[experiment] = pixel_ap(attention_scores(folder, *seen, layers, device), *seen)
    row["position_prior"] = pixel_ap(position_prior(split, *seen), *seen)
    row["chance"] = pixel_ap(np.zeros((len(test), *[data.image_size] * 2)), *seen)
    return row


def make(targets: Iterable[str], flow: Workflow, files: list[Path]) -> None:
    """Have the workflow make what is not there yet."""
    chosen = {"datasets": flow.config.datasets, "experiments": flow.config.experiments, "seeds": flow.config.seeds}
    values = [f"{key}=[{','.join(map(str, values))}]" for key, values in chosen.items()]
    command = [sys.executable, "-m", "snakemake", "--configfile", *map(str, files), "--config", *values, "--"]
    subprocess.run([*command, *sorted(set(targets))], check=True)


def make_generators(flow: Workflow, dataset: str, files: list[Path]) -> None:
    """Have the workflow train every generator of a dataset that is not there yet."""
    of = itertools.product(flow.config.experiments, flow.config.seeds, flow.products(dataset))
    make((generator_folder(flow, dataset, *run) for run in of), flow, files)


def parser_of_runs(
    description: str, *, experiments: Sequence[str], seeds: Sequence[int], config: Sequence[str] = ("config/demo.yaml",)
) -> argparse.ArgumentParser:
    """The arguments that name runs of one dataset, with their defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, nargs="+", default=[*map(Path, config)])
    parser.add_argument("--dataset", default="miniature")
    parser.add_argument("--experiments", nargs="+", default=[*experiments])
    parser.add_argument("--seeds", type=int, nargs="+", default=[*seeds])
    return parser


def workflow_of(arguments: argparse.Namespace) -> Workflow:
    """The workflow of the runs that ``parser_of_runs`` was given."""
    return load_workflow(
        arguments.config, datasets=[arguments.dataset], experiments=arguments.experiments, seeds=arguments.seeds
    )


def main() -> None:
    parser = parser_of_runs(__doc__.splitlines()[0], experiments=["seas", "without_da_loss"], seeds=[0, 1, 2])
    arguments = parser.parse_args()

    dataset, experiments, seeds = arguments.dataset, arguments.experiments, arguments.seeds
    flow = workflow_of(arguments)
    make_generators(flow, dataset, arguments.config)
    torch.set_num_threads(2)
    rows = [
        {"product": product, "seed": seed, **attention_aps(flow, dataset, experiments, seed, product)}
        for product in flow.products(dataset)
        for seed in seeds
    ]
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
