"""The paper's sizes on a CPU: the chain from a base of Stable Diffusion v1-4's architecture, with random weights, at 512 px.

The base is written in half precision in the old layout that Stable Diffusion v1-4 has on the disk, checked and loaded as the
workflow does it; then two updates of a generator, two of its mask branch and one pair, in bf16 with gradient checkpointing,
without augmentation. It needs 24 GB of memory, 8 GB of disk and some minutes. From the repository's root::

    .venv/bin/python benchmarks/paper_scale.py
"""

import argparse
import gc
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from seas.artifacts import read_table
from seas.base.model import load_base
from seas.base.pretrained import check_base, check_stable_diffusion
from seas.base.stable_diffusion import build_stable_diffusion, rename_to_old
from seas.data.index import index_product, split_product
from seas.data.miniature import write_miniature
from seas.data.settings import DataSettings
from seas.generation.diffusion import generate_tree
from seas.generation.settings import GenerationSettings
from seas.generator.settings import GeneratorSettings
from seas.generator.train import train_generator
from seas.rmp.settings import RmpSettings
from seas.rmp.train import train_rmp
from seas.settings import ComputeSettings
from seas.weights import STABLE_DIFFUSION

PRODUCT, LEFT_OUT = "washer", "rust"
"""The product of the miniature dataset, and the one of its three types that is left out: two updates for two types."""


def timed(what: str, act: Callable[[], object]) -> None:
    """Print a row: what was done, in how many seconds, and the peak of the process's memory so far."""
    started = time.perf_counter()
    act()
    gc.collect()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"| {what} | {time.perf_counter() - started:.0f} | {peak:.1f} |", flush=True)


def write_base(folder: Path) -> None:
    """The base's folder, as a download would leave it."""
    torch.manual_seed(0)
    build_stable_diffusion().to(torch.float16).save_pretrained(folder)
    rename_to_old(folder)
    check_base(folder)
    check_stable_diffusion(folder)


def load(folder: Path) -> None:
    """Load the base; ``load_base`` refuses a missing and an unknown weight."""
    pipeline = load_base(folder)
    found = {part: sum(p.numel() for p in getattr(pipeline, part).parameters()) for part in STABLE_DIFFUSION.parameters}
    assert found == STABLE_DIFFUSION.parameters, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25, help="of the sampler")
    given = parser.parse_args()
    compute = ComputeSettings(device="cpu", precision="bf16", threads=given.threads)
    torch.set_num_threads(given.threads)
    data = DataSettings(normals=2, augmentation="none")
    with tempfile.TemporaryDirectory(prefix="paper_scale_") as name:
        folder = Path(name)
        root, split, base = folder / "data", folder / "split.parquet", folder / "stable-diffusion-v1-4"
        generator, rmp, pairs = folder / "generator" / PRODUCT, folder / "rmp" / PRODUCT, folder / "pairs"
        write_miniature(root, seed=0, size=512, normals=2, test_normals=1, abnormal=3)
        for part in ("test", "ground_truth"):
            shutil.rmtree(root / PRODUCT / part / LEFT_OUT)
        index_product(root, "mvtec_ad", PRODUCT, output=folder / "index.parquet")
        split_product(folder / "index.parquet", data, 0, root=root, output=split)
        print(
            f"torch {torch.__version__}, {given.threads} threads\n\n| 512 px, full size | seconds | peak memory, GB |"
        )
        print("|---|---|---|")
        timed("base: built, written in the old layout, checked", lambda: write_base(base))
        timed("base: loaded, every weight found", lambda: load(base))
        tuning = GeneratorSettings(updates_per_type=1, gradient_checkpointing=True)
        timed(
            "generator: 2 updates, saved",
            lambda: train_generator(base, split, root, tuning, data, compute, 0, output=generator),
        )
        branch = RmpSettings(updates_per_type=1)
        timed("mask branch: 2 updates", lambda: train_rmp(generator, branch, compute, 0, output=rmp))
        settings = GenerationSettings(batch_size=1, steps=given.steps, redraws=0)
        wanted = {"dent": range(1)}
        timed(
            f"one pair, {given.steps} steps",
            lambda: generate_tree(generator, rmp, wanted, settings, compute, 0, output=pairs),
        )
        (row,) = read_table(pairs / "images.parquet").itertuples()
        assert (row.width, row.height) == (512, 512)
        shared = (generator / "vae/diffusion_pytorch_model.safetensors").stat().st_nlink
        size = sum(path.stat().st_size for path in generator.rglob("*") if path.is_file())
        print(f"\nThe generator's folder holds {size / 1e9:.2f} GB, its VAE in {shared} places on the disk once.")


if __name__ == "__main__":
    main()
