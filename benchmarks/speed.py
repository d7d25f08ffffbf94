"""How fast is it? Updates, images and IC-LPIPS, each beside a configuration that works like the release, in one run.

Like the release: fp32; the cross-attention maps of all 16 layers computed beside the fused kernel and copied to the CPU at
every forward pass, in training and in generation; images encoded by the VAE at each step; a generator's optimizer that is
not fused; ten images at once. What is trained and made is the same. Each number comes from a process of its own, so that the
peak of memory is that of one configuration. The networks are the shipped small base at 64 px, or Stable Diffusion v1-4's at
512 px with random weights where there is a GPU. From the repository's root::

    .venv/bin/python benchmarks/speed.py                        # the whole table
    .venv/bin/python benchmarks/speed.py --profile generator    # where the time of an update goes
    .venv/bin/python benchmarks/speed.py --channels-last --compile    # whether this project would gain by them
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from seas.artifacts import read_table
from seas.base.model import load_base
from seas.base.stable_diffusion import build_stable_diffusion
from seas.data.index import index_product, split_product
from seas.data.miniature import write_miniature
from seas.data.settings import DataSettings
from seas.generation.sampler import PairSampler
from seas.generation.settings import GenerationSettings
from seas.generator.attention import cross_attention_of
from seas.generator.embeddings import add_tokens, fold_tokens
from seas.generator.encoded import encode_images
from seas.generator.settings import GeneratorSettings
from seas.generator.train import GeneratorTrainer, prompts_of
from seas.images import load_fitted, to_tensor
from seas.metrics.diversity import ic_lpips
from seas.metrics.extractors import EfficientNetLite0
from seas.rmp.settings import RmpSettings
from seas.rmp.train import RmpTrainer
from seas.settings import ComputeSettings
from seas.training import prepare_device

PRODUCT = "washer"
SIDES = {"small": 64, "sd": 512}
TITLES = {"small": "64 px, small base", "sd": "512 px, Stable Diffusion v1-4 with random weights"}
LEVELS = {"small": (1, 2), "sd": (2, 3)}
PAPER_UPDATES = 58_400
"""Updates of the fine-tuning for MVTec AD: 800 for each of 73 types."""
KINDS = ("generator", "rmp", "generation")
OPTIONS = ("channels_last", "compile")
"""What this project could do and does not, as long as nobody has measured that it helps."""
UNITS = {"generator": "generator update, 4 images", "rmp": "RMP update, 4 images", "generation": "image with mask"}


class CopiesMaps:
    """The fused attention, and beside it all maps, copied to the CPU."""

    def __init__(self) -> None:
        self.fused = AttnProcessor2_0()
        self.maps: Tensor | None = None

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor, *rest, **options) -> Tensor:
        query, key = (
            attn.head_to_batch_dim(attn.to_q(hidden_states)),
            attn.head_to_batch_dim(attn.to_k(encoder_hidden_states)),
        )
        self.maps = attn.get_attention_scores(query, key).cpu()
        return self.fused(attn, hidden_states, encoder_hidden_states, *rest, **options)


def _copy_read_maps(attn, arguments, out) -> None:
    attn.processor.maps.cpu()


def copy_all_maps(unet, but: set) -> None:
    """Have every cross-attention layer copy its maps, except those that the loss reads; their maps are copied, too."""
    for name, module in unet.named_modules():
        if not name.endswith("attn2"):
            continue
        if module in but:
            module.register_forward_hook(_copy_read_maps)
        else:
            module.set_processor(CopiesMaps())


def compile_blocks(unet) -> None:
    """Compile the blocks and not the whole, whose hooks and attention maps are read from outside."""
    torch._dynamo.config.recompile_limit = 64  # one for each size of a block
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D | BasicTransformerBlock):
            module.compile(dynamic=False)


class Bench:
    """A product of the miniature dataset, a base, and the stations' own trainers and sampler on them."""

    def __init__(
        self, base: str, compute: ComputeSettings, *, like_release: bool, channels_last: bool, compile: bool
    ) -> None:
        self.compute, self.like_release, self.base, self.channels_last = compute, like_release, base, channels_last
        self.device = prepare_device(compute)
        self.pipeline = build_stable_diffusion() if base == "sd" else load_base(Path("seas/base/small"))
        self.pipeline.to(self.device)
        for part in (self.pipeline.unet, self.pipeline.vae, self.pipeline.text_encoder):
            part.eval().requires_grad_(False)
        if channels_last:
            self.pipeline.unet.to(memory_format=torch.channels_last)
            self.pipeline.vae.to(memory_format=torch.channels_last)
        if compile:
            compile_blocks(self.pipeline.unet)
        self.settings = GeneratorSettings(attention_layers=LEVELS[base])
        self.data = DataSettings(image_size=SIDES[base], normals=8)
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "miniature"
            write_miniature(root, seed=0, size=SIDES[base], normals=8, test_normals=2, abnormal=6)
            index_product(root, "mvtec_ad", PRODUCT, output=Path(folder) / "index.parquet")
            split_product(
                Path(folder) / "index.parquet", self.data, 0, root=root, output=Path(folder) / "split.parquet"
            )
            split = read_table(Path(folder) / "split.parquet")
            self.prompts = prompts_of(split, self.settings)
            self.images = encode_images(split, root, self.data, self.pipeline.vae)
            rows = list(split[split.role.isin(["shot", "normal"])].itertuples())[:4]
            images = [load_fitted(root, row, self.data.image_size, self.data.fit).image for row in rows]
            self.photographs = to_tensor(np.stack(images))

    def encode_again(self) -> None:
        """What the release does at each step."""
        if self.like_release:
            with torch.no_grad():
                self.pipeline.vae.encode(self.photographs.to(self.device)).latent_dist.sample()

    def generator(self) -> Callable[[int], int]:
        """One update of the fine-tuning; gives 1."""
        trainer = GeneratorTrainer(self.pipeline, self.prompts, self.images, self.settings, self.compute, 0)
        if self.like_release:
            read = {attn for level in LEVELS[self.base] for attn in cross_attention_of(self.pipeline.unet, level)}
            copy_all_maps(self.pipeline.unet, read)
            groups = [{"params": g["params"], "lr": g["lr"]} for g in trainer.optimizer.param_groups]
            trainer.optimizer = torch.optim.AdamW(groups, weight_decay=self.settings.weight_decay)
        return lambda step: self.encode_again() or trainer.update(step) and 1

    def _finished(self) -> None:
        """The pipeline as a finished generator has it."""
        words = {"normal_word": self.settings.normal_word, "anomaly_word": self.settings.anomaly_word}
        fold_tokens(self.pipeline, add_tokens(self.pipeline, self.prompts, **words).to(self.device))
        if self.like_release:
            copy_all_maps(self.pipeline.unet, set())

    def _rmp_trainer(self) -> RmpTrainer:
        settings = RmpSettings(channels=192 if self.base == "sd" else 96)
        trainer = RmpTrainer(self.pipeline, self.prompts, self.images, settings, self.compute, 0)
        if self.channels_last:
            trainer.network.to(memory_format=torch.channels_last)
        return trainer

    def rmp(self) -> Callable[[int], int]:
        """One update of the mask branch; gives 1."""
        self._finished()
        trainer = self._rmp_trainer()
        return lambda step: self.encode_again() or trainer.update(step) and 1

    def generation(self) -> Callable[[int], int]:
        """One batch of pairs; gives their number."""
        self._finished()
        trainer = self._rmp_trainer()
        trainer.features.remove()
        network = trainer.network.eval().requires_grad_(False)
        settings = GenerationSettings(batch_size=10) if self.like_release else GenerationSettings()
        start = self.images.start_normals()
        sampler = PairSampler(self.pipeline, network, self.prompts, start, settings, self.compute, 0)

        def make(step: int) -> int:
            size = sampler.batch_size
            return len(sampler.make(self.prompts.types[0], [(step * size + k, 0) for k in range(size)]))

        return make


def waited(device: torch.device) -> float:
    """The time, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(kind: str, base: str, compute: ComputeSettings, repeats: int, **arm: bool) -> dict[str, float]:
    """Milliseconds of one update or image (median of ``repeats``), and the peak of memory in GB."""
    bench = Bench(base, compute, **arm)
    act = getattr(bench, kind)()
    for step in range(2 if kind != "generation" else 1):
        act(step)
    if compute.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for step in range(2, 2 + repeats):
        started = waited(bench.device)
        count = act(step)
        times.append((waited(bench.device) - started) / count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if compute.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {"ms": 1000 * float(np.median(times)), "peak_gb": peak / 1e9}


def measure_ic_lpips(device: str, images: int, references: int, pairs: int) -> dict[str, float]:
    """Seconds of IC-LPIPS by blocks, and of the same pair by pair: as many distances as it asks for, at the time of one."""
    compute = ComputeSettings(device=device, precision="fp32", threads=1)
    embed = EfficientNetLite0(prepare_device(compute), compute).embed
    draws = np.random.default_rng(0)
    centres = draws.integers(0, 256, (references, 256, 256, 3), dtype=np.uint8)
    made = [
        np.uint8(0.7 * centres[k % references] + 0.3 * draws.integers(0, 256, centres.shape[1:])) for k in range(images)
    ]
    made = np.stack(made)
    embed(made[:16])  # a card's first kernels load its libraries
    started = time.perf_counter()
    found = ic_lpips(made, centres, embed, cap=None, batch_size=16, seed=0)
    blocked = time.perf_counter() - started

    def one(first: np.ndarray, second: np.ndarray) -> float:
        return float((embed(first[None]) - embed(second[None])).square().sum())

    started = time.perf_counter()
    for k in range(pairs):
        one(made[k], made[k + references])
    each = (time.perf_counter() - started) / pairs
    size = images // references
    asked = images * references + references * size * (size - 1) // 2
    few = made[: 6 * references : references]
    direct = np.mean([one(a, b) for k, a in enumerate(few) for b in few[:k]])
    blocks = ic_lpips(few, centres[:1], embed, cap=None, batch_size=4, seed=0).mean
    return {
        "blocked_s": blocked,
        "pairwise_s": each * asked,
        "difference": abs(direct - blocks),
        "clusters": found.scored_clusters,
    }


def in_a_process(*arguments: str) -> dict[str, float]:
    """What this program prints for one measurement."""
    result = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr[-2000:])
    return json.loads(result.stdout.splitlines()[-1])


def table(base: str, options: list[str], own: list[str]) -> None:
    """Print the rows of one base, and what the updates make of the paper's run; ``own`` are options of this project alone."""
    print(f"| {TITLES[base]} | this project | like the release | ratio | peak memory, GB |")
    print("|---|---|---|---|---|")
    milliseconds = {}
    for kind in KINDS:
        ours, theirs = (
            in_a_process("--one", kind, "--base", base, *options, *arm) for arm in (own, ["--like-release"])
        )
        milliseconds[kind] = ours["ms"]
        ratio = theirs["ms"] / ours["ms"]
        memory = f"{ours['peak_gb']:.1f} / {theirs['peak_gb']:.1f}"
        print(f"| {UNITS[kind]} | {ours['ms']:.0f} ms | {theirs['ms']:.0f} ms | {ratio:.2f} | {memory} |", flush=True)
    if base == "sd":
        hours = PAPER_UPDATES * (milliseconds["generator"] + milliseconds["rmp"]) / 3.6e6
        print(f"\nMVTec AD, {PAPER_UPDATES:,} updates of each trainer: {hours:.1f} h (the paper: 73 h)")


def profile(kind: str, base: str, compute: ComputeSettings, **arm: bool) -> None:
    """Print the operations that take the time of an update or a batch."""
    bench = Bench(base, compute, **arm)
    act = getattr(bench, kind)()
    act(0)
    with torch.profiler.profile() as found:
        act(1)
        waited(bench.device)
    order = "self_cuda_time_total" if compute.device == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=15))


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", choices=SIDES, nargs="+", default=["sd", "small"] if cuda else ["small"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16" if cuda else "fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--lpips-images", type=int, default=1000)
    parser.add_argument("--profile", choices=KINDS)
    parser.add_argument("--channels-last", action="store_true", help="this project's networks in that memory format")
    parser.add_argument("--compile", action="store_true", help="this project's U-Net blocks by torch.compile")
    parser.add_argument("--one", choices=[*KINDS, "ic_lpips"], help=argparse.SUPPRESS)
    parser.add_argument("--like-release", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    precision = "fp32" if given.like_release else given.precision
    compute = ComputeSettings(device=given.device, precision=precision, threads=given.threads)
    arm = {name: getattr(given, name) for name in ("like_release", *OPTIONS)}

    if given.one == "ic_lpips":
        print(json.dumps(measure_ic_lpips(given.device, given.lpips_images, 10, 100)))
    elif given.one:
        print(json.dumps(measure(given.one, given.base[0], compute, given.repeats, **arm)))
    elif given.profile:
        profile(given.profile, given.base[0], compute, **arm)
    else:
        name = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {given.threads} threads"
        own = ["--" + option.replace("_", "-") for option in OPTIONS if arm[option]]
        print(f"{', '.join([name, given.precision, f'torch {torch.__version__}', *own])}\n")
        options = ["--device", given.device, "--precision", given.precision, "--threads", str(given.threads)]
        for base in given.base:
            table(base, [*options, "--repeats", str(given.repeats)], own)
            print()
        found = in_a_process("--one", "ic_lpips", *options, "--lpips-images", str(given.lpips_images))
        print("| IC-LPIPS of EfficientNet-Lite0, 256 px | by blocks | pair by pair | ratio | difference |")
        print("|---|---|---|---|---|")
        ratio = found["pairwise_s"] / found["blocked_s"]
        print(
            f"| {given.lpips_images} images, 10 references | {found['blocked_s']:.0f} s "
            f"| {found['pairwise_s']:.0f} s | {ratio:.0f} | {found['difference']:.1e} |"
        )


if __name__ == "__main__":
    main()
