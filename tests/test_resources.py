"""What a job asks for, by value: against the demo's measured peaks, and at the size of Stable Diffusion."""

import struct
from pathlib import Path

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from safetensors.numpy import save_file

from seas.base.pretrained import count_parameters
from seas.config import Settings, read_yaml
from seas.errors import InputError
from seas.metrics.diversity import BLOCK_BYTES
from seas.resources import (
    EMBEDDINGS_MB,
    GOAL,
    GUESS,
    MEASURED,
    ON_H200,
    REFERENCES,
    Work,
    memory_mb,
    minutes,
    rate,
    work,
)

STAGES = ("base", "generator", "rmp", "generation", "metrics", "downstream", "crop_and_paste", "index", "report")
DEMO = Settings(
    compute={"device": "cpu", "precision": "fp32"},
    base={"pretrained": None},
    data={"image_size": 64},
    generator={"updates_per_type": 500},
    rmp={"updates_per_type": 120},
    generation={"pairs_per_type": 20, "normals": 24},
    downstream={"image_size": 96, "updates": 500, "batch_size": 8},  # as it was when it was measured
)
PAPER = Settings()
SD = 859_520_964
"""Parameters of Stable Diffusion's U-Net."""


def of_demo(stage):
    return work(stage, DEMO, types=3, parameters=11_500_000)


@pytest.mark.parametrize(
    ("stage", "peak"),
    [
        ("generator", 1311),
        ("rmp", 1356),
        ("generation", 1359),
        ("metrics", 1404),
        ("downstream", 1304),
        ("crop_and_paste", 773),
        ("report", 1538),
        ("index", 641),
    ],
)
def test_a_job_gets_what_it_was_measured_to_need_and_not_twice_that(stage, peak):
    beside = 600  # Snakemake's own processes
    assert peak < memory_mb(of_demo(stage)) - beside < 1.7 * peak


def test_a_base_gets_what_the_shipped_ones_batches_were_measured_to_need():
    recipe = read_yaml(Path(__file__).parent.parent / "config/base.yaml")["base"]
    job = work("base", Settings(base=recipe | {"corpus_images": 256}), types=0, parameters=11_500_000)
    peak = 3331  # of the process, after two updates of each network on one thread
    assert peak < memory_mb(job._replace(device="cpu")) - 600 < 1.3 * peak
    whole = work("base", Settings(base=recipe), types=0, parameters=11_500_000)
    pictures_and_latents = 60_000 * (64 * 64 * 3 + 2 * 8 * 16 * 16 * 4) / 1e6
    assert memory_mb(whole) - memory_mb(whole._replace(corpus=0)) == pytest.approx(pictures_and_latents, abs=1)


def test_a_base_of_small_batches_gets_what_its_fit_was_measured_to_need():
    job = work("base", Settings(base={"pretrained": None, "latent_channels": 8}), types=0, parameters=1_000_000)
    assert 1518 < memory_mb(job._replace(device="cpu", corpus=0)) - 600 < 1.3 * 1518


def test_a_base_on_a_gpu_is_estimated_by_the_shipped_one():
    recipe = read_yaml(Path(__file__).parent.parent / "config/base.yaml")["base"]
    job = work("base", Settings(base=recipe), types=0, parameters=11_447_496)
    assert rate(job) == pytest.approx((0.058, ON_H200))
    larger = work("base", Settings(base=recipe | {"image_size": 256}), types=0, parameters=11_447_496)
    assert rate(larger).seconds == pytest.approx(16 * 0.058) and rate(larger).source == GUESS


@pytest.mark.parametrize(("stage", "seconds"), [("generator", 98), ("rmp", 53), ("generation", 49), ("downstream", 32)])
def test_the_estimate_of_the_demo_is_what_was_measured(stage, seconds):
    job = of_demo(stage)
    assert job.steps * rate(job).seconds == pytest.approx(seconds, rel=0.05)
    assert rate(job).source == MEASURED


def test_the_generator_at_the_papers_size():
    job = work("generator", PAPER, types=5, parameters=SD)
    assert job == Work("generator", "cuda", 4000, 4 * 512**2, 1, SD, 1, "bf16", 4000)
    # weights, and the checkpoint's copies: 16 bytes a parameter; 4 GB of libraries, 600 MB of Snakemake
    assert memory_mb(job) == 4000 + 13752 + 600
    assert (rate(job).seconds, rate(job).source) == (0.060, GOAL)
    assert minutes(job) == round(20 + 2 * 4000 * 0.06 / 60)


def test_an_offloaded_optimizer_lies_in_the_hosts_memory():
    settings = Settings(generator={"offload_optimizer": True})
    plain, offloaded = (memory_mb(work("generator", given, types=5, parameters=SD)) for given in (PAPER, settings))
    assert offloaded - plain == pytest.approx(16 * SD / 1e6, abs=1)
    assert not work("rmp", settings, types=5, parameters=SD).offloaded


def test_types_shards_and_attempts():
    few, many = (work("generation", PAPER, types=types, parameters=SD) for types in (1, 8))
    assert (few.steps, many.steps) == (2000, 9000) and minutes(many) > minutes(few)
    sharded = Settings(generation={"shards": 10})
    assert work("generation", sharded, types=8, parameters=SD).steps == 900
    assert work("metrics", sharded, types=8, parameters=SD).steps == 9000


@pytest.mark.parametrize("stage", STAGES)
def test_a_retry_asks_for_more(stage):
    job = of_demo(stage)
    asked = [(memory_mb(job, attempt), minutes(job, attempt)) for attempt in (1, 2, 3)]
    assert [m for m, _ in asked] == pytest.approx([asked[0][0] * share for share in (1, 1.5, 2)], abs=1)
    assert memory_mb(job, 9) == asked[2][0]  # many retries are those of a short time limit, not of memory
    assert [t for _, t in asked] == pytest.approx([asked[0][1] * share for share in (1, 2, 3)], abs=2)


def test_no_job_is_on_the_gpu_that_does_not_use_one():
    on_gpu = {stage for stage in STAGES if work(stage, PAPER, types=1, parameters=SD).device == "cuda"}
    assert on_gpu == {"base", "generator", "rmp", "generation", "metrics", "downstream"}
    assert not any(of_demo(stage).device == "cuda" for stage in STAGES)
    assert set(REFERENCES) == on_gpu | {"crop_and_paste", "report"}


def test_metrics_by_the_papers_networks_on_a_cpu_ask_for_their_embeddings():
    """5,588 MiB were measured for a cluster of 140 without Inception and the images, 2,379 for 20."""
    assert pytest.approx(2 * BLOCK_BYTES / 1e6, abs=1) == EMBEDDINGS_MB
    with_paper = {"extractors": "paper"}
    jobs = {
        pairs: work(
            "metrics", Settings(compute={"device": "cpu"}, metrics=with_paper, generation=made), types=2, parameters=0
        )
        for pairs in (20, 1000)
        for made in [{"pairs_per_type": pairs, "normals": pairs}]
    }
    assert memory_mb(jobs[1000]) == round(1050 + 1500 + 4295 + 0.012 * 256**2 * 1000 / 1e3 + 600)
    assert memory_mb(jobs[20]) == round(1050 + 1500 + 64 * 20 + 0.012 * 256**2 * 20 / 1e3 + 600)
    assert memory_mb(jobs[1000]) - 600 > 5588 and memory_mb(jobs[20]) - 600 > 2379
    assert minutes(jobs[1000]) == 20 + 2 * 3000 * 2 / 60 and rate(jobs[20]).source == GUESS
    on_gpu = work("metrics", Settings(metrics=with_paper), types=2, parameters=0)
    assert not on_gpu.as_paper and memory_mb(on_gpu) < memory_mb(jobs[1000])


def test_downstream_asks_for_the_photographs_that_it_scores_at_once():
    few, many = (work("downstream", PAPER, types=0, parameters=SD, tested=tested) for tested in (100, 200))
    side = PAPER.downstream.image_size
    assert memory_mb(many) - memory_mb(few) == pytest.approx(100 * side**2 * 100 / 1e6, abs=1)


def test_a_report_of_many_runs_asks_for_more():
    small, large = (Work("report", steps=products, pixels=1) for products in (2, 45))
    assert (memory_mb(small), memory_mb(large)) == (2500 + 600, 2400 + 45 * 50 + 600)
    assert (minutes(small), minutes(large)) == (21, 31)


def test_a_report_of_stable_diffusion_asks_for_its_networks_and_its_time():
    """Five U-Net bytes a parameter, 9 KB a pixel of one image; 8 s for each of 15 products' 292 images."""
    job = Work("report", steps=15, pixels=512**2, parameters=SD, shown=292)
    assert memory_mb(job) == round(2400 + 15 * 50 + 600 + 5 * SD / 1e6 + 9 * 512**2 / 1e3)
    assert minutes(job) == pytest.approx(20 + 2 * (15 * 7.6 + 292 * 8) / 60, abs=1)
    assert (
        rate(job).source == GUESS
        and rate(Work("report", steps=2, pixels=64**2, parameters=11_500_000)).source == MEASURED
    )


def test_what_lies_far_from_the_measurement_is_a_guess():
    larger = work("generator", DEMO.model_copy(update={"data": PAPER.data}), types=3, parameters=11_500_000)
    assert rate(larger).source == GUESS
    assert rate(larger).seconds == pytest.approx(64 * rate(of_demo("generator")).seconds)


class TestParameters:
    def test_the_shipped_base(self):
        folder = Path(__file__).parent.parent / "seas/base/small/unet"
        assert count_parameters(folder) == UNet2DConditionModel.from_pretrained(folder).num_parameters()

    @pytest.mark.parametrize("content", [b"", b"x", struct.pack("<Q", 10**15), struct.pack("<Q", 4) + b"nope"])
    def test_a_damaged_file_is_named(self, content, tmp_path):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
            count_parameters(tmp_path)

    def test_variants_count_once(self, tmp_path):
        for name in ("model.safetensors", "model.fp16.safetensors"):
            save_file({"a": np.zeros((2, 3)), "b": np.zeros(())}, tmp_path / name)
        assert count_parameters(tmp_path) == 7
