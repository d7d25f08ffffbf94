"""The files of config/experiments/: what each computes otherwise than its parent, not what it is called."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from seas.artifacts import read_table
from seas.config import (
    EXPERIMENTS,
    STAGE_SECTIONS,
    DatasetFile,
    Settings,
    experiment_settings,
    lineage,
    read_experiment,
)
from seas.data.split import split_samples
from seas.generation import diffusion
from seas.generation.sampler import PairSampler
from seas.generation.settings import GenerationSettings
from seas.generator.attention import cross_attention_of
from seas.generator.batches import TrainingBatches
from seas.generator.embeddings import NewRows
from seas.generator.encoded import encode_images, load_encoded
from seas.generator.pipeline import load_pipeline
from seas.generator.prompts import Prompts, models_of
from seas.generator.train import GeneratorTrainer, prompts_of, train_generator
from seas.images import shrink_mask
from seas.plan import planned
from seas.report.tables import paper_variants
from seas.rmp.features import UnetFeatures
from seas.rmp.train import RmpTrainer, load_rmp, train_rmp
from seas.settings import ComputeSettings
from seas.workflow import Workflow

CPU = ComputeSettings(device="cpu", precision="fp32", threads=1)
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
ALIASES = [name for name in NAMES if read_experiment(name).description.startswith("SeaS as proposed, under the name")]


class Bench:
    """The trainers and samplers that an experiment's settings make, on a tiny base and a tiny product."""

    def __init__(self, base, miniature, generator, rmp) -> None:
        self.base, self.miniature, self.generator, self.rmp = base, miniature, generator, rmp
        self.split = read_table(miniature.split)
        pipeline = load_pipeline(base)
        self.words = len(pipeline.tokenizer)
        self.images = encode_images(self.split, miniature.root, miniature.data, pipeline.vae)

    def generator_trainer(self, name: str, **changes) -> GeneratorTrainer:
        settings = experiment_settings(name).generator.model_copy(update={"updates_per_type": 2, **changes})
        pipeline, prompts = load_pipeline(self.base), prompts_of(self.split, settings)
        return GeneratorTrainer(pipeline, prompts, self.images, settings, CPU, 0)

    def generator_losses(self, name: str, draw: int = 0, **changes) -> dict[str, float]:
        losses = self.generator_trainer(name, **changes).losses(draw)
        return {term: float(value.detach()) for term, value in losses.items()}

    def rmp_trainer(self, name: str) -> RmpTrainer:
        pipeline, prompts = load_pipeline(self.generator), Prompts.load(self.generator)
        settings = experiment_settings(name).rmp.model_copy(update={"updates_per_type": 1})
        return RmpTrainer(pipeline, prompts, self.images, settings, CPU, 0)

    def sampler(self, name: str) -> PairSampler:
        pipeline = load_pipeline(self.generator)
        settings = experiment_settings(name).generation.model_copy(update={"steps": 3, "batch_size": 1})
        network, start = load_rmp(self.rmp, pipeline), load_encoded(self.generator).start_normals()
        return PairSampler(pipeline, network, Prompts.load(self.generator), start, settings, CPU, 0)


@pytest.fixture(scope="module")
def bench(tiny_base, miniature, generator, rmp) -> Bench:
    return Bench(tiny_base, miniature, generator, rmp)


def maps_and_mask(trainer: GeneratorTrainer) -> tuple[dict, dict, dict]:
    """After the first batch: level → the mean maps of the anomaly and of the normal tokens, and the mask, (2, h, w)."""
    trainer.losses(0)
    batch = trainer.batches.batch(0)
    maps = trainer.maps.read(*batch.latents.shape[2:])
    found: tuple[dict, dict, dict] = ({}, {}, {})
    for level, of_level in maps.items():
        for image, name in enumerate(batch.types[:2]):
            for kind, positions in ((0, trainer.anomaly_positions), (1, trainer.normal_positions)):
                mean = of_level[image, :, :, positions[name]].mean(-1).detach().numpy()
                found[kind].setdefault(level, []).append(mean)
        found[2][level] = shrink_mask(batch.mask[:2], of_level.shape[1:3])[:, 0].numpy()
    return found


def min_maxed(maps):
    return [(m - m.min()) / (m.max() - m.min()) for m in maps]


def tokens_of_a_prompt(normal: int, anomaly: int) -> Callable:
    def check(bench: Bench, name: str) -> None:
        trainer = bench.generator_trainer(name)
        for anomaly_type in trainer.prompts.types:
            ids = trainer.input_ids[trainer.prompts.abnormal(anomaly_type)].tolist()
            assert len({number for number in ids if number >= bench.words}) == normal + anomaly
            assert trainer.anomaly_positions[anomaly_type].shape == (anomaly,)
        ids = trainer.input_ids[trainer.prompts.normal()].tolist()
        assert len({number for number in ids if number >= bench.words}) == normal
        assert len(trainer.embeddings.rows) == normal + anomaly * len(trainer.prompts.types)

    return check


def typical_prompt(bench: Bench, name: str) -> None:
    trainer = bench.generator_trainer(name)
    tokenizer, product = trainer.pipeline.tokenizer, bench.miniature.product
    texts = {trainer.prompts.abnormal(anomaly_type) for anomaly_type in trainer.prompts.types}
    assert texts == {f"a photo of a {product} with defect"} and trainer.prompts.normal() == f"a photo of a {product}"
    (text,) = texts
    ids = trainer.input_ids[text]
    assert int(ids.max()) < bench.words and len(tokenizer) == bench.words
    for positions, word in ((trainer.anomaly_positions, "defect"), (trainer.normal_positions, product)):
        assert tokenizer.decode(ids[positions[trainer.prompts.types[0]]]).strip() == word
    embeddings = trainer.embeddings
    assert isinstance(embeddings, NewRows) and embeddings.rows.shape[0] == 0
    before = embeddings.table.weight.clone(), next(trainer.pipeline.unet.parameters()).detach().clone()
    trainer.update(0)
    assert torch.equal(embeddings.table.weight, before[0])
    assert not torch.equal(next(trainer.pipeline.unet.parameters()), before[1])


def apart(bench: Bench, name: str, tmp_path) -> None:
    """A generator and a mask branch for each type, trained on its images alone; one tree of pairs; resumed in between."""
    settings, data = experiment_settings(name), bench.miniature.data
    common = (bench.miniature.split, bench.miniature.root)
    generator_settings = settings.generator.model_copy(update={"updates_per_type": 1})
    generator, rmp = tmp_path / "generator/washer", tmp_path / "rmp/washer"
    seen: dict[str, set[str]] = {}

    class Noting(TrainingBatches):
        def batch(self, *steps):
            batch = super().batch(*steps)
            seen.setdefault(" ".join(self._prompts.types), set()).update(batch.types)
            if len(seen) == 2 and not resumed:
                raise KeyboardInterrupt
            return batch

    resumed = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seas.generator.train.TrainingBatches", Noting)
        with pytest.raises(KeyboardInterrupt):
            train_generator(bench.base, *common, generator_settings, data, CPU, 0, output=generator)
        resumed, first = True, next(iter(seen))
        seen.clear()
        train_generator(bench.base, *common, generator_settings, data, CPU, 0, output=generator)
    models = models_of(generator)
    types = [model.name for model in models]
    assert types == sorted(set(bench.split.type) - {"good"}) and len(types) == 3
    assert set(seen) == set(types) - {first}, "what was finished was trained again"
    assert all(found == {only, "good"} for only, found in seen.items())
    assert [Prompts.load(model).types for model in models] == [[anomaly_type] for anomaly_type in types]
    weights = [next(load_pipeline(model).unet.parameters()) for model in models]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    train_rmp(generator, settings.rmp.model_copy(update={"updates_per_type": 1}), CPU, 0, output=rmp)
    assert sorted(path.name for path in rmp.iterdir() if path.is_dir()) == types
    few = GenerationSettings(pairs_per_type=1, normals=3, steps=3, batch_size=1, redraws=0)
    shares: list[tuple[list[str], str, list[int]]] = []

    def noted(sampler, anomaly_type, indices, *others):
        shares.append((sampler.prompts.types, anomaly_type, list(indices)))
        make(sampler, anomaly_type, indices, *others)

    make = diffusion._make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion, "_make", noted)
        diffusion.generate_product(generator, rmp, few, CPU, 0, output=tmp_path / "generation/washer")
    expected = [([only], name, [k if name == "good" else 0]) for k, only in enumerate(types) for name in (only, "good")]
    assert shares == expected, "each model makes the pairs of its type and its share of the normals"
    images = read_table(tmp_path / "generation/washer/images.parquet")
    assert images.type.value_counts().to_dict() == dict.fromkeys(types, 1) | {"good": 3}
    assert list(images[images.type == "good"]["index"]) == [0, 1, 2]


def loss_of(*terms: str) -> Callable:
    def check(bench: Bench, name: str) -> None:
        losses, plain = bench.generator_losses(name), bench.generator_losses("seas")
        assert losses["loss"] == pytest.approx(sum(plain[term] for term in terms), rel=1e-5)
        assert losses["loss"] != pytest.approx(plain["loss"], rel=1e-4)

    return check


def another_term(bench: Bench, name: str) -> None:
    def squares(maps, rest):
        return ((maps - rest) ** 2).mean()

    def shares(maps, rest):
        """The divergence of the shares of the attention from those of all but the mask."""
        taken, wanted = (part / part.sum((1, 2), keepdims=True) for part in (maps, rest))
        inside = wanted > 0
        return (wanted[inside] * np.log(wanted[inside] / taken[inside])).sum() / len(maps)

    assert experiment_settings(name).generator.map_normalisation == "share"
    for changes, distance in (({}, shares), ({"map_normalisation": "none"}, squares)):
        trainer = bench.generator_trainer(name, **changes)
        _, normal, mask = maps_and_mask(trainer)
        losses = {term: float(value.detach()) for term, value in trainer.losses(0).items()}
        expected = sum(distance(np.stack(normal[level]), 1 - mask[level]) for level in normal)
        assert losses["complement"] == pytest.approx(expected, rel=1e-4)
        assert losses["da_second"] == 0
        parts = ("da_first", "df_mse", "ob_mse", "complement")
        assert losses["loss"] == pytest.approx(sum(losses[term] for term in parts), rel=1e-5)
    assert bench.generator_losses(name, normal_weight=0.0)["loss"] == pytest.approx(
        sum(bench.generator_losses(name)[term] for term in ("da_first", "df_mse")), rel=1e-5
    )


def schedule(first: str, second: str) -> Callable:
    def check(bench: Bench, name: str) -> None:
        trainer = bench.generator_trainer(name)
        given: list[tuple[int, set[bool]]] = []
        hook = trainer.pipeline.unet.register_forward_pre_hook(lambda module, args: given.append(len(args[0])))
        ended = {"abnormal": {"ob_mse"}, "normal": {"df_mse", "da_first", "da_second"}}
        for draw, kind in ((0, first), (2, first), (3, second), (5, second)):
            losses = trainer.losses(draw)
            assert given.pop() == 2, "images through the U-Net"
            assert not {*losses} & ended[kind]
            assert float(losses["df_mse" if kind == "abnormal" else "ob_mse"].detach()) > 0
            losses["loss"].backward()
        assert all(torch.isfinite(p.grad).all() for p in trainer.pipeline.unet.parameters() if p.grad is not None)
        hook.remove()

    return check


def layers(*levels: int) -> Callable:
    def check(bench: Bench, name: str) -> None:
        trainer = bench.generator_trainer(name)
        trainer.losses(0)
        maps = trainer.maps.read(8, 8)
        assert {level: m.shape[1] for level, m in maps.items()} == {k: 2 ** (4 - k) for k in levels}
        recorders = {attn for level in levels for attn in cross_attention_of(trainer.pipeline.unet, level)}
        kinds = {type(a.processor).__name__ for a in recorders}
        others = {
            type(module.processor).__name__
            for module in trainer.pipeline.unet.modules()
            if hasattr(module, "processor") and module not in recorders
        }
        assert kinds == {"_RecordingProcessor"} and "_RecordingProcessor" not in others
        alone = [bench.generator_losses("seas", attention_layers=(level,))["da_first"] for level in levels]
        assert bench.generator_losses(name)["da_first"] == pytest.approx(sum(alone), rel=1e-4)

    return check


def normalised(formula: Callable) -> Callable:
    def check(bench: Bench, name: str) -> None:
        trainer = bench.generator_trainer(name)
        anomaly, _, mask = maps_and_mask(trainer)
        expected = sum(((np.stack(formula(anomaly[level])) - mask[level]) ** 2).mean() for level in anomaly)
        assert float(trainer.losses(0)["da_first"].detach()) == pytest.approx(expected, rel=1e-4)

    return check


def mass(bench: Bench, name: str) -> None:
    trainer = bench.generator_trainer(name)
    anomaly, _, mask = maps_and_mask(trainer)
    expected = 0.0
    for level, maps in anomaly.items():
        taken, wanted = trainer.settings.anomaly_tokens * np.stack(maps), mask[level]
        inside, outside = wanted * -np.log(taken), (1 - wanted) * -np.log(1 - taken)
        for k in range(len(wanted)):
            means = [part[k].sum() / max(w.sum(), 1e-6) for part, w in ((inside, wanted[k]), (outside, 1 - wanted[k]))]
            expected += sum(means) / len(wanted)
    assert float(trainer.losses(0)["da_first"].detach()) == pytest.approx(expected, rel=1e-4)


def shots(number: int) -> Callable:
    def check(bench: Bench, name: str) -> None:
        rows = [(folder, kind) for folder, kind, n in (("test", "a", 30), ("train", "good", 4)) for _ in range(n)]
        table = pd.DataFrame(rows, columns=["folder", "type"])
        table = table.assign(image=[f"{k:03d}.png" for k in range(len(table))], product="p")
        few, third = (split_samples(table, experiment_settings(e).data, 0, {}) for e in (name, "seas"))
        assert (few.role == "shot").sum() == number and (third.role == "shot").sum() == 10
        assert set(few[few.role == "test"].image) == set(third[third.role == "test"].image)

    return check


def run_rmp(bench: Bench, name: str) -> tuple[dict, dict, RmpTrainer]:
    """One batch: its losses, the shapes of what the branch was given, and the names of the modules that ran."""
    trainer = bench.rmp_trainer(name)
    given: dict = {"modules": set()}
    parts = {**dict(trainer.network.named_modules()), "encoder": trainer.pipeline.vae.encoder.conv_in}
    for part, module in parts.items():
        module.register_forward_hook(lambda module, args, out, part=part: given["modules"].add(part))
    coarse, refine = trainer.network.coarse, trainer.network.refine

    def sees_coarse(unet_features):
        given["unet"] = [tuple(feature.shape[1:]) for feature in unet_features]
        given["feature"], given["coarse"] = coarse(unet_features)
        return given["feature"], given["coarse"]

    def sees_vae(feature, logits, vae_features):
        given["vae"] = [tuple(feature.shape[1:]) for feature in vae_features]
        given["refined"] = refine(feature, logits, vae_features)
        return given["refined"]

    trainer.network.coarse, trainer.network.refine = sees_coarse, sees_vae
    losses = {term: float(value.detach()) for term, value in trainer.losses(0).items()}
    return losses, given, trainer


FOUR = {"coarse_abnormal", "refined_abnormal", "coarse_normal", "refined_normal"}


def mrms(count: int, terms: set[str], branches: set[str] = frozenset({"conv", "block1", "block2"})) -> Callable:
    def check(bench: Bench, name: str) -> None:
        losses, given, trainer = run_rmp(bench, name)
        assert set(losses) == {"loss", *terms}
        assert losses["loss"] == pytest.approx(sum(losses[term] for term in terms), rel=1e-5)
        ran = {part for part in given["modules"] if part.startswith("mrms.")}
        for number in range(count):
            parts = {part.split(".")[2] for part in ran if part.startswith(f"mrms.{number}.")}
            assert parts == {*branches, "vae_conv", "closing_conv"}
        assert len({part.split(".")[1] for part in ran}) == count == len(given["vae"])
        if count == 1:
            assert given["vae"][0][1:] == (32, 32), "the largest feature"
        if count == 0:
            enlarged = torch.nn.functional.interpolate(given["coarse"][:2], (32, 32), mode="bilinear")
            assert torch.allclose(given["refined"], enlarged)

    return check


def unet_features(*blocks: int) -> Callable:
    def check(bench: Bench, name: str) -> None:
        _, given, trainer = run_rmp(bench, name)
        unet = trainer.pipeline.unet
        recorder = UnetFeatures(unet, (1, 2, 3, 4))
        with torch.no_grad():
            unet(torch.zeros(1, unet.config.in_channels, 8, 8), 5, torch.zeros(1, 7, unet.config.cross_attention_dim))
        shapes = [tuple(feature.shape[1:]) for feature in recorder.read()]
        recorder.remove()
        assert given["unet"] == [shapes[block - 1] for block in blocks]
        assert [projection.in_channels for projection in trainer.network.projections] == [s[0] for s in given["unet"]]

    return check


def encoder(bench: Bench, name: str) -> None:
    _, given, trainer = run_rmp(bench, name)
    _, plain, _ = run_rmp(bench, "seas")
    assert "encoder" in given["modules"] and "encoder" not in plain["modules"]
    channels = trainer.pipeline.vae.config.block_out_channels
    assert given["vae"] == [(channels[1], 16, 16), (channels[0], 32, 32)]
    assert plain["vae"] == [(channels[2], 16, 16), (channels[1], 32, 32)]


def threshold(value: float) -> Callable:
    def check(bench: Bench, name: str) -> None:
        sampler = bench.sampler(name)
        probability = torch.linspace(0, 1, 32 * 32).reshape(1, 32, 32)
        sampler._mask = lambda *arguments: probability
        anomaly_type = sampler.prompts.types[0]
        assert sampler.make(anomaly_type, [(0, 0)])[0].mask.sum() == int((probability > value).sum())

    return check


def per_product(bench: Bench, name: str) -> None:
    flow = flow_of(bench, name)
    folders = {arm["folder"].rpartition("/")[2] for arm in flow.reported_run("mine", name, 0)["downstream"]}
    plain = {arm["folder"].rpartition("/")[2] for arm in flow.reported_run("mine", "seas", 0)["downstream"]}
    assert folders == set(flow.products("mine")) and len(folders) == 2 and plain == {"all"}
    made = flow.reported_run("mine", name, 0)["products"]
    jobs = {job.subject: job for job in planned(flow).values() if job.stage == "downstream"}
    for product in folders:
        split, tree = Path(made[product]["split"]), Path(made[product]["generation"])
        assert split.stem == tree.name == product
        assert jobs[f"bisenet_v2/real/{product}"].after == (split,)
        assert jobs[f"bisenet_v2/generated/{product}"].after == (split, tree)


def other_base(bench: Bench, name: str) -> None:
    flow = flow_of(bench, name)
    assert flow.base("mine", name) == "results/base/three_minutes" != flow.base("mine", "seas")


def released(bench: Bench, name: str) -> None:
    """Each option's computation is tested by value in its station; here, that the trainers obey them together."""
    settings = experiment_settings(name)
    trainer = bench.generator_trainer(name)
    text = trainer.prompts.abnormal(trainer.prompts.types[0])
    assert "," not in text and trainer.embeddings.table.weight.requires_grad
    draws: list[int] = []
    losses = trainer.losses
    trainer.losses = lambda draw: draws.append(draw) or losses(draw)
    before = trainer.embeddings.table.weight.detach().clone()
    trainer.update(3)
    assert draws == [6, 7] and not torch.equal(before, trainer.embeddings.table.weight)
    attention = cross_attention_of(trainer.pipeline.unet, 2)[0].processor
    assert torch.allclose(attention.maps.sum(1), torch.ones(()), atol=1e-4), "softmax over the pixels"
    anomaly, _, mask = maps_and_mask(trainer)
    expected = 0.0
    for level, maps in anomaly.items():
        both = np.stack(maps)
        expected += (((both - both.min()) / (both.max() - both.min()) - mask[level]) ** 2).mean()
    assert float(trainer.losses(0)["da_first"].detach()) == pytest.approx(expected, rel=1e-4)
    _, given, branch = run_rmp(bench, name)
    assert not any(isinstance(mrm.closing_conv, torch.nn.Conv2d) for mrm in branch.network.mrms)
    assert branch.settings.gradient_accumulation == 2
    sampler = bench.sampler(name)
    assert sampler.first == 999 == sampler.timesteps[0]
    assert settings.data.fit == "crop" and settings.downstream.trained_on[-1] == "real+generated"


CHECKS: dict[str, Callable] = {
    "released_code": released,
    "with_typical_prompt": typical_prompt,
    "without_na_loss": loss_of("da_first", "da_second", "df_mse"),
    "without_second_da_term": loss_of("da_first", "df_mse", "ob_mse"),
    "without_da_loss": loss_of("df_mse", "ob_mse"),
    "with_another_term": another_term,
    "map_none": normalised(lambda maps: maps),
    "map_min_max": normalised(min_maxed),
    "map_mass": mass,
    "ob_1_df_1": tokens_of_a_prompt(1, 1),
    "ob_1_df_8": tokens_of_a_prompt(1, 8),
    "ob_4_df_4": tokens_of_a_prompt(4, 4),
    "abnormal_then_normal": schedule("abnormal", "normal"),
    "normal_then_abnormal": schedule("normal", "abnormal"),
    "layers_1_2_3": layers(1, 2, 3),
    "layers_2_3_4": layers(2, 3, 4),
    "coarse_supervision_only": mrms(0, FOUR),
    "mrm": mrms(1, {"refined_abnormal", "refined_normal"}),
    "mrm_progressive": mrms(2, {"refined_abnormal", "refined_normal"}),
    "without_normal_supervision": mrms(2, {"coarse_abnormal", "refined_abnormal"}),
    "mrm_a": mrms(2, FOUR, {"conv"}),
    "mrm_b": mrms(2, FOUR, {"conv", "block1"}),
    "features_1_2_3": unet_features(1, 2, 3),
    "features_2_3_4": unet_features(2, 3, 4),
    "vae_encoder": encoder,
    "multiple_models": per_product,
    "three_minute_base": other_base,
    **{f"shots_{number}": shots(number) for number in (1, 2, 4, 8)},
    **{f"h_{number}": shots(number) for number in (1, 2)},
    **{f"tau_0.{number}": threshold(number / 10) for number in (1, 3, 4, 5)},
}


def flow_of(bench: Bench, *experiments: str) -> Workflow:
    content = {"datasets": ["mine"], "experiments": list(experiments), "base": {"name": "b", "pretrained": None}}
    with pytest.MonkeyPatch.context() as patch:
        dataset = DatasetFile(root=bench.miniature.root)
        patch.setattr("seas.workflow.read_dataset", lambda name: dataset)
        return Workflow(content)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_the_computation_changes(bench, name):
    CHECKS[name](bench, name)


def test_one_model_for_each_type(bench, tmp_path):
    apart(bench, "without_mixed_training", tmp_path)


def test_every_file_is_tested():
    assert set(NAMES) == {"seas", "without_mixed_training", *CHECKS, *ALIASES}


@pytest.mark.parametrize("name", [name for name in ALIASES if name not in CHECKS])
def test_an_alias_is_seas(bench, name):
    flow = flow_of(bench, name)
    assert experiment_settings(name) == Settings() == experiment_settings("seas")
    assert {flow.owner("mine", name, stage) for stage in STAGE_SECTIONS} == {"seas"}
    assert lineage(name) == [name, "seas"]


def test_every_row_of_the_papers_ablations_has_one_experiment():
    named = {name: read_experiment(name).variant for name in NAMES}
    variants = [variant for variant in named.values() if variant]
    assert sorted(variants) == sorted(paper_variants())
    assert all(name == variant for name, variant in named.items() if variant)


def test_seas_as_the_paper_proposes_it(bench):
    """What the rows "all" to "mrm_c" and "tau_0.2" name."""
    tokens_of_a_prompt(1, 4)(bench, "seas")
    layers(2, 3)(bench, "seas")
    mrms(2, FOUR)(bench, "seas")
    unet_features(2, 3)(bench, "seas")
    threshold(0.2)(bench, "seas")
    plain = bench.generator_losses("seas")
    parts = ("da_first", "da_second", "df_mse", "ob_mse")
    assert all(plain[term] > 0 for term in parts)
    assert plain["loss"] == pytest.approx(sum(plain[term] for term in parts), rel=1e-5)
