"""The base: tokenizer, corpus, VAE's linear anchor, training that resumes, loading of what the user brings."""

import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline
from huggingface_hub import constants as hub_constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from seas.base import corpus
from seas.base import train as base_train
from seas.base import vae as base_vae
from seas.base.corpus import OUTLINE_SHARES, OUTLINES, corpus_image, vocabulary
from seas.base.model import build_base, build_tokenizer, load_base
from seas.base.pretrained import CLASSES, check_base, check_stable_diffusion, count_parameters, find_base
from seas.base.settings import STAGE_VERSION, BaseSettings
from seas.base.stable_diffusion import SCHEDULER, build_networks, old_names, rename_to_old
from seas.base.train import rate, train_base
from seas.base.vae import LinearCode, start_at_code, vae_losses
from seas.errors import InputError
from seas.images import to_tensor
from seas.seeding import rng
from seas.settings import ComputeSettings
from seas.weights import STABLE_DIFFUSION

REPOSITORY = Path(__file__).parent.parent
CPU = ComputeSettings(device="cpu", precision="fp32", threads=1)
TINY = BaseSettings(
    name="tiny",
    pretrained=None,
    image_size=32,
    vae_channels=(8, 8, 8),
    unet_channels=(16, 16, 16, 16),
    text_width=16,
    text_layers=1,
    corpus_images=8,
    vae_updates=20,
    vae_batch_size=2,
    unet_updates=20,
    unet_batch_size=2,
    checkpoint_every=10,
)


class TestTokenizer:
    def test_each_word_is_one_token_wherever_it_stands(self):
        words = vocabulary()
        tokenizer = build_tokenizer(words, 32)
        assert all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for word in words)
        text = "a grey brushed ring with scratch, on a part."
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == [
            f"{word}</w>" for word in ["a", "grey", "brushed", "ring", "with", "scratch", ",", "on", "a", "part", "."]
        ]

    def test_other_words_are_spelt(self):
        tokenizer = build_tokenizer(["ring"], 32)
        assert tokenizer.decode(tokenizer("king", add_special_tokens=False).input_ids) == "king"

    def test_a_prompt_starts_ends_and_is_filled_up(self):
        tokenizer = build_tokenizer(["a"], 6)
        ids = tokenizer("a", padding="max_length", max_length=6).input_ids
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        assert ids == [start, tokenizer.convert_tokens_to_ids("a</w>"), end, end, end, end]

    def test_overlapping_words_do_not_disturb_each_other(self):
        words = ["in", "ing", "ring", "ringing", "gin", "string", "rin"]
        tokenizer = build_tokenizer(words, 32)
        assert all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for word in words)


class TestCorpus:
    def test_each_outline_has_a_share(self):
        assert len(OUTLINE_SHARES) == len(OUTLINES) and sum(OUTLINE_SHARES) == pytest.approx(1)

    def test_a_crop_is_a_part_of_a_photograph(self):
        crop, distance, name = corpus._cropped(rng(3), 32)
        assert crop.shape == (32, 32, 3) and 0 <= crop.min() < crop.max() <= 1
        assert (distance < 0).all() and name in corpus.PHOTOGRAPHS.values()

    @pytest.mark.parametrize("size", [64, 512])
    def test_a_crop_is_cut_of_any_photograph(self, size):
        """The lowest is 300 px high: a larger base's crops are enlarged."""
        for number in range(60):
            picture, _, _ = corpus._cropped(np.random.default_rng(number), size)
            assert picture.shape == (size, size, 3) and picture.std() > 0

    def test_a_picture_is_a_function_of_its_number(self):
        (first, caption), (again, _) = corpus_image(0, 5, 32), corpus_image(0, 5, 32)
        assert np.array_equal(first, again) and first.shape == (32, 32, 3) and first.dtype == np.uint8
        assert not np.array_equal(first, corpus_image(0, 6, 32)[0])
        assert set(caption.split()) <= set(vocabulary())

    def test_processes_draw_what_one_would(self):
        settings = TINY.model_copy(update={"corpus_images": 70})
        images, captions = base_train._corpus(settings, 2)
        expected = [corpus_image(settings.seed, index, settings.image_size) for index in range(70)]
        assert np.array_equal(images, [image for image, _ in expected])
        assert captions == [caption for _, caption in expected]

    def test_captions_name_objects_and_defects_by_both_words(self):
        captions = [corpus_image(0, index, 16)[1] for index in range(200)]
        for word in ("object", "defect", "scratch", "ring", "photo"):
            assert 3 < sum(word in caption for caption in captions) < 195
        assert 0.45 < np.mean([" with " in caption for caption in captions]) < 0.75


class TestModel:
    def test_it_is_shaped_like_stable_diffusion(self):
        pipeline = build_base(BaseSettings(name="x", pretrained=None), vocabulary())
        assert [type(block).__name__ for block in pipeline.unet.down_blocks] == ["CrossAttnDownBlock2D"] * 3 + [
            "DownBlock2D"
        ]
        assert [type(block).__name__ for block in pipeline.unet.up_blocks] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
        signals = pipeline.scheduler.alphas_cumprod
        assert float(signals[999] ** 0.5) == pytest.approx(0.068, abs=1e-3)

    def test_a_folder_lacking_a_part_is_named(self, tiny_base, tmp_path):
        for part, message in (("unet/config.json", "lacks unet/config.json"), ("vae", "lacks vae/config.json")):
            broken = tmp_path / part.replace("/", "_")
            shutil.copytree(tiny_base, broken)
            victim = broken / part
            shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
            with pytest.raises(InputError, match=message):
                check_base(broken)

    def test_lost_weights_are_named(self, tiny_base, tmp_path):
        broken = tmp_path / "broken"
        shutil.copytree(tiny_base, broken)
        (broken / "unet/diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(InputError, match=r"lacks unet/diffusion_pytorch_model\.safetensors"):
            load_base(broken)

    def test_weights_of_another_name_are_not_taken_for_them(self, tiny_base, tmp_path):
        broken = tmp_path / "broken"
        shutil.copytree(tiny_base, broken)
        halves = broken / "unet/diffusion_pytorch_model.fp16.safetensors"
        (broken / "unet/diffusion_pytorch_model.safetensors").rename(halves)
        message = (
            r"lacks unet/diffusion_pytorch_model\.safetensors; diffusion_pytorch_model\.fp16\.safetensors is not read"
        )
        with pytest.raises(InputError, match=message):
            check_base(broken)
        halves.rename(broken / "unet/diffusion_pytorch_model-00001-of-00001.safetensors")
        check_base(broken)

    def test_damaged_weights_are_named(self, tiny_base, tmp_path):
        broken = tmp_path / "broken"
        shutil.copytree(tiny_base, broken)
        (broken / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
        with pytest.raises(InputError, match="broken cannot be loaded"):
            load_base(broken)

    def test_no_folder(self, tmp_path):
        with pytest.raises(InputError, match="which is no folder; put Stable Diffusion v1-4"):
            check_base(tmp_path / "none")

    def test_sizes_must_divide(self):
        with pytest.raises(ValueError, match="give a multiple of 32"):
            BaseSettings(name="x", pretrained=None, image_size=48)


def sd_like(folder):
    """A small pipeline saved as Stable Diffusion v1-4 was: old names, a safety checker beside it, a VAE with attention."""
    pipeline = build_base(TINY, vocabulary())
    pipeline.register_modules(
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
        ),
        scheduler=PNDMScheduler(**SCHEDULER),
    )
    pipeline.save_pretrained(folder)
    rename_to_old(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
    index["_diffusers_version"] = "0.2.2"
    (folder / "model_index.json").write_text(json.dumps(index))
    for part in ("safety_checker", "feature_extractor"):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("{}")
    return pipeline


class TestStableDiffusion:
    """Stable Diffusion v1-4: its sizes, its old layout on disk, where it is looked for."""

    def test_the_networks_have_its_numbers_of_parameters(self):
        with torch.device("meta"):
            networks = build_networks()
        counts = {part: sum(p.numel() for p in network.parameters()) for part, network in networks.items()}
        assert counts == STABLE_DIFFUSION.parameters
        assert counts == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}

    def test_the_heads_of_its_files_are_counted(self, sd_shaped, tiny_base):
        check_base(sd_shaped)
        check_stable_diffusion(sd_shaped)
        assert count_parameters(sd_shaped / "text_encoder") == 123_060_480
        with pytest.raises(InputError, match=r"the unet of .* parameters, that of Stable Diffusion v1-4 859,520,964"):
            check_stable_diffusion(tiny_base)

    def test_the_old_layout_loads_whole(self, tmp_path):
        saved = sd_like(tmp_path / "sd")
        vae, text = (
            load_file(next((tmp_path / "sd" / part).glob("*.safetensors"))) for part in ("vae", "text_encoder")
        )
        assert "encoder.mid_block.attentions.0.proj_attn.weight" in vae and not any("to_q" in name for name in vae)
        assert "text_model.embeddings.position_ids" in text and all(name.startswith("text_model.") for name in text)
        loaded = load_base(tmp_path / "sd")
        for part in STABLE_DIFFUSION.parameters:
            old, new = getattr(saved, part).state_dict(), getattr(loaded, part).state_dict()
            assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old), part
        assert loaded.safety_checker is None and loaded.scheduler.config.prediction_type == "epsilon"
        DPMSolverMultistepScheduler.from_config(loaded.scheduler.config).set_timesteps(3)

    @pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
    def test_a_weight_that_lacks_or_is_unknown_is_named(self, tmp_path, part):
        sd_like(tmp_path / "sd")
        (file,) = (tmp_path / "sd" / part).glob("*.safetensors")
        whole = load_file(file)
        save_file(dict(list(whole.items())[:-1]), file, {"format": "pt"})
        with pytest.raises(InputError, match=rf"{part} lacks the weight .* \(1 such in all\)"):
            load_base(tmp_path / "sd")
        save_file(whole | {"stranger": torch.zeros(1)}, file, {"format": "pt"})
        with pytest.raises(InputError, match=rf"{part} holds the unknown weight stranger"):
            load_base(tmp_path / "sd")

    @pytest.mark.slow
    @pytest.mark.parametrize("part", ["vae", "text_encoder"])
    def test_all_of_its_old_names_and_shapes_load(self, sd_shaped, tmp_path, part):
        """At full size, random values; the U-Net's names never changed (benchmarks/paper_scale.py loads all three)."""
        with torch.device("meta"):
            network = build_networks()[part]
        state = {name: torch.randn(value.shape).half() for name, value in network.state_dict().items()}
        shutil.copytree(sd_shaped / part, tmp_path / part)
        network.config.save_pretrained(tmp_path / part) if part == "text_encoder" else None
        (file,) = (tmp_path / part).glob("*.safetensors")
        old = old_names(part, state)
        assert len(old) == {"vae": 248, "text_encoder": 197}[part]
        save_file({name: value.contiguous() for name, value in old.items()}, file, {"format": "pt"})
        loaded, found = type(network).from_pretrained(tmp_path / part, output_loading_info=True, dtype=torch.float32)
        assert not found["missing_keys"] and not found["unexpected_keys"]
        assert all(torch.equal(value, state[name].float()) for name, value in loaded.state_dict().items())

    def test_it_is_found_in_the_hubs_cache_by_its_revision(self, sd_shaped, tmp_path, monkeypatch):
        monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path))
        name = f"{STABLE_DIFFUSION.repository}@{STABLE_DIFFUSION.revision}"
        with pytest.raises(
            InputError, match=f"not in the hub's cache .* `hf download CompVis/.* --revision {'.' * 40}`"
        ):
            find_base(name)
        snapshot = tmp_path / "models--CompVis--stable-diffusion-v1-4/snapshots" / STABLE_DIFFUSION.revision
        shutil.copytree(sd_shaped, snapshot)
        assert find_base(name) == snapshot
        assert find_base("models/sd") == Path("models/sd")

    def test_a_missing_base_is_told_with_the_command_that_brings_it(self):
        with pytest.raises(
            InputError, match=r"`hf download CompVis/stable-diffusion-v1-4 --revision .* --local-dir mine`"
        ):
            check_base(Path("mine"))

    @pytest.mark.parametrize("part", CLASSES)
    def test_another_class_is_refused(self, tiny_base, tmp_path, part):
        shutil.copytree(tiny_base, tmp_path / "base")
        index = json.loads((tmp_path / "base/model_index.json").read_text())
        index[part] = "Other" if part == "_class_name" else ["diffusers", "Other"]
        (tmp_path / "base/model_index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match=f"gives Other as {part}; SeaS needs {CLASSES[part]}"):
            check_base(tmp_path / "base")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                '{"_class_name": "EulerDiscreteScheduler"}',
                "is a EulerDiscreteScheduler; SeaS needs one of DDIM",
            ),
            (
                '{"_class_name": "DDIMScheduler", "prediction_type": "sample"}',
                r"predicts 'sample' \(prediction_type\); SeaS needs one of epsilon, v_prediction",
            ),
            ("{", "the scheduler/scheduler_config.json of the pipeline .* is damaged"),
            ("[]", "the scheduler/scheduler_config.json of the pipeline .* is damaged"),
        ],
    )
    def test_a_scheduler_that_is_not_understood_is_refused(self, tiny_base, tmp_path, text, message):
        shutil.copytree(tiny_base, tmp_path / "base")
        (tmp_path / "base/scheduler/scheduler_config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            check_base(tmp_path / "base")


class TestLinearCode:
    def pictures(self, count=64):
        return to_tensor(np.stack([corpus_image(0, index, 32)[0] for index in range(count)]))

    def test_it_is_the_principal_component_analysis_of_the_patches(self):
        from sklearn.decomposition import PCA

        images = self.pictures(16)
        code = LinearCode(images, 4, 5)(images)
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 48).numpy()
        expected = PCA(5, svd_solver="full").fit_transform(patches.astype(np.float64))
        ours = code.movedim(1, -1).reshape(-1, 5).numpy()
        correlation = np.abs(np.corrcoef(ours.T, expected.T)[:5, 5:])
        assert np.allclose(np.diag(correlation), 1, atol=1e-4)
        assert np.allclose(ours.std(0), expected.std(0) ** 0.5, rtol=1e-3)

    def test_the_vae_starts_near_the_code(self):
        settings = BaseSettings(name="x", pretrained=None, image_size=32, vae_channels=(16, 32, 64))
        vae = build_base(settings, vocabulary()).vae
        images = self.pictures(64)
        code = LinearCode(images, 4, 4)
        start_at_code(vae, code, images)
        unseen = to_tensor(np.stack([corpus_image(1, index, 32)[0] for index in range(32)]))
        with torch.no_grad():
            latents = vae.encode(unseen).latent_dist.mean
            picture = vae.decode(latents).sample
        assert float(((latents - code(unseen)) ** 2).mean()) < 0.05
        assert float(((picture - unseen) ** 2).mean()) < 0.6 * float(
            ((unseen.mean((2, 3), keepdim=True) - unseen) ** 2).mean()
        )

    def test_the_fit_by_parts_is_the_fit_to_all(self, monkeypatch):
        images, fitted = self.pictures(8), []
        for at_once in (3, 8):
            monkeypatch.setattr(base_vae, "FITTED_AT_ONCE", at_once)
            torch.manual_seed(0)
            vae = build_base(TINY, vocabulary()).vae
            start_at_code(vae, LinearCode(images, 4, 4), images)
            fitted.append(vae.decoder.conv_out.weight.detach())
        assert torch.allclose(*fitted, rtol=1e-3, atol=1e-4)

    def test_nothing_is_left_on_the_cpu_when_the_vae_is_elsewhere(self):
        vae = build_base(TINY, vocabulary()).vae.to("meta")
        images = self.pictures(8).to("meta")
        code = LinearCode(images, 4, 4)
        start_at_code(vae, code, images)
        losses = vae_losses(vae, code, images, torch.zeros(8, 4, 8, 8, device="meta"))
        assert {value.device.type for value in losses.values()} == {"meta"}

    def test_losses_by_value(self):
        vae = build_base(TINY, vocabulary()).vae
        code = LinearCode(self.pictures(8), 4, 4)
        images = self.pictures(2)
        noise = torch.randn(2, 4, 8, 8)
        losses = vae_losses(vae, code, images, noise)
        with torch.no_grad():
            posterior = vae.encode(images).latent_dist
            errors = vae.decode(posterior.mean + 0.02 * noise).sample - images
        assert float(losses["mse"].detach()) == pytest.approx(float((errors**2).mean()), rel=1e-4)
        assert float(losses["l1"].detach()) == pytest.approx(float(errors.abs().mean()), rel=1e-4)
        colours = (errors - errors.mean(1, keepdim=True)).unflatten(2, (8, 4)).unflatten(4, (8, 4)).mean((3, 5))
        assert float(losses["chroma"].detach()) == pytest.approx(float((colours**2).mean()), rel=1e-4)
        assert float(losses["anchor"].detach()) == pytest.approx(
            float(((posterior.mean - code(images)) ** 2).mean()), rel=1e-4
        )
        total = losses["mse"] + 0.2 * losses["l1"] + 2 * losses["chroma"] + 0.1 * losses["anchor"]
        assert float(losses["loss"].detach()) == pytest.approx(float(total.detach()), rel=1e-5)


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            (
                {"unet_channels": (16, 24, 16, 16)},
                r"unet_channels is \(16, 24, 16, 16\): each must be a multiple of 16",
            ),
            (
                {"vae_channels": (24, 32, 24)},
                r"the first, 3 or more, makes 3 groups, and each must be a multiple of that",
            ),
            ({"vae_channels": (2, 8, 8)}, r"the first, 3 or more"),
            ({"latent_channels": 8}, r"latent_channels is 8, but with vae_channels \(8, 8, 8\) 7 is the most"),
            ({"vae_channels": (32, 64), "latent_channels": 13}, r"vae_channels \(32, 64\) 12 is the most"),
        ],
    )
    def test_networks_that_cannot_be_built_are_refused_at_once(self, changes, sentence):
        with pytest.raises(ValueError, match=sentence):
            BaseSettings(**TINY.model_dump() | changes)
        BaseSettings(**TINY.model_dump() | changes | {"pretrained": "given"})

    @pytest.mark.parametrize(
        "changes",
        [{"latent_channels": 7}, {"vae_channels": (12, 16), "latent_channels": 11}, {"vae_channels": (3, 8, 8)}],
    )
    def test_the_most_that_they_allow_can_be_built(self, tmp_path, changes):
        few = {"vae_updates": 1, "unet_updates": 1}
        train_base(BaseSettings(**TINY.model_dump() | few | changes), CPU, output=tmp_path / "base")
        assert (tmp_path / "base/model_index.json").exists()


class TestTraining:
    def test_the_rate_rises_and_falls(self):
        rates = [rate(step, 100) for step in range(100)]
        assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert rates[5] == pytest.approx(1.0) and rates[-1] < 0.03 and sorted(rates[5:], reverse=True) == rates[5:]

    @pytest.mark.parametrize("network", ["vae", "unet"])
    def test_an_interrupted_training_ends_with_the_same_weights(self, tmp_path, monkeypatch, capsys, network):
        train_base(TINY, CPU, output=tmp_path / "whole")
        original, calls = base_train._set_rate, []

        def dies(optimizer, value):
            calls.append(value)
            if len(calls) == {"vae": 15, "unet": 35}[network]:
                raise KeyboardInterrupt
            original(optimizer, value)

        with monkeypatch.context() as patched:
            patched.setattr(base_train, "_set_rate", dies)
            with pytest.raises(KeyboardInterrupt):
                train_base(TINY, CPU, output=tmp_path / "resumed")
        assert not (tmp_path / "resumed").exists()
        capsys.readouterr()
        train_base(TINY, CPU, output=tmp_path / "resumed")
        continued = {
            "vae": f"VAE: continues at update 10 of {TINY.vae_updates}",
            "unet": "U-Net: continues at update 10",
        }
        text = capsys.readouterr().out
        assert continued[network] in text
        finished = f"VAE: continues at update {TINY.vae_updates} of {TINY.vae_updates}"
        assert (finished in text) == (network == "unet"), "a finished VAE is not trained again"
        manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("whole", "resumed")]
        assert manifests[0] == manifests[1]

    @pytest.mark.parametrize("dropped", [0, 1], ids=["captions", "no caption"])
    def test_each_picture_is_learnt_with_its_own_caption(self, tmp_path, dropped):
        """Each latent holds its picture's number, and no noise is added to it."""
        pipeline, pictures = build_base(TINY, vocabulary()), []
        captions = [corpus_image(0, index, 32)[1] for index in range(8)]
        assert len(set(captions)) == 8
        latents = torch.arange(8.0)[:, None, None, None].expand(8, 4, 8, 8)
        pipeline.scheduler.add_noise = lambda clean, noise, timesteps: pictures.append(clean[:, 0, 0, 0].int()) or clean
        seen = []
        pipeline.text_encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        settings = TINY.model_copy(update={"dropped_captions": float(dropped), "unet_updates": 6})
        base_train._train_unet(pipeline, latents, captions, settings, CPU, tmp_path, None)
        assert len({int(number) for numbers in pictures for number in numbers}) > 4
        for ids, numbers in zip(seen, pictures, strict=True):
            expected = ["" if dropped else captions[number] for number in numbers]
            padded = {
                "padding": "max_length",
                "truncation": True,
                "max_length": TINY.text_length,
                "return_tensors": "pt",
            }
            assert torch.equal(ids, pipeline.tokenizer(expected, **padded).input_ids)

    def test_the_weights_are_the_moving_average_of_the_updates(self, monkeypatch, tmp_path):
        pipeline, after = build_base(TINY, vocabulary()), []
        weight = pipeline.unet.conv_in.weight

        class Noting(torch.optim.AdamW):
            def step(self):
                super().step()
                after.append(weight.detach().clone())

        monkeypatch.setattr(torch.optim, "AdamW", Noting)
        settings = TINY.model_copy(update={"ema_decay": 0.6, "unet_updates": 3})
        base_train._train_unet(pipeline, torch.randn(8, 4, 8, 8), [""] * 8, settings, CPU, tmp_path, None)
        first, second, third = after
        expected = 0.6 * (0.6 * first + 0.4 * second) + 0.4 * third
        assert torch.allclose(pipeline.unet.conv_in.weight, expected, atol=1e-7)
        assert not torch.allclose(expected, third, atol=1e-5)

    def test_the_folder_is_a_pipeline(self, tmp_path):
        train_base(TINY, CPU, output=tmp_path / "base")
        pipeline = StableDiffusionPipeline.from_pretrained(
            tmp_path / "base", safety_checker=None, local_files_only=True, dtype=torch.float32
        )
        with safe_open(tmp_path / "base/unet/diffusion_pytorch_model.safetensors", "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
        assert pipeline.scheduler.config.prediction_type == "epsilon"
        images = to_tensor(np.stack([corpus_image(0, index, 32)[0] for index in range(8)]))
        with torch.no_grad():
            latents = pipeline.vae.encode(images).latent_dist.mean * pipeline.vae.config.scaling_factor
        assert float(latents.std()) == pytest.approx(1, rel=1e-3)
        deviation = pipeline.vae.encode(images).latent_dist.std.detach()
        assert torch.allclose(deviation, torch.tensor(0.02), rtol=1e-2), "training widened the posterior"
        assert len(pd.read_parquet(tmp_path / "base/unet_losses.parquet")) == 2


class TestShipped:
    """The base that ships with the project."""

    FOLDER = REPOSITORY / "seas/base/small"

    def test_it_names_the_settings_of_its_recipe(self):
        """Its card says in how many trainings it reached them: a rebuild has other weights."""
        recipe = yaml.safe_load((REPOSITORY / "config/base.yaml").read_text())
        made = json.loads((self.FOLDER / "manifest.json").read_text())
        assert made["settings"]["base"] == BaseSettings(**recipe["base"]).model_dump(mode="json")
        assert made["settings"]["compute"] == {name: recipe["compute"][name] for name in ("device", "precision")}
        assert made["stage_version"] == STAGE_VERSION

    def test_its_files_are_whole_and_small(self):
        made = json.loads((self.FOLDER / "manifest.json").read_text())
        assert made["content"] == {
            name: hashlib.sha256((self.FOLDER / name).read_bytes()).hexdigest() for name in made["content"]
        }
        configs = [path.read_text() for path in self.FOLDER.rglob("*.json")]
        assert not any(re.search(r'"_name_or_path": "/', text) for text in configs)
        assert sum(path.stat().st_size for path in self.FOLDER.rglob("*.safetensors")) < 30e6

    def test_it_knows_the_captions_words(self):
        tokenizer = load_base(self.FOLDER).tokenizer
        assert all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for word in vocabulary())

    def test_it_keeps_a_picture_and_predicts_noise(self):
        pipeline = load_base(self.FOLDER)
        images = to_tensor(np.stack([corpus_image(1, index, 64)[0] for index in range(8)]))
        captions = [corpus_image(1, index, 64)[1] for index in range(8)]
        scheduler, timesteps = pipeline.scheduler, torch.full((8,), 300)
        with torch.no_grad():
            posterior = pipeline.vae.encode(images).latent_dist
            latents = posterior.sample(torch.Generator().manual_seed(0))
            decoded = pipeline.vae.decode(latents).sample
            latents = latents * pipeline.vae.config.scaling_factor
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
            noisy = scheduler.add_noise(latents, noise, timesteps)
            ids = pipeline.tokenizer(captions, padding="max_length", max_length=32, return_tensors="pt").input_ids
            predicted = pipeline.unet(noisy, timesteps, pipeline.text_encoder(ids)[0]).sample
        signal = scheduler.alphas_cumprod[300]
        clean = (noisy - (1 - signal).sqrt() * predicted) / signal.sqrt()
        assert 10 * math.log10(4 / float(((decoded - images) ** 2).mean())) > 32
        assert float(((clean - latents) ** 2).mean()) < 0.2 * float((latents**2).mean())
