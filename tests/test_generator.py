"""The fine-tuning: prompts, attention maps, losses by value, new token rows, resume, loading."""

import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from seas.data.settings import DataSettings
from seas.errors import InputError
from seas.generator import train as generator_train
from seas.generator.attention import AttentionMaps, cross_attention_of, token_maps
from seas.generator.batches import TrainingBatches
from seas.generator.embeddings import NewRows, add_tokens, fold_tokens
from seas.generator.encoded import ENCODED, EncodedImages, encode_images, load_encoded
from seas.generator.losses import DecoupledAnomalyAlignmentLoss, masked_mse, min_max, valid_cells
from seas.generator.pipeline import encode_prompts, load_pipeline, save_generator, tokenise
from seas.generator.prompts import Prompts, token_ids, token_positions
from seas.generator.settings import GeneratorSettings
from seas.generator.train import GeneratorTrainer, prompts_of, train_generator, training_target
from seas.images import SYMMETRIES, augment, read_image, write_image
from seas.seeding import torch_rng
from seas.settings import ComputeSettings
from seas.training import train

CPU = ComputeSettings(device="cpu", precision="fp32", threads=1)
SMALL = GeneratorSettings(
    updates_per_type=2,
    unet_learning_rate=1e-3,
    embedding_learning_rate=1e-2,
    attention_layers=(1, 2),
    checkpoint_every=2,
)


def maps_of(values, layer=1):
    """One layer's maps (B, h, w, T) from nested lists (B, T, h, w)."""
    return {layer: torch.tensor(values, dtype=torch.float32).permute(0, 2, 3, 1)}


class TestPrompts:
    def test_names_and_texts_of_the_paper(self):
        prompts = Prompts.of("bottle", ["broken", "dirt"], normal=1, anomaly=4, commas=True)
        assert prompts.normal() == "a <ob_1>"
        assert prompts.abnormal("broken") == "a <ob_1> with <df_1>, <df_2>, <df_3>, <df_4>"
        assert prompts.abnormal("dirt") == "a <ob_1> with <df_5>, <df_6>, <df_7>, <df_8>"

    def test_without_commas_as_the_release(self):
        prompts = Prompts.of("bottle", ["broken"], normal=2, anomaly=1, commas=False)
        assert prompts.abnormal("broken") == "a <ob_1> <ob_2> with <df_1>"

    def test_unknown_type_names_the_types(self):
        with pytest.raises(InputError, match="'rust' is no anomaly type of bottle; its types are broken"):
            Prompts.of("bottle", ["broken"], normal=1, anomaly=1, commas=True).abnormal("rust")

    def test_numbering_survives_saving(self, tmp_path):
        prompts = Prompts.of("b", ["zebra", "ant", "mole"], normal=1, anomaly=2, commas=True)
        prompts.save(tmp_path)
        assert Prompts.load(tmp_path) == prompts
        assert Prompts.load(tmp_path).types == ["zebra", "ant", "mole"]

    def test_numbering_comes_from_the_split_not_from_the_names(self):
        split = pd.DataFrame(
            {
                "product": "p",
                "type": ["good", "a", "b", "a"],
                "type_index": [0, 2, 1, 2],
                "role": ["normal", "shot", "shot", "shot"],
            }
        )
        assert prompts_of(split, GeneratorSettings()).types == ["b", "a"]

    def test_a_prompt_cut_short_is_an_error(self, tiny_base):
        tokenizer = load_pipeline(tiny_base).tokenizer
        ids = tokenizer("a photo of").input_ids
        with pytest.raises(InputError, match=rf"do not fit .* {len(ids)} positions; lower generator.anomaly_tokens"):
            token_positions(tokenizer, ids, ["photo"], ["defect", "hole"])

    def test_a_prompt_cut_short_before_a_word_that_it_repeats_is_an_error(self, tiny_base):
        tokenizer = load_pipeline(tiny_base).tokenizer
        ids = tokenizer("a photo of").input_ids
        with pytest.raises(InputError, match="do not fit .* a shorter name"):
            token_positions(tokenizer, ids, ["photo", "photo"])

    @pytest.mark.parametrize(
        ("product", "normal", "anomaly"),
        [("photo", [5], [7]), ("a_tile", [5, 6], [8]), ("defect_tile", [5, 6], [8]), ("defect", [5], [7])],
    )
    def test_words_of_the_template_in_a_products_name_are_not_taken_for_it(self, tiny_base, product, normal, anomaly):
        """a photo of a <product> with defect: its words stand at 1, 2, 3, 4, then come the product's, "with" and "defect"."""
        pipeline = load_pipeline(tiny_base)
        prompts = Prompts.typical(product, ["cut"], anomaly_word="defect")
        ids = tokenise(pipeline, [prompts.abnormal("cut")])[0].tolist()
        found = token_positions(pipeline.tokenizer, ids, prompts.normal_tokens, prompts.anomaly_tokens["cut"])
        assert found == (normal, anomaly)

    @pytest.mark.parametrize(("normal", "anomaly"), [(1, 1), (1, 4), (4, 4), (1, 8)])
    def test_each_token_is_one_token_of_the_prompt(self, tiny_base, normal, anomaly):
        pipeline = load_pipeline(tiny_base)
        prompts = Prompts.of("p", ["x", "y"], normal=normal, anomaly=anomaly, commas=True)
        add_tokens(pipeline, prompts, normal_word="object", anomaly_word="defect")
        ids = tokenise(pipeline, [prompts.abnormal("y")])[0].tolist()
        for tokens in (prompts.normal_tokens, prompts.anomaly_tokens["y"]):
            wanted = token_ids(pipeline.tokenizer, tokens)
            assert len(set(wanted)) == len(tokens)
            assert all(ids.count(token) == 1 for token in wanted)


class TestAlignmentLoss:
    """Eq. 3 against numbers worked out by hand: one image, 2×2 maps, tokens 0 = <ob>, 1 and 2 = <df>."""

    MASK = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    NORMAL, ANOMALY = torch.tensor([[0]]), torch.tensor([[1, 2]])
    MAPS = maps_of([[[[0.5, 0.1], [0.2, 0.3]], [[0.6, 0.2], [0.0, 0.2]], [[1.0, 0.0], [0.2, 0.0]]]])

    def terms(self, loss, mask=MASK, maps=None):
        first, second = loss(maps or self.MAPS, self.ANOMALY, self.NORMAL, mask)
        return float(first), float(second)

    def test_both_terms_without_normalisation(self):
        # mean of the two anomaly maps: .8 .1 / .1 .1; against the mask: (.04 + .01 + .01 + .01) / 4
        assert self.terms(DecoupledAnomalyAlignmentLoss("none")) == pytest.approx((0.0175, 0.25))

    def test_second_term_over_all_cells(self):
        assert self.terms(DecoupledAnomalyAlignmentLoss("none", "elementwise"))[1] == pytest.approx(0.25 / 4)

    def test_second_term_can_be_left_out(self):
        assert self.terms(DecoupledAnomalyAlignmentLoss("none", "none"))[1] == 0

    def test_min_max(self):
        # anomaly map becomes 1 0 / 0 0, the normal map (.5 - .1) / .4 = 1 at the mask's cell
        assert self.terms(DecoupledAnomalyAlignmentLoss("min_max")) == pytest.approx((0.0, 1.0), abs=1e-6)

    def test_min_max_over_the_whole_batch_as_the_release(self):
        # anomaly maps .8 .1 / .1 .1 and .4 .1 / .1 .1: from .1 to .8 over both, the second map's peak becomes 3/7
        second = maps_of([[[[0.5, 0.1], [0.2, 0.3]], [[0.4, 0.1], [0.1, 0.1]], [[0.4, 0.1], [0.1, 0.1]]]])[1]
        maps = {1: torch.cat([self.MAPS[1], second])}
        arguments = (maps, self.ANOMALY.repeat(2, 1), self.NORMAL.repeat(2, 1), self.MASK.repeat(2, 1, 1, 1))
        jointly = DecoupledAnomalyAlignmentLoss("min_max_batch")(*arguments)
        assert float(jointly[0]) == pytest.approx((4 / 7) ** 2 / 8)
        assert float(DecoupledAnomalyAlignmentLoss("min_max")(*arguments)[0]) == pytest.approx(0, abs=1e-9)

    def test_the_normal_token_on_all_but_the_mask(self):
        loss = DecoupledAnomalyAlignmentLoss("none", "complement")
        assert self.terms(loss) == pytest.approx((0.0175, 0))
        # the normal map .5 .1 / .2 .3 against 0 1 / 1 1
        expected = (0.25 + 0.81 + 0.64 + 0.49) / 4
        assert float(loss.complement(self.MAPS, self.NORMAL, self.MASK)) == pytest.approx(expected)
        # a normal image has no mask: against 1 everywhere
        empty = torch.zeros_like(self.MASK)
        assert float(loss.complement(self.MAPS, self.NORMAL, empty)) == pytest.approx((0.25 + 0.81 + 0.64 + 0.49) / 4)
        both = {1: self.MAPS[1], 2: self.MAPS[1]}
        assert float(loss.complement(both, self.NORMAL, self.MASK)) == pytest.approx(2 * expected)

    def test_shares_of_all_but_the_mask(self):
        # p = 1/3 in the three cells outside, q = .1, .2 and .3 of 1.1
        expected = sum(np.log(1.1 / (3 * q)) / 3 for q in (0.1, 0.2, 0.3))
        loss = DecoupledAnomalyAlignmentLoss("share", "complement")
        assert float(loss.complement(self.MAPS, self.NORMAL, self.MASK)) == pytest.approx(expected, rel=1e-5)

    def test_empty_mask_is_no_nan(self):
        first, second = self.terms(DecoupledAnomalyAlignmentLoss("none"), mask=torch.zeros(1, 1, 2, 2))
        assert (first, second) == pytest.approx(((0.64 + 3 * 0.01) / 4, 0.0))

    def test_grey_mask(self):
        mask = torch.tensor([[[[0.5, 0.0], [0.0, 0.5]]]])
        # first: (.3² + .1² + .1² + .4²) / 4; second: (.5·.5² + .5·.3²) / (.5 + .5)
        assert self.terms(DecoupledAnomalyAlignmentLoss("none"), mask=mask) == pytest.approx((0.27 / 4, 0.17))
        # all cells: ((.5·.5)² + (.3·.5)²) / 4
        assert self.terms(DecoupledAnomalyAlignmentLoss("none", "elementwise"), mask=mask)[1] == pytest.approx(
            0.085 / 4
        )

    def test_shares_by_hand(self):
        # anomaly map .8 .1 / .1 .1 of sum 1.1, all of the mask in one cell: log(1.1 / .8); the normal token has .5 / 1.1 there
        expected = (np.log(1.1 / 0.8), 0.5 / 1.1)
        assert self.terms(DecoupledAnomalyAlignmentLoss("share")) == pytest.approx(expected, rel=1e-5)

    def test_shares_of_a_mask_of_two_cells(self):
        # p = 1/2 in two cells, q = 8/11 and 1/11: ½ log(½ · 11/8) + ½ log(½ · 11); the normal token has .8 / 1.1 there
        mask = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
        expected = (0.5 * np.log(11 / 16) + 0.5 * np.log(11 / 2), 0.8 / 1.1)
        assert self.terms(DecoupledAnomalyAlignmentLoss("share"), mask=mask) == pytest.approx(expected, rel=1e-5)

    def test_shares_without_a_mask(self):
        assert self.terms(DecoupledAnomalyAlignmentLoss("share"), mask=torch.zeros(1, 1, 2, 2)) == (0, 0)

    def test_images_without_a_mask_do_not_thin_the_shares(self):
        maps = {1: self.MAPS[1].repeat(2, 1, 1, 1)}
        mask = torch.cat([self.MASK, torch.zeros(1, 1, 2, 2)])
        first, second = DecoupledAnomalyAlignmentLoss("share")(
            maps, self.ANOMALY.repeat(2, 1), self.NORMAL.repeat(2, 1), mask
        )
        assert (float(first), float(second)) == pytest.approx((np.log(1.1 / 0.8), 0.5 / 1.1), rel=1e-5)

    def test_mass_by_hand(self):
        # the anomaly tokens take 1.6 of the first cell, which is clipped, so the maps are halved: .8 .1 / .1 .1
        maps = {1: self.MAPS[1] / 2}
        expected = (-np.log(0.8) - np.log(0.9), 0.25**2)
        assert self.terms(DecoupledAnomalyAlignmentLoss("mass"), maps=maps) == pytest.approx(expected, rel=1e-5)

    def test_mass_weighs_a_small_mask_as_much_as_the_rest(self):
        # −log a over .8 .1, −log(1 − a) over .1 .1
        mask = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
        first, _ = self.terms(DecoupledAnomalyAlignmentLoss("mass"), mask=mask, maps={1: self.MAPS[1] / 2})
        assert first == pytest.approx(-np.log(0.8) / 2 - np.log(0.1) / 2 - np.log(0.9), rel=1e-5)

    def test_mass_of_an_empty_and_of_a_full_mask_is_finite(self):
        maps = {1: self.MAPS[1] / 2}
        empty = self.terms(DecoupledAnomalyAlignmentLoss("mass"), mask=torch.zeros(1, 1, 2, 2), maps=maps)
        assert empty == pytest.approx((-np.log(0.2) / 4 - 3 * np.log(0.9) / 4, 0), rel=1e-5)
        full = self.terms(DecoupledAnomalyAlignmentLoss("mass", "elementwise"), mask=torch.ones(1, 1, 2, 2), maps=maps)
        normal_squares = 0.25**2 + 0.05**2 + 0.1**2 + 0.15**2
        assert full == pytest.approx((-np.log(0.8) / 4 - 3 * np.log(0.1) / 4, normal_squares / 4), rel=1e-5)

    def test_layers_are_summed(self):
        loss = DecoupledAnomalyAlignmentLoss("none")
        assert self.terms(loss, maps={1: self.MAPS[1], 2: self.MAPS[1]}) == pytest.approx((0.035, 0.5))

    def test_a_single_mask_pixel_survives_every_layer(self):
        mask = torch.zeros(1, 1, 8, 8)
        mask[0, 0, 7, 0] = 1
        maps = maps_of(np.ones((1, 3, 2, 2)) * 0.5)
        first, second = DecoupledAnomalyAlignmentLoss("none")(maps, self.ANOMALY, self.NORMAL, mask)
        assert (float(first), float(second)) == pytest.approx((0.25, 0.25))

    def test_against_an_independent_formula(self):
        draws = np.random.default_rng(3)
        maps, mask = draws.random((3, 5, 4, 6)), draws.random((3, 1, 4, 6)).round()
        anomaly, normal = [[1, 3], [0, 2], [2, 4]], [[0], [1], [3]]
        expected = [0.0, 0.0]
        cells = []
        for image in range(3):
            combined = maps[image, anomaly[image]].mean(0)
            expected[0] += ((combined - mask[image, 0]) ** 2).mean() / 3
            cells += [
                maps[image, normal[image][0]][y, x] ** 2 for y in range(4) for x in range(6) if mask[image, 0, y, x]
            ]
        expected[1] = np.mean(cells)
        got = DecoupledAnomalyAlignmentLoss("none")(
            maps_of(maps),
            torch.tensor(anomaly),
            torch.tensor(normal),
            torch.tensor(mask).float(),
        )
        assert [float(term) for term in got] == pytest.approx(expected, rel=1e-5)


class TestNoiseLoss:
    def test_mean_over_valid_cells_of_all_channels(self):
        prediction = torch.tensor([[[[1.0, 5.0]], [[2.0, 5.0]]]])
        assert float(masked_mse(prediction, torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, 0.0]]]]))) == pytest.approx(
            2.5
        )

    def test_min_max_of_a_flat_map_is_zero(self):
        assert min_max(torch.full((1, 2, 2), 0.3)).abs().max() == 0

    def test_a_cell_counts_when_half_of_it_is_inside(self):
        valid = torch.tensor([[[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]]])
        assert valid_cells(valid, (1, 2)).tolist() == [[[[1.0, 0.0]]]]

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
    def test_target_follows_the_scheduler(self, kind):
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler(prediction_type=kind)
        latents, noise, timesteps = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2), torch.tensor([10, 900])
        expected = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
        assert torch.allclose(training_target(scheduler, latents, noise, timesteps), expected, atol=1e-6)

    def test_other_targets_are_refused(self):
        from diffusers import DDPMScheduler

        with pytest.raises(InputError, match="predicts 'sample'"):
            training_target(DDPMScheduler(prediction_type="sample"), *3 * [torch.zeros(1)])


class TestAttention:
    def test_levels_are_those_of_the_encoder_and_the_mid_block(self, tiny_base):
        unet = load_pipeline(tiny_base).unet
        assert cross_attention_of(unet, 2)[0] is unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2
        assert cross_attention_of(unet, 4)[0] is unet.mid_block.attentions[0].transformer_blocks[0].attn2
        with pytest.raises(InputError, match="attention_layers names level 5"):
            cross_attention_of(unet, 5)

    def test_output_is_unchanged_and_maps_are_the_librarys(self, tiny_base):
        """With two layers a block, as Stable Diffusion has them: a level's map is the mean of theirs."""
        tiny = load_pipeline(tiny_base).unet
        unet = type(tiny).from_config({**tiny.config, "layers_per_block": 2}).eval()
        latents, context = (
            torch.randn(2, unet.config.in_channels, 8, 8),
            torch.randn(2, 7, unet.config.cross_attention_dim),
        )
        plain = unet(latents, 5, context).sample
        attentions, inputs = cross_attention_of(unet, 1), {}
        hooks = [
            attention.register_forward_hook(
                lambda module, args, kwargs, out: inputs.update({module: args[0]}), with_kwargs=True
            )
            for attention in attentions
        ]
        recorder = AttentionMaps(unet, [1, 2])
        recorded = unet(latents, 5, context).sample
        for hook in hooks:
            hook.remove()
        maps = recorder.read(8, 8)
        assert torch.allclose(plain, recorded, atol=1e-5)
        assert maps[1].shape == (2, 8, 8, 7)
        assert maps[2].shape == (2, 4, 4, 7)
        expected = []
        for attention in attentions:
            query = attention.head_to_batch_dim(attention.to_q(inputs[attention]))
            key = attention.head_to_batch_dim(attention.to_k(context))
            of_heads = attention.get_attention_scores(query, key).unflatten(0, (2, -1))
            expected.append(of_heads.mean(1).unflatten(1, (8, 8)))
        assert len(expected) == 2 and not torch.allclose(*expected, atol=1e-4)
        assert torch.allclose(maps[1], (expected[0] + expected[1]) / 2, atol=1e-6)
        assert torch.allclose(maps[1].sum(-1), torch.ones(2, 8, 8), atol=1e-5)
        recorder.remove()
        assert torch.equal(unet(latents, 5, context).sample, plain)

    def test_maps_of_levels_that_halve_an_odd_side(self, tiny_base):
        """13 → 7 → 4: the side of 4 is not 13 divided by any whole number and rounded up by the area's root."""
        unet = load_pipeline(tiny_base).unet
        recorder = AttentionMaps(unet, [1, 2, 3])
        unet(torch.randn(1, unet.config.in_channels, 13, 9), 5, torch.randn(1, 7, unet.config.cross_attention_dim))
        shapes = {layer: tuple(maps.shape[1:3]) for layer, maps in recorder.read(13, 9).items()}
        assert shapes == {1: (13, 9), 2: (7, 5), 3: (4, 3)}

    def test_softmax_over_pixels_sums_to_one_over_the_picture(self, tiny_base):
        unet = load_pipeline(tiny_base).unet
        recorder = AttentionMaps(unet, [2], "pixels")
        unet(torch.randn(1, unet.config.in_channels, 8, 8), 5, torch.randn(1, 7, unet.config.cross_attention_dim))
        assert torch.allclose(recorder.read(8, 8)[2].sum((1, 2)), torch.ones(1, 7), atol=1e-5)

    def test_token_maps_picks_by_position(self):
        maps = torch.arange(12.0).reshape(1, 2, 2, 3)
        assert token_maps(maps, torch.tensor([[2, 0]])).tolist() == [[[[2, 5], [8, 11]], [[0, 3], [6, 9]]]]


class TestNewRows:
    def test_old_rows_neither_train_nor_decay(self):
        table = nn.Embedding(3, 2)
        before = table.weight.detach().clone()
        rows = NewRows(table, torch.ones(2, 2))
        optimizer = torch.optim.AdamW([p for p in rows.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
        (rows(torch.tensor([[0, 3, 4]])) ** 2).sum().backward()
        optimizer.step()
        assert torch.equal(table.weight, before)
        assert not torch.equal(rows.rows, torch.ones(2, 2))

    def test_rows_start_from_their_words_and_fold_into_one_table(self, tiny_base):
        pipeline = load_pipeline(tiny_base)
        word = pipeline.tokenizer("defect", add_special_tokens=False).input_ids
        old = pipeline.text_encoder.get_input_embeddings().weight.clone()
        prompts = Prompts.of("p", ["x"], normal=1, anomaly=2, commas=True)
        rows = add_tokens(pipeline, prompts, normal_word="object", anomaly_word="defect")
        assert torch.equal(rows.rows[1], old[word[0]])
        text = [prompts.abnormal("x")]
        before = encode_prompts(pipeline, text)
        fold_tokens(pipeline, rows)
        assert torch.equal(encode_prompts(pipeline, text), before)
        assert pipeline.text_encoder.get_input_embeddings().weight.shape[0] == len(old) + 3

    def test_unknown_start_word(self, tiny_base):
        prompts = Prompts.of("p", ["x"], normal=1, anomaly=1, commas=True)
        with pytest.raises(InputError, match="generator.anomaly_word: .* does not know 'xylophone'"):
            add_tokens(load_pipeline(tiny_base), prompts, normal_word="object", anomaly_word="xylophone")

    def test_a_finished_generator_is_no_base(self, tiny_base):
        """Its tokenizer knows the tokens: nothing new would be learned, in silence."""
        pipeline = load_pipeline(tiny_base)
        words = {"normal_word": "object", "anomaly_word": "defect"}
        fold_tokens(pipeline, add_tokens(pipeline, Prompts.of("p", ["x"], normal=1, anomaly=1, commas=True), **words))
        more = Prompts.of("p", ["x", "y"], normal=1, anomaly=1, commas=True)
        with pytest.raises(InputError, match="a base must not be a fine-tuned generator"):
            add_tokens(pipeline, more, **words)


@pytest.fixture(scope="module")
def trained(tiny_base, miniature, tmp_path_factory):
    """A generator after a few uninterrupted updates."""
    folder = tmp_path_factory.mktemp("generator") / "washer"
    train_generator(tiny_base, miniature.split, miniature.root, SMALL, miniature.data, CPU, 0, output=folder)
    return folder


class TestBatches:
    def batches(self, tiny_base, miniature, data=None, **counts):
        split = pd.read_parquet(miniature.split)
        prompts = prompts_of(split, SMALL)
        encoded = encode_images(split, miniature.root, data or miniature.data, load_pipeline(tiny_base).vae)
        return TrainingBatches(encoded, prompts, SMALL.model_copy(update=counts), 1), encoded

    def test_a_step_is_always_the_same_batch(self, tiny_base, miniature):
        batches, _ = self.batches(tiny_base, miniature)
        later = batches.batch(5)
        again, _ = self.batches(tiny_base, miniature)
        assert torch.equal(again.batch(5).latents, later.latents)
        assert not torch.equal(batches.batch(6).latents, later.latents)

    def test_two_abnormal_then_two_normal(self, tiny_base, miniature):
        batch = self.batches(tiny_base, miniature)[0].batch(0)
        assert batch.is_abnormal.tolist() == [True, True, False, False]
        assert batch.mask[:2].sum((1, 2, 3)).min() > 0
        assert batch.mask[2:].sum() == 0
        assert batch.prompts[2] == "a <ob_1>"

    def test_every_image_comes_once_before_any_comes_twice(self, tiny_base, miniature, monkeypatch):
        batches, encoded = self.batches(tiny_base, miniature, abnormal_per_batch=1, normal_per_batch=1)
        for role in ("shot", "normal"):
            images = list(encoded.rows.index[encoded.rows.role == role])
            seen = [batches._image_in_turn(role, number) for number in range(len(images))]
            assert sorted(seen) == images and seen != images

    def test_an_abnormal_image_and_its_normal_share_one_augmentation(self, tiny_base, miniature, monkeypatch):
        data = miniature.data.model_copy(update={"augmentation": "turns_and_flips"})
        batches, encoded = self.batches(tiny_base, miniature, data=data)
        view, turns = type(encoded).view, []

        def noting(encoded, image, turn, shift):
            turns.append(turn)
            return view(encoded, image, turn, shift)

        monkeypatch.setattr(type(encoded), "view", noting)
        for step in range(12):
            batches.batch(step)
        drawn = np.reshape(turns, (12, 2, 2))  # step, abnormal or normal, place
        assert (drawn[:, 0] == drawn[:, 1]).all()
        assert len(np.unique(drawn[:, 0, 0])) > 3 and (drawn[:, 0, 0] != drawn[:, 0, 1]).any()

    def test_the_latent_is_a_fresh_posterior_sample(self, tiny_base, miniature):
        batches, encoded = self.batches(
            tiny_base, miniature, data=miniature.data.model_copy(update={"augmentation": "none"})
        )
        batch = batches.batch(0)
        image = batches._image_in_turn("shot", 0)
        distance = (batch.latents[0] / encoded.scaling_factor - encoded.mean[image, 0]) / encoded.deviation[image, 0]
        assert distance.abs().max() < 6
        assert 0.5 < distance.std() < 1.5


def squares(mask, augmentation="turns_and_flips", box=(0, 0, 8, 8)):
    """Encoded images of one shot and one normal, 4 × 4 cells of two pixels; a cell's latent says which cell it was."""
    cells = np.arange(16.0).reshape(4, 4)
    mean = torch.stack([torch.from_numpy(augment(cells, turn))[None] for turn in SYMMETRIES[augmentation]]).float()
    return EncodedImages(
        pd.DataFrame({"role": ["shot", "normal"], "type": ["hole", "good"], "image": ["s", "n"]}),
        torch.stack([mean, mean + 100]),
        torch.stack([mean + 200, mean + 300]),
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
        torch.from_numpy(np.stack([mask, np.zeros((8, 8), bool)])),
        torch.tensor([box, box]),
        augmentation,
        True,
        1.0,
    )


class TestShifts:
    MASK = np.zeros((8, 8), bool)
    MASK[1:4, 5] = True

    @pytest.mark.parametrize("augmentation", ["flips", "turns_and_flips"])
    @pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -2), (-3, 3), (2, 2)])
    def test_a_view_is_a_window_of_the_mirrored_plane(self, augmentation, shift):
        encoded, cells = squares(self.MASK, augmentation), np.arange(16.0).reshape(4, 4)
        for turn in SYMMETRIES[augmentation]:
            view = encoded.view(0, turn, shift)
            window = tuple(slice(4 + by, 8 + by) for by in shift)
            wanted = np.pad(augment(cells, turn), 4, mode="symmetric")[window]
            assert view.mean[0].tolist() == wanted.tolist()
            assert view.deviation[0].tolist() == (wanted + 200).tolist()
            pixels = tuple(slice(8 + 2 * by, 16 + 2 * by) for by in shift)
            wanted = np.pad(augment(self.MASK, turn), 8, mode="symmetric")[pixels]
            assert view.mask.tolist() == wanted.tolist()
            assert view.valid.all()

    def test_the_defect_stays_whole_and_no_farther_shift_keeps_it(self):
        # rows 1 to 3, column 5 of eight pixels: up to half a cell down, two cells of room below; two cells left, one right
        encoded = squares(self.MASK)
        assert encoded.shifts(0, 0) == (range(-2, 1), range(-1, 3))
        assert encoded.shifts(0, 4) == (range(-2, 1), range(-2, 2))
        assert encoded.shifts(1, 0) == (range(-3, 4), range(-3, 4))

    def test_padding_stays_where_it_is(self):
        encoded = squares(self.MASK, "flips", box=(0, 2, 8, 4))
        assert encoded.shifts(0, 0) == (range(-2, 1), range(1))
        assert encoded.shifts(1, 0) == (range(-3, 4), range(1))

    def test_batches_shift_every_image_by_itself_and_only_on_request(self):
        prompts = Prompts.of("p", ["hole"], normal=1, anomaly=1, commas=True)
        encoded = squares(self.MASK, "flips")
        still = TrainingBatches(encoded._replace(shifted=False), prompts, SMALL, 0)
        moved = TrainingBatches(encoded, prompts, SMALL, 0)
        places, apart = set(), []
        for step in range(120):
            batch, unmoved = moved.batch(step), still.batch(step).mask[:2]
            assert (batch.mask[:2].sum((1, 2, 3)) >= 3).all() and batch.mask[2:].sum() == 0
            places |= {str(mask.nonzero().tolist()) for mask in batch.mask[:2]}
            flipped = {str(mask.nonzero().tolist()) for mask in unmoved}
            assert flipped <= {str(np.argwhere(augment(self.MASK, turn)[None]).tolist()) for turn in (0, 2, 4, 6)}
            if torch.equal(*unmoved):
                apart.append(not torch.equal(*batch.mask[:2]))
        assert len(places) > 20 and np.mean(apart) > 0.8
        assert torch.equal(moved.batch(7).latents, TrainingBatches(encoded, prompts, SMALL, 0).batch(7).latents)

    def test_a_generator_tells_its_mask_branch(self, tiny_base, miniature, tmp_path):
        settings = SMALL.model_copy(update={"shifts": True, "updates_per_type": 1})
        train_generator(
            tiny_base, miniature.split, miniature.root, settings, miniature.data, CPU, 0, output=tmp_path / "shifted"
        )
        assert load_encoded(tmp_path / "shifted").shifted


class TestEncodedImages:
    def test_the_share_that_a_shot_covers_leaves_padding_out(self):
        mask = np.zeros((8, 8), bool)
        mask[2:4, 1:7] = True
        assert squares(mask).shares("hole") == [12 / 64]
        assert squares(mask, box=(2, 0, 4, 8)).shares("hole") == [12 / 32]

    def encoded(self, tiny_base, miniature):
        split = pd.read_parquet(miniature.split)
        return encode_images(split, miniature.root, miniature.data, load_pipeline(tiny_base).vae)

    def test_each_view_is_the_turned_photograph_encoded(self, tiny_base, miniature):
        encoded, vae = self.encoded(tiny_base, miniature), load_pipeline(tiny_base).vae
        photograph = read_image(miniature.root / encoded.rows.image[3])
        small = np.asarray(Image.fromarray(photograph).resize((32, 32), Image.Resampling.LANCZOS))
        views = [np.rot90(small, turns) for turns in range(4)]
        views += [np.rot90(np.fliplr(small), turns) for turns in range(4)]
        for view, image in enumerate(views):
            pixels = torch.tensor(image.copy()).permute(2, 0, 1)[None] / 127.5 - 1
            with torch.no_grad():
                posterior = vae.encode(pixels).latent_dist
            assert torch.allclose(encoded.mean[3, view], posterior.mean[0], atol=1e-4), view
            assert torch.allclose(encoded.deviation[3, view], posterior.std[0], atol=1e-4), view

    def test_of_types_keeps_their_shots_and_the_normals(self, tiny_base, miniature):
        encoded = self.encoded(tiny_base, miniature)
        kept = sorted(set(encoded.rows.type) - {"good"})[1:]
        part = encoded.of_types(kept)
        wanted = [k for k, name in enumerate(encoded.rows.type) if name in {*kept, "good"}]
        assert len(wanted) < len(encoded.rows)
        assert list(part.rows.image) == [encoded.rows.image[k] for k in wanted]
        assert torch.equal(part.mean, encoded.mean[wanted]) and torch.equal(part.mask, encoded.mask[wanted])

    def test_padding_is_not_valid(self, tiny_base, miniature, tmp_path):
        wide = np.tile(np.arange(48, dtype=np.uint8)[:, None], (24, 1, 3)).reshape(24, 48, 3)
        write_image(wide, tmp_path / "wide.png")
        split = pd.read_parquet(miniature.split).query("role in ('shot', 'normal')").head(12).copy()
        split = split.assign(image="wide.png", mask="", width=48, height=24)
        encoded = encode_images(split, tmp_path, miniature.data, load_pipeline(tiny_base).vae)
        assert encoded.boxes[2].tolist() == [8, 0, 16, 32]
        assert encoded.augmentation == "flips" and encoded.mean.shape[:2] == (12, 4), "it is turned upright"
        valid = encoded.valid(2)
        assert valid[8:24].all() and not valid[:8].any() and not valid[24:].any()

    @pytest.mark.parametrize("role", ["shot", "normal"])
    def test_nothing_to_train_on(self, tiny_base, miniature, role):
        split = pd.read_parquet(miniature.split).query("role != @role")
        with pytest.raises(InputError, match=f"washer: the split has no {role} to train on"):
            encode_images(split, miniature.root, miniature.data, load_pipeline(tiny_base).vae)


class TestTraining:
    def test_one_update_is_eq_4_to_6(self, tiny_base, miniature):
        trainer = self.trainer(tiny_base, miniature)
        losses = trainer.losses(0)
        parts = sum(losses[name] for name in ("da_first", "da_second", "df_mse", "ob_mse"))
        assert float(losses["loss"].detach()) == pytest.approx(float(parts.detach()), rel=1e-6)
        without = GeneratorTrainer.losses
        trainer.settings = SMALL.model_copy(update={"da_weight": 0.0, "normal_weight": 0.0})
        alone = without(trainer, 0)["loss"].detach()
        assert float(alone) == pytest.approx(float(losses["df_mse"].detach()), rel=1e-6)

    def test_the_noise_losses_are_those_of_their_own_images(self, tiny_base, miniature):
        """The mean squared errors of the abnormal and of the normal images, from a forward pass of the test's own.

        The upper half of all images is padding.
        """
        trainer = self.trainer(tiny_base, miniature)
        padded = trainer.batches.batch(0)
        padded.valid[:, :, :16] = 0
        trainer.batches = SimpleNamespace(batch=lambda *steps: padded)
        batch, scheduler, pipeline = trainer.batches.batch(0), trainer.pipeline.scheduler, trainer.pipeline
        random = torch_rng(0, "noise", 0)
        noise = torch.randn(batch.latents.shape, generator=random)
        timesteps = torch.randint(1000, (4,), generator=random)
        with torch.no_grad():
            context = encode_prompts(pipeline, batch.prompts)
            noisy = scheduler.add_noise(batch.latents, noise, timesteps)
            errors = (pipeline.unet(noisy, timesteps, context).sample - noise) ** 2
            if scheduler.config.prediction_type == "v_prediction":
                velocity = scheduler.get_velocity(batch.latents, noise, timesteps)
                errors = (pipeline.unet(noisy, timesteps, context).sample - velocity) ** 2
        losses = trainer.losses(0)
        assert [name == "good" for name in batch.types] == [False, False, True, True]
        errors = errors[:, :, errors.shape[2] // 2 :]
        assert float(losses["df_mse"].detach()) == pytest.approx(float(errors[:2].mean()), rel=1e-4)
        assert float(losses["ob_mse"].detach()) == pytest.approx(float(errors[2:].mean()), rel=1e-4)

    def test_the_alignment_loss_reaches_the_attention_and_the_new_rows(self, tiny_base, miniature):
        trainer = self.trainer(tiny_base, miniature)
        losses = trainer.losses(0)
        (losses["da_first"] + losses["da_second"]).backward()
        keys = cross_attention_of(trainer.pipeline.unet, SMALL.attention_layers[0])[0].to_k.weight
        assert float(keys.grad.abs().max()) > 0
        types = {name for name in trainer.batches.batch(0).types if name != "good"}
        moved = {
            token
            for token, gradient in zip(trainer.prompts.tokens, trainer.embeddings.rows.grad, strict=True)
            if gradient.abs().max() > 0
        }
        wanted = [trainer.prompts.normal_tokens, *(trainer.prompts.anomaly_tokens[name] for name in types)]
        assert moved == {token for tokens in wanted for token in tokens}

    @pytest.mark.parametrize("which", ["new_rows", "all"])
    def test_which_rows_of_the_table_train(self, tiny_base, miniature, which):
        trainer = self.trainer(tiny_base, miniature, trained_embeddings=which)
        old, new = trainer.embeddings.table.weight.clone(), trainer.embeddings.rows.detach().clone()
        trainer.update(0)
        assert torch.equal(old, trainer.embeddings.table.weight) == (which == "new_rows")
        assert not torch.equal(new, trainer.embeddings.rows.detach())

    def test_the_complement_of_either_kind_of_images(self, tiny_base, miniature):
        found = {}
        for kind, images in (("abnormal", slice(0, 2)), ("normal", slice(2, 4))):
            changes = {"second_term": "complement", "complement_on": kind, "map_normalisation": "none"}
            trainer = self.trainer(tiny_base, miniature, **changes)
            losses, batch = trainer.losses(0), trainer.batches.batch(0)
            expected = 0.0
            for maps in trainer.maps.read(8, 8).values():
                rest = 1 - torch.nn.functional.adaptive_max_pool2d(batch.mask, maps.shape[1])[:, 0]
                of_images = [
                    maps[k, :, :, int(trainer.normal_positions[batch.types[k]][0])] - rest[k]
                    for k in range(images.start, images.stop)
                ]
                expected += float((torch.stack(of_images) ** 2).mean().detach())
            found[kind] = float(losses["complement"].detach())
            assert found[kind] == pytest.approx(expected, rel=1e-4)
        assert found["abnormal"] != pytest.approx(found["normal"], rel=1e-3)

    @pytest.mark.parametrize("limit", [None, 0.5])
    def test_no_gradient_is_longer_than_its_limit(self, tiny_base, miniature, monkeypatch, limit):
        trainer = self.trainer(tiny_base, miniature, largest_gradient_norm=limit)
        parameters = [*trainer.pipeline.unet.parameters(), trainer.embeddings.rows]
        norms = []
        monkeypatch.setattr(
            trainer.optimizer,
            "step",
            lambda: norms.append(float(sum((weight.grad**2).sum() for weight in parameters) ** 0.5)),
        )
        trainer.update(0)
        assert norms[0] > 0.6 if limit is None else norms[0] == pytest.approx(limit, rel=1e-3)

    @pytest.mark.parametrize("limit", [None, 0.5])
    @pytest.mark.parametrize("option", ["gradient_checkpointing", "offload_optimizer"])
    def test_options_for_small_cards_change_no_bit(self, tiny_base, miniature, option, limit):
        common = {"gradient_accumulation": 2, "largest_gradient_norm": limit}
        plain, saving = (self.trainer(tiny_base, miniature, **common, **changes) for changes in ({}, {option: True}))
        computed = []
        block = saving.pipeline.unet.down_blocks[0].resnets[0]
        block.register_forward_pre_hook(lambda module, arguments: computed.append(module))
        for step in range(2):
            assert plain.update(step) == saving.update(step)
        assert len(computed) == (8 if option == "gradient_checkpointing" else 4), "forward passes of a block"
        for name, part in plain.state.items():
            if name != "optimizer":
                there = saving.state[name].state_dict()
                assert all(torch.equal(value, there[key]) for key, value in part.state_dict().items())
        moments, others = (trainer.optimizer.state_dict()["state"] for trainer in (plain, saving))
        assert all(torch.equal(moments[k]["exp_avg"], others[k]["exp_avg"]) for k in moments)

    def test_an_offloaded_optimizer_resumes(self, tiny_base, miniature, tmp_path):
        whole, first, second = (self.trainer(tiny_base, miniature, offload_optimizer=True) for _ in range(3))
        options = {"label": "test", "checkpoint_every": 2}
        train(whole.update, 4, whole.state, working=tmp_path / "whole", **options)

        def dies(step):
            if step == 3:
                raise KeyboardInterrupt
            return first.update(step)

        with pytest.raises(KeyboardInterrupt):
            train(dies, 4, first.state, working=tmp_path / "resumed", **options)
        train(second.update, 4, second.state, working=tmp_path / "resumed", **options)
        weights = (trainer.pipeline.unet.state_dict().values() for trainer in (whole, second))
        assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))

    def test_the_limit_for_each_shot_spreads_them_evenly(self, tiny_base, miniature, monkeypatch):
        shots = list(pd.read_parquet(miniature.split).query("role == 'shot'").type)
        updates = 3 * len(shots)  # of 3 types
        trainer = self.trainer(tiny_base, miniature, updates_per_type=len(shots), updates_per_shot=1)
        turn, turns = trainer.batches._image_in_turn, []
        monkeypatch.setattr(trainer.batches, "_image_in_turn", lambda *of: turns.append(of) or turn(*of))
        batches = [trainer._scheduled(draw) for draw in range(updates)]
        trained = [turns[4 * draw + slot] for draw in range(2, updates, 3) for slot in (0, 1)]
        assert trained == [("shot", number) for number in range(2 * len(shots))], "not one after the other"
        with_shots = [draw for draw, batch in enumerate(batches) if batch.is_abnormal.any()]
        assert with_shots == list(range(2, updates, 3))
        assert all((~batch.is_abnormal).sum() == 2 for batch in batches)
        normals = trainer.batches.batch(4)
        assert torch.equal(batches[4].latents, normals.latents[~normals.is_abnormal])
        assert set(trainer.losses(0)) == {"loss", "ob_mse"}
        assert set(trainer.losses(2)) == {"loss", "ob_mse", "df_mse", "da_first", "da_second"}

    def test_the_limit_counts_updates_not_their_batches(self, tiny_base, miniature, monkeypatch):
        shots = int((pd.read_parquet(miniature.split).role == "shot").sum())
        changes = {"updates_per_type": shots, "updates_per_shot": 1, "gradient_accumulation": 2}
        trainer = self.trainer(tiny_base, miniature, **changes)
        turn, turns = trainer.batches._image_in_turn, []
        monkeypatch.setattr(trainer.batches, "_image_in_turn", lambda *of: turns.append(of) or turn(*of))
        with_shots = [draw for draw in range(6 * shots) if trainer._scheduled(draw).is_abnormal.any()]
        trained = [turns[4 * draw + slot] for draw in with_shots for slot in (0, 1)]
        assert trained == [("shot", number) for number in range(4 * shots)], "not one after the other"
        assert with_shots == [draw for update in range(2, 3 * shots, 3) for draw in (2 * update, 2 * update + 1)]

    def test_a_limit_that_is_not_reached_changes_nothing(self, tiny_base, miniature):
        trainer = self.trainer(tiny_base, miniature, updates_per_type=2, updates_per_shot=50)
        for draw in range(6):
            assert torch.equal(trainer._scheduled(draw).latents, trainer.batches.batch(draw).latents)

    @pytest.mark.parametrize(("decay", "share"), [("none", 1.0), ("cosine", (1 + math.cos(math.pi / 6)) / 2)])
    def test_both_rates_fall_along_half_a_cosine(self, tiny_base, miniature, decay, share):
        trainer = self.trainer(tiny_base, miniature, learning_rate_decay=decay, updates_per_type=2)
        trainer.update(1)  # the second of 2 updates for each of 3 types
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        assert rates == pytest.approx([share * SMALL.unet_learning_rate, share * SMALL.embedding_learning_rate])

    def trainer(self, tiny_base, miniature, **changes):
        pipeline, split = load_pipeline(tiny_base), pd.read_parquet(miniature.split)
        settings = SMALL.model_copy(update=changes)
        prompts = prompts_of(split, settings)
        images = encode_images(split, miniature.root, miniature.data, pipeline.vae)
        return GeneratorTrainer(pipeline, prompts, images, settings, CPU, 0)

    def test_killed_anywhere_and_started_again_gives_the_same_bytes(
        self, tiny_base, miniature, trained, tmp_path, monkeypatch
    ):
        seen: list[int] = []
        update = GeneratorTrainer.update
        updates = SMALL.updates_per_type * 3

        for killed_at in (1, 3, updates - 1):
            output = tmp_path / str(killed_at) / "washer"

            def dies(trainer, step, killed_at=killed_at):
                if step == killed_at:
                    raise KeyboardInterrupt
                return update(trainer, step)

            monkeypatch.setattr(
                generator_train, "GeneratorTrainer", type("Dying", (GeneratorTrainer,), {"update": dies})
            )
            arguments = (tiny_base, miniature.split, miniature.root, SMALL, miniature.data, CPU, 0)
            with pytest.raises(KeyboardInterrupt):
                train_generator(*arguments, output=output)
            assert not output.exists()

            def notes(trainer, step):
                seen.append(step)
                return update(trainer, step)

            monkeypatch.setattr(
                generator_train, "GeneratorTrainer", type("Noting", (GeneratorTrainer,), {"update": notes})
            )
            seen.clear()
            options = {"gradient_checkpointing": True, "offload_optimizer": True, "checkpoint_every": 5}
            card = SMALL.model_copy(update=options if killed_at == 3 else {})  # as after "the memory is too small"
            arguments = (tiny_base, miniature.split, miniature.root, card, miniature.data, CPU, 0)
            train_generator(*arguments, output=output)
            assert seen[0] == killed_at // SMALL.checkpoint_every * SMALL.checkpoint_every
            assert json.loads((output / "manifest.json").read_text()) == json.loads(
                (trained / "manifest.json").read_text()
            )
            assert list(output.parent.iterdir()) == [output]

    def test_the_folder_is_a_stable_diffusion_pipeline(self, trained):
        pipeline = StableDiffusionPipeline.from_pretrained(trained, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        prompts = Prompts.load(trained)
        images = [
            pipeline(
                prompts.abnormal(prompts.types[0]),
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(3),
                output_type="np",
                height=32,
                width=32,
            ).images
            for _ in range(2)
        ]
        assert np.array_equal(*images)
        ours = encode_prompts(load_pipeline(trained), [prompts.normal()])
        assert torch.equal(ours, encode_prompts(pipeline, [prompts.normal()]))

    def test_training_moves_the_unet_and_only_the_new_rows(self, tiny_base, trained):
        before, after = load_pipeline(tiny_base), load_pipeline(trained)
        table, grown = (p.text_encoder.get_input_embeddings().weight for p in (before, after))
        assert torch.equal(grown[: len(table)], table)
        assert len(grown) == len(table) + 1 + 4 * 3
        first = next(iter(before.unet.parameters()))
        assert not torch.equal(first, next(iter(after.unet.parameters())))
        assert all(
            torch.equal(a, b)
            for a, b in zip(before.vae.state_dict().values(), after.vae.state_dict().values(), strict=True)
        )

    def test_the_vae_is_the_bases_own_file(self, tiny_base, trained, tmp_path, monkeypatch):
        name = "vae/diffusion_pytorch_model.safetensors"
        assert (trained / name).stat().st_ino == (tiny_base / name).stat().st_ino

        def refuses(*paths):
            raise OSError("another disk")

        monkeypatch.setattr(os, "link", refuses)
        save_generator(load_pipeline(trained), tiny_base, tmp_path, half=False)
        assert (tmp_path / name).read_bytes() == (tiny_base / name).read_bytes()
        assert (tmp_path / name).stat().st_ino != (tiny_base / name).stat().st_ino

    def test_in_half_precision_it_draws_the_same_images(self, tiny_base, trained, tmp_path):
        whole = load_pipeline(trained)
        save_generator(load_pipeline(trained), tiny_base, tmp_path, half=True)
        for part in ("unet", "text_encoder"):
            (file,) = (tmp_path / part).glob("*.safetensors")
            with safe_open(file, "pt") as weights:
                kinds = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
            assert kinds <= {"F16", "I64"} and "F16" in kinds
        half = load_pipeline(tmp_path)
        assert half.unet.dtype == torch.float32
        prompts = Prompts.load(trained)
        images = [
            pipeline(
                prompts.abnormal(prompts.types[0]),
                num_inference_steps=3,
                generator=torch.Generator().manual_seed(3),
                output_type="np",
                height=32,
                width=32,
            ).images
            for pipeline in (whole, half)
        ]
        assert 0 < np.abs(images[0] - images[1]).max() < 0.02

    def test_bf16_on_a_cpu_trains_and_saves_half(self, tiny_base, miniature, tmp_path):
        compute = ComputeSettings(device="cpu", precision="bf16", threads=1)
        settings = SMALL.model_copy(update={"updates_per_type": 1})
        split, root, data = miniature.split, miniature.root, miniature.data
        train_generator(tiny_base, split, root, settings, data, compute, 0, output=tmp_path / "washer")
        (file,) = (tmp_path / "washer/unet").glob("*.safetensors")
        with safe_open(file, "pt") as weights:
            assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F16"}  # noqa: SIM118
        assert np.isfinite(pd.read_parquet(tmp_path / "washer/losses.parquet")).all(None)
        facts = json.loads((tmp_path / "washer/run.json").read_text())
        assert facts["measured"]["updates"] >= 3 and facts["measured"]["update_seconds"] > 0
        assert {"wall_seconds", "peak_memory_mib", "device", "versions", "commit"} <= set(facts)

    def test_the_folder_names_no_path_of_the_machine(self, tiny_base, trained):
        for path in trained.rglob("*.json"):
            assert str(tiny_base.parent) not in path.read_text(), path

    def test_it_keeps_the_encoded_images(self, trained, tiny_base, miniature, tmp_path):
        split, kept = pd.read_parquet(miniature.split), load_encoded(trained)
        fresh = encode_images(split, miniature.root, miniature.data, load_pipeline(tiny_base).vae)
        assert kept.rows.equals(fresh.rows)
        assert list(kept.rows.image) == list(split[split.role.isin(["shot", "normal"])].image)
        for name in ("mean", "deviation", "image", "mask", "boxes"):
            assert torch.equal(getattr(kept, name), getattr(fresh, name)), name
        assert (kept.augmentation, kept.shifted) == (fresh.augmentation, False)
        assert kept.scaling_factor == fresh.scaling_factor
        fresh.save(tmp_path)
        (name,) = [file.name for file in tmp_path.iterdir()]
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()

    def test_start_normals_are_the_splits(self, trained, miniature):
        normals = load_encoded(trained).start_normals()
        split = pd.read_parquet(miniature.split)
        assert normals.names == list(split[split.role == "normal"].image)
        assert normals.boxes.tolist() == [[0, 0, 32, 32]] * len(normals.names)

    def test_damaged_encoded_images(self, trained, tmp_path):
        with pytest.raises(InputError, match="encoded_images.safetensors is missing or incomplete: .* make it anew"):
            load_encoded(tmp_path)
        with safe_open(trained / ENCODED, "pt") as file:
            tensors, about = file.get_tensors(), json.loads(file.metadata()["images"])
        del about["shifted"]  # as an earlier version wrote it
        save_file(tensors, tmp_path / ENCODED, {"images": json.dumps(about)})
        with pytest.raises(InputError, match="an earlier version made it; make it anew"):
            load_encoded(tmp_path)
        about["shifted"] = False
        boxes = tensors.pop("boxes")
        for kept, metadata in ((tensors, {"images": json.dumps(about)}), (tensors | {"boxes": boxes}, None)):
            save_file(kept, tmp_path / ENCODED, metadata)
            with pytest.raises(InputError, match="an earlier version made it; make it anew"):
                load_encoded(tmp_path)
        (tmp_path / ENCODED).write_bytes((trained / ENCODED).read_bytes()[:-9])
        with pytest.raises(InputError, match="encoded_images.safetensors cannot be read"):
            load_encoded(tmp_path)

    def test_no_prompt_no_generator(self, tmp_path):
        with pytest.raises(InputError, match="is no finished generator"):
            Prompts.load(tmp_path)


def test_settings_refuse_what_has_no_meaning():
    with pytest.raises(ValueError, match="name each level once"):
        GeneratorSettings(attention_layers=(2, 2))
    with pytest.raises(ValueError, match="'elementwise' has no meaning for shares"):
        GeneratorSettings(second_term="elementwise")
    with pytest.raises(ValueError, match="updates_per_shot needs schedule 'mixed'; 'abnormal_then_normal'"):
        GeneratorSettings(updates_per_shot=5, schedule="abnormal_then_normal")
    with pytest.raises(ValueError, match="'mass' needs map_softmax 'tokens'"):
        GeneratorSettings(map_normalisation="mass", map_softmax="pixels")


def test_settings_refuse_a_level_that_no_unet_has():
    with pytest.raises(ValueError, match="attention_layers is \\[5\\]"):
        GeneratorSettings(attention_layers=(5,))
    assert DataSettings().image_size == 512
