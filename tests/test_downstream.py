"""Segmentation: the network's facts, equal conditions of the arms, resume, scoring, prediction on own photographs."""

import json
import math
import os

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from seas.artifacts import read_table, write_table
from seas.data.index import refuse_lost_defects
from seas.downstream import train as downstream_train
from seas.downstream.bisenet_v2 import BiSeNetV2, GatherAndExpansion
from seas.downstream.model import anomaly_maps, load_model, normalised
from seas.downstream.predict import predict_images
from seas.downstream.samples import Sample, SegmentationBatches, training_samples
from seas.downstream.settings import DownstreamSettings
from seas.downstream.train import IGNORED, SegmenterTrainer, rate, train_segmenter
from seas.errors import InputError
from seas.generation.crop_and_paste import crop_and_paste_product
from seas.images import bounding_slices, load_fitted, read_image, write_image, write_mask
from seas.settings import ComputeSettings

CPU = ComputeSettings(device="cpu", precision="fp32", threads=1)
SMALL = DownstreamSettings(image_size=32, updates=20, batch_size=4, checkpoint_every=10)


@pytest.fixture(scope="module")
def pairs(miniature, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "crop_and_paste" / "washer"
    crop_and_paste_product(miniature.split, miniature.root, 5, None, miniature.data, 0, output=folder)
    return folder


def run(miniature, trained_on, trees, output, settings=SMALL):
    train_segmenter(
        "bisenet_v2",
        trained_on,
        {"washer": miniature.split},
        {"washer": trees},
        miniature.root,
        settings,
        miniature.data,
        CPU,
        0,
        dataset="mine",
        experiment="seas",
        output=output,
    )


@pytest.fixture(scope="module")
def trained(miniature, pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("downstream") / "model"
    run(miniature, "crop_and_paste", [pairs], folder)
    return folder


class TestNetwork:
    def test_parameters(self):
        network = BiSeNetV2()
        counted = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("auxiliary"))
        assert counted == 3_341_458
        assert len(network.auxiliary_heads) == 4

    def test_sizes_of_the_branches(self):
        network = BiSeNetV2().eval()
        images = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            assert network.detail(images).shape == (1, 128, 8, 12)
            logits, features = network._logits(images)
            assert [tuple(feature.shape[1:]) for feature in features] == [
                (16, 16, 24),
                (32, 8, 12),
                (64, 4, 6),
                (128, 2, 3),
            ]
            assert logits.shape == (1, 2, 64, 96)
            assert [part.shape for part in network.training_logits(images)] == [logits.shape] * 5

    def test_both_branches_reach_the_output(self):
        # Training mode: with the running statistics of the start the context moves the logits by no more than rounding.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            network = BiSeNetV2().train()
            images = torch.rand(2, 3, 64, 64)
            before = network(images)
            joined = network.aggregation
            sides = (joined.detail_keep, joined.detail_down, joined.semantic_up, joined.semantic_keep)
            for branch in (network.detail[-1], network.context, *sides):
                hook = branch.register_forward_hook(lambda module, inputs, output: output * 0)
                assert (network(images) - before).abs().max() > 0.1 * before.abs().max()
                hook.remove()

    @pytest.mark.parametrize("stride", [1, 2])
    def test_the_shortcut_carries_what_the_branch_does_not(self, stride):
        block = GatherAndExpansion(4, 4, stride).eval()
        torch.nn.init.zeros_(block.branch[-1][1].weight)
        feature = torch.rand(1, 4, 8, 8)
        with torch.no_grad():
            assert torch.equal(block(feature), torch.relu(block.shortcut(feature)))


class TestArms:
    def counts(self, trained_on, miniature, trees):
        abnormal, normal = training_samples(
            trained_on, {"washer": miniature.split}, {"washer": trees}, miniature.root, "auto"
        )
        return len(abnormal), len(normal)

    def test_the_abnormal_images_differ_the_normal_ones_do_not(self, miniature, pairs):
        assert self.counts("real", miniature, []) == (6, 10)
        assert self.counts("generated", miniature, [pairs]) == (15, 10)
        assert self.counts("crop_and_paste", miniature, [pairs]) == (15, 10)
        assert self.counts("real+generated", miniature, [pairs]) == (21, 10)
        assert self.counts("real+crop_and_paste", miniature, [pairs]) == (21, 10)

    def test_a_generated_pair_of_a_padded_photograph_is_padded_too(self, miniature, tmp_path):
        """Of 1000 × 977 pixels the short side differs by more than 2 % and is padded; of its 64 × 63 it no longer does."""
        draws = np.random.default_rng(0)
        write_image(draws.integers(0, 255, (1000, 977, 3), np.uint8), tmp_path / "photograph.png")
        photograph = load_fitted(tmp_path, Sample(tmp_path, "photograph.png", "", "auto"), 64, "auto")
        rows, columns = bounding_slices(photograph.valid)
        assert photograph.image[rows, columns].shape == (64, 63, 3)
        write_image(photograph.image[rows, columns], tmp_path / "tree/made.png")
        write_mask(np.ones((64, 63), bool), tmp_path / "tree/mask.png")
        pair = {"type": "rust", "image": "made.png", "mask": "mask.png"}
        write_table(pd.DataFrame([pair]), tmp_path / "tree/images.parquet")
        (made,), _ = training_samples(
            "generated", {"washer": miniature.split}, {"washer": [tmp_path / "tree"]}, miniature.root, "auto"
        )
        again = load_fitted(made.root, made, 64, made.fit)
        assert np.array_equal(again.image, photograph.image) and np.array_equal(again.valid, photograph.valid)

    def test_a_padded_photograph_keeps_its_padding_where_it_is(self, tmp_path):
        photographs = {"wide.png": (32, 64), "square.png": (64, 64)}
        for name, shape in photographs.items():
            write_image(np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8), tmp_path / name)
        wide, square = (Sample(tmp_path, name, "", "auto") for name in photographs)
        batches = SegmentationBatches(
            [wide], [square], size=64, batch_size=8, augmentation="turns_and_flips", jitter=0, seed=0
        )
        drawn = [batches.batch(step) for step in range(4)]
        assert all(valid.any(1).all() and valid.any(0).sum() == 64 for batch in drawn for valid in batch.valid[4:])
        assert all(valid[16:48].all() and valid.sum() == 32 * 64 for batch in drawn for valid in batch.valid[:4])
        turned = {image.tobytes() for batch in drawn for image in batch.images[4:]}
        assert len(turned) > 4, "the square one is no longer turned"

    def test_no_test_image_is_trained_on(self, miniature, pairs):
        split = read_table(miniature.split)
        abnormal, normal = training_samples(
            "real+generated", {"washer": miniature.split}, {"washer": [pairs]}, miniature.root, "auto"
        )
        assert not {sample.image for sample in (*abnormal, *normal) if sample.root == miniature.root} & set(
            split[split.role == "test"].image
        )

    def test_they_differ_in_their_abnormal_images_alone(self, miniature, pairs, tmp_path, monkeypatch):
        """The same first weights, updates, rates, and normals in the same order and augmentation."""
        seen, update = [], SegmenterTrainer.update

        def noted(self, step):
            weights = (
                [weight.detach().clone().numpy().tobytes() for weight in self.network.parameters()] if step == 0 else []
            )
            rates = [group["lr"] for group in self.optimizer.param_groups]
            seen.append((step, weights, self.batches.batch(step).images[2:].tobytes(), rates))
            return update(self, step)

        monkeypatch.setattr(SegmenterTrainer, "update", noted)
        of_arm = {}
        for arm in ("real", "crop_and_paste", "real+crop_and_paste"):
            trees = [] if arm == "real" else [pairs]
            run(miniature, arm, trees, tmp_path / arm, SMALL.model_copy(update={"updates": 3}))
            of_arm[arm], seen[:] = [*seen], []
        assert len(of_arm["real"]) == 3
        assert all(found == of_arm["real"] for found in of_arm.values())


class TestBatches:
    def batches(self, miniature, **changes):
        abnormal, normal = training_samples("real", {"washer": miniature.split}, {"washer": []}, miniature.root, "auto")
        arguments = {
            "size": 32,
            "batch_size": 4,
            "augmentation": "turns_and_flips",
            "jitter": 0.1,
            "seed": 0,
        } | changes
        return SegmentationBatches(abnormal, normal, **arguments)

    def test_half_is_abnormal(self, miniature):
        batch = self.batches(miniature).batch(0)
        assert batch.masks.any((1, 2)).tolist() == [True, True, False, False]
        assert batch.images.shape == (4, 32, 32, 3)

    def test_a_function_of_the_step_alone(self, miniature):
        batches = self.batches(miniature)
        jumped = self.batches(miniature).batch(7)
        for step in range(8):
            reached = batches.batch(step)
        assert all(np.array_equal(*pair) for pair in zip(jumped, reached, strict=True))

    def test_without_augmentation_the_photographs_stay_as_they_are(self, miniature):
        batch = self.batches(miniature, augmentation="none", jitter=0.0).batch(0)
        abnormal, _ = training_samples("real", {"washer": miniature.split}, {"washer": []}, miniature.root, "auto")
        masks = [load_fitted(sample.root, sample, 32, "auto").mask for sample in abnormal]
        assert all(any(np.array_equal(mask, own) for own in masks) for mask in batch.masks[:2])

    def test_each_image_once_before_any_twice(self, miniature):
        batches = self.batches(miniature, jitter=0.0)
        seen = [batches.batch(step).images[k] for step in range(3) for k in (0, 1)]
        assert len({np.sort(image.ravel()).tobytes() for image in seen}) == 6

    def test_the_jitter_moves_a_flat_image_by_its_brightness_alone(self, tmp_path):
        write_image(np.full((32, 32, 3), 100, np.uint8), tmp_path / "flat.png")
        pools = [Sample(tmp_path, "flat.png", "", "auto")], [Sample(tmp_path, "flat.png", "", "auto")]
        values = {}
        for jitter in (0.0, 0.1):
            batches = SegmentationBatches(
                *pools, size=32, batch_size=2, augmentation="turns_and_flips", jitter=jitter, seed=0
            )
            images = np.concatenate([batches.batch(step).images for step in range(20)])
            assert (images == images[:, :1, :1, :1]).all()
            values[jitter] = images[:, 0, 0, 0]
        assert set(values[0.0]) == {100}
        assert values[0.1].min() in range(90, 96) and values[0.1].max() in range(105, 111)

    @pytest.mark.parametrize("readers", [1, 7])
    def test_the_number_of_readers_changes_nothing(self, miniature, monkeypatch, readers):
        plain = self.batches(miniature)
        monkeypatch.setattr("seas.downstream.samples.READERS", readers)
        other = self.batches(miniature)
        for step in range(4):
            assert all(np.array_equal(*pair) for pair in zip(plain.batch(step), other.batch(step), strict=True))

    def test_a_full_cache_changes_nothing(self, miniature):
        plain = self.batches(miniature).batch(1)
        without = self.batches(miniature)
        without._room = 0
        assert np.array_equal(without.batch(1).images, plain.images)
        assert not without._cache


class TestTraining:
    def test_rate(self):
        assert rate(0, 1000) == pytest.approx(1 / 20)
        assert rate(19, 1000) == pytest.approx((1 - 0.019) ** 0.9)
        assert rate(500, 1000) == pytest.approx(0.5**0.9)

    def test_each_update_has_its_rate(self, miniature):
        settings = SMALL.model_copy(update={"updates": 100, "learning_rate": 0.02})
        trainer = SegmenterTrainer(
            "bisenet_v2", TestBatches().batches(miniature), settings, CPU, 0, torch.device("cpu")
        )
        for step, share in ((0, 0.5), (50, 0.5**0.9)):
            trainer.update(step)
            assert [group["lr"] for group in trainer.optimizer.param_groups] == [pytest.approx(0.02 * share)]

    def test_bf16_rounds_the_loss(self, miniature):
        exact, rounded = (
            float(
                SegmenterTrainer(
                    "bisenet_v2", TestBatches().batches(miniature), SMALL, compute, 0, torch.device("cpu")
                ).update(0)["loss"]
            )
            for compute in (CPU, CPU.model_copy(update={"precision": "bf16"}))
        )
        assert exact != rounded == pytest.approx(exact, rel=0.05)

    def test_loss_is_the_mean_of_the_valid_pixels_over_five_heads(self, miniature):
        trainer = SegmenterTrainer("bisenet_v2", TestBatches().batches(miniature), SMALL, CPU, 0, torch.device("cpu"))
        batch = trainer.batches.batch(0)
        batch.valid[:, :10] = False
        trainer.batches = type("Fixed", (), {"batch": lambda self, step: batch})()
        with torch.no_grad():
            heads = trainer.network.training_logits(normalised(batch.images))
        expected = []
        for logits in heads:
            log_probability = torch.log_softmax(logits.double(), 1).numpy()
            chosen = np.where(batch.masks, log_probability[:, 1], log_probability[:, 0])
            expected.append(-chosen[batch.valid].mean())
        losses = trainer.update(0)
        assert float(losses["head"]) == pytest.approx(expected[0], rel=1e-4)
        assert float(losses["loss"]) == pytest.approx(sum(expected), rel=1e-4)
        assert IGNORED not in (0, 1)

    def test_the_folder(self, trained):
        scores = read_table(trained / "scores.parquet")
        assert set(scores["product"]) == {"washer", ""}
        assert set(scores.method) == {"crop_paste"} and set(scores.trained_on) == {"crop_and_paste"}
        assert set(zip(scores.level, scores.metric, strict=True)) == {
            *((level, metric) for level in ("image", "pixel") for metric in ("auroc", "ap", "f1_max")),
            ("pixel", "iou"),
            ("pixel", "iou_oracle"),
        }
        assert len(list((trained / "examples").glob("washer_*.png"))) == 6
        assert len(read_table(trained / "losses.parquet")) == 2

    def test_the_test_images_are_scored_and_no_others(self, miniature, pairs, tmp_path, monkeypatch):
        scored, original = [], downstream_train.fitted_samples

        def recorded(rows, *arguments):
            scored.extend(rows.image)
            return original(rows, *arguments)

        monkeypatch.setattr(downstream_train, "fitted_samples", recorded)
        run(miniature, "real", [], tmp_path / "model", SMALL.model_copy(update={"updates": 1}))
        split = read_table(miniature.split)
        assert sorted(scored) == sorted(split[split.role == "test"].image)

    def test_the_thresholds_are_those_of_the_training_images(self, miniature, tmp_path, monkeypatch):
        """Maps are the brightness: abnormal images peak at 250, their pixels reach down to 150, normals up to 120."""
        samples = []
        for name, levels in (("abnormal", (150, 250)), ("normal", (60, 120))):
            image, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), bool)
            image[4:12, 4:12], image[6:8, 6:8] = levels
            mask[4:12, 4:12] = name == "abnormal"
            write_image(image, tmp_path / f"{name}.png")
            write_mask(mask, tmp_path / f"{name}_mask.png")
            samples.append([Sample(tmp_path, f"{name}.png", f"{name}_mask.png", "auto")])
        monkeypatch.setattr(downstream_train, "anomaly_maps", lambda network, images: images[..., 0] / 255)
        found = downstream_train._thresholds(None, *samples, SMALL, 0)
        assert found == pytest.approx((250 / 255, 150 / 255))

    def test_the_saved_thresholds_saw_training_images_alone(self, miniature, tmp_path, monkeypatch):
        seen = []

        def noted(network, abnormal, normal, *rest):
            seen.extend([*abnormal, *normal])
            return 0.25, 0.75

        monkeypatch.setattr(downstream_train, "_thresholds", noted)
        run(miniature, "real", [], tmp_path / "model", SMALL.model_copy(update={"updates": 1}))
        _, description = load_model(tmp_path / "model", torch.device("cpu"))
        assert (description.image_threshold, description.pixel_threshold) == (0.25, 0.75)
        split = read_table(miniature.split)
        assert seen and not {sample.image for sample in seen} & set(split[split.role == "test"].image)

    def test_the_mean_is_over_the_products_that_have_a_score(self):
        values = {"a": 10.0, "b": 30.0, "c": math.nan}
        rows = [{"product": name, "level": "pixel", "metric": "ap", "value": value} for name, value in values.items()]
        assert downstream_train._means(rows) == [{"product": "", "level": "pixel", "metric": "ap", "value": 20.0}]

    def test_an_interrupted_training_ends_with_the_same_weights(self, trained, miniature, pairs, tmp_path, monkeypatch):
        original, calls = SegmenterTrainer.update, []

        def dies(self, step):
            calls.append(step)
            if step == 14:
                raise KeyboardInterrupt
            return original(self, step)

        with monkeypatch.context() as patched:
            patched.setattr(SegmenterTrainer, "update", dies)
            with pytest.raises(KeyboardInterrupt):
                run(miniature, "crop_and_paste", [pairs], tmp_path / "model")
        assert not (tmp_path / "model").exists()
        run(miniature, "crop_and_paste", [pairs], tmp_path / "model")
        manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (trained, tmp_path / "model")]
        assert manifests[0] == manifests[1]

    def test_without_pairs_there_is_nothing_to_train_on(self, miniature, tmp_path):
        with pytest.raises(InputError, match="downstream generated: there is no abnormal image"):
            run(miniature, "generated", [], tmp_path / "model")

    def test_before_training_something_must_be_left_to_test(self, miniature, tmp_path, monkeypatch):
        monkeypatch.setattr(SegmenterTrainer, "update", lambda self, step: pytest.fail("it trained"))
        split = read_table(miniature.split)
        write_table(split[split.role != "test"], tmp_path / "split.parquet")
        with pytest.raises(InputError, match="downstream real: no image of washer is left to test"):
            run(miniature._replace(split=tmp_path / "split.parquet"), "real", [], tmp_path / "model")

    @pytest.mark.parametrize("role", ["test", "shot"])
    def test_a_defect_that_the_models_size_cuts_away_is_named(self, miniature, tmp_path, monkeypatch, role):
        """Of 107 px that are cropped to 100, the leftmost 4 leave pixels at 64 px and none at 96."""
        monkeypatch.setattr(SegmenterTrainer, "update", lambda self, step: pytest.fail("it trained"))
        mask = np.zeros((100, 107), bool)
        mask[20:60, :4] = True
        write_mask(mask, tmp_path / "mask.png")
        split = read_table(miniature.split)
        row = split[(split.role == role) & (split.type != "good")].iloc[[0]].assign(image="cut.png", mask="mask.png")
        tested = split[(split.role == "test") & (split.type == "good")].iloc[[0]].assign(image="cut.png")
        write_table(pd.concat([row, tested]), tmp_path / "split.parquet")
        cropped = miniature._replace(
            root=tmp_path, split=tmp_path / "split.parquet", data=miniature.data.model_copy(update={"fit": "crop"})
        )
        refuse_lost_defects(row, tmp_path, cropped.data.model_copy(update={"image_size": 64}))
        with pytest.raises(InputError, match=r"cut\.png: data\.fit 'crop' cuts its whole defect away at 96 px"):
            run(cropped, "real", [], tmp_path / "model", SMALL.model_copy(update={"image_size": 96}))

    def test_a_product_without_test_images_costs_the_others_nothing(self, miniature, tmp_path):
        split = read_table(miniature.split)
        write_table(split[split.role != "test"].assign(product="untested"), tmp_path / "untested.parquet")
        train_segmenter(
            "bisenet_v2",
            "real",
            {"untested": tmp_path / "untested.parquet", "washer": miniature.split},
            {"untested": [], "washer": []},
            miniature.root,
            SMALL.model_copy(update={"updates": 1}),
            miniature.data,
            CPU,
            0,
            dataset="mine",
            experiment="seas",
            output=tmp_path / "model",
        )
        assert set(read_table(tmp_path / "model/scores.parquet")["product"]) == {"washer", ""}

    def test_it_learns_what_is_easy(self, tmp_path):
        """White squares on grey: after a few updates their pixels score higher than all others."""
        draws = np.random.default_rng(0)
        abnormal, normal = [], []
        for k in range(8):
            image, mask = np.full((32, 32, 3), 90, np.uint8), np.zeros((32, 32), bool)
            write_image(image, tmp_path / f"n{k}.png")
            y, x = draws.integers(0, 20, 2)
            mask[y : y + 12, x : x + 12] = True
            image[mask] = 250
            write_image(image, tmp_path / f"a{k}.png")
            write_mask(mask, tmp_path / f"m{k}.png")
            abnormal.append(Sample(tmp_path, f"a{k}.png", f"m{k}.png", "auto"))
            normal.append(Sample(tmp_path, f"n{k}.png", "", "auto"))
        batches = SegmentationBatches(
            abnormal, normal, size=32, batch_size=4, augmentation="turns_and_flips", jitter=0.1, seed=0
        )
        settings = SMALL.model_copy(update={"updates": 60})
        trainer = SegmenterTrainer("bisenet_v2", batches, settings, CPU, 0, torch.device("cpu"))
        for step in range(60):
            trainer.update(step)
        batch = batches.batch(99)
        maps = anomaly_maps(trainer.network.eval(), batch.images)
        assert maps[batch.masks].mean() > maps[~batch.masks].mean() + 0.3


class TestPredict:
    def test_own_photographs(self, trained, tmp_path):
        draws = np.random.default_rng(0)
        for folder, size in (("a", (40, 60)), ("b", (50, 50))):
            write_image(draws.integers(0, 255, (*size, 3), np.uint8), tmp_path / folder / "part.png")
        grey = Image.fromarray(draws.integers(0, 65535, (30, 30), np.uint16))
        grey.save(tmp_path / "a/deep.tif")
        predict_images(trained, [tmp_path / "a", tmp_path / "b"], tmp_path / "out", CPU)
        table = pd.read_csv(tmp_path / "out/predictions.csv")
        measured = ["score", "threshold", "decision", "peak_row", "peak_column", "anomaly_pixels", "pixel_threshold"]
        assert list(table.columns) == ["image", *measured]
        assert len(table) == 3 and set(table.decision) <= {"anomalous", "good"}
        assert ((table.score >= table.threshold) == (table.decision == "anomalous")).all()
        maps = sorted((tmp_path / "out/score_maps").iterdir())
        assert len(maps) == 3 and len({path.name for path in maps}) == 3
        assert {read_image(path).shape[:2] for path in maps} == {(40, 60), (50, 50), (30, 30)}

    def test_the_map_lies_on_the_photograph(self, trained, monkeypatch, tmp_path):
        """A network that answers with the brightness must find a bright spot where it is, padding or not."""
        from seas.downstream import predict

        image = np.zeros((64, 128, 3), np.uint8)
        image[40:56, 96:112] = 255
        write_image(image, tmp_path / "spot.png")
        monkeypatch.setattr(predict, "anomaly_maps", lambda network, images: images[..., 0] / 255)
        predict_images(trained, [tmp_path / "spot.png"], tmp_path / "out", CPU)
        found = read_image(tmp_path / "out/score_maps/spot.png")[..., 0]
        y, x = np.argwhere(found > 128).mean(0)
        assert (y, x) == pytest.approx((47.5, 103.5), abs=2)

    def test_a_name_that_is_too_long_to_be_written_is_refused_at_once(self, tmp_path):
        from seas.downstream import predict

        (tmp_path / "photographs").mkdir()
        short, long = (tmp_path / "photographs" / f"{'x' * length}.png" for length in (200, 240))
        for path in (short, long):
            path.touch()
        assert predict._photographs([short]) == {short.stem: short}
        with pytest.raises(InputError, match=r"x\.png, which is too long; rename or move it"):
            predict._photographs([short, long])

    def test_a_model_without_a_threshold_is_refused(self, trained, monkeypatch, tmp_path):
        from seas.downstream import predict

        _, description = load_model(trained, torch.device("cpu"))
        never = (None, description._replace(image_threshold=math.inf, pixel_threshold=math.inf))
        monkeypatch.setattr(predict, "load_model", lambda folder, device: never)
        write_image(np.zeros((32, 32, 3), np.uint8), tmp_path / "part.png")
        with pytest.raises(InputError, match="has no threshold: no training image"):
            predict_images(trained, [tmp_path / "part.png"], tmp_path / "out", CPU)
        assert not (tmp_path / "out").exists()

    def test_windows_are_cut_as_those_of_a_dataset(self, trained, monkeypatch, tmp_path):
        """A spot of 4 px of 100 × 150 vanishes at the model's 32 px; in windows of 32 px it is seen as it is, in its place."""
        from seas.downstream import predict

        _, description = load_model(trained, torch.device("cpu"))
        network_and_thresholds = (None, description._replace(image_threshold=0.9, pixel_threshold=0.5))
        monkeypatch.setattr(predict, "load_model", lambda folder, device: network_and_thresholds)
        monkeypatch.setattr(predict, "anomaly_maps", lambda network, images: np.float32(images[..., 0] / 255))
        image = np.zeros((100, 150, 3), np.uint8)
        image[60:64, 91:95] = 255
        write_image(image, tmp_path / "spot.png")
        decisions = {}
        for side in (None, 32):
            out = tmp_path / f"out_{side}"
            predict_images(trained, [tmp_path / "spot.png"], out, CPU, window_side=side)
            decisions[side] = pd.read_csv(out / "predictions.csv").iloc[0]
        assert decisions[None].decision == "good" and decisions[None].score < 0.5
        found = decisions[32]
        assert (found.decision, found.score, found.anomaly_pixels, found.pixel_threshold) == ("anomalous", 1.0, 16, 0.5)
        assert (found.peak_row, found.peak_column) == (60, 91), "the first of the spot's pixels"
        assert np.array_equal(read_image(tmp_path / "out_32/score_maps/spot.png"), image)

        def whole_windows(network, images):
            return np.broadcast_to(images.max((1, 2, 3), keepdims=True)[..., 0] / np.float32(255), images.shape[:3])

        monkeypatch.setattr(predict, "anomaly_maps", whole_windows)
        predict_images(trained, [tmp_path / "spot.png"], tmp_path / "whole", CPU, window_side=32)
        assert pd.read_csv(tmp_path / "whole/predictions.csv").anomaly_pixels.item() == 32 * 32, (
            "a neighbour erased a part"
        )

    def test_a_small_photograph_is_scored_at_the_models_size(self, trained, monkeypatch, tmp_path):
        """One hot pixel of the model's map decides, however few pixels the photograph has; padding never does."""
        from seas.downstream import predict

        def one_pixel(network, images):
            maps = np.zeros(images.shape[:3], np.float32)
            maps[:, 16, 16], maps[:, 0] = 0.75, 1.0
            return maps

        _, description = load_model(trained, torch.device("cpu"))
        network_and_thresholds = (None, description._replace(image_threshold=0.5, pixel_threshold=0.5))
        monkeypatch.setattr(predict, "load_model", lambda folder, device: network_and_thresholds)
        monkeypatch.setattr(predict, "anomaly_maps", one_pixel)
        write_image(np.zeros((8, 16, 3), np.uint8), tmp_path / "small.png")
        predict_images(trained, [tmp_path / "small.png"], tmp_path / "out", CPU)
        row = pd.read_csv(tmp_path / "out/predictions.csv").iloc[0]
        assert (row.score, row.threshold, row.decision) == (0.75, 0.5, "anomalous")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("broken.png", b"no picture", r"broken\.png cannot be read"),
            ("missing.png", None, r"missing\.png does not exist"),
        ],
    )
    def test_faults_leave_nothing_behind(self, trained, tmp_path, name, content, message):
        write_image(np.zeros((32, 32, 3), np.uint8), tmp_path / "fine.png")
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            predict_images(trained, [tmp_path / "fine.png", tmp_path / name], tmp_path / "out", CPU)
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))

    def test_an_existing_output_is_left_alone(self, trained, tmp_path):
        write_image(np.zeros((32, 32, 3), np.uint8), tmp_path / "fine.png")
        (tmp_path / "out").mkdir()
        with pytest.raises(InputError, match="out exists already"):
            predict_images(trained, [tmp_path / "fine.png"], tmp_path / "out", CPU)
        assert not list((tmp_path / "out").iterdir())

    def test_two_photographs_of_one_name_are_named(self, trained, tmp_path):
        for suffix in ("png", "bmp"):
            Image.new("RGB", (32, 32)).save(tmp_path / f"part.{suffix}")
        with pytest.raises(InputError, match=r"part\.bmp and .*part\.png would both be written as"):
            predict_images(trained, [tmp_path / "part.bmp", tmp_path / "part.png"], tmp_path / "out", CPU)

    def test_an_empty_folder(self, trained, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="empty holds no photograph"):
            predict_images(trained, [tmp_path / "empty"], tmp_path / "out", CPU)

    def test_what_is_not_read_is_named_and_hidden_files_are_passed_by(self, trained, tmp_path):
        folder = tmp_path / "photographs"
        for name in ("a.png", ".thumbnails/a.png", "b.webp"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32)).save(folder / name)
        with pytest.raises(InputError, match=r"b\.webp: this kind of picture is not read; save it as PNG"):
            predict_images(trained, [folder], tmp_path / "out", CPU)
        (folder / "b.webp").unlink()
        predict_images(trained, [folder], tmp_path / "out", CPU)
        assert len(pd.read_csv(tmp_path / "out/predictions.csv")) == 1
        (folder / "a.png").rename(folder / os.fsdecode(b"St\xfcck.png"))
        with pytest.raises(InputError, match="has a name that cannot be written down"):
            predict_images(trained, [folder], tmp_path / "again", CPU)

    def test_no_model(self, tmp_path):
        with pytest.raises(InputError, match=r"is no trained segmentation model: model\.json is missing"):
            load_model(tmp_path, torch.device("cpu"))
