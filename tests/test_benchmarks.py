"""The programs that measure: that each still runs, on little; what they print stands in benchmarks/README.md."""

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from seas.artifacts import read_table, write_table
from seas.generation.tree import write_generated, write_images_table
from seas.generator.pipeline import load_pipeline
from seas.generator.settings import GeneratorSettings
from seas.generator.train import train_generator
from seas.images import load_fitted, read_image, read_mask
from seas.settings import ComputeSettings

REPOSITORY = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def printed(program: str, *arguments: str) -> str:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / program), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("arm", [[], ["--channels-last"], ["--like-release"]], ids=["ours", "channels-last", "release"])
@pytest.mark.parametrize("kind", ["generator", "rmp", "generation"])
def test_speed(kind, arm):
    found = json.loads(printed("speed.py", "--one", kind, "--repeats", "1", *arm).splitlines()[-1])
    assert found["ms"] > 0 and found["peak_gb"] > 0.1


def test_ic_lpips_by_blocks_is_that_pair_by_pair():
    found = json.loads(printed("speed.py", "--one", "ic_lpips", "--lpips-images", "200").splitlines()[-1])
    assert found["difference"] < 1e-4


def test_the_memory_of_an_update_is_as_the_readme_has_it():
    rows = [line for line in printed("memory.py").splitlines() if "GB" in line and "---" not in line]
    readme = (REPOSITORY / "benchmarks/README.md").read_text()
    assert len(rows) == 5 and all(row in readme for row in rows)


def test_validation_never_touches_shots_their_groups_or_test_images():
    split = pd.DataFrame(
        [
            ("shot.png", "rust", "shot"),
            ("twin.png", "rust", "left_out"),
            ("other.png", "rust", "left_out"),
            ("like_a_normal.png", "rust", "left_out"),
            ("alone.png", "good", "left_out"),
            ("test.png", "rust", "test"),
            ("normal.png", "good", "normal"),
            ("reserve.png", "good", "reserve"),
            ("like_a_reserve.png", "rust", "left_out"),
        ],
        columns=["image", "type", "role"],
    )
    split = split.assign(product="washer")
    validation = runpy.run_path(str(REPOSITORY / "benchmarks/validate_arms.py"))["validation_split"]
    with pytest.raises(SystemExit, match="of washer the split leaves no good image to validate on"):
        validation(split[split.image != "alone.png"], {})
    with pytest.raises(SystemExit, match="no abnormal image"):
        validation(split[~split.image.isin(["twin.png", "other.png", "like_a_normal.png", "like_a_reserve.png"])], {})
    found = validation(
        split,
        {
            "shot.png": "a",
            "twin.png": "a",
            "other.png": "b",
            "normal.png": "c",
            "like_a_normal.png": "c",
            "reserve.png": "d",
            "like_a_reserve.png": "d",
        },
    )
    kept = ["shot", "left_out", "test", "left_out", "test", "reserve", "normal", "reserve", "left_out"]
    assert list(found.role) == kept


def test_an_arm_takes_each_type_from_the_stage_that_it_is_told(tmp_path):
    rows = [
        write_generated(
            tmp_path / "tree", name, 0, np.zeros((4, 4, 3), np.uint8), np.eye(4) > 0, source_normal="", draws=1
        )
        for name in ("rust", "dent")
    ]
    write_images_table(rows, tmp_path / "tree")
    pairs_of = runpy.run_path(str(REPOSITORY / "benchmarks/validate_arms.py"))["pairs_of"]
    rust = pairs_of(tmp_path / "tree", "rust", tmp_path / "arm/rust")
    table = read_table(rust / "images.parquet")
    assert list(table.type) == ["rust"] and read_mask(rust / table["mask"][0]).sum() == 4
    with pytest.raises(SystemExit, match="has no pair of the type 'fray'"):
        pairs_of(tmp_path / "tree", "fray", tmp_path / "arm/fray")


def finished_arm(results, run, trained_on, image_auroc, product_values=(), updates=500):
    """The scores, the split and the manifest of a finished arm: two types, of one and two shots."""
    folder = results / run / "downstream/bisenet_v2" / trained_on / "all"
    levels = [("image", "auroc"), ("image", "ap"), ("pixel", "ap"), ("pixel", "iou"), ("pixel", "iou_oracle")]
    scores = [("", *level, image_auroc - number) for number, level in enumerate(levels)]
    scores += [("tile", *levels[0], value) for value in product_values]
    folder.mkdir(parents=True)
    write_table(pd.DataFrame(scores, columns=["product", "level", "metric", "value"]), folder / "scores.parquet")
    obeyed = {"data": {"shots": 1}, "downstream": {"updates": updates, "trained_on": trained_on}}
    (folder / "manifest.json").write_text(json.dumps({"settings": obeyed}))
    split = pd.DataFrame(
        [("tile", "rust", "shot"), ("tile", "dent", "shot"), ("tile", "dent", "shot"), ("tile", "dent", "test")],
        columns=["product", "type", "role"],
    )
    (results / run / "split").mkdir(exist_ok=True)
    write_table(split, results / run / "split/tile.parquet")


def test_points_of_the_curve_accumulate_and_are_replaced(tmp_path):
    for seed, (real, generated) in enumerate([(60, 70), (64, 68)]):
        finished_arm(tmp_path, f"tiles/shots_1/seed{seed}", "real", real, product_values=[0])
        finished_arm(tmp_path, f"tiles/shots_1/seed{seed}", "generated", generated)
    finished_arm(tmp_path, "tiles/map_none/seed0", "real", 99)
    points = tmp_path / "points.csv"
    old = "tiles,1.5,0,real,1,1,1,1,1\ntiles,8,0,real,80,40,8,10,30\nother,1,0,real,1,2,3,4,5\n"
    points.write_text("dataset,shots,seed,trained_on,image_auroc,image_ap,pixel_ap,pixel_iou,pixel_iou_oracle\n" + old)
    arguments = [
        "--points",
        str(points),
        "--results",
        str(tmp_path),
        "--add",
        "tiles",
        "--plot",
        str(tmp_path / "plot.png"),
    ]
    tables = printed("shots.py", *arguments)
    assert [line for line in tables.splitlines() if "replaced" in line] == ["replaced: tiles, 1.5, 0, real"]
    assert "replaced" not in printed("shots.py", *arguments)
    assert "| 1.5 | 2 | real shots | 62.0 ± 2.8 | 61.0 ± 2.8 | 60.0 ± 2.8 | 59.0 ± 2.8 | 58.0 ± 2.8 |" in tables
    assert "| 1.5 | generated pairs less real shots | +10.0, +4.0 |" in tables
    assert "| 8 | 1 | real shots | 80.0 |" in tables and "crop" not in tables
    kept = pd.read_csv(points)
    assert len(kept) == 6 and set(kept.dataset) == {"tiles", "other"}
    assert read_image(tmp_path / "plot.png").std() > 5


def test_arms_of_other_settings_are_no_points_of_one_curve(tmp_path):
    finished_arm(tmp_path, "tiles/shots_1/seed0", "real", 60)
    finished_arm(tmp_path, "tiles/shots_1/seed0", "generated", 70)
    measured = runpy.run_path(str(REPOSITORY / "benchmarks/shots.py"))["measured"]
    assert len(measured(tmp_path, "tiles", ["shots_1"])) == 2
    finished_arm(tmp_path, "tiles/seas/seed0", "generated", 70, updates=1000)
    with pytest.raises(SystemExit, match=r"seas/seed0/.*/generated/all were trained with different settings"):
        measured(tmp_path, "tiles", ["shots_1", "seas"])


def test_a_vae_that_changes_nothing_keeps_all(monkeypatch, tiny_base, miniature, capsys):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    base_vae = importlib.import_module("base_vae")
    fitted, types = base_vae.photographs(miniature.root, "washer", 64)
    kept = base_vae.measured(lambda images: images, fitted, types)
    assert len(kept) == len(fitted) and "good" in types
    assert np.allclose(kept.whole, 10 * np.log10(255**2 / 1e-2)) and np.allclose(kept.kept.dropna(), 1)
    monkeypatch.setattr(base_vae, "CORPUS_IMAGES", 16)
    arguments = [str(tiny_base), "--data", str(miniature.root), "--products", "washer"]
    monkeypatch.setattr(sys, "argv", ["base_vae.py", *arguments])
    base_vae.main()
    assert re.search(r"VAE +washer +\d+\.\d+ +\d+\.\d+", capsys.readouterr().out)
    monkeypatch.setattr(base_vae, "FAINTEST", 1e9)
    base_vae.main()
    rows = re.findall(r"(?:washer)? +\w+ +0 +(\d+)(?: +NaN){4}", capsys.readouterr().out)
    assert sum(map(int, rows)) == sum(name != "good" for name in types), (
        "defects that are all too faint are still counted"
    )


def test_a_sample_is_a_function_of_its_caption_and_number(monkeypatch, tiny_base):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    base_samples = importlib.import_module("base_samples")
    monkeypatch.setattr(base_samples, "STEPS", 3)
    pipeline = load_pipeline(tiny_base)
    first, again, other = (
        base_samples.samples(pipeline, caption) for caption in (*["a bright grey nut"] * 2, "a disc")
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert len({sample.tobytes() for sample in first}) == len(first) == 4


def test_what_a_prompt_changes(monkeypatch, tiny_base, miniature, tmp_path):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    effect = importlib.import_module("prompt_effect").prompt_effect
    settings = GeneratorSettings(updates_per_type=2, unet_learning_rate=1e-2, attention_layers=(1, 2))
    cpu = ComputeSettings(device="cpu", precision="fp32", threads=1)
    run = (miniature.split, miniature.root, settings, miniature.data, cpu, 0)
    train_generator(tiny_base, *run, output=tmp_path / "generator")
    shots = read_table(miniature.split).query("role == 'shot' and type == 'dent'")
    found = effect(tmp_path / "generator", shots, miniature.root, miniature.data, 1, 400)
    assert all(value > 0 for value in found.values())
    assert found["attention_inside"] < 1 and found["error_normal_prompt"] != found["error_own_prompt"]


def test_attention_is_scored_on_held_out_defects(monkeypatch, miniature):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    attention, seen = importlib.import_module("attention"), []

    def masks(rows):
        return np.stack([load_fitted(miniature.root, row, 32, "auto").mask for row in rows.itertuples()])

    def perfect(folder, test, *rest):
        seen.append(test)
        return masks(test).astype(float)

    monkeypatch.setattr(attention, "attention_scores", perfect)
    obeyed = SimpleNamespace(
        data=miniature.data, compute=SimpleNamespace(device="cpu"), generator=SimpleNamespace(attention_layers=(1, 2))
    )
    flow = SimpleNamespace(
        settings=lambda *of: obeyed,
        datasets={"mine": SimpleNamespace(root=miniature.root)},
        split=lambda *of: str(miniature.split),
        folder=lambda *of: "unread",
    )
    row = attention.attention_aps(flow, "mine", ["seas"], 0, "washer")
    assert set(seen[0].role) == {"test"} and "good" not in set(seen[0].type)
    assert row["seas"] == pytest.approx(1) and row["chance"] == pytest.approx(masks(seen[0]).mean())
    assert row["chance"] < row["position_prior"] < 1


def test_a_type_is_looked_for_by_the_model_that_learned_it(monkeypatch, tiny_base, miniature, tmp_path):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    attention = importlib.import_module("attention")
    settings = GeneratorSettings(
        updates_per_type=2, unet_learning_rate=1e-2, attention_layers=(1, 2), mixed_training=False
    )
    cpu = ComputeSettings(device="cpu", precision="fp32", threads=1)
    train_generator(
        tiny_base, miniature.split, miniature.root, settings, miniature.data, cpu, 0, output=tmp_path / "apart"
    )
    split = read_table(miniature.split)
    test = split[(split.role == "test") & (split.type != "good")]
    looks = (miniature.root, miniature.data, (1, 2), torch.device("cpu"))
    together = attention.attention_scores(tmp_path / "apart", test, *looks)
    types = sorted(set(test.type))
    assert len(types) > 1
    for name in types:
        alone = attention.attention_scores(tmp_path / "apart" / name, test[test.type == name], *looks)
        assert np.array_equal(together[test.type == name], alone)


def test_ablations_are_paired_by_seed(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    program = runpy.run_path(str(REPOSITORY / "benchmarks/ablations.py"))
    scores = {
        ("seas", 0): 40.0,
        ("without", 0): 30.0,
        ("seas", 1): 44.0,
        ("without", 1): 45.5,
        ("seas", 2): 48.0,
        ("without", 2): 45.0,
    }
    rows = pd.DataFrame(
        [
            {"experiment": name, "seed": seed} | dict.fromkeys(program["DECIMALS"], value)
            for (name, seed), value in scores.items()
        ]
    )
    prior = pd.DataFrame([{"experiment": "position prior", "seed": seed, "attention AP": 50.0} for seed in range(3)])
    rows = pd.concat([rows, prior], ignore_index=True)
    means = {row[0]: row[1:] for row in program["means"](rows).rows}
    assert means["seas"][0] == "44.000 ± 4.000" and means["seas"][-1] == "44.0 ± 4.0"
    assert means["position prior"] == ["50.000 ± 0.000", *[""] * 6]
    differences = {row[0]: row[1:] for row in program["differences"](rows, "seas").rows}
    assert differences["without less seas"][-1] == "-10.0, +1.5, -3.0"
    assert differences["position prior less seas"] == ["+10.000, +6.000, +2.000", *[""] * 6]
