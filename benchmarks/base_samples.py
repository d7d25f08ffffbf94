"""Does the base draw what a caption says? A contact sheet of 16 captions, four samples each, none chosen.

DPM-Solver++ with 25 steps from pure noise; sample k of a caption is a function of (caption, k) alone. Run it from the
repository's root::

    .venv/bin/python benchmarks/base_samples.py seas/base/small --out docs/base_samples.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from seas.artifacts import writing_file
from seas.generation.sampler import sampling_scheduler
from seas.generator.pipeline import encode_prompts, load_pipeline
from seas.images import to_uint8
from seas.seeding import torch_rng

CAPTIONS = (
    "a medium grey brushed surface",
    "a medium grey cast surface with crack",
    "a bright grey ceramic tile",
    "a dark grey rough surface with hole",
    "a medium warm woven surface",
    "a medium warm woven surface with thread",
    "a medium brown wooden surface with scratch",
    "a medium green printed surface",
    "a bright grey turned ring",
    "a bright grey turned ring with stain",
    "a medium yellow brushed nut",
    "a bright blue plastic disc with scratch",
    "a bright grey cast gear with break",
    "a medium grey threaded bar",
    "a bright grey brushed screw",
    "a photo of a brick surface",
)
SAMPLES = 4
STEPS = 25
GUIDANCE = 3.0


@torch.no_grad()
def samples(pipeline, caption: str) -> np.ndarray:
    """``SAMPLES`` pictures of a caption, uint8 (n, S, S, 3)."""
    scheduler = sampling_scheduler(pipeline.scheduler.config, "dpmsolver++")
    scheduler.set_timesteps(STEPS)
    side = pipeline.unet.config.sample_size
    shape = (pipeline.unet.config.in_channels, side, side)
    latents = torch.stack([torch.randn(shape, generator=torch_rng("sample", caption, k)) for k in range(SAMPLES)])
    context = encode_prompts(pipeline, [""] * SAMPLES + [caption] * SAMPLES)
    for timestep in scheduler.timesteps:
        free, guided = pipeline.unet(latents.repeat(2, 1, 1, 1), timestep, context).sample.chunk(2)
        latents = scheduler.step(free + GUIDANCE * (guided - free), timestep, latents).prev_sample
    return to_uint8(pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    torch.set_num_threads(2)
    pipeline = load_pipeline(arguments.base)
    figure = Figure(figsize=(11, 8.6), layout="constrained", dpi=110)
    for axes, caption in zip(figure.subplots(4, 4).flat, CAPTIONS, strict=True):
        pictures = samples(pipeline, caption)
        upper, lower = np.hstack(pictures[:2]), np.hstack(pictures[2:])
        axes.imshow(np.vstack([upper, lower]), interpolation="bicubic")
        axes.set_title(caption, fontsize=8)
        axes.axis("off")
    with writing_file(arguments.out) as partial:
        figure.savefig(partial, metadata={"Software": None})


if __name__ == "__main__":
    main()
