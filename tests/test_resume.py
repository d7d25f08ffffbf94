"""Every trainer, killed (SIGKILL) at a random moment and started again, ends with the weights of an uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seas.generation.crop_and_paste import crop_and_paste_product

pytestmark = pytest.mark.slow

PRELUDE = """
import sys
from pathlib import Path
from seas.data.settings import DataSettings
from seas.settings import ComputeSettings
root, split, base, generator, rmp, pairs, output = map(Path, sys.argv[1:])
data = DataSettings(image_size=32, normals=6)
cpu = ComputeSettings(device="cpu", precision="fp32", threads=1)
"""
TRAINERS = {
    "base": """
from seas.base.settings import BaseSettings
from seas.base.train import train_base
train_base(BaseSettings(name="t", pretrained=None, image_size=32, vae_channels=(8, 8, 8), unet_channels=(16, 16, 16, 16),
    text_width=16, text_layers=1, corpus_images=8, vae_updates=120, vae_batch_size=2, unet_updates=120, unet_batch_size=2,
    checkpoint_every=10), cpu, output=output)
""",
    "generator": """
from seas.generator.settings import GeneratorSettings
from seas.generator.train import train_generator
train_generator(base, split, root, GeneratorSettings(updates_per_type=20, attention_layers=(1, 2), checkpoint_every=10,
    unet_learning_rate=1e-3), data, cpu, 0, output=output)
""",
    "rmp": """
from seas.rmp.settings import RmpSettings
from seas.rmp.train import train_rmp
train_rmp(generator, RmpSettings(updates_per_type=20, checkpoint_every=10, channels=96), cpu, 0, output=output)
""",
    "generation": """
from seas.generation.diffusion import generate_product
from seas.generation.settings import GenerationSettings
generate_product(generator, rmp, GenerationSettings(pairs_per_type=12, normals=8, steps=6, batch_size=2), cpu, 0, output=output)
""",
    "downstream": """
from seas.downstream.settings import DownstreamSettings
from seas.downstream.train import train_segmenter
train_segmenter("bisenet_v2", "crop_and_paste", {"washer": split}, {"washer": [pairs]}, root,
    DownstreamSettings(image_size=32, updates=60, batch_size=4, checkpoint_every=10), data, cpu, 0,
    dataset="d", experiment="e", output=output)
""",
}


@pytest.fixture(scope="module")
def pairs(miniature, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "crop_and_paste" / "washer"
    crop_and_paste_product(miniature.split, miniature.root, 5, None, miniature.data, 0, output=folder)
    return folder


@pytest.mark.parametrize("trainer", TRAINERS)
def test_killed_at_a_random_moment(trainer, miniature, tiny_base, generator, rmp, pairs, tmp_path):
    inputs = [str(path) for path in (miniature.root, miniature.split, tiny_base, generator, rmp, pairs)]

    def command(output):
        return [sys.executable, "-c", PRELUDE + TRAINERS[trainer], *inputs, str(tmp_path / output)]

    def content(output):
        return json.loads((tmp_path / output / "manifest.json").read_text())

    def kept_files():  # os.walk passes over folders that the process removes meanwhile, Path.rglob raises
        folders = os.walk(tmp_path / ".killed.working")
        return {Path(folder) / file for folder, _, files in folders for file in files}

    subprocess.run(command("whole"), check=True, stdout=subprocess.DEVNULL)
    seed = random.randrange(10**6)
    print(f"seed of the kill times: {seed}")
    draws, kills = random.Random(seed), 0
    while not (tmp_path / "killed").exists():
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL)
        before = kept_files()
        while process.poll() is None and (kept_files() <= before or kills >= 2):
            time.sleep(0.02)
        time.sleep(draws.uniform(0, 1.5))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        assert process.wait() in (0, -signal.SIGKILL)
    assert kills > 0
    assert content("killed") == content("whole")
