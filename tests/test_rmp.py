"""The mask branch: losses and modules by value, the paper's shapes, features it reads, training, loading."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from scipy.special import softmax

from seas.artifacts import Provenance
from seas.errors import InputError
from seas.generator.encoded import load_encoded
from seas.generator.pipeline import encode_prompts, load_pipeline
from seas.generator.settings import GeneratorSettings
from seas.generator.train import train_generator
from seas.rmp import train as rmp_train
from seas.rmp.features import UnetFeatures, latents_to_decode, previous_latents, vae_features
from seas.rmp.losses import focal_loss, mask_losses
from seas.rmp.network import MaskLogits, MaskRefinementModule, RefinedMaskPrediction
from seas.rmp.settings import RmpSettings
from seas.rmp.train import RmpTrainer, load_rmp, save_rmp, train_rmp
from seas.seeding import torch_rng
from seas.settings import ComputeSettings

CPU = ComputeSettings(device="cpu", precision="fp32", threads=1)
SMALL = RmpSettings(updates_per_type=4, abnormal_per_batch=1, normal_per_batch=1, checkpoint_every=10)
SD_UNET = SimpleNamespace(config=SimpleNamespace(block_out_channels=(320, 640, 1280, 1280)))
SD_VAE = SimpleNamespace(config=SimpleNamespace(block_out_channels=(128, 256, 512, 512)))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits_of(probability):
    """Logits (1, 2, H, W) whose softmax has these anomaly probabilities."""
    probability = torch.tensor(probability)
    return torch.stack([(1 - probability).log(), probability.log()])[None]


class TestFocalLoss:
    def test_by_hand(self):
        logits, target = logits_of([[0.8, 0.8]]), torch.tensor([[[[1.0, 0.0]]]])
        # p_t is .8 and .2: .2² · -ln .8 = .0089257, .8² · -ln .2 = 1.0300403
        assert float(focal_loss(logits, target, torch.ones(1, 1, 1, 2))) == pytest.approx((0.0089257 + 1.0300403) / 2)

    def test_gamma_0_is_the_cross_entropy(self):
        logits, target = drawn(2, 2, 3, 3), (drawn(2, 1, 3, 3, seed=1) > 0).float()
        expected = torch.nn.functional.cross_entropy(logits, target[:, 0].long())
        assert float(focal_loss(logits, target, torch.ones_like(target), gamma=0)) == pytest.approx(float(expected))

    @pytest.mark.parametrize("gamma", [0.5, 2.0, 3.0])
    @pytest.mark.parametrize("smoothing", [0.0, 1e-5, 0.1])
    def test_against_an_independent_formula(self, gamma, smoothing):
        draws = np.random.default_rng(1)
        logits, target, valid = (
            draws.normal(0, 3, (2, 2, 4, 5)),
            draws.integers(0, 2, (2, 4, 5)),
            draws.random((2, 4, 5)) > 0.3,
        )
        values = []
        for image, y, x in zip(*np.nonzero(valid), strict=True):
            p = softmax(logits[image, :, y, x])[target[image, y, x]]
            p = p + smoothing - 2 * smoothing * p
            values.append(-((1 - p) ** gamma) * np.log(p))
        got = focal_loss(*map(torch.tensor, (logits, target[:, None], valid[:, None])), gamma, smoothing)
        assert float(got) == pytest.approx(np.mean(values), rel=1e-5)

    def test_padding_does_not_count(self):
        target, valid = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
        expected = float(focal_loss(logits_of([[0.4]]), target[..., :1], valid[..., :1]))
        assert float(focal_loss(logits_of([[0.4, 0.9]]), target, valid)) == pytest.approx(expected)
        assert float(focal_loss(logits_of([[0.4, 0.9]]), target, torch.zeros_like(valid))) == 0

    @pytest.mark.parametrize("smoothing", [0.0, 1e-5])
    def test_certain_pixels_give_finite_losses_and_gradients(self, smoothing):
        logits = torch.tensor([[[[200.0, 200.0]], [[-200.0, -200.0]]]], requires_grad=True)
        loss = focal_loss(logits, torch.tensor([[[[1.0, 0.0]]]]), torch.ones(1, 1, 1, 2), 2.0, smoothing)
        loss.backward()
        # -ln p is 400 for the wrong pixel, and at most -ln 1e-5 with smoothing
        assert float(loss.detach()) == pytest.approx(200 if not smoothing else -np.log(1e-5) / 2, rel=1e-3)
        assert torch.isfinite(logits.grad).all()


class TestEq7:
    MASK = torch.zeros(2, 1, 8, 8)
    MASK[0, 0, 0, 7] = 1
    MASK[1, 0, 3:6, 2:4] = 1
    VALID = torch.ones(3, 1, 8, 8)
    VALID[2, 0, :, 6:] = 0
    ABNORMAL = MaskLogits(drawn(2, 2, 2, 2), drawn(2, 2, 8, 8, seed=1))
    NORMAL = MaskLogits(drawn(1, 2, 2, 2, seed=2), drawn(1, 2, 8, 8, seed=3))

    def losses(self, **options):
        return mask_losses(self.ABNORMAL, self.NORMAL, self.MASK, self.VALID, **options)

    def test_four_terms_and_their_sum(self):
        losses = self.losses()
        coarse_mask = torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]], [[[1.0, 0.0], [1.0, 0.0]]]])
        normal_cells = torch.ones(1, 1, 2, 2)  # half of the right cells is inside
        expected = {
            "coarse_abnormal": focal_loss(self.ABNORMAL.coarse, coarse_mask, torch.ones(2, 1, 2, 2)),
            "refined_abnormal": focal_loss(self.ABNORMAL.refined, self.MASK, torch.ones(2, 1, 8, 8)),
            "coarse_normal": focal_loss(self.NORMAL.coarse, torch.zeros(1, 1, 2, 2), normal_cells),
            "refined_normal": focal_loss(self.NORMAL.refined, torch.zeros(1, 1, 8, 8), self.VALID[2:]),
        }
        assert set(losses) == {"loss", *expected}
        for name, value in expected.items():
            assert float(losses[name]) == pytest.approx(float(value)), name
        assert float(losses["loss"]) == pytest.approx(float(sum(expected.values())))

    @pytest.mark.parametrize(
        ("options", "left"),
        [
            ({"coarse_supervision": False}, {"refined_abnormal", "refined_normal"}),
            ({"normal_supervision": False}, {"coarse_abnormal", "refined_abnormal"}),
        ],
    )
    def test_terms_can_be_left_out(self, options, left):
        all_terms, losses = self.losses(), self.losses(**options)
        assert set(losses) == {"loss", *left}
        assert float(losses["loss"]) == pytest.approx(sum(float(all_terms[name]) for name in left))

    def test_gamma_and_smoothing_reach_every_term(self):
        plain = self.losses()
        for changed in (self.losses(gamma=1.0), self.losses(smoothing=0.1)):
            assert all(float(changed[name]) != pytest.approx(float(plain[name]), rel=1e-3) for name in plain)


def set_convolution(convolution, weight, *, left=0.0, bias=0.0):
    """One channel: ``weight`` at the kernel's centre and ``left`` at its left neighbour."""
    with torch.no_grad():
        convolution.weight.zero_()
        middle = convolution.kernel_size[0] // 2
        convolution.weight[0, 0, middle, middle] = weight
        if left:
            convolution.weight[0, 0, middle, middle - 1] = left
        convolution.bias.fill_(bias)


class TestMaskRefinementModule:
    """One channel, evaluation mode, BatchNorm made the identity: B1(u) = relu(3 u), B2(y) = relu(2 y), C1(u) = 5 u."""

    def module(self, **settings):
        module = MaskRefinementModule(1, 1, RmpSettings(**settings)).eval()
        set_convolution(module.conv, 5.0)
        for block, weights in ((module.block1, (2.0, 3.0, 0.5)), (module.block2, (1.0, 1.0, 2.0))):
            for index, weight in enumerate(weights if block is not None else ()):
                set_convolution(block[3 * index], weight)
                block[3 * index + 1].running_var.fill_(1 - block[3 * index + 1].eps)
        set_convolution(module.vae_conv, 0.5, bias=0.5)
        if module.closing_conv is not None and isinstance(module.closing_conv, torch.nn.Conv2d):
            set_convolution(module.closing_conv, 2.0, left=1.0)
        return module

    def out(self, value, **settings):
        """The upper row of the output for u = value and v = .5 · 2 + .5 = 1.5 everywhere."""
        with torch.no_grad():
            out = self.module(**settings)(torch.full((1, 1, 1, 1), value), torch.full((1, 1, 2, 2), 2.0))
        assert out.shape == (1, 1, 2, 2)
        return out[0, 0, 0].tolist()

    def test_the_whole_formula(self):
        # s = 3 + 6 + 5 = 14, v s + u = 22; the closing convolution adds the left neighbour to twice the pixel
        assert self.out(1.0) == pytest.approx([44, 66])

    def test_blocks_end_with_relu(self):
        # s = 0 + 0 - 5, v s + u = -8.5
        assert self.out(-1.0) == pytest.approx([-17, -25.5])

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"closing_conv": False}, [22, 22]),
            ({"closing_conv": False, "skip": False}, [21, 21]),
            ({"skip": False}, [42, 63]),
            ({"closing_conv": False, "mrm_branches": "conv"}, [8.5, 8.5]),
            ({"closing_conv": False, "mrm_branches": "conv_block"}, [13, 13]),
        ],
    )
    def test_options(self, settings, expected):
        assert self.out(1.0, **settings) == pytest.approx(expected)

    def test_the_middle_convolution_is_3x3_and_every_convolution_is_normalised(self):
        kinds = [type(layer).__name__ for layer in MaskRefinementModule(1, 1, RmpSettings()).block2]
        assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
        assert [layer.kernel_size[0] for layer in self.module().block1 if isinstance(layer, torch.nn.Conv2d)] == [
            1,
            3,
            1,
        ]

    def test_upsampling_is_bilinear(self):
        module = self.module(mrm_branches="conv", skip=False, closing_conv=False)
        with torch.no_grad():
            out = module(torch.tensor([[[[0.0, 4.0]]]]), torch.ones(1, 1, 2, 4))
        assert out[0, 0, 0].tolist() == pytest.approx([0, 5, 15, 20])


def sd_branch(**settings):
    with torch.device("meta"):
        return RefinedMaskPrediction.for_pipeline(SD_UNET, SD_VAE, RmpSettings(**settings))


def parameters_of(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(scope="module")
def sd_features():
    """The features of Stable Diffusion v1-4's own networks at 512 px, without values: U-Net by block, VAE by part."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
        recorder = UnetFeatures(unet, (1, 2, 3, 4))
        latents = torch.empty(2, 4, 64, 64)
        unet(latents, torch.zeros(2), torch.empty(2, 77, 768))
        blocks = dict(zip((1, 2, 3, 4), recorder.read(), strict=True))
        return blocks, {part: vae_features(vae, latents, (1, 2, 3), part) for part in ("decoder", "encoder")}


class TestPaperSizes:
    def test_features_of_stable_diffusion(self, sd_features):
        blocks, vae = sd_features
        assert blocks[2].shape == (2, 1280, 32, 32)
        assert blocks[3].shape == (2, 640, 64, 64)
        assert [tuple(feature.shape) for feature in vae["decoder"]] == [
            (2, 512, 128, 128),
            (2, 512, 256, 256),
            (2, 256, 512, 512),
        ]
        assert [tuple(feature.shape) for feature in vae["encoder"]] == [
            (2, 512, 128, 128),
            (2, 256, 256, 256),
            (2, 128, 512, 512),
        ]

    @pytest.mark.parametrize("unet_blocks", [(1, 2, 3), (2, 3, 4), (2, 3)])
    @pytest.mark.parametrize("vae_part", ["decoder", "encoder"])
    @pytest.mark.parametrize("mrms", ["all", "last", "none"])
    def test_logits_have_the_latents_and_the_images_size(self, sd_features, unet_blocks, vae_part, mrms):
        network = sd_branch(unet_blocks=unet_blocks, vae_part=vae_part, mrms=mrms)
        blocks, vae = sd_features
        refining = [vae[vae_part][level - 1] for level in network.vae_levels]
        logits = network([blocks[block] for block in unet_blocks], refining)
        assert logits.coarse.shape == (2, 2, 64, 64)
        assert logits.refined.shape == (2, 2, 512, 512)

    def test_number_of_parameters(self):
        assert parameters_of(sd_branch()) == 6_450_178
        # The released code never calls its three closing convolutions: they count among its 6.45 M.
        assert parameters_of(sd_branch()) - parameters_of(sd_branch(closing_conv=False)) == 3 * (192 * 192 * 9 + 192)

    def test_one_mrm_for_each_doubling(self):
        assert sd_branch().vae_levels == (1, 2, 3)
        assert sd_branch(mrms="last").vae_levels == (3,)
        small = SimpleNamespace(config=SimpleNamespace(block_out_channels=(32, 64, 96)))
        network = RefinedMaskPrediction.for_pipeline(SD_UNET, small, RmpSettings())
        assert (network.vae_levels, network.vae_channels, network.upscaling) == ((1, 2), (96, 64), 4)

    @pytest.mark.parametrize("blocks", [(1, 2), (3, 5)])
    def test_blocks_that_do_not_reach_the_latents_size_are_refused(self, blocks):
        with pytest.raises(InputError, match="rmp.unet_blocks is .* the U-Net has 4 up blocks"):
            sd_branch(unet_blocks=blocks)

    @pytest.mark.parametrize("blocks", [(), (3, 2), (2, 2), (0, 3), (1, 2, 3, 4)])
    def test_settings_refuse_odd_blocks(self, blocks):
        with pytest.raises(ValueError, match="unet_blocks"):
            RmpSettings(unet_blocks=blocks)


def little_branch(**settings):
    """A branch for U-Net features of 8 channels at 2² and 4 at 4², and VAE features of 6 at 8² and 3 at 16²."""
    torch.manual_seed(0)
    settings = RmpSettings(**settings)
    return RefinedMaskPrediction((8, 4), {"all": (6, 3), "last": (3,), "none": ()}[settings.mrms], 4, settings)


LITTLE_UNET = (drawn(2, 8, 2, 2), drawn(2, 4, 4, 4, seed=1))
LITTLE_VAE = (drawn(2, 6, 8, 8, seed=2), drawn(2, 3, 16, 16, seed=3))


class TestNetwork:
    def test_the_coarse_path(self):
        network = little_branch().eval()
        feature, logits = network.coarse(LITTLE_UNET)
        first = torch.nn.functional.interpolate(
            torch.einsum("oi,bihw->bohw", network.projections[0].weight[..., 0, 0], LITTLE_UNET[0]),
            scale_factor=2,
            mode="bilinear",
        )
        second = torch.einsum("oi,bihw->bohw", network.projections[1].weight[..., 0, 0], LITTLE_UNET[1])
        biases = torch.cat([projection.bias for projection in network.projections])[:, None, None]
        expected = network.transformer(torch.cat([first, second], 1) + biases).sample
        assert (first.shape[1], second.shape[1]) == (128, 64)
        assert torch.allclose(feature, expected, atol=1e-5)
        head = torch.relu(expected * (1 + 1e-5) ** -0.5)
        assert torch.allclose(
            logits,
            torch.nn.functional.conv2d(head, network.head.conv.weight, network.head.conv.bias, padding=1),
            atol=1e-5,
        )

    def test_the_transformer_is_four_self_attention_blocks_of_8_heads_of_24(self):
        blocks = little_branch().transformer.transformer_blocks
        assert [
            (block.attn1.heads, block.attn1.inner_dim // block.attn1.heads, block.attn2) for block in blocks
        ] == 4 * [(8, 24, None)]
        assert {type(block.ff.net[0]).__name__ for block in blocks} == {"GEGLU"}

    def test_normals_enlarge_the_coarse_prediction_or_feature(self):
        network = little_branch().eval()
        feature, logits = network.coarse(LITTLE_UNET)
        enlarge = torch.nn.Upsample(scale_factor=4, mode="bilinear")
        assert torch.allclose(network.enlarge(feature, logits), enlarge(logits))
        other = little_branch(normal_upsample="feature").eval()
        assert torch.allclose(other.enlarge(feature, logits), other.head.coarse(enlarge(feature)))
        assert not torch.allclose(other.enlarge(feature, logits), enlarge(logits))

    def test_without_mrms_the_coarse_prediction_is_enlarged(self):
        logits = little_branch(mrms="none").eval()(LITTLE_UNET, ())
        assert torch.allclose(logits.refined, torch.nn.Upsample(scale_factor=4, mode="bilinear")(logits.coarse))

    @pytest.mark.parametrize(
        "settings",
        [
            {"closing_conv": False},
            {"skip": False},
            {"mrm_branches": "conv"},
            {"mrm_branches": "conv_block"},
            {"mrms": "none"},
        ],
    )
    def test_each_option_changes_the_output(self, settings):
        network, other = little_branch().eval(), little_branch(**settings).eval()
        other.load_state_dict(network.state_dict(), strict=False)
        refining = LITTLE_VAE[: len(other.mrms)]
        plain, changed = network(LITTLE_UNET, LITTLE_VAE), other(LITTLE_UNET, refining)
        assert torch.equal(plain.coarse, changed.coarse)
        assert not torch.allclose(plain.refined, changed.refined, atol=1e-4)

    def test_both_outputs_share_one_head(self):
        network = little_branch().eval()
        plain = network(LITTLE_UNET, LITTLE_VAE)
        with torch.no_grad():
            network.head.conv.bias += torch.tensor([0.0, 1.0])
        changed = network(LITTLE_UNET, LITTLE_VAE)
        for before, after in zip(plain, changed, strict=True):
            assert torch.allclose(after[:, 1] - before[:, 1], torch.ones(1), atol=1e-5)

    def test_each_output_keeps_its_own_running_statistics(self):
        """With the last batch's statistics evaluation mode normalises that batch as training did, at both sizes."""
        network = little_branch()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            training = network(LITTLE_UNET, LITTLE_VAE)
            evaluation = network.eval()(LITTLE_UNET, LITTLE_VAE)
        for trained, evaluated in zip(training, evaluation, strict=True):
            assert (trained - evaluated).abs().mean() < 0.05 * trained.std()

    def test_evaluation_mode_finds_the_mask_that_training_taught(self):
        """The anomaly shows coarsely in the U-Net's feature and sharply in the VAE's."""
        network = little_branch()
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)

        def example(seed):
            mask = torch.zeros(2, 1, 16, 16)
            for image in range(2):
                top, left = np.random.default_rng([seed, image]).integers(0, 10, 2)
                mask[image, 0, top : top + 6, left : left + 6] = 1
            small = torch.nn.functional.adaptive_avg_pool2d(mask, 4)
            unet = (drawn(2, 8, 2, 2, seed=seed), drawn(2, 4, 4, 4, seed=seed) * 0.1 + small)
            return mask, unet, (drawn(2, 6, 8, 8, seed=seed), drawn(2, 3, 16, 16, seed=seed) * 0.1 + mask)

        for step in range(15):
            mask, unet, vae = example(step)
            logits = network(unet, vae)
            loss = mask_losses(logits, logits, mask, torch.ones_like(mask), normal_supervision=False)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        mask, unet, vae = example(1000)
        with torch.no_grad():
            found = network.eval()(unet, vae).refined.softmax(1)[:, 1:] > 0.5
        assert (found & mask.bool()).sum() / (found | mask.bool()).sum() > 0.8


class TestFeatures:
    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
    @pytest.mark.parametrize("t", [0, 1, 120, 999])
    def test_the_latents_of_the_step_before_are_those_of_ddim(self, kind, t):
        scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, prediction_type=kind
        )
        scheduler.set_timesteps(scheduler.config.num_train_timesteps)
        latents, prediction = drawn(2, 4, 3, 3), drawn(2, 4, 3, 3, seed=1)
        expected = scheduler.step(prediction, t, latents, eta=0.0).prev_sample
        for timesteps in (torch.tensor(t), torch.tensor([t, t])):
            assert torch.allclose(
                previous_latents(scheduler, prediction, timesteps, latents), expected, rtol=1e-4, atol=1e-4
            )

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
    @pytest.mark.parametrize("t", [0, 1, 120, 999])
    def test_a_random_step_has_the_mean_and_deviation_of_ddpm(self, kind, t):
        options = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
        scheduler = DDPMScheduler(**options, variance_type="fixed_small", prediction_type=kind)
        latents, prediction = drawn(1, 4, 3, 3), drawn(1, 4, 3, 3, seed=1)
        expected = scheduler.step(prediction, t, latents, generator=torch.Generator().manual_seed(7)).prev_sample
        random = torch.Generator().manual_seed(7)
        stepped = previous_latents(scheduler, prediction, torch.tensor([t]), latents, random)
        assert torch.allclose(stepped, expected, rtol=1e-4, atol=1e-4)

    def test_a_random_step_in_training_is_the_steps_own_latent_in_generation(self):
        scheduler, t = DDIMScheduler(clip_sample=False), torch.tensor([40])
        latents, prediction = drawn(1, 4, 3, 3), drawn(1, 4, 3, 3, seed=1)
        assert torch.equal(latents_to_decode("stochastic", scheduler, prediction, t, latents), latents)
        random = torch.Generator().manual_seed(0)
        trained = latents_to_decode("stochastic", scheduler, prediction, t, latents, random=random)
        assert not torch.equal(trained, previous_latents(scheduler, prediction, t, latents))
        random = torch.Generator().manual_seed(0)
        plain = latents_to_decode("x_prev", scheduler, prediction, t, latents, random=random)
        assert torch.equal(plain, previous_latents(scheduler, prediction, t, latents))

    def test_each_image_has_its_own_timestep(self):
        scheduler = DDIMScheduler(clip_sample=False)
        latents, prediction = drawn(2, 4, 3, 3), drawn(2, 4, 3, 3, seed=1)
        both = previous_latents(scheduler, prediction, torch.tensor([900, 10]), latents)
        for image, t in enumerate((900, 10)):
            alone = previous_latents(
                scheduler, prediction[image : image + 1], torch.tensor(t), latents[image : image + 1]
            )
            assert torch.equal(both[image], alone[0])

    def test_with_the_true_noise_it_is_the_same_image_less_noisy(self):
        scheduler = DDIMScheduler(clip_sample=False)
        clean, noise = drawn(1, 4, 3, 3), drawn(1, 4, 3, 3, seed=1)
        noisy, less = (scheduler.add_noise(clean, noise, torch.tensor([t])) for t in (500, 499))
        assert torch.allclose(previous_latents(scheduler, noise, torch.tensor([500]), noisy), less, atol=1e-4)

    def test_either_latent_can_be_decoded(self):
        scheduler = DDIMScheduler(clip_sample=False)
        latents, prediction, t = drawn(1, 4, 3, 3), drawn(1, 4, 3, 3, seed=1), torch.tensor([40])
        assert torch.equal(latents_to_decode("x_t", scheduler, prediction, t, latents), latents)
        previous = previous_latents(scheduler, prediction, t, latents)
        assert torch.equal(latents_to_decode("x_prev", scheduler, prediction, t, latents), previous)

    def test_other_predictions_are_refused(self):
        with pytest.raises(InputError, match="predicts 'sample'"):
            previous_latents(DDIMScheduler(prediction_type="sample"), *3 * [torch.zeros(1, 1, 1, 1)])

    def test_decoder_features_are_those_of_a_whole_decoding(self, tiny_base):
        vae = load_pipeline(tiny_base).vae
        latents = drawn(2, 4, 8, 8)
        seen = []
        hooks = [
            block.register_forward_hook(lambda module, arguments, out: seen.append(out))
            for block in vae.decoder.up_blocks
        ]
        vae.decode(latents / vae.config.scaling_factor)
        whole = seen.copy()
        seen.clear()
        features = vae_features(vae, latents, (1, 2))
        assert len(seen) == 2, "decoded further than needed"
        for hook in hooks:
            hook.remove()
        assert [tuple(feature.shape[2:]) for feature in features] == [(16, 16), (32, 32)]
        assert all(torch.equal(*pair) for pair in zip(features, whole[:2], strict=True))
        assert torch.equal(vae_features(vae, latents, (2,))[0], whole[1])

    def test_encoder_features_are_those_of_encoding_the_decoded_image(self, tiny_base):
        vae = load_pipeline(tiny_base).vae
        latents = drawn(2, 4, 8, 8)
        seen = []
        hooks = [
            block.resnets[-1].register_forward_hook(lambda module, arguments, out: seen.append(out))
            for block in vae.encoder.down_blocks
        ]
        with torch.no_grad():
            vae.encode(vae.decode(latents / vae.config.scaling_factor).sample)
        for hook in hooks:
            hook.remove()
        features = vae_features(vae, latents, (1, 2), "encoder")
        assert [tuple(feature.shape[2:]) for feature in features] == [(16, 16), (32, 32)]
        assert all(torch.equal(*pair) for pair in zip(features, (seen[1], seen[0]), strict=True))

    def test_unet_features_are_the_up_blocks_outputs_detached(self, tiny_base):
        unet = load_pipeline(tiny_base).unet.requires_grad_(True)
        recorder = UnetFeatures(unet, (2, 3))
        seen = {}
        hook = unet.up_blocks[1].register_forward_hook(lambda module, arguments, out: seen.update(out=out))
        unet(drawn(2, 4, 8, 8), 5, drawn(2, 7, unet.config.cross_attention_dim))
        first, second = recorder.read()
        hook.remove()
        channels = unet.config.block_out_channels
        assert first.shape == (2, channels[2], 4, 4)
        assert second.shape == (2, channels[1], 8, 8)
        assert torch.equal(first, seen["out"])
        assert not first.requires_grad
        recorder.remove()
        unet(drawn(2, 4, 8, 8), 5, drawn(2, 7, unet.config.cross_attention_dim))
        with pytest.raises(KeyError):
            recorder.read()


@pytest.fixture(scope="module")
def generator(tiny_base, miniature, tmp_path_factory):
    """A generator after one update for each type."""
    folder = tmp_path_factory.mktemp("generator") / miniature.product
    settings = GeneratorSettings(updates_per_type=1, attention_layers=(1, 2))
    train_generator(tiny_base, miniature.split, miniature.root, settings, miniature.data, CPU, 0, output=folder)
    return folder


@pytest.fixture(scope="module")
def trained(generator, miniature, tmp_path_factory):
    """A mask branch after a few uninterrupted updates."""
    folder = tmp_path_factory.mktemp("rmp") / miniature.product
    train_rmp(generator, SMALL, CPU, 0, output=folder)
    return folder


def trainer_of(generator, compute=CPU, **settings):
    pipeline = load_pipeline(generator)
    prompts, images = rmp_train.Prompts.load(generator), load_encoded(generator)
    return RmpTrainer(pipeline, prompts, images, SMALL.model_copy(update=settings), compute, 0)


@pytest.fixture(scope="module")
def first_loss(generator):
    """The loss of the first batch under the plain settings."""
    return float(trainer_of(generator).losses(0)["loss"].detach())


class TestTraining:
    def test_only_the_branch_learns_and_all_of_it(self, generator):
        trainer = trainer_of(generator)
        trainer.losses(0)["loss"].backward()
        for part in (trainer.pipeline.unet, trainer.pipeline.vae, trainer.pipeline.text_encoder):
            assert all(parameter.grad is None for parameter in part.parameters())
        assert [name for name, parameter in trainer.network.named_parameters() if parameter.grad is None] == []

    @pytest.mark.parametrize(
        "settings",
        [
            {"vae_latent": "x_t"},
            {"vae_part": "encoder"},
            {"normal_upsample": "feature"},
            {"timesteps": "last_fraction"},
            {"coarse_supervision": False},
            {"normal_supervision": False},
            {"focal_gamma": 1.0},
            {"label_smoothing": 0.1},
            {"unet_blocks": (1, 2, 3)},
            {"mrms": "last"},
        ],
        ids=lambda settings: next(iter(settings)),
    )
    def test_each_option_changes_the_loss(self, generator, first_loss, settings):
        assert float(trainer_of(generator, **settings).losses(0)["loss"].detach()) != first_loss

    def test_the_vae_decodes_the_noised_latents_of_each_draw(self, generator, monkeypatch):
        trainer, seen = trainer_of(generator, abnormal_per_batch=2), []

        def noted(kind, scheduler, output, timesteps, noisy, **drawn):
            seen.append((output, timesteps, noisy))
            return latents_to_decode(kind, scheduler, output, timesteps, noisy, **drawn)

        monkeypatch.setattr(rmp_train, "latents_to_decode", noted)
        contexts = []
        trainer.pipeline.unet.register_forward_pre_hook(lambda unet, given: contexts.append(given[2]))
        for draw in (0, 1):
            trainer.losses(draw)
            given = contexts[-1]
            batch, random = trainer.batches.batch(draw), torch_rng(0, "rmp noise", draw)
            noise = torch.randn(batch.latents.shape, generator=random)
            timesteps = torch.randint(1000, (3,), generator=random)
            noisy = trainer.pipeline.scheduler.add_noise(batch.latents, noise, timesteps)
            with torch.no_grad():
                context = encode_prompts(trainer.pipeline, batch.prompts)
                output = trainer.pipeline.unet(noisy, timesteps, context).sample
            assert torch.equal(seen[draw][1], timesteps[:2]) and torch.equal(seen[draw][2], noisy[:2])
            assert torch.allclose(seen[draw][0], output[:2], atol=1e-6)
            assert torch.allclose(given, context, atol=1e-6) and len(set(batch.prompts)) > 1

    def test_stochastic_decodes_the_latents_after_a_drawn_step(self, generator, monkeypatch):
        trainer, steps, decoded = trainer_of(generator, vae_latent="stochastic", abnormal_per_batch=2), [], []

        def of_step(kind, scheduler, output, timesteps, noisy, **drawn):
            steps.append((scheduler, output, timesteps, noisy))
            return latents_to_decode(kind, scheduler, output, timesteps, noisy, **drawn)

        monkeypatch.setattr(rmp_train, "latents_to_decode", of_step)
        monkeypatch.setattr(
            rmp_train,
            "vae_features",
            lambda vae, latents, *given: decoded.append(latents) or vae_features(vae, latents, *given),
        )
        for draw in (0, 1):
            trainer.losses(draw)
            expected = previous_latents(*steps[draw], torch_rng(0, "rmp step", draw))
            assert torch.equal(decoded[draw], expected)
            assert not torch.allclose(expected, previous_latents(*steps[draw]), atol=1e-2)

    def test_padding_is_left_out_of_the_loss(self, generator, monkeypatch):
        trainer, given = trainer_of(generator), []
        batch = trainer.batches.batch(0)
        batch.valid[:, :, :16] = 0
        trainer.batches = SimpleNamespace(batch=lambda *steps: batch)
        monkeypatch.setattr(
            rmp_train, "mask_losses", lambda *maps, **options: given.append(maps) or mask_losses(*maps, **options)
        )
        trainer.losses(0)
        assert torch.equal(given[0][3], batch.valid)

    def test_the_same_settings_give_the_same_loss(self, generator, first_loss):
        assert float(trainer_of(generator).losses(0)["loss"].detach()) == first_loss

    def test_bf16_rounds_the_loss(self, generator, first_loss):
        loss = float(trainer_of(generator, CPU.model_copy(update={"precision": "bf16"})).losses(0)["loss"].detach())
        assert loss != first_loss and loss == pytest.approx(first_loss, rel=0.05)

    def test_the_first_weights_depend_on_the_seed_alone(self, generator):
        state = torch.get_rng_state()
        first = trainer_of(generator).network.state_dict()
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(77)
        again = trainer_of(generator).network.state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)

    def test_last_fraction_draws_small_timesteps(self, generator, monkeypatch):
        trainer = trainer_of(generator, timesteps="last_fraction", last_fraction=0.01)
        drawn_steps = []
        add_noise = trainer.pipeline.scheduler.add_noise
        monkeypatch.setattr(
            trainer.pipeline.scheduler,
            "add_noise",
            lambda x, e, t: (drawn_steps.extend(t.tolist()), add_noise(x, e, t))[1],
        )
        for draw in range(3):
            trainer.losses(draw)
        assert 0 <= min(drawn_steps) < max(drawn_steps) < 10

    def test_accumulation_is_the_mean_of_its_batches(self, generator):
        trainer, single = trainer_of(generator, gradient_accumulation=2), trainer_of(generator)
        single.network.train()
        expected = (single.losses(2)["loss"] + single.losses(3)["loss"]) / 2
        assert float(trainer.update(1)["loss"]) == pytest.approx(float(expected.detach()))

    def test_killed_anywhere_and_started_again_gives_the_same_bytes(
        self, generator, miniature, trained, tmp_path, monkeypatch
    ):
        update, killed_at = RmpTrainer.update, 11
        first_updates = []

        def dies(trainer, step):
            if step == killed_at:
                raise KeyboardInterrupt
            return update(trainer, step)

        def notes(trainer, step):
            first_updates.append(step)
            return update(trainer, step)

        output = tmp_path / miniature.product
        arguments = (generator, SMALL, CPU, 0)
        monkeypatch.setattr(RmpTrainer, "update", dies)
        with pytest.raises(KeyboardInterrupt):
            train_rmp(*arguments, output=output)
        assert not output.exists()
        monkeypatch.setattr(RmpTrainer, "update", notes)
        train_rmp(generator, SMALL.model_copy(update={"checkpoint_every": 7}), CPU, 0, output=output)
        assert first_updates == [10, 11], "it did not continue at the checkpoint"
        assert (output / "manifest.json").read_text() == (trained / "manifest.json").read_text()
        assert list(tmp_path.iterdir()) == [output]

    def test_the_folder(self, trained, generator):
        names = {path.name for path in trained.iterdir()}
        assert names == {"rmp.safetensors", "config.json", "losses.parquet", "manifest.json", "run.json"}
        losses = pd.read_parquet(trained / "losses.parquet")
        assert list(losses.columns[:2]) == ["step", "loss"]
        assert losses.step.iloc[-1] == SMALL.updates_per_type * 3
        manifest = json.loads((trained / "manifest.json").read_text())
        assert manifest["inputs"] == Provenance.of("", 1, {}, 0, {"generator": generator}).inputs


class TestLoading:
    def test_evaluation_mode_with_the_trained_statistics(self, trained, generator):
        pipeline = load_pipeline(generator)
        network = load_rmp(trained, pipeline)
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert network.settings.obeyed() == SMALL.obeyed()
        assert network.head.refined_norm.running_mean.abs().max() > 0
        recorder = UnetFeatures(pipeline.unet, network.settings.unet_blocks)
        latents = drawn(3, 4, 8, 8)
        with torch.no_grad():
            pipeline.unet(latents, 40, drawn(3, 7, pipeline.unet.config.cross_attention_dim))
            unet = recorder.read()
            vae = vae_features(pipeline.vae, latents, network.vae_levels)
            together = network(unet, vae).refined
            alone = network([feature[:1] for feature in unet], [feature[:1] for feature in vae]).refined
        assert together.shape == (3, 2, 32, 32)
        assert torch.allclose(together[:1], alone, atol=1e-4)

    def test_missing(self, generator, tmp_path):
        with pytest.raises(InputError, match="is no finished mask branch: config.json is missing"):
            load_rmp(tmp_path, load_pipeline(generator))

    def test_damaged(self, trained, generator, tmp_path):
        pipeline = load_pipeline(generator)
        (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
        with pytest.raises(InputError, match="rmp.safetensors is missing"):
            load_rmp(tmp_path, pipeline)
        (tmp_path / "rmp.safetensors").write_bytes((trained / "rmp.safetensors").read_bytes()[:5000])
        with pytest.raises(InputError, match="is no finished mask branch"):
            load_rmp(tmp_path, pipeline)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(InputError, match="is no finished mask branch"):
            load_rmp(tmp_path, pipeline)

    def test_of_other_weights_or_another_base(self, generator, tmp_path):
        pipeline = load_pipeline(generator)
        other = RefinedMaskPrediction.for_pipeline(pipeline.unet, pipeline.vae, RmpSettings(mrm_branches="conv"))
        save_rmp(other, tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config["settings"]["mrm_branches"] = "full"
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="does not fit its config.json"):
            load_rmp(tmp_path, pipeline)
        save_rmp(little_branch(), tmp_path)
        with pytest.raises(InputError, match="was trained for another base"):
            load_rmp(tmp_path, pipeline)
