"""The plan of the whole paper: every job, in under a minute, from names alone."""

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

MVTEC_AD = dict(bottle=3, cable=8, capsule=5, carpet=5, grid=5, hazelnut=4, leather=5, metal_nut=4, pill=7, screw=5)
MVTEC_AD |= dict(tile=5, toothbrush=1, transistor=4, wood=5, zipper=7)
VISA = {f"visa_{number}": 7 if number < 2 else 6 for number in range(12)}
MVTEC_3D = dict.fromkeys(("bagel", "cookie", "dowel", "foam", "peach", "potato", "tire", "cable_gland"), 4)
MVTEC_3D |= dict(carrot=5, rope=3)
DATASETS = {"mvtec_ad": MVTEC_AD, "visa": VISA, "mvtec_3d_ad": MVTEC_3D}
"""Anomaly types of each product. Those of VisA are 74 in all; how they lie on its products does not matter to the plan."""
ABNORMAL, GOOD = 17, 240
"""Images of a type and train/good of a product; MVTec AD has 1,258 / 73 and 3,629 / 15."""


def write_empty(root: Path, products: Mapping[str, int]) -> None:
    """A tree in the MVTec-AD layout whose pictures are empty files: the plan opens none."""
    for product, types in products.items():
        names = [f"train/good/{number:03d}.png" for number in range(GOOD)]
        names += [f"test/good/{number:03d}.png" for number in range(ABNORMAL)]
        for kind in range(types):
            names += [f"test/type_{kind}/{number:03d}.png" for number in range(ABNORMAL)]
            names += [f"ground_truth/type_{kind}/{number:03d}_mask.png" for number in range(ABNORMAL)]
        for folder in {Path(name).parent for name in names}:
            (root / product / folder).mkdir(parents=True)
        for name in names:
            (root / product / name).touch()


@pytest.fixture(scope="module")
def house(sd_shaped, tmp_path_factory):
    """A clone with the three datasets and Stable Diffusion v1-4 where the paper's configuration looks for them."""
    folder = tmp_path_factory.mktemp("paper")
    for name in ("config", "workflow", "profiles"):
        shutil.copytree(REPOSITORY / name, folder / name)
    shutil.copy(REPOSITORY / "Snakefile", folder / "Snakefile")
    for dataset, products in DATASETS.items():
        write_empty(folder / "data" / dataset, products)
        (folder / f"config/datasets/{dataset}.yaml").write_text(f"root: data/{dataset}\n")
    (folder / "models").mkdir()
    (folder / "models/stable-diffusion-v1-4").symlink_to(sd_shaped)
    return folder


def plan(house: Path, *options: str) -> tuple[dict[str, int], float]:
    """Jobs by rule, and the seconds that planning took."""
    started = time.monotonic()
    chosen = ["--config", f"datasets=[{','.join(DATASETS)}]", *options]
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", *chosen]
    result = subprocess.run([part for part in command if part], cwd=house, capture_output=True, text=True)
    seconds = time.monotonic() - started
    assert result.returncode == 0, result.stdout + result.stderr
    lines = (result.stdout + result.stderr).splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("---")) + 1
    rows = [line.split() for line in lines[first:]]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}, seconds


def test_the_datasets_are_those_of_the_paper():
    assert sum(map(len, DATASETS.values())) == 15 + 12 + 10 == 37
    assert [sum(products.values()) for products in DATASETS.values()] == [73, 74, 40]
    assert sum(sum(products.values()) for products in DATASETS.values()) == 187


def test_the_whole_paper_is_planned_in_under_a_minute(house):
    """Seven jobs a product (index, split, generator, rmp, generation, crop_and_paste, metrics), three arms of one
    unified model for each of three datasets, the report and the target: 37 · 7 + 3 · 3 + 2 = 270."""
    jobs, seconds = plan(house)
    each = dict.fromkeys(("index", "split", "generator", "rmp", "generation", "crop_and_paste", "metrics"), 37)
    assert jobs == each | {"downstream": 9, "report": 1, "all": 1, "total": 270}
    assert seconds < 60


def test_an_ablation_of_the_threshold_adds_no_training(house):
    """Beside seas, tau_0.1 makes pairs, metrics and the generated arm anew: 37 · 2 + 3 jobs more."""
    jobs, seconds = plan(house, "experiments=[seas,tau_0.1,tau_0.2]")
    assert jobs["total"] == 270 + 37 * 2 + 3
    assert jobs["generator"] == jobs["rmp"] == 37
    assert seconds < 60
