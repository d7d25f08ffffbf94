"""The report: one table of all results, its merge with the paper, metrics.json, figures and the page."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from seas.artifacts import MEASURED, Provenance, write_table, writing_folder
from seas.compare import by_seed, read_revision
from seas.errors import InputError
from seas.generator.pipeline import load_pipeline
from seas.generator.prompts import Prompts
from seas.images import outlined
from seas.report import parts, shots
from seas.report.attention import token_attention
from seas.report.cost import cost
from seas.report.figures import attention_overlay, loss_curves
from seas.report.parts import comparable_with_paper, limits, paper_table
from seas.report.published import settings_of_stages, thinned
from seas.report.runs import ReportedRun
from seas.report.settings import ReportSettings
from seas.report.tables import (
    TextTable,
    beside_paper,
    collect,
    markdown,
    means_over_products,
    metrics,
    over_seeds,
    paper_results,
    wide,
)
from seas.report.write import write_report
from seas.scores import RESULT_COLUMNS

SIZE = 64
TYPES = ("dent", "scratch")
ARMS = {"real": "real", "crop_and_paste": "crop_paste", "generated": "seas"}
PIXEL_AP = {"real": 60.0, "crop_and_paste": 50.0, "generated": 70.0}


def photograph(number: int, anomaly_type: str) -> tuple[np.ndarray, np.ndarray]:
    """A part with a defect, uint8 (S, S, 3), and its mask."""
    random = np.random.default_rng([number, len(anomaly_type)])
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    grey = 150 + 40 * x + random.normal(0, 6, (SIZE, SIZE)) - 70 * (np.hypot(x, y) > 0.42)
    across, down = random.uniform(-0.2, 0.2, 2)
    wide_defect, high_defect = (0.1, 0.1) if anomaly_type == "dent" else (0.2, 0.03)
    mask = ((x - across) / wide_defect) ** 2 + ((y - down) / high_defect) ** 2 < 1
    grey = np.where(mask & (anomaly_type != "good"), grey - 60, grey)
    image = np.clip(grey[..., None] * (1.0, 0.95, 0.85), 0, 255).astype(np.uint8)
    return image, mask if anomaly_type != "good" else np.zeros_like(mask)


def save_image(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array if array.dtype == np.uint8 else np.uint8(255 * array)).save(path)


def artifact(folder: Path, stage: str, settings: dict):
    return writing_folder(folder, Provenance(stage, 1, settings, 0, {"base": "0123456789abcdef"}))


def write_split(root: Path, product: str, path: Path) -> None:
    rows = []
    for type_index, name in enumerate(("good", *TYPES)):
        for number in range(4):
            shot = number < 2
            image = f"{product}/{'train' if shot and name == 'good' else 'test'}/{name}/{number:03d}.png"
            pixels, mask = photograph(number, name)
            save_image(pixels, root / image)
            role = "test" if not shot else "normal" if name == "good" else "shot"
            rows.append(
                dict(
                    product=product,
                    type=name,
                    folder=image.split("/")[1],
                    image=image,
                    mask="",
                    width=SIZE,
                    height=SIZE,
                )
                | dict(anomaly_pixels=int(mask.sum()), bytes=1, role=role, type_index=type_index)
            )
    write_table(pd.DataFrame(rows), path)


def write_generation(folder: Path) -> None:
    rows = []
    with artifact(folder, "generation", {"generation": {"threshold": 0.2}, "wanted": {"dent": [0, 2]}}) as partial:
        for name in TYPES:
            for index in range(3):
                image, mask = photograph(10 + index, name)
                mask &= index < 2
                row = dict(
                    type=name,
                    index=index,
                    image=f"test/{name}/{index:04d}.png",
                    source_normal="",
                    draws=1 + index,
                    width=SIZE,
                    height=SIZE,
                )
                row |= dict(mask=f"ground_truth/{name}/{index:04d}_mask.png", anomaly_pixels=int(mask.sum()))
                save_image(image, partial / row["image"])
                save_image(mask, partial / row["mask"])
                rows.append(row)
        rows.append(
            dict(
                type="good",
                index=0,
                image="",
                mask="",
                width=SIZE,
                height=SIZE,
                source_normal="",
                anomaly_pixels=0,
                draws=1,
            )
        )
        write_table(pd.DataFrame(rows), partial / "images.parquet")


def losses(*names: str) -> pd.DataFrame:
    steps = np.arange(10, 510, 10)
    noise = np.random.default_rng(0).lognormal(0, 0.2, (len(names), len(steps)))
    return pd.DataFrame({"step": steps} | {name: (1 + k) * 20 / steps * noise[k] for k, name in enumerate(names)})


def write_product(run: Path, root: Path, product: str) -> dict[str, str]:
    paths = {stage: run / stage / product for stage in ("generator", "rmp", "generation")}
    paths |= {name: run / name / f"{product}.parquet" for name in ("split", "metrics")}
    write_split(root, product, paths["split"])
    with artifact(paths["generator"], "generator", {"generator": {"attention_layers": [1, 2]}}) as partial:
        Prompts.of(product, TYPES, normal=1, anomaly=4, commas=True).save(partial)
        write_table(losses("loss", "da_first", "da_second", "df_mse", "ob_mse"), partial / "losses.parquet")
    with artifact(paths["rmp"], "rmp", {"rmp": {"learning_rate": 5e-4, "base": str(run / "some" / "base")}}) as partial:
        write_table(losses("loss", "df_64", "ob_64"), partial / "losses.parquet")
    write_generation(paths["generation"])
    common = dict(product=product, method="seas", model="", variant="", level="generation", trained_on="")
    values = {"is": 1.5, "kid": 0.05, "ic_lpips": 0.3}
    rows = [
        common | dict(metric=name, value=value, protocol="", extractor="efficientnet_lite0")
        for name, value in values.items()
    ]
    write_table(pd.DataFrame(rows), paths["metrics"])
    return {name: str(path) for name, path in paths.items()}


def write_arm(run: Path, products: list[str], arm: str, seed: int) -> dict[str, str]:
    folder = run / "downstream" / "bisenet_v2" / arm / "all"
    rows, curves = [], []
    for number, product in enumerate(products):
        ap = PIXEL_AP[arm] + 2 * seed + 10 * number
        scores = {
            ("pixel", "ap"): ap,
            ("pixel", "iou"): ap - 20,
            ("pixel", "iou_oracle"): ap - 10,
            ("image", "auroc"): 90.0,
        }
        rows += [
            dict(product=product, method=ARMS[arm], variant="", level=level, metric=metric, value=value)
            for (level, metric), value in scores.items()
        ]
        recall = np.linspace(0, 1, 50)
        for level in ("image", "pixel"):
            precision = 1 - recall ** (ap / 20)
            curves.append(pd.DataFrame(dict(product=product, level=level, precision=precision, recall=recall)))
    rows.append(dict(product="", method=ARMS[arm], variant="", level="pixel", metric="ap", value=-1.0))
    with artifact(
        folder,
        "downstream",
        {
            "downstream": {"updates": 100, "image_size": SIZE, "model": "bisenet_v2", "trained_on": arm},
            "compute": {"threads": 1},
        },
    ) as partial:
        write_table(pd.DataFrame(rows), partial / "scores.parquet")
        write_table(pd.concat(curves), partial / "curves.parquet")
        write_table(losses("loss", "head"), partial / "losses.parquet")
    return dict(model="bisenet_v2", trained_on=arm, scope="all", folder=str(folder))


def write_run(folder: Path, products: list[str], seed: int, dataset: str = "mvtec_ad") -> ReportedRun:
    run, root = folder / dataset / "seas" / f"seed{seed}", folder / "photographs"
    plain = dict(
        dataset=dataset,
        experiment="seas",
        seed=seed,
        root=str(root),
        image_size=SIZE,
        fit="auto",
        base="small",
        descriptions=["two products & more", "SeaS as proposed"],
        all_shots="seas",
        variant="",
    )
    plain["products"] = {product: write_product(run, root, product) for product in products}
    plain["downstream"] = [write_arm(run, products, arm, seed) for arm in ARMS]
    return ReportedRun.from_plain(plain)


def fake_attention(pipeline, prompts, anomaly_type, images, *, layers, timestep, seed) -> np.ndarray:
    """A blob for each of the four anomaly tokens and the normal token."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    maps = [np.exp(-((x - 0.15 * k - 0.2) ** 2 + (y - 0.5) ** 2) / 0.02) / (k + 2) for k in range(5)]
    return np.stack([maps] * len(images))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[ReportedRun]:
    MEASURED.clear()  # what other tests of this process trained is nothing that these runs did
    folder = tmp_path_factory.mktemp("results")
    return [write_run(folder, ["bottle", "carpet"], seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "load_pipeline", lambda folder: None)
        patch.setattr(parts, "token_attention", fake_attention)
        for name in ("first", "second"):
            write_report(runs, ReportSettings(examples_per_type=3), output=folder / name / "report")
    return folder


def one(table: pd.DataFrame, **wanted) -> pd.Series:
    for column, value in wanted.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_results_have_the_agreed_columns_and_the_run_names_them(runs):
    results = collect(runs)
    assert list(results.columns) == RESULT_COLUMNS
    row = one(results, product="carpet", trained_on="generated", metric="ap", seed=1)
    assert (row.value, row.dataset, row.experiment, row.model, row.method) == (
        82.0,
        "mvtec_ad",
        "seas",
        "bisenet_v2",
        "seas",
    )
    assert not results.duplicated([column for column in RESULT_COLUMNS if column != "value"]).any()


def test_mean_over_products_replaces_the_stations_own(runs):
    results = collect(runs)
    assert one(results, product="", trained_on="real", metric="ap", seed=0).value == (60 + 70) / 2
    assert one(results, product="", metric="is", seed=0).extractor == "efficientnet_lite0"


def test_mean_needs_every_product_and_names_mixed_protocols(runs):
    results = collect(runs)
    results = results[(results["product"] != "") & (results.seed == 0)]
    without = results[~((results["product"] == "carpet") & (results.metric == "kid"))]
    assert "kid" in set(means_over_products(results).metric)
    assert "kid" not in set(means_over_products(without).metric)
    mixed = results.assign(protocol=results["product"])
    assert set(means_over_products(mixed).protocol) == {"mixed"}
    untested = results[(results["product"] == "bottle") | (results.level == "generation")]
    without_score = results[(results["product"] == "carpet") & (results.level != "generation")].assign(value=np.nan)
    untested = pd.concat([untested, without_score])
    extra = untested[(untested["product"] == "bottle") & (untested.level != "generation")].assign(product="cable")
    means = means_over_products(pd.concat([untested, extra]))
    assert {"kid", "auroc"} <= set(means.metric), (
        "carpet has no abnormal test image: the models' means are over the others"
    )
    assert not means.value.isna().any()
    assert means_over_products(results[results["product"] == "carpet"]).empty


def test_a_mean_leaves_out_a_product_whose_value_is_no_number_and_says_so(runs):
    """KID of MVTec AD's toothbrush: all of its 60 normals train the generator, and none is left to compare with."""
    results = collect(runs)
    results = results[(results["product"] != "") & (results.seed == 0)]
    of_carpet = (results["product"] == "carpet") & (results.metric == "kid")
    missing = results.assign(value=results.value.mask(of_carpet))
    mean = one(means_over_products(missing), metric="kid")
    others = results[(results.metric == "kid") & (results["product"] != "carpet")]
    assert mean.value == pytest.approx(others.value.mean()) and mean.protocol.startswith("mean of 1 of 2 products")
    told = [line for line in limits(runs, means_over_products(missing)) if line.startswith("A mean over products")]
    assert len(told) == 1 and "KID of mvtec_ad (mean of 1 of 2 products)" in told[0]
    assert not [line for line in limits(runs, means_over_products(results)) if line.startswith("A mean over")]


def test_a_difference_that_is_no_number_is_shown_as_missing(runs):
    compared = comparable_with_paper(collect(runs)).iloc[:1]
    rows = [
        paper_table(compared.assign(paper=paper, difference=d)).rows[0][-2]
        for paper, d in ((0.04, np.nan), (0.2, 0.004), (80.0, -1.5))
    ]
    assert rows == ["–", "+0.004", "-1.50"]


def test_spread_over_seeds_is_the_sample_standard_deviation(runs):
    row = one(over_seeds(collect(runs)), product="bottle", trained_on="generated", metric="ap")
    assert (row.value, row.seeds) == (71.0, 2)
    assert row.spread == pytest.approx(2**0.5)
    assert np.isnan(one(over_seeds(collect(runs[:1])), product="bottle", trained_on="real", metric="ap").spread)


def test_a_result_given_twice_is_refused(runs):
    with pytest.raises(ValueError, match="mvtec_ad/-/real/bisenet_v2/-/image/auroc/seas/real/seed0|two results"):
        collect([runs[0], runs[0]])


def test_paper_numbers_are_unique_and_taken_from_the_first_table():
    paper = paper_results()
    row = one(paper, dataset="mvtec_ad", product="", method="seas", model="lfd", variant="", level="pixel", metric="ap")
    assert (row.paper, row.paper_table) == (77.15, 4)
    row = one(paper, dataset="mvtec_ad", product="", method="seas", model="bisenet_v2", variant="", metric="iou_oracle")
    assert (row.paper, row.paper_table) == (55.28, 4)
    assert "iou" not in set(paper.metric)


def test_comparison_with_the_paper_is_a_merge_on_its_columns(runs):
    compared = beside_paper(over_seeds(collect(runs)))
    row = one(compared, product="bottle", model="bisenet_v2", trained_on="generated", metric="ap", level="pixel")
    assert (row.value, row.paper, row.paper_table) == (71.0, 93.43, 22)
    assert row.difference == pytest.approx(71.0 - 93.43)
    assert set(compared.method) == {"seas"}
    assert "" not in set(compared["product"]), "a mean over two of fifteen products is not the paper's mean"


def test_an_ablation_is_compared_with_its_own_row(runs):
    ablation = [replace(run, experiment="tau_0.1", variant="tau_0.1") for run in runs]
    results = collect([*runs, *ablation])
    assert set(results[results.experiment == "tau_0.1"].variant) == {"tau_0.1"}
    assert set(results[results.experiment == "seas"].variant) == {""}
    products = sorted(set(paper_results().query("dataset == 'mvtec_ad'")["product"]) - {""})
    means = over_seeds(results[(results["product"] == "") & (results.trained_on == "generated")])
    every = [means, *(means.assign(product=product, variant="of a product") for product in products)]
    compared = beside_paper(pd.concat(every))
    row = one(compared, experiment="tau_0.1", level="pixel", metric="ap")
    assert (row.paper, row.paper_table) == (65.33, 18)
    assert one(compared, experiment="seas", level="pixel", metric="ap").paper == 69.21
    table = parts.paper_table(compared)
    named = [[line[table.headings.index(column)] for column in ("experiment", "variant")] for line in table.rows]
    assert ["tau_0.1", "tau_0.1"] in named and ["seas", parts.MISSING] in named


def test_a_mean_over_all_products_of_the_paper_is_compared():
    row = dict.fromkeys(RESULT_COLUMNS, "") | dict(
        dataset="mvtec_ad", method="seas", model="bisenet_v2", level="pixel", metric="ap"
    )
    paper = paper_results()
    products = set(paper[paper.dataset == "mvtec_ad"]["product"])
    results = pd.DataFrame([row | dict(product=product, value=50.0, seed=0) for product in products])
    compared = beside_paper(over_seeds(results))
    assert one(compared, product="").paper == 69.21
    assert len(compared) == 16
    of_some = results.assign(protocol=np.where(results["product"] == "", "mean of 14 of 15 products", ""))
    assert "" not in set(beside_paper(over_seeds(of_some))["product"])


def test_metrics_of_a_stand_in_extractor_stay_away_from_the_papers(runs):
    results = collect(runs)
    assert "is" in set(beside_paper(over_seeds(results)).metric)
    assert "is" not in set(parts.comparable_with_paper(results).metric)
    assert "is" in set(parts.comparable_with_paper(results.assign(extractor="inception_v3")).metric)


def test_metrics_json_names_are_flat_and_stable_and_its_values_exact(report):
    content = json.loads((report / "first" / "metrics.json").read_text())
    assert content["mvtec_ad/bottle/seas/bisenet_v2/-/pixel/ap/seas/generated/seed0"] == 70.0
    assert content["mvtec_ad/-/seas/bisenet_v2/-/pixel/ap/seas/generated/seed1"] == 77.0
    assert content["mvtec_ad/carpet/seas/-/-/generation/kid/seas/-/seed1"] == 0.05
    # products and their mean × seeds × (3 generation metrics + 3 arms of 4 metrics)
    assert len(content) == 3 * 2 * (3 + 3 * 4)
    assert list(content) == sorted(content)


def test_metrics_are_rounded_and_what_is_no_number_is_null(runs):
    results = collect(runs[:1]).head(2).assign(value=[1 / 3, np.nan])
    assert list(metrics(results).values()) == [0.333333, None]


def test_tables_as_text():
    rows = [
        dict.fromkeys([*RESULT_COLUMNS, "seeds"], "") | dict(level="pixel", metric="ap", product=p, value=v)
        for p, v in (("", 5.0), ("b", 12.345))
    ]
    table = wide(pd.DataFrame(rows).assign(spread=[np.nan, 0.5]), {"product": "product"})
    assert table == TextTable(["product", "pixel AP"], [["b", "12.35 ± 0.50"], ["mean", "5.000"]])
    assert markdown(TextTable(["a"], [["b|c"]])) == "| a |\n| --- |\n| b\\|c |\n"


def test_counts_of_shots_pairs_empty_masks_and_redraws(runs):
    table = parts.counts(runs[0])
    dent = next(row for row in table.rows if row[:2] == ["bottle", "dent"])
    assert dent[2:7] == ["2", "2", "3", "1", "2"]
    areas = sorted(int(photograph(number, "dent")[1].sum()) for number in (10, 11))
    assert dent[8] == f"{100 * areas[0] / SIZE**2:.2f} %"  # the median of an empty mask and two others
    assert next(row for row in table.rows if row[:2] == ["bottle", "good"])[2:5] == ["2", "2", "1"]


def test_worth_is_the_difference_of_the_arms_seed_by_seed(runs):
    scores = collect(runs)
    scores = scores[scores.level != "generation"]
    sentences = parts.worth(scores)
    assert (
        sentences[0]
        == "Generated pairs against real shots: +10.00 points of pixel AP, from 2 seeds (+10.00 to +10.00)."
    )
    assert sentences[1].startswith("Generated pairs against crop and paste: +20.00 points")
    assert parts.worth(scores[scores.seed == 0])[0].endswith("+10.00 points of pixel AP, from one seed.")


def test_the_outline_lies_around_the_mask_and_leaves_the_defect_visible():
    image, mask = np.full((8, 8, 3), 100, np.uint8), np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    drawn = outlined(image, mask)
    assert (drawn[2:6, 2:6] == 100).all()
    assert (drawn[1, 2:6] == (255, 40, 40)).all() and (drawn[0, 2:6] == (255, 40, 40)).all()
    assert (drawn[0, 0] == 100).all()


def test_attention_is_stretched_over_its_own_range():
    image = np.full((4, 4, 3), 128, np.uint8)
    flat = attention_overlay(image, np.full((4, 4), 0.01))
    assert (flat == flat[0, 0]).all()
    ramp = np.linspace(0.01, 0.02, 16).reshape(4, 4)
    assert (attention_overlay(image, ramp) == attention_overlay(image, 10 * ramp)).all()


def test_page_needs_no_network_and_embeds_every_figure(report):
    page = (report / "first" / "report" / "index.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)", page)
    assert "http:" not in page and "https:" not in page and "url(" not in page
    embedded = [base64.b64decode(content) for content in re.findall(r"data:image/(?:png|jpeg);base64,([^\"]+)", page)]
    figures = sorted((report / "first" / "report" / "figures").rglob("*.png"))
    assert [figure.stem for figure in figures] == [
        *("arms_bisenet_v2", "curves_bisenet_v2_bottle", "curves_bisenet_v2_carpet"),
        *("losses_bisenet_v2_all", "losses_bottle", "losses_carpet", "pairs_bottle", "pairs_carpet"),
    ]
    sizes = [Image.open(io.BytesIO(content)).size for content in embedded]
    assert sorted(sizes) == sorted(Image.open(figure).size for figure in figures)


def test_page_says_what_the_dataset_and_the_experiment_are(report):
    page = (report / "first" / "report" / "index.html").read_text()
    title = '<h2 id="mvtec_ad-seas">mvtec_ad: seas</h2>'
    assert f"{title}\n<p>two products &amp; more</p>\n<p>SeaS as proposed</p>\n" in page


def test_page_says_what_the_numbers_are(report, runs):
    page = (report / "first" / "report" / "index.html").read_text()
    assert "computed with efficientnet_lite0 instead of the paper&#39;s networks" in page
    assert "71.00 ± 1.41" in page
    assert "93.43" in page
    for path in (runs[0].root, report):
        assert str(path) not in page, "an absolute path stands in the page"
    for file in (report / "first" / "report").rglob("*.*"):
        if file.suffix in (".md", ".html") or file.name == "manifest.json":
            assert str(runs[0].root.parent) not in file.read_text()


def test_cost_is_computed_from_what_the_runs_recorded(runs, report):
    def facts(folder, peak, **measured):
        file = folder / "run.json"
        known = json.loads(file.read_text())
        known |= {"measured": measured, "device": "card", "peak_device_memory_mib": peak}
        return file, json.dumps(known)

    run = runs[0]
    kept = {}
    for results in run.products.values():
        for folder, trained, measured in (
            (results.generator, True, {"updates": 100, "update_seconds": 50.0}),
            (results.rmp, True, {"updates": 10, "update_seconds": 10.0}),
            (results.generation, False, {"pairs": 4, "pair_seconds": 2.0}),
        ):
            file, text = facts(folder, 20_000 if folder == results.rmp else 10_000, **measured)
            kept[file] = file.read_bytes()
            file.write_text(text)
            if trained:
                losses = folder / "losses.parquet"
                kept[losses] = losses.read_bytes()
                write_table(pd.DataFrame({"step": [10, 3600], "loss": [1.0, 1.0]}), losses)
    table = cost([run]).table
    for file, content in kept.items():
        file.write_bytes(content)
    # two products: 2 · 3,600 updates of 0.5 s and of 1 s; half a second an image
    expected = ["mvtec_ad", "seas", "0", "1", "2", "3", "500", "21", "card"]
    assert table.rows[0] == expected
    assert table.rows[-1][5:7] == ["73", "720"]
    assert cost([run]).table.rows[0][3:7] == ["–"] * 4, "nothing was timed"
    assert "Cost" in (report / "first/report/index.html").read_text()


def test_the_same_results_give_the_same_report(report):
    files = sorted(file.relative_to(report / "first") for file in (report / "first").rglob("*") if file.is_file())
    assert files == sorted(
        file.relative_to(report / "second") for file in (report / "second").rglob("*") if file.is_file()
    )
    for file in files:
        if file.name != "run.json":
            assert (report / "first" / file).read_bytes() == (report / "second" / file).read_bytes(), file


def test_pairs_that_two_experiments_share_are_shown_once(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "load_pipeline", lambda folder: None)
    monkeypatch.setattr(parts, "token_attention", fake_attention)
    plain = vars(runs[0]) | {"experiment": "other", "downstream": []}
    write_report([runs[0], ReportedRun(**plain)], ReportSettings(), output=tmp_path / "report")
    assert len(list((tmp_path / "report").rglob("pairs_*.png"))) == 2
    assert "The pairs of bottle are those of mvtec_ad: seas." in (tmp_path / "report" / "index.html").read_text()


def test_what_git_keeps_of_the_results(report, runs):
    kept = report / "first"
    settings = json.loads((kept / "settings.json").read_text())["mvtec_ad"]["seas"]
    obeyed = {"updates": 100, "image_size": SIZE, "scope": "unified"}
    assert settings["downstream"] == {"compute": {"threads": 1}, "downstream": obeyed, "stage_version": 1}
    assert settings["generation"] == {"generation": {"threshold": 0.2}, "stage_version": 1}
    names = sorted(str(path.relative_to(kept / "plots")) for path in (kept / "plots").rglob("*.csv"))
    run = "mvtec_ad/seas/seed1"
    assert f"losses/{run}/generator/carpet.csv" in names
    assert f"precision_recall/{run}/downstream/bisenet_v2/real/all/bottle_pixel.csv" in names
    # two seeds: two trainers of two products and three arms; three arms, two products, two levels
    assert len(names) == 2 * (2 * 2 + 3) + 2 * 3 * 2 * 2
    drawn = pd.read_csv(kept / "plots" / f"losses/{run}/generator/carpet.csv")
    stored = pd.read_parquet(runs[1].products["carpet"].generator / "losses.parquet")
    pd.testing.assert_frame_equal(drawn, stored, rtol=1e-5)


def test_a_long_curve_is_drawn_from_means():
    curve = pd.DataFrame({"step": np.arange(1, 1001), "loss": np.arange(1000) % 5})
    drawn = thinned(curve)
    assert len(drawn) == 200 and (drawn.loss == 2).all()
    assert list(drawn.step[:2]) == [3, 8]
    pd.testing.assert_frame_equal(thinned(curve.head(200)), curve.head(200))


def scores_by_shots() -> pd.DataFrame:
    """Pixel AP of one model: two numbers of shots, two seeds, two arms."""
    values = {
        (1, 0): {"real": 10.0, "real+generated": 14.0},
        (1, 1): {"real": 20.0, "real+generated": 18.0},
        (8, 0): {"real": 30.0, "real+generated": 33.0},
        (8, 1): {"real": 34.0, "real+generated": 35.0},
    }
    rows = [
        dict(
            product="", model="bisenet_v2", level="pixel", metric="ap", shots=number, seed=seed, trained_on=arm, value=v
        )
        for (number, seed), arms in values.items()
        for arm, v in arms.items()
    ]
    return pd.DataFrame(rows)


def test_the_arms_against_the_number_of_shots():
    assert shots.arms_by_shots(scores_by_shots()) == TextTable(
        ["shots of each type", "real shots", "real shots + generated pairs"],
        [["1", "15.00 ± 7.07", "16.00 ± 2.83"], ["8", "32.00 ± 2.83", "34.00 ± 1.41"]],
    )


def test_gains_are_paired_by_seed():
    assert shots.gains(scores_by_shots()) == [
        "real shots + generated pairs less real shots, paired by seed, mean (range): "
        "+1.00 (-2.00 to +4.00) with 1; +2.00 (+1.00 to +3.00) with 8 shots."
    ]


def test_gains_over_crop_and_paste():
    arms = {"real": "crop_and_paste", "real+generated": "generated"}
    scores = scores_by_shots().assign(trained_on=lambda rows: rows.trained_on.map(arms))
    assert shots.gains(scores) == [
        "generated pairs less crop and paste, paired by seed, mean (range): "
        "+1.00 (-2.00 to +4.00) with 1; +2.00 (+1.00 to +3.00) with 8 shots."
    ]


def test_one_trainer_alone_has_its_losses_drawn(tmp_path):
    loss_curves({"generated pairs": pd.DataFrame({"step": [0, 1], "loss": [2.0, 1.0]})}, tmp_path / "one.png")
    assert (tmp_path / "one.png").is_file()


def test_experiments_that_differ_in_the_shots_alone_share_a_part(runs, tmp_path):
    fewer = write_run(tmp_path / "fewer", ["bottle", "carpet"], 0)
    for product in fewer.products.values():
        split = pd.read_parquet(product.split)
        first = split[split.role == "shot"].groupby("type").head(1).index
        split.loc[(split.role == "shot") & ~split.index.isin(first), "role"] = "left_out"
        write_table(split, product.split)
    fewer = ReportedRun(**vars(fewer) | {"experiment": "shots_1"})
    assert (shots.shots_a_type(fewer), shots.shots_a_type(runs[0])) == (1, 2)
    both = [*runs, fewer]
    (part,) = shots.shots_parts(both, collect(both), tmp_path)
    assert part.title == "mvtec_ad: how many photographed defects do generated pairs save?"
    assert [row[0] for row in part.blocks[0].table.rows] == ["1", "2"]
    assert part.blocks[0].table.rows[0][1] == "65.00", "the mean over both products"
    assert part.blocks[0].pictures[0].path.is_file()
    alias = ReportedRun(**vars(fewer) | {"experiment": "h_1"})
    (same,) = shots.shots_parts([*both, alias], collect([*both, alias]), tmp_path)
    assert same.blocks[0].table == part.blocks[0].table, "the same results under a second name are no further seeds"
    assert not list(shots.shots_parts(runs, collect(runs), tmp_path))


def test_arms_that_see_enlarged_images_are_named(runs):
    results = collect(runs)
    assert not [sentence for sentence in parts.limits(runs, results) if "enlarged" in sentence]
    smaller = [replace(run, image_size=SIZE // 2) for run in runs]
    assert [f"have {SIZE // 2} px and are enlarged to {SIZE}" in s for s in parts.limits(smaller, results)].count(
        True
    ) == 1


def test_a_model_for_each_product_is_named_where_the_paper_has_one_for_all(runs):
    def sentences(**changes):
        return [text for text in parts.limits([replace(runs[0], **changes)], collect(runs)) if "of its own" in text]

    apart = [replace(arm, scope="bottle") for arm in runs[0].downstream]
    assert not sentences() and not sentences(downstream=apart, variant="multiple_models")
    assert not sentences(downstream=apart, dataset="mine")
    assert sentences(downstream=apart) == [
        "Each product has a segmentation model of its own in mvtec_ad: seas, the paper has one of all products: "
        "these scores and its do not compare."
    ]
    told = settings_of_stages([replace(runs[0], downstream=apart)])["mvtec_ad"]["seas"]["downstream"]["downstream"]
    assert told["scope"] == "per_product"
    assert "one a product" in parts.overview([replace(runs[0], downstream=apart)]).rows[0][5]


def test_an_image_is_shown_the_same_attention_alone_and_among_others(generator, miniature):
    pipeline, prompts = load_pipeline(generator), Prompts.load(generator)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    looks = {"layers": (1, 2), "timestep": 300, "seed": 0}
    all_maps = token_attention(pipeline, prompts, "rust", images, **looks)
    tokens = len(prompts.anomaly_tokens["rust"]) + len(prompts.normal_tokens)
    assert all_maps.shape == (3, tokens, 32, 32) and all_maps.min() >= 0 and (all_maps.sum(1) <= 1 + 1e-5).all()
    alone = token_attention(pipeline, prompts, "rust", images[:1], **looks)
    assert alone == pytest.approx(all_maps[:1], abs=1e-6)
    assert np.abs(all_maps[1] - all_maps[2]).max() > 1e-6


def test_words_that_stand_for_tokens_head_a_column_for_each_of_their_pieces():
    class Pieces:
        def __call__(self, word, add_special_tokens):
            return SimpleNamespace(input_ids=[ord(word[0]), ord(word[1])])

        def convert_ids_to_tokens(self, ids):
            return [chr(number) + "</w>" * (chr(number) == "e") for number in ids]

    prompts = Prompts.typical("he", ["dent"], anomaly_word="de")
    assert parts.tokens_shown(prompts, SimpleNamespace(tokenizer=Pieces())) == ["d", "e", "h", "e"]


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe{}", b"{"])
def test_a_damaged_file_of_results_is_named(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/metrics.json").write_bytes(content)
    with pytest.raises(InputError, match=r"results/metrics\.json is damaged"):
        read_revision(None, "metrics.json")


def test_a_name_that_is_no_results_is_named_with_its_revision():
    with pytest.raises(InputError, match=r"'mine/seas' in metrics\.json of v1 is no name of a result"):
        by_seed({"mine/seas": 1.0}, "v1")
