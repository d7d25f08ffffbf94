"""What one job asks of a machine, host memory and wall time, as functions of its work; each number with its reason.

Measured means: run.json of the demo's stages, or ``ru_maxrss`` where a stage leaves none, with the shipped base
(11.4 M parameters, 64 px, batches of 4) on one thread of an AMD EPYC. Stable Diffusion was not there, and on a GPU only the
shipped base was run: what is said of them is derived from bytes a parameter, or is a goal that nobody has measured.
"""

from typing import Any, NamedTuple

SNAKEMAKE_MB = 600
"""Three Snakemake processes surround a cluster job's script; one was measured at 171 MB."""
FIXED_MB = {
    "index": 800,  # measured 641 MiB: torch is imported, one photograph is held
    "split": 800,  # measured 652 MiB
    "crop_and_paste": 1000,  # measured 657 to 773 MiB at 64 px, 845 at 512
    "report": 2400,  # measured 1485 to 1538 MiB for two products; figures are drawn one after the other
    "merge": 1000,  # measured 965 MiB for 9000 pairs of two shards, libraries and all
}
LIBRARIES_MB = {
    "cpu": 1050,  # measured 976 to 1025 MiB with networks of 16 channels
    "cuda": 4000,  # measured 1700 to 2100 MiB in all with the shipped base on an H100; larger networks load more kernels
}
BYTES_A_PARAMETER = {
    # weights, gradient and AdamW's two moments (16), and the copies that a checkpoint makes (12)
    ("generator", "cpu"): 28,
    # the first four lie on the card; the host loads the weights (4) and copies the checkpoint (12)
    ("generator", "cuda"): 16,
    ("base", "cpu"): 40,  # as the generator, and the averaged weights in use and in the checkpoint
    ("base", "cuda"): 28,
}
OFFLOADED = 16
"""Bytes a parameter that generator.offload_optimizer keeps in the host's memory: weights, gradient, AdamW's two moments."""
LOADED = 5
"""Bytes a U-Net parameter of a pipeline that is only used: weights in fp32, with text encoder and VAE a quarter more."""
ACTIVATIONS_KB_A_PIXEL = {
    # On the CPU, for each pixel that is held: what the measured peak has above libraries and weights.
    "base": 4,  # 3331 MiB at 128 latents of 64 px after two updates, without the corpus
    "generator": 4,  # 1311 MiB at 4 images of 64 px
    "rmp": 18,  # 1356 MiB at 4 images of 64 px
    "generation": 9,  # 1359 MiB at 8 images of 64 px
    "downstream": 4,  # 1304 MiB at 8 images of 96 px
    "report": 9,  # as generation: one image at a time
    "metrics": 0.012,  # images and masks of a type, generated, real and cut out, 12 bytes a pixel; on a GPU, too
}
EXTRACTOR_MB = 500
"""Networks of the metrics and a batch in them: measured 1404 MiB in all with EfficientNet-Lite0 at 256 px."""
PAPER_EXTRACTORS_MB = 1500
"""Inception and LPIPS's trunk on a CPU, and 16 images of 256 px in the latter: measured 1056 MiB with VGG, without Inception."""
EMBEDDED_MB = 64
"""An image of 256 px in VGG, 32 MB, held twice."""
EMBEDDINGS_MB = 4295
"""Most of such images: twice ``BLOCK_BYTES`` of the diversity. Measured 4265 MiB above the libraries for a cluster of 140."""
CACHE_MB = 2048
"""Most that downstream keeps of the photographs that it trains on."""
TESTED_BYTES = 100
"""A pixel of a product's test photographs, which downstream scores at once: measured 100 for 120 of 256 px."""
FITTED = 40
"""Pictures of an update that takes as much as the VAE's fit to 256 pictures: measured 572 MiB at 64 px."""
REPORTED_MB = 50
"""A product of a run in the report, whose page holds 1 MB of pictures of each: a guess."""

OVERHEAD_MINUTES = 20
"""Queue of the shared disk, imports (5 to 12 s without bytecode) and the part of a stage that is not its steps."""
SLACK = 2.0
"""A job may be this many times slower than the estimate before it meets its limit; each retry adds as much again."""


MEASURED, ON_H200, GOAL, GUESS = "developers' CPU", "an H200", "goal", "guess"


class Rate(NamedTuple):
    """Seconds of one step, and whether they were measured, are a goal, or are a guess."""

    seconds: float
    source: str


class Reference(NamedTuple):
    """A measured step: its seconds, its pixels, and the parameters of the U-Net in it."""

    seconds: float
    pixels: int
    parameters: int = 0


SMALL = 11_447_496
"""Parameters of the shipped base's U-Net."""
REFERENCES = {
    "base": Reference(0.35, 16 * 64**2, 7_400_000),  # 700 updates of 8 and 16 images in 249 CPU-s
    "generator": Reference(0.065, 4 * 64**2, SMALL),  # 1500 updates in 98 s
    "rmp": Reference(0.146, 4 * 64**2, SMALL),  # 360 updates in 53 s
    "generation": Reference(0.58, 64**2, SMALL),  # 84 images of 25 steps with guidance in 49 s
    "metrics": Reference(0.30, 256**2),  # 84 images in 26 s
    "downstream": Reference(0.065, 8 * 96**2),  # 500 updates of 8 images in 32 s
    "crop_and_paste": Reference(0.152, 512**2),  # 100 pairs of magnetic tiles at 512 px in 15 s
    "report": Reference(7.6, 1),  # two products in 15 s, imports and all
}
"""Steps on a CPU. Larger images and networks are taken to cost in proportion."""
BASE_ON_GPU = Reference(0.058, 128 * 64**2, SMALL)
"""Updates of both networks of the shipped base on a GPU; its ``Work`` has so many pixels."""
PAPER_METRICS = Reference(2.0, 256**2)
"""An image in the paper's networks on a CPU, twice in VGG (40e9 operations each) and once in Inception, at 5e10 a second: derived."""
SHOWN = Reference(8.0, 512**2, 860_000_000)
"""An image whose attention the report reads, once through encoder and U-Net: on two cores a pair took 124 s for 50 times."""
GPU_RATES = {
    # Stable Diffusion at 512 px on one H100: the project's goals, which nobody has measured.
    "generator": Rate(0.060, GOAL),
    "rmp": Rate(0.090, GOAL),
    "generation": Rate(0.100, GOAL),
    # No goal was set for these.
    "metrics": Rate(0.050, GUESS),
    "downstream": Rate(0.150, GUESS),
}


class Work(NamedTuple):
    """What one job does.

    steps: updates, images, or the report's products of runs. pixels: of one step, of one image in the report. at_once:
    steps whose images are held at once. parameters: of the U-Net, 0 without one. models: how many are trained one after the
    other, and saved. counted: updates or pairs that its run counts as measured, if it is not continued; 0 where it counts
    none. offloaded: whether the optimizer lies in the host's memory. tested: pixels that are scored at once.
    corpus: bytes of the pictures that a base trains on, and of their latents, twice while they are put together. shown:
    images whose attention the report reads. as_paper: whether the paper's networks measure, which only on a CPU take the
    host's memory.
    """

    stage: str
    device: str = "cpu"
    steps: int = 0
    pixels: int = 0
    at_once: int = 1
    parameters: int = 0
    models: int = 1
    precision: str = "fp32"
    counted: int = 0
    offloaded: bool = False
    tested: int = 0
    corpus: int = 0
    shown: int = 0
    as_paper: bool = False


def work(stage: str, settings: Any, *, types: int, parameters: int, tested: int = 0) -> Work:
    """The work of one job: ``settings`` are the run's, ``types`` counts the anomaly types (G) of its product.

    ``tested`` counts the photographs that are scored at once at most.
    """
    device, precision, side = settings.compute.device, settings.compute.precision, settings.data.image_size
    made = settings.generation
    if stage == "base":
        base = settings.base
        pixels = max(base.vae_batch_size, base.unet_batch_size, FITTED) * base.image_size**2
        updates = base.vae_updates + base.unet_updates
        latents = base.latent_channels * (base.image_size >> len(base.vae_channels) - 1) ** 2
        corpus = base.corpus_images * (3 * base.image_size**2 + 2 * 4 * latents)
        return Work(stage, device, updates, pixels, parameters=parameters, counted=updates, corpus=corpus)
    if stage in ("generator", "rmp"):
        trained = getattr(settings, stage)
        pixels = (trained.abnormal_per_batch + trained.normal_per_batch) * side**2
        updates, models = trained.updates_per_type * types, 1 if settings.generator.mixed_training else types
        steps = updates * trained.gradient_accumulation
        offloaded = stage == "generator" and settings.generator.offload_optimizer
        return Work(stage, device, steps, pixels, 1, parameters, models, precision, updates, offloaded)
    if stage == "generation":
        pairs = made.pairs_per_type * types
        steps, pairs = -(-(pairs + made.normals) // made.shards), -(-pairs // made.shards)
        return Work(stage, device, steps, side**2, made.images_at_once(device, side), parameters, counted=pairs)
    if stage == "metrics":
        images, pixels = made.pairs_per_type * types + made.normals, settings.metrics.image_size**2
        as_paper = device == "cpu" and settings.metrics.as_the_paper()
        return Work(stage, device, images, pixels, max(made.pairs_per_type, made.normals), as_paper=as_paper)
    if stage == "downstream":
        trained = settings.downstream
        pixels = trained.image_size**2
        done = trained.updates
        return Work(stage, device, done, trained.batch_size * pixels, counted=done, tested=tested * pixels)
    if stage == "crop_and_paste":
        return Work(stage, steps=made.pairs_per_type * types, pixels=side**2)
    return Work(stage)  # a table, links or a page: seconds


def memory_mb(job: Work, attempt: int = 1) -> int:
    """Host memory of a job in MB, which SLURM takes for MiB. The first two retries ask for half as much again, each."""
    need = FIXED_MB.get(job.stage, LIBRARIES_MB[job.device])
    need += job.parameters * BYTES_A_PARAMETER.get((job.stage, job.device), LOADED) / 1e6
    if job.offloaded:
        need += job.parameters * OFFLOADED / 1e6
    if job.device == "cpu" or job.stage == "metrics":
        need += ACTIVATIONS_KB_A_PIXEL.get(job.stage, 0) * job.pixels * job.at_once / 1e3
    if job.stage == "metrics":
        embeddings = min(EMBEDDINGS_MB, EMBEDDED_MB * job.at_once * job.pixels / 256**2)
        need += PAPER_EXTRACTORS_MB + embeddings if job.as_paper else EXTRACTOR_MB
    if job.stage == "downstream":
        need += min(CACHE_MB, 0.005 * job.pixels) + job.tested * TESTED_BYTES / 1e6
    need += job.corpus / 1e6
    if job.stage == "report":
        need += job.steps * REPORTED_MB
    return round((need + SNAKEMAKE_MB) * (1 + min(attempt, 3)) / 2)


def rate(job: Work) -> Rate:
    """Seconds of one step, where no finished stage of the same run tells them."""
    if job.stage not in REFERENCES:
        return Rate(0.0, MEASURED)
    if job.stage == "base" and job.device == "cuda":
        larger = _larger(job, BASE_ON_GPU)
        return Rate(BASE_ON_GPU.seconds * larger, ON_H200 if 0.25 <= larger <= 4 else GUESS)
    if job.device == "cuda":
        return GPU_RATES[job.stage]
    measured = REFERENCES[job.stage]
    if job.stage == "report":
        maps = SHOWN.seconds * _larger(job, SHOWN) * job.shown / max(1, job.steps)
        return Rate(measured.seconds + maps, MEASURED if maps <= measured.seconds else GUESS)
    if job.as_paper:
        return Rate(PAPER_METRICS.seconds * _larger(job, PAPER_METRICS), GUESS)
    larger = _larger(job, measured)
    return Rate(measured.seconds * larger, MEASURED if 0.25 <= larger <= 4 else GUESS)


def _larger(job: Work, measured: Reference) -> float:
    return job.pixels / measured.pixels * (job.parameters / measured.parameters if job.parameters else 1)


def minutes(job: Work, attempt: int = 1) -> int:
    """Wall time that a job asks for, in minutes. Each retry asks for as much again."""
    return round((OVERHEAD_MINUTES + SLACK * job.steps * rate(job).seconds / 60) * attempt)
