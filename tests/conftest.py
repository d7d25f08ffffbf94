"""What the tests share: a tiny base with random weights, a tiny dataset, and the photographs where they are."""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from seas.base.corpus import vocabulary
from seas.base.model import build_base
from seas.base.settings import BaseSettings
from seas.base.stable_diffusion import build_networks, old_names
from seas.data.index import index_product, split_product
from seas.data.miniature import write_miniature
from seas.data.settings import DataSettings
from seas.generator.settings import GeneratorSettings
from seas.generator.train import train_generator
from seas.rmp.settings import RmpSettings
from seas.rmp.train import train_rmp
from seas.settings import ComputeSettings

REPOSITORY = Path(__file__).parent.parent
ONE_THREAD = ComputeSettings(device="cpu", precision="fp32", threads=1)
TINY_BASE = {
    "name": "tiny",
    "pretrained": None,
    "image_size": 32,
}


class Miniature(NamedTuple):
    """One indexed and split product of the miniature dataset."""

    root: Path
    product: str
    data: DataSettings
    split: Path


def pytest_collection_modifyitems(config, items):
    """Tests that start a SLURM run only where they are named, by `-m slurm`."""
    if "slurm" not in config.option.markexpr:
        items[:] = [item for item in items if "slurm" not in item.keywords]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Equality is bitwise for one number of threads; the tests use one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A Stable-Diffusion-shaped pipeline for 32 px with random weights."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build_base(BaseSettings(**TINY_BASE), vocabulary()).save_pretrained(folder)
    return folder


def write_heads(path: Path, state: dict[str, torch.Tensor]) -> None:
    """A safetensors file with the names and shapes of ``state``, in half precision, that takes no room on the disk."""
    head, end = {}, 0
    for name, value in state.items():
        size = 2 * value.numel()
        head[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(head).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture(scope="session")
def sd_shaped(tiny_base, tmp_path_factory) -> Path:
    """What the plan sees of Stable Diffusion v1-4: the files, and the old names and the shapes of its weights, no values."""
    folder = tmp_path_factory.mktemp("sd") / "stable-diffusion-v1-4"
    shutil.copytree(tiny_base, folder)
    with torch.device("meta"):
        networks = build_networks()
    for part, network in networks.items():
        (file,) = (folder / part).glob("*.safetensors")
        write_heads(file, old_names(part, network.state_dict()))
        if part != "text_encoder":
            network.save_config(folder / part)
    return folder


@pytest.fixture(scope="session")
def miniature_root(tmp_path_factory) -> Path:
    """A small miniature dataset of 48-px images."""
    root = tmp_path_factory.mktemp("data") / "miniature"
    write_miniature(root, seed=0, size=48, normals=10, test_normals=4, abnormal=6)
    return root


@pytest.fixture(scope="session")
def miniature(miniature_root, tmp_path_factory) -> Miniature:
    """The miniature's object, indexed and split, fitted to 32 px."""
    product = "washer"
    folder = tmp_path_factory.mktemp("tables")
    data = DataSettings(image_size=32, normals=6)
    index_product(miniature_root, "mvtec_ad", product, output=folder / "index.parquet")
    split_product(folder / "index.parquet", data, 0, root=miniature_root, output=folder / "split.parquet")
    return Miniature(miniature_root, product, data, folder / "split.parquet")


@pytest.fixture(scope="session")
def generator(tiny_base, miniature, tmp_path_factory) -> Path:
    """A generator of the miniature's object after a few updates."""
    folder = tmp_path_factory.mktemp("shared") / "generator" / "washer"
    settings = GeneratorSettings(updates_per_type=1, attention_layers=(1, 2))
    train_generator(tiny_base, miniature.split, miniature.root, settings, miniature.data, ONE_THREAD, 0, output=folder)
    return folder


@pytest.fixture(scope="session")
def rmp(generator, miniature, tmp_path_factory) -> Path:
    """The mask branch of that generator after a few updates."""
    folder = tmp_path_factory.mktemp("shared") / "rmp" / "washer"
    settings = RmpSettings(updates_per_type=1)
    train_rmp(generator, settings, ONE_THREAD, 0, output=folder)
    return folder


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of real defect photographs; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SEAS_SHARED_DATA", REPOSITORY / "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"the photographs are not at {folder}; SEAS_SHARED_DATA names their folder")
    return folder.resolve()
