"""Where do the anomaly tokens look? Pixel AP of their attention on held-out abnormal images, with and without the DA loss.

For each seed and product two generators are trained from one base, alike but for ``generator.da_weight`` (1 and 0).
On every abnormal test image the U-Net is run once at a few noise levels with the type's prompt; the mean map of the
anomaly tokens, min-max scaled to each image, is scored against the mask, pixels pooled within the product. Beside it
stands the position prior: the mean mask of the type's training shots. Run it from the repository's root after
``make demo``::

    .venv/bin/python benchmarks/attention.py --seeds 0 1 2
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score

from seas.artifacts import read_table, write_table
from seas.config import load_workflow
from seas.data.index import index_product, split_product
from seas.generator.attention import AttentionMaps, token_maps
from seas.generator.losses import min_max
from seas.generator.pipeline import encode_prompts, load_pipeline, tokenise
from seas.generator.prompts import Prompts, token_ids, token_positions
from seas.generator.train import train_generator
from seas.images import load_fitted, to_tensor
from seas.seeding import torch_rng

TIMESTEPS = (100, 300, 500)


def attention_scores(generator: Path, test: pd.DataFrame, root: Path, data, layers) -> np.ndarray:
    """The anomaly tokens' maps of the test images, float (n, S, S)."""
    pipeline, prompts = load_pipeline(generator), Prompts.load(generator)
    recorder = AttentionMaps(pipeline.unet, layers)
    maps = []
    for row in test.itertuples():
        fitted = load_fitted(root, row, data.image_size, data.fit)
        prompt = prompts.abnormal(row.type)
        ids = token_ids(pipeline.tokenizer, prompts.anomaly_tokens[row.type])
        positions = torch.tensor([token_positions(tokenise(pipeline, [prompt])[0].tolist(), ids)])
        with torch.no_grad():
            latents = (
                pipeline.vae.encode(to_tensor(fitted.image[None])).latent_dist.mean * pipeline.vae.config.scaling_factor
            )
            noise = torch.randn(latents.shape, generator=torch_rng("benchmark", row.image))
            seen = []
            for timestep in TIMESTEPS:
                steps = torch.tensor([timestep])
                noisy = pipeline.scheduler.add_noise(latents, noise, steps)
                pipeline.unet(noisy, steps, encode_prompts(pipeline, [prompt]))
                for layer_maps in recorder.read(*latents.shape[2:]).values():
                    mean = token_maps(layer_maps, positions).mean(1, keepdim=True)
                    seen.append(torch.nn.functional.interpolate(mean, fitted.mask.shape, mode="bilinear"))
        valid = torch.from_numpy(fitted.valid)[None]
        maps.append(min_max(torch.stack(seen).mean(0)[:, 0], valid.float())[0].numpy())
    return np.stack(maps)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, nargs="*", default=[Path("config/demo.yaml")])
    parser.add_argument("--dataset", default="miniature")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("build/attention"))
    arguments = parser.parse_args()

    flow = load_workflow(arguments.config, datasets=[arguments.dataset], experiments=["seas", "without_da_loss"])
    root = flow.datasets[arguments.dataset].root
    base = Path(flow.base(arguments.dataset, "seas"))
    rows = []
    for product in flow.products(arguments.dataset):
        for seed in arguments.seeds:
            settings = flow.settings(arguments.dataset, "seas")
            data, layers = settings.data, settings.generator.attention_layers
            folder = arguments.out / product / f"seed{seed}"
            index_product(root, flow.datasets[arguments.dataset].layout, product, output=folder / "index.parquet")
            split_product(folder / "index.parquet", data, seed, root=root, output=folder / "split.parquet")
            split = read_table(folder / "split.parquet")
            test = split[(split.role == "test") & (split.type != "good")]
            row = {"product": product, "seed": seed, "images": len(test)}
            for experiment in ("seas", "without_da_loss"):
                settings = flow.settings(arguments.dataset, experiment)
                generator = folder / experiment
                if not (generator / "manifest.json").exists():
                    compute = settings.compute.of("generator")
                    train_generator(
                        base, folder / "split.parquet", root, settings.generator, data, compute, seed, output=generator
                    )
                row[experiment] = pixel_ap(attention_scores(generator, test, root, data, layers), test, root, data)
            row["position_prior"] = pixel_ap(position_prior(split, test, root, data), test, root, data)
            row["chance"] = pixel_ap(np.zeros((len(test), data.image_size, data.image_size)), test, root, data)
            row["ratio"] = row["seas"] / row["without_da_loss"]
            rows.append(row)
            print(json.dumps(row), flush=True)
    table = pd.DataFrame(rows)
    write_table(table, arguments.out / "attention.parquet")
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
