"""Generation: start and steps by value, images as a function of (seed, type, index), resume, redraws, crop and paste."""

import json
import shutil
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline
from PIL import Image

from seas import artifacts
from seas.artifacts import read_manifest, run_facts, write_table
from seas.base.model import training_target
from seas.base.stable_diffusion import SCHEDULER
from seas.data import mvtec_ad
from seas.data.index import index_samples
from seas.data.settings import DataSettings
from seas.errors import InputError
from seas.generation import diffusion
from seas.generation import sampler as sampler_module
from seas.generation.by_hand import generate_by_hand
from seas.generation.crop_and_paste import crop_and_paste_product, paste, turns_that_fit
from seas.generation.diffusion import generate_product, generate_tree, merge_shards
from seas.generation.sampler import (
    Generated,
    PairSampler,
    first_timestep,
    mask_of,
    on_background,
    sampling_scheduler,
    timesteps_from,
)
from seas.generation.settings import GenerationSettings
from seas.generator.encoded import EncodedImages, load_encoded
from seas.generator.pipeline import encode_prompts, load_pipeline
from seas.generator.prompts import Prompts
from seas.images import Fitted, bounding_box, read_image, read_mask, write_image, write_mask
from seas.report.cost import ms_an_image, peak_memory
from seas.rmp.train import load_rmp
from seas.seeding import torch_rng
from seas.settings import ComputeSettings

CPU = ComputeSettings(device="cpu", precision="fp32", threads=1)
FEW = GenerationSettings(pairs_per_type=3, normals=2, steps=4, guidance=2, batch_size=2, redraws=1)


def stable_diffusion_signals():
    """ᾱ of Stable Diffusion's noise levels, by its formula."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


class TestSteps:
    @pytest.mark.parametrize(("signal", "timestep"), [(0.098, 937), (0.287, 700), (0.0, 999)])
    def test_first_timestep_has_the_wanted_signal(self, signal, timestep):
        assert abs(first_timestep(stable_diffusion_signals(), signal) - timestep) <= 1

    def test_last_three_of_the_release(self):
        assert timesteps_from(999, 25)[-3:] == [120, 80, 40]
        assert timesteps_from(937, 25)[0] == 937

    def test_more_steps_than_timesteps(self):
        with pytest.raises(InputError, match="generation.steps is 25"):
            timesteps_from(10, 25)


def folder_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.fixture(scope="module")
def tree(generator, rmp, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generation") / "washer"
    generate_product(generator, rmp, FEW, CPU, 0, output=folder)
    return folder


@pytest.fixture
def sampler(generator, rmp):
    pipeline = load_pipeline(generator)
    return PairSampler(
        pipeline, load_rmp(rmp, pipeline), Prompts.load(generator), load_encoded(generator).start_normals(), FEW, CPU, 0
    )


class TestTree:
    def test_reads_back_through_the_projects_own_reader(self, tree):
        assert mvtec_ad.list_products(tree.parent) == ["washer"]
        samples = mvtec_ad.list_samples(tree.parent, "washer")
        assert {(s.type, s.folder) for s in samples} == {
            ("good", "train"),
            *((t, "test") for t in ("dent", "rust", "scratch")),
        }
        assert len(samples) == 3 * 3 + 2

    def test_reads_by_the_rules_of_anomalibs_folder(self, tree):
        """anomalib's Folder sorts images and masks, pairs them in order, and wants the image's stem in the mask's."""
        suffixes = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}

        def listed(folder):
            return sorted(path for path in (tree / folder).rglob("*") if path.suffix in suffixes)

        assert len(listed("train/good")) == 2
        for anomaly_type in ("dent", "rust", "scratch"):
            images, masks = listed(f"test/{anomaly_type}"), listed(f"ground_truth/{anomaly_type}")
            assert len(images) == len(masks) == 3
            for image, mask in zip(images, masks, strict=True):
                assert image.stem in mask.stem
                assert set(np.unique(Image.open(mask))) <= {0, 255} and Image.open(mask).mode == "L"
                assert Image.open(mask).size == Image.open(image).size

    def test_the_table_and_the_files_agree(self, tree):
        table = pd.read_parquet(tree / "images.parquet")
        assert len(table) == 11
        for row in table.itertuples():
            assert read_image(tree / row.image).shape == (32, 32, 3)
            if row.type != "good":
                assert read_mask(tree / row.mask).sum() == row.anomaly_pixels
        assert read_manifest(tree)["settings"]["generation"]["guidance"] == 2
        assert set(read_manifest(tree)["content"]) >= set(table.image)

    def test_source_is_a_training_normal(self, tree, miniature):
        split = pd.read_parquet(miniature.split)
        sources = set(pd.read_parquet(tree / "images.parquet").source_normal)
        assert sources <= set(split[split.role == "normal"].image)
        assert len(sources) > 1

    def test_an_interrupted_run_ends_in_the_same_tree(self, tree, generator, rmp, tmp_path, monkeypatch):
        calls = []
        make = PairSampler.make

        def dies(self, anomaly_type, wanted):
            calls.append(wanted)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return make(self, anomaly_type, wanted)

        output = tmp_path / "washer"
        with monkeypatch.context() as patched:
            patched.setattr(PairSampler, "make", dies)
            with pytest.raises(KeyboardInterrupt):
                generate_product(generator, rmp, FEW, CPU, 0, output=output)
        assert not output.exists()
        kept = list((tmp_path / ".washer.working").rglob("*.png"))
        assert kept
        records = tmp_path / ".washer.working/records/dent"
        (records / ".000002.json.partial.json").write_text("")
        made = []
        monkeypatch.setattr(PairSampler, "make", lambda self, t, wanted: made.extend(wanted) or make(self, t, wanted))
        generate_product(generator, rmp, FEW, CPU, 0, output=output)
        assert folder_bytes(output) == folder_bytes(tree)
        whole = sum(pd.read_parquet(tree / "images.parquet").draws)
        assert len(made) < whole
        assert not (tmp_path / ".washer.working").exists()

    def test_what_a_power_loss_emptied_is_made_again(self, tree, generator, rmp, tmp_path, monkeypatch):
        output = tmp_path / "washer"

        def dies(*arguments, **facts):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(diffusion, "write_images_table", dies)
            with pytest.raises(KeyboardInterrupt):
                generate_product(generator, rmp, FEW, CPU, 0, output=output)
        pieces = tmp_path / ".washer.working"
        (pieces / "tree/test/dent/0000.png").write_bytes(b"")
        (pieces / "tree/ground_truth/rust/0002_mask.png").unlink()
        next((pieces / "records/scratch").glob("*.json")).write_bytes(b"")
        made, make = [], PairSampler.make
        monkeypatch.setattr(PairSampler, "make", lambda self, t, wanted: made.append(t) or make(self, t, wanted))
        generate_product(generator, rmp, FEW, CPU, 0, output=output)
        assert folder_bytes(output) == folder_bytes(tree) and set(made) == {"dent", "rust", "scratch"}
        assert pd.read_parquet(output / "images.parquet").equals(pd.read_parquet(tree / "images.parquet"))

    def test_a_set_that_cannot_be_read_again_is_not_called_finished(self, tree, generator, rmp, tmp_path, monkeypatch):
        output, make = tmp_path / "washer", diffusion._make

        def loses(sampler, name, indices, largest_mask, pieces, label):
            make(sampler, name, indices, largest_mask, pieces, label)
            if name == "rust":
                (pieces / "tree/test/rust/0002.png").unlink()

        with monkeypatch.context() as patched:
            patched.setattr(diffusion, "_make", loses)
            with pytest.raises(InputError, match=r"washer\.working: \d images that were made cannot be read again"):
                generate_product(generator, rmp, FEW, CPU, 0, output=output)
        assert not output.exists()
        generate_product(generator, rmp, FEW, CPU, 0, output=output)
        assert folder_bytes(output) == folder_bytes(tree)

    def test_a_shard_gives_the_same_images(self, tree, generator, rmp, tmp_path):
        generate_tree(generator, rmp, {"rust": range(2, 3)}, FEW, CPU, 0, output=tmp_path / "shard")
        shard = folder_bytes(tmp_path / "shard")
        assert set(shard) == {"test/rust/0002.png", "ground_truth/rust/0002_mask.png"}
        assert all(folder_bytes(tree)[name] == content for name, content in shard.items())

    @pytest.mark.parametrize("shards", [2, 5])
    def test_merged_shards_are_the_tree_of_one_piece(self, shards, tree, generator, rmp, tmp_path, monkeypatch):
        settings = FEW.model_copy(update={"shards": shards})
        folders = [tmp_path / f"shards/washer/{shard}" for shard in range(shards)]
        for shard, folder in enumerate(folders):
            generate_product(generator, rmp, settings, CPU, 0, shard=shard, output=folder)
        counts = [len(pd.read_parquet(folder / "images.parquet")) for folder in folders]
        assert sum(counts) == 11 and max(counts) < 11
        monkeypatch.setattr(PairSampler, "make", None)
        merge_shards(folders, generator, rmp, settings, CPU, 0, output=tmp_path / "washer")
        assert folder_bytes(tmp_path / "washer") == folder_bytes(tree)
        assert (tmp_path / "washer/manifest.json").read_bytes() == (tree / "manifest.json").read_bytes()
        row = pd.read_parquet(tree / "images.parquet").iloc[0]
        assert (tmp_path / "washer" / row.image).stat().st_nlink == 2

    def test_the_time_of_an_image_is_that_of_pairs(self, generator, rmp, tmp_path, monkeypatch):
        """A clock that only making an image moves: 2 s for a pair, 100 s for a normal."""
        seconds = [0.0]

        def make(self, anomaly_type, wanted):
            seconds[0] += (100 if anomaly_type == "good" else 2) * len(wanted)
            return [Generated(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool), "") for _ in wanted]

        monkeypatch.setattr(PairSampler, "make", make)
        monkeypatch.setattr(diffusion, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
        monkeypatch.setattr(artifacts, "MEASURED", measured := Counter())
        monkeypatch.setattr(diffusion, "MEASURED", measured)
        generate_product(generator, rmp, FEW, CPU, 0, output=tmp_path / "washer")
        assert run_facts(tmp_path / "washer")["measured"] == {"pairs": 9, "pair_seconds": 18}
        assert ms_an_image([tmp_path / "washer"]) == 2000

    def test_merged_shards_cost_what_the_shards_did(self, generator, rmp, tmp_path):
        settings = FEW.model_copy(update={"pairs_per_type": 1, "shards": 2})
        folders = [tmp_path / f"shards/washer/{shard}" for shard in range(2)]
        for shard, (folder, pairs, peak) in enumerate(zip(folders, (1, 3), (30_000, 10_000), strict=True)):
            generate_product(generator, rmp, settings, CPU, 0, shard=shard, output=folder)
            run = json.loads((folder / "run.json").read_text())
            run |= {"measured": {"pairs": pairs, "pair_seconds": pairs**2 / 2}, "device": "card"}
            (folder / "run.json").write_text(json.dumps(run | {"peak_device_memory_mib": peak}))
        merge_shards(folders, generator, rmp, settings, CPU, 0, output=tmp_path / "washer")
        assert ms_an_image([tmp_path / "washer"]) == pytest.approx(1000 * (0.5 + 4.5) / 4)
        assert peak_memory(tmp_path / "washer") == pytest.approx(30_000 * 2**20 / 1e9)
        assert run_facts(tmp_path / "washer")["device"] == "card"

    def test_another_seed_gives_other_images(self, tree, generator, rmp, tmp_path):
        generate_tree(generator, rmp, {"rust": range(1)}, FEW, CPU, 1, output=tmp_path / "other")
        assert folder_bytes(tmp_path / "other")["test/rust/0000.png"] != folder_bytes(tree)["test/rust/0000.png"]


class TestSampler:
    def test_batch_size_does_not_change_an_image(self, sampler, tree):
        """Nor does its company. Between sizes at most one grey value differs, by the order of floating-point sums."""
        wanted = [(index, 0) for index in range(9)]
        made = {}
        for size in (1, 3, 8):
            sampler.batch_size = size
            made[size] = sampler.make("dent", wanted)
            assert np.array_equal(sampler.make("dent", [(4, 0)])[0].image, made[size][4].image)
        for size in (3, 8):
            for one, other in zip(made[1], made[size], strict=True):
                assert np.abs(one.image.astype(int) - other.image).max() <= 1
                assert (one.mask != other.mask).mean() <= 0.01

    def test_out_of_memory_halves_the_batch(self, sampler, monkeypatch):
        """A stand-in for a GPU's memory that holds three images at once."""
        sampler.batch_size, sizes, unet = 8, [], sampler.pipeline.unet.forward
        wanted = [(index, 0) for index in range(5)]
        whole = sampler.make("dent", wanted)

        def forward(latents, *rest):
            sizes.append(len(latents) // 2)
            if len(latents) > 6:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return unet(latents, *rest)

        monkeypatch.setattr(sampler.pipeline.unet, "forward", forward)
        made = sampler.make("dent", wanted)
        assert sorted(set(sizes), reverse=True) == [8, 4, 2] and sampler.batch_size == 2
        assert not any(block._forward_hooks for block in sampler.pipeline.unet.up_blocks), "a recorder was left behind"
        assert all(np.abs(a.image.astype(int) - b.image).max() <= 1 for a, b in zip(whole, made, strict=True))

        def never(latents, *rest):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(sampler.pipeline.unet, "forward", never)
        with pytest.raises(InputError, match="does not hold the making of one image"):
            sampler.make("dent", wanted)

    def test_the_automatic_batch_is_8_on_a_cpu(self, sampler):
        rest = (sampler.pipeline, sampler.rmp, sampler.prompts, sampler.start)
        automatic = PairSampler(*rest, GenerationSettings(), CPU, 0)
        assert automatic.batch_size == 8

    @pytest.mark.parametrize(("side", "images"), [(64, 64), (256, 64), (512, 16), (1024, 4), (4096, 1)])
    def test_the_automatic_batch_on_a_gpu_shrinks_with_the_image(self, side, images):
        assert GenerationSettings().images_at_once("cuda", side) == images
        assert GenerationSettings(batch_size=48).images_at_once("cuda", side) == 48

    def test_every_network_computes_in_the_wanted_precision(self, sampler, monkeypatch):
        inside, seen, pipeline = [], set(), sampler.pipeline

        @contextmanager
        def noted(compute):
            assert compute is sampler.compute
            inside.append(compute)
            yield
            inside.pop()

        monkeypatch.setattr(sampler_module, "autocast", noted)
        networks = (pipeline.text_encoder, pipeline.unet, pipeline.vae.decoder, sampler.rmp)
        for network in networks:
            network.register_forward_pre_hook(lambda module, given: seen.add((module, bool(inside))))
        sampler.make("dent", [(0, 0)])
        assert seen == {(network, True) for network in networks}

    def test_guidance_mixes_both_halves(self, sampler):
        plain = sampler.settings
        sampler.settings = plain.model_copy(update={"guidance": 1.0})
        conditional = sampler.make("dent", [(0, 0)])[0].image
        sampler.settings = plain.model_copy(update={"guidance": 1.0 + 1e-7})
        assert np.abs(sampler.make("dent", [(0, 0)])[0].image.astype(int) - conditional).max() <= 1
        sampler.settings = plain.model_copy(update={"guidance": 8.0})
        assert not np.array_equal(sampler.make("dent", [(0, 0)])[0].image, conditional)

    def test_a_prompt_is_encoded_once_for_all_batches(self, sampler, monkeypatch):
        given, encoded, pipeline = [], [], sampler.pipeline
        prompts = ["", sampler.prompts.abnormal("dent")]
        expected = encode_prompts(pipeline, [prompt for prompt in prompts for _ in range(2)])
        unet, encoder = pipeline.unet.forward, pipeline.text_encoder.forward
        monkeypatch.setattr(pipeline.unet, "forward", lambda *inputs: given.append(inputs[2]) or unet(*inputs))
        monkeypatch.setattr(pipeline.text_encoder, "forward", lambda ids: encoded.append(len(ids)) or encoder(ids))
        sampler.make("dent", [(index, 0) for index in range(5)])
        assert encoded == [2]
        assert len(given) == 3 * FEW.steps and all(torch.equal(context, expected) for context in given)
        sampler.make("rust", [(0, 0)])
        assert encoded == [2, 2] and not torch.equal(given[-1], expected)

    def constant_halves(self, monkeypatch, sampler):
        """A U-Net that predicts 1 without and 3 with the prompt, and a scheduler that keeps what it is given."""
        given = []

        def forward(latents, timestep, context):
            half = len(latents) // 2
            return SimpleNamespace(sample=torch.cat([torch.full_like(latents[:half], v) for v in (1.0, 3.0)]))

        def step(self, output, timestep, sample):
            given.append(output)
            return SimpleNamespace(prev_sample=sample)

        monkeypatch.setattr(sampler.pipeline.unet, "forward", forward)
        monkeypatch.setattr(DPMSolverMultistepScheduler, "step", step)
        return given

    def test_guidance_by_value(self, sampler, monkeypatch):
        given = self.constant_halves(monkeypatch, sampler)
        sampler.settings = FEW.model_copy(update={"guidance": 2.5})
        sampler.make("good", [(0, 0)])
        assert len(given) == 4 and all((output == 1 + 2.5 * (3 - 1)).all() for output in given)

    def test_masks_come_from_the_conditional_half_of_the_last_steps(self, sampler, monkeypatch):
        self.constant_halves(monkeypatch, sampler)
        features = type(
            "Features",
            (),
            {
                "__init__": lambda self, unet, blocks: None,
                "read": lambda self: (torch.arange(2.0).repeat_interleave(2).view(4, 1, 1, 1),),
                "remove": lambda self: None,
            },
        )
        decoded, seen = [], []

        def decode(which, scheduler, output, timestep, latents):
            decoded.append((int(timestep), float(output.unique())))
            return latents

        def forward(unet_maps, vae_maps):
            seen.append(unet_maps[0].flatten().tolist())
            return SimpleNamespace(refined=torch.zeros(2, 2, 32, 32))

        monkeypatch.setattr(sampler_module, "UnetFeatures", features)
        monkeypatch.setattr(sampler_module, "latents_to_decode", decode)
        monkeypatch.setattr(sampler.rmp, "forward", forward)
        sampler.make("dent", [(0, 0)])
        assert decoded == [(timestep, 3.0) for timestep in sampler.timesteps[1:]]
        assert seen == [[1.0, 1.0]] * 3

    def test_the_first_latent_has_the_start_normals_signal(self, sampler):
        latents, sources = sampler._first_latents("dent", [(0, 0)])
        signal = sampler.pipeline.scheduler.alphas_cumprod[sampler.first].sqrt()
        noise = (latents[0] - signal * sampler.start.latents[sources[0]]) / (1 - signal**2).sqrt()
        assert float(signal) == pytest.approx(0.098, abs=1e-3)
        assert abs(float(noise.mean())) < 0.35
        assert float(noise.std()) == pytest.approx(1, abs=0.2)

    def test_the_release_begins_at_the_last_step_with_the_given_signal(self, sampler):
        settings = FEW.model_copy(update={"first_timestep": "last", "initial_signal": 0.3})
        released = PairSampler(sampler.pipeline, sampler.rmp, sampler.prompts, sampler.start, settings, CPU, 0)
        assert released.first == released.timesteps[0] == 999
        latents, (source,) = released._first_latents("dent", [(3, 0)])
        random = torch_rng(0, "generation", "dent", 3, 0)
        assert int(torch.randint(len(released.start.latents), (1,), generator=random)) == source
        noise = torch.randn(latents.shape[1:], generator=random)
        expected = 0.3 * released.start.latents[source] + (1 - 0.09) ** 0.5 * noise
        assert torch.allclose(latents[0], expected, atol=1e-6)
        assert PairSampler(
            sampler.pipeline, sampler.rmp, sampler.prompts, sampler.start, FEW, CPU, 0
        ).first == first_timestep(sampler.pipeline.scheduler.alphas_cumprod, FEW.initial_signal)

    def test_a_signal_below_the_last_timesteps_is_kept(self, sampler):
        last = float(sampler.pipeline.scheduler.alphas_cumprod[-1].sqrt())
        settings = FEW.model_copy(update={"initial_signal": last / 4})
        faint = PairSampler(sampler.pipeline, sampler.rmp, sampler.prompts, sampler.start, settings, CPU, 0)
        assert faint.first == 999
        latents, (source,) = faint._first_latents("dent", [(3, 0)])
        random = torch_rng(0, "generation", "dent", 3, 0)
        torch.randint(len(faint.start.latents), (1,), generator=random)
        noise = torch.randn(latents.shape[1:], generator=random)
        expected = last / 4 * faint.start.latents[source] + (1 - (last / 4) ** 2) ** 0.5 * noise
        assert torch.allclose(latents[0], expected, atol=1e-6)

    def test_masks_are_the_mean_of_the_last_steps(self, sampler, monkeypatch):
        probabilities = iter([torch.full((2, 32, 32), p) for p in (0.1, 0.1, 0.5)])
        monkeypatch.setattr(PairSampler, "_mask", lambda *_: next(probabilities))
        assert sampler.make("dent", [(0, 0)])[0].mask.all()
        probabilities = iter([torch.full((2, 32, 32), p) for p in (0.1, 0.1, 0.3)])
        assert not sampler.make("dent", [(0, 0)])[0].mask.any()

    def test_padding_is_cut_off(self, sampler):
        sampler.start.boxes[:] = torch.tensor([4, 0, 20, 32])
        made = sampler.make("dent", [(0, 0)])[0]
        assert made.image.shape == (20, 32, 3)
        assert made.mask.shape == (20, 32)
        sampler.settings = FEW.model_copy(update={"initial_signal": 0.0})
        from_noise = sampler.make("dent", [(0, 0)])[0]
        assert from_noise.image.shape == (20, 32, 3) and from_noise.source_normal == ""

    def test_a_sure_pixel_in_the_padding_keeps_no_region(self, sampler, monkeypatch):
        """Rows 4 to 23 are the product's. An unsure region reaches them from a sure pixel above; another has its own."""
        sampler.start.boxes[:] = torch.tensor([4, 0, 20, 32])
        probability = torch.zeros(2, 32, 32)
        probability[:, 2:10, 5:8] = 0.5
        probability[:, 3, 6] = 0.9
        probability[:, 12:15, 20:24] = 0.5
        probability[:, 13, 21] = 0.9
        monkeypatch.setattr(PairSampler, "_mask", lambda *_: probability)
        sampler.settings = FEW.model_copy(update={"threshold": 0.4, "peak_threshold": 0.7})
        mask = sampler.make("dent", [(0, 0)])[0].mask
        assert mask.sum() == 12 and mask[8:11, 20:24].all()

    @pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
    @pytest.mark.parametrize("predicted", ["epsilon", "v_prediction"])
    def test_a_perfect_prediction_ends_in_the_clean_latent(self, sampler, name, predicted):
        """The sampler, fed the true velocity or noise of a known latent at the timesteps it names, must find that latent."""
        base = PNDMScheduler(**SCHEDULER | {"prediction_type": predicted})
        signals = base.alphas_cumprod
        clean, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
        # a base that asks for noise levels of its own gets none: its scheduler would refuse our timesteps
        config = dict(base.config) | {"use_karras_sigmas": True}
        scheduler = sampling_scheduler(config, name)
        scheduler.set_timesteps(timesteps=sampler.timesteps)
        latents = signals[sampler.first].sqrt() * clean + (1 - signals[sampler.first]).sqrt() * noise
        assert scheduler.timesteps.tolist() == sampler.timesteps
        for timestep in scheduler.timesteps:
            now = signals[timestep]
            assert torch.allclose(latents, now.sqrt() * clean + (1 - now).sqrt() * noise, atol=1e-3)
            latents = scheduler.step(training_target(base, clean, noise, timestep[None]), timestep, latents).prev_sample
        assert torch.allclose(latents, clean, atol=1e-3)


class TestBackground:
    def test_inside_the_mask_it_is_the_images_far_from_it_the_backgrounds(self):
        """A dark spot on a surface of 200, laid over one of 100: as much darker as it was, and no rim."""
        image, background = np.full((64, 64, 3), 200, np.uint8), np.full((64, 64, 3), 100, np.uint8)
        image[22:28, 22:28] = 140
        mask = np.zeros((64, 64), bool)
        mask[20:30, 20:30] = True
        joined = on_background(image, mask, background).astype(int)
        assert abs(joined[23:27, 23:27] - 40).max() <= 1
        joined[22:28, 22:28] = 100
        assert abs(joined - 100).max() <= 1

    def test_what_is_only_brighter_than_its_background_leaves_it_as_it_is(self):
        random = np.random.default_rng(1)
        background = random.integers(60, 160, (64, 64, 3), dtype=np.uint8)
        mask = np.zeros((64, 64), bool)
        mask[5:40, 10:50] = True
        assert (on_background(background + np.uint8(70), mask, background) == background).all()

    def test_the_image_goes_over_softly(self):
        background = np.full((64, 64, 3), 100, np.uint8)
        image, mask = background.copy(), np.zeros((64, 64), bool)
        image[8:32, 8:32], mask[10:30, 10:30] = 180, True
        profile = on_background(image, mask, background)[20, 20:40, 0].astype(int)
        # Half a pixel and one and a half inside of its edge, 2 pixels from the mask: the normal distribution up to there.
        assert profile.tolist() == pytest.approx([180] * 10 + [174.6, 155.3] + [100] * 8, abs=1.6)

    def test_without_a_mask_nothing_of_the_image_is_left(self):
        image, background = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
        assert (on_background(image, np.zeros((32, 32), bool), background) == background).all()
        assert (on_background(image, np.ones((32, 32), bool), background) == image).all()

    def test_pairs_lie_on_their_normals_and_normals_are_generated(self, sampler, miniature, monkeypatch):
        left = torch.zeros(2, 32, 32)
        left[:, :, :10] = 1
        monkeypatch.setattr(sampler, "_mask", lambda *_: left)
        plain = {name: sampler.make(name, [(0, 0)])[0] for name in ("rust", "good")}
        sampler.settings = FEW.model_copy(update={"background": "photographed"})
        laid = {name: sampler.make(name, [(0, 0)])[0] for name in ("rust", "good")}
        assert (laid["good"].image == plain["good"].image).all()
        assert (laid["rust"].mask == plain["rust"].mask).all()
        photograph = Image.fromarray(read_image(miniature.root / plain["rust"].source_normal))
        fitted = np.asarray(photograph.resize((32, 32), Image.Resampling.LANCZOS))
        expected = on_background(plain["rust"].image, plain["rust"].mask, fitted)
        assert (laid["rust"].image == expected).all()
        assert (laid["rust"].image[:, 13:] == fitted[:, 13:]).all()
        assert (laid["rust"].image[:, :9] != fitted[:, :9]).any()

    def test_a_mask_in_the_padding_leaves_nothing(self, sampler, monkeypatch):
        boxes = torch.tensor([[8, 0, 16, 32]] * len(sampler.start.boxes))
        sampler.start = sampler.start._replace(boxes=boxes)
        sampler.settings = FEW.model_copy(update={"background": "photographed"})
        above = torch.zeros(2, 32, 32)
        above[:, :8] = 1
        monkeypatch.setattr(sampler, "_mask", lambda *_: above)
        (pair,) = sampler.make("rust", [(0, 0)])
        source = sampler.start.names.index(pair.source_normal)
        assert not pair.mask.any()
        assert (pair.image == sampler.start.images[source, 8:24].numpy()).all()

    def test_it_needs_a_normal(self):
        with pytest.raises(ValueError, match="background 'photographed' needs an initial_signal"):
            GenerationSettings(background="photographed", initial_signal=0)


class TestPeakThreshold:
    PROBABILITY = np.zeros((32, 32), np.float32)
    PROBABILITY[2:5, 2:5] = 0.4
    PROBABILITY[3, 3] = 0.9
    PROBABILITY[5:9, 5:9] = 0.5  # touches the first region by a corner alone
    PROBABILITY[20, 20] = 0.75
    SURE = (PROBABILITY > 0.2) & (np.float32(0.5) != PROBABILITY)

    def test_only_regions_with_a_sure_pixel_stay_whole(self):
        assert (mask_of(self.PROBABILITY, 0.2, 0.7) == self.SURE).all()
        assert mask_of(self.PROBABILITY, 0.2, 0.8).sum() == 9
        assert not mask_of(self.PROBABILITY, 0.2, 0.95).any()
        assert (mask_of(self.PROBABILITY, 0.2, None) == (self.PROBABILITY > 0.2)).all()

    def test_it_is_the_mean_of_the_steps_that_must_be_sure(self, sampler, monkeypatch):
        mean = torch.from_numpy(self.PROBABILITY)
        steps = iter([mean * 1.5, mean, mean * 0.5] * 2)
        monkeypatch.setattr(sampler, "_mask", lambda *_: next(steps).expand(2, -1, -1))
        for peak, mask in ((None, self.PROBABILITY > 0.2), (0.7, self.SURE)):
            sampler.settings = FEW.model_copy(update={"peak_threshold": peak})
            assert (sampler.make("rust", [(0, 0)])[0].mask == mask).all()

    def test_it_is_above_the_threshold(self):
        with pytest.raises(ValueError, match="peak_threshold is 0.2; it must be above the threshold, which is 0.3"):
            GenerationSettings(threshold=0.3, peak_threshold=0.2)


class TestRedraws:
    def made(self, monkeypatch, generator, rmp, tmp_path, settings, full_at):
        def make(self, anomaly_type, wanted):
            blank = np.zeros((8, 8, 3), np.uint8)
            return [Generated(blank, np.full((8, 8), attempt >= full_at), "") for _, attempt in wanted]

        monkeypatch.setattr(PairSampler, "make", make)
        generate_tree(generator, rmp, {"dent": range(3)}, settings, CPU, 0, output=tmp_path / "tree")
        return pd.read_parquet(tmp_path / "tree" / "images.parquet")

    def test_an_empty_mask_is_drawn_again(self, monkeypatch, generator, rmp, tmp_path):
        table = self.made(monkeypatch, generator, rmp, tmp_path, FEW.model_copy(update={"redraws": 4}), full_at=2)
        assert table.draws.tolist() == [3, 3, 3]
        assert (table.anomaly_pixels == 64).all()

    def test_after_the_last_try_it_is_kept(self, monkeypatch, generator, rmp, tmp_path):
        table = self.made(monkeypatch, generator, rmp, tmp_path, FEW.model_copy(update={"redraws": 4}), full_at=99)
        assert table.draws.tolist() == [5, 5, 5]
        assert (table.anomaly_pixels == 0).all()

    def test_it_can_be_kept_at_once(self, monkeypatch, generator, rmp, tmp_path):
        table = self.made(
            monkeypatch, generator, rmp, tmp_path, FEW.model_copy(update={"empty_mask": "keep"}), full_at=99
        )
        assert table.draws.tolist() == [1, 1, 1]

    @pytest.mark.parametrize(("rows", "again"), [(1, False), (4, False), (5, True), (8, True)])
    def test_a_mask_that_covers_more_than_the_limit_is_drawn_again(self, rows, again):
        mask = np.arange(8)[:, None] < np.full(8, rows)
        for empty_mask in ("redraw", "keep"):
            settings = FEW.model_copy(update={"empty_mask": empty_mask})
            assert settings.draws_again(mask, 0.5) == again
            assert not settings.draws_again(mask, None)

    @pytest.mark.parametrize(("share_of_a_shot", "tries"), [(0.5, 3), (0.51, 1)])
    def test_after_the_last_try_a_large_mask_is_kept_and_at_once_where_each_shot_has_one(
        self, monkeypatch, generator, rmp, tmp_path, share_of_a_shot, tries
    ):
        monkeypatch.setattr(EncodedImages, "shares", lambda self, name: [0.9, share_of_a_shot])
        settings = FEW.model_copy(update={"largest_mask": 0.5, "redraws": 2})
        table = self.made(monkeypatch, generator, rmp, tmp_path, settings, full_at=0)
        assert table.draws.tolist() == [tries] * 3
        assert (table.anomaly_pixels == 64).all()


class TestByHand:
    def test_the_seed_is_the_generators_unless_given(self, generator, rmp, tmp_path, monkeypatch, capsys):
        from seas.generation import by_hand

        seen = []
        monkeypatch.setattr(by_hand, "generate_tree", lambda *arguments, **named: seen.append(arguments[4:6]))
        monkeypatch.setattr(by_hand, "read_manifest", lambda folder: {"seed": 7})
        for seed in (None, 0, 3):
            generate_by_hand(
                generator, anomaly_type="rust", number=1, output=tmp_path / "out", seed=seed, rmp=rmp, device="cpu"
            )
        assert [(compute.threads, seed) for compute, seed in seen] == [(1, 7), (1, 0), (1, 3)]
        assert "whose settings would be taken: these are the paper's" in capsys.readouterr().out

    def test_of_a_run_on_a_gpu_a_processor_takes_one_thread(self, tmp_path, monkeypatch):
        """What a GPU makes is no function of threads, and its manifest names none."""
        from seas.generation import by_hand

        settings = {"generation": {}, "compute": ComputeSettings(device="cuda", threads=8).obeyed()}
        monkeypatch.setattr(by_hand, "read_manifest", lambda folder: {"settings": settings})
        assert by_hand._settings_beside(tmp_path, "cpu")[1].threads == 1

    def test_a_type_beside_a_finished_run(self, generator, rmp, tree, tmp_path, capsys):
        run = tmp_path / "run"
        for stage, folder in (("generator", generator), ("rmp", rmp), ("generation", tree)):
            shutil.copytree(folder, run / stage / "washer")
        generate_by_hand(
            run / "generator/washer",
            anomaly_type="scratch",
            number=2,
            output=tmp_path / "out",
            seed=0,
            rmp=None,
            device="cpu",
        )
        said = capsys.readouterr().out
        assert "the paper's" not in said
        assert json.loads(said.splitlines()[0].removeprefix("settings: "))["steps"] == 4
        ours = folder_bytes(tmp_path / "out")
        assert ours and all(folder_bytes(tree)[name] == content for name, content in ours.items())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"anomaly_type": "rot"}, "'rot' is no anomaly type of washer"),
            ({"rmp": None}, "there is no mask branch at .*name its folder with --rmp"),
            ({"output": "."}, "exists already"),
            ({"generator": "."}, "is not a finished artifact"),
        ],
    )
    def test_faults(self, change, message, generator, rmp, tmp_path):
        arguments = {"generator": generator, "anomaly_type": "rust", "output": tmp_path / "out", "rmp": rmp}
        with pytest.raises(InputError, match=message):
            generate_by_hand(**arguments | change, number=1, seed=0, device="cpu")
        assert not (tmp_path / "out").exists()

    def test_normals_need_no_mask_branch(self, generator, tmp_path):
        generate_tree(generator, None, {"good": range(1)}, FEW, CPU, 0, output=tmp_path / "normals")
        assert (tmp_path / "normals/train/good/0000.png").exists()
        with pytest.raises(InputError, match="masks need the mask branch"):
            generate_tree(generator, None, {"rust": range(1)}, FEW, CPU, 0, output=tmp_path / "pairs")


class TestCropAndPaste:
    def test_the_defect_is_laid_over_the_normal_and_nothing_else_changes(self):
        draws = np.random.default_rng(0)
        normal = Fitted(np.full((16, 16, 3), 50, np.uint8), np.zeros((16, 16), bool), np.ones((16, 16), bool))
        shape = np.zeros((16, 16), bool)
        shape[2:5, 3:9] = True
        defect = Fitted(np.full((16, 16, 3), 200, np.uint8), shape, np.ones((16, 16), bool))
        for turn in range(8):
            image, mask = paste(draws, defect, normal, turn)
            assert mask.sum() == shape.sum()
            assert (image[~mask] == 50).all()
            assert image[mask].max() == 200
            assert image[mask].mean() > 120
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            extent = (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
            assert extent == ((6, 3) if turn % 2 else (3, 6))

    def test_it_stays_out_of_the_padding(self):
        valid = np.zeros((16, 16), bool)
        valid[5:11] = True
        normal = Fitted(np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), bool), valid)
        shape = np.zeros((16, 16), bool)
        shape[0:12, 4:6] = True
        defect = Fitted(np.full((16, 16, 3), 9, np.uint8), shape, np.ones((16, 16), bool))
        for seed in range(20):
            _, mask = paste(np.random.default_rng(seed), defect, normal, 0)
            assert mask.any() and not (mask & ~valid).any()

    @pytest.mark.parametrize(
        ("extent", "augmentation", "turns"),
        [
            ((3, 12), "turns_and_flips", (0, 2, 4, 6)),  # of a long defect on a wide product no end is lost
            ((12, 3), "turns_and_flips", (1, 3, 5, 7)),
            ((5, 6), "turns_and_flips", tuple(range(8))),
            ((12, 3), "flips", (0,)),
            ((12, 12), "turns_and_flips", (0,)),
        ],
    )
    def test_it_is_turned_so_that_it_fits(self, extent, augmentation, turns):
        valid, shape = np.zeros((16, 16), bool), np.zeros((16, 16), bool)
        valid[5:11] = True
        shape[: extent[0], : extent[1]] = True
        nothing = np.zeros((16, 16, 3), np.uint8)
        normal, defect = Fitted(nothing, ~valid, valid), Fitted(nothing, shape, ~valid)
        assert turns_that_fit(defect, normal, augmentation) == turns

    def pasted_on_a_wide_product(self, tmp_path, defect):
        """The twelve masks of a shot of 24 × 48 pixels whose defect fills the slices ``defect``, pasted on its like."""
        mask = np.zeros((24, 48), bool)
        mask[defect] = True
        write_image(np.zeros((24, 48, 3), np.uint8), tmp_path / "wide.png")
        write_mask(mask, tmp_path / "mask.png")
        rows = [("good", "normal", "wide.png", ""), ("cut", "shot", "wide.png", "mask.png")]
        split = pd.DataFrame(rows, columns=["type", "role", "image", "mask"]).assign(product="p")
        write_table(split, tmp_path / "split.parquet")
        data = DataSettings(image_size=48)
        crop_and_paste_product(tmp_path / "split.parquet", tmp_path, 12, None, data, 0, output=tmp_path / "p")
        return [read_mask(path) for path in (tmp_path / "p/ground_truth/cut").iterdir()]

    def test_a_long_defect_on_a_wide_product_stays_whole(self, tmp_path):
        masks = self.pasted_on_a_wide_product(tmp_path, np.s_[10:13, 4:40])
        assert [mask.sum() for mask in masks] == [3 * 36] * 12

    def test_what_lies_on_a_wide_product_is_not_stood_up(self, tmp_path):
        """Nor is a generated defect: padded photographs are not turned by 90°."""
        masks = self.pasted_on_a_wide_product(tmp_path, np.s_[10:12, 4:12])
        assert [bounding_box(mask)[2:] for mask in masks] == [(2, 8)] * 12

    def test_a_shot_with_a_larger_mask_is_left_out_unless_all_have_one(self, tmp_path):
        write_image(np.zeros((24, 48, 3), np.uint8), tmp_path / "wide.png")
        rows = [("good", "normal", "wide.png", "")]
        for name, columns in (("half", 24), ("more", 25), ("whole", 48)):
            write_mask(np.broadcast_to(np.arange(48) < columns, (24, 48)), tmp_path / f"{name}.png")
        rows += [("cut", "shot", "wide.png", f"{name}.png") for name in ("half", "more", "whole")]
        rows += [("stain", "shot", "wide.png", f"{name}.png") for name in ("more", "whole")]
        split = pd.DataFrame(rows, columns=["type", "role", "image", "mask"]).assign(product="p")
        write_table(split, tmp_path / "split.parquet")
        areas = {}
        for limit in (None, 0.5):
            output = tmp_path / str(limit)
            data = DataSettings(image_size=48, augmentation="none")
            crop_and_paste_product(tmp_path / "split.parquet", tmp_path, 12, limit, data, 0, output=output)
            for name in ("cut", "stain"):
                masks = (output / f"ground_truth/{name}").iterdir()
                areas[limit, name] = {int(read_mask(path).sum()) // 24 for path in masks}
        assert areas == {
            (None, "cut"): {24, 25, 48},
            (None, "stain"): {25, 48},
            (0.5, "cut"): {24},
            (0.5, "stain"): {25, 48},
        }

    def test_a_tree_of_the_same_layout(self, miniature, tmp_path):
        crop_and_paste_product(miniature.split, miniature.root, 4, None, miniature.data, 0, output=tmp_path / "washer")
        table = index_samples_of_pairs(tmp_path)
        assert table.groupby("type").size().to_dict() == {"dent": 4, "rust": 4, "scratch": 4}
        again = tmp_path / "again"
        crop_and_paste_product(miniature.split, miniature.root, 4, None, miniature.data, 0, output=again)
        assert folder_bytes(again) == {
            name: content for name, content in folder_bytes(tmp_path / "washer").items() if "good" not in name
        }


def index_samples_of_pairs(root):
    """Pairs alone are no whole product: a normal is lent for the reader."""
    lent = root / "washer/train/good"
    lent.mkdir(parents=True)
    shutil.copy(next((root / "washer/test").rglob("*.png")), lent / "000.png")
    table = index_samples(root, "mvtec_ad", "washer")
    return table[table.type != "good"]


def test_the_generator_loads_with_the_library_alone(generator):
    arguments = {"safety_checker": None, "local_files_only": True}
    first, second = (StableDiffusionPipeline.from_pretrained(generator, **arguments) for _ in range(2))
    images = []
    for pipeline in (first, second):
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline(
            "a <ob_1> with <df_1>, <df_2>, <df_3>, <df_4>",
            num_inference_steps=2,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(3),
            output_type="np",
        )
        images.append(drawn.images[0])
    assert np.array_equal(*images)
    assert images[0].std() > 0


def test_a_damaged_generator_is_named(generator, rmp, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(generator, broken)
    (broken / "prompts.json").unlink()
    with pytest.raises(InputError, match="is no finished generator: prompts.json"):
        generate_product(broken, rmp, FEW, CPU, 0, output=tmp_path / "tree")
