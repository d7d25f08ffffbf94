"""A Stable-Diffusion-shaped pipeline: built small with fresh weights, or loaded from a folder."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from seas.base.pretrained import check_base
from seas.base.settings import UNET_GROUPS, BaseSettings
from seas.errors import InputError

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
HEADS = 4
NETWORKS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


def build_base(settings: BaseSettings, words: Sequence[str]) -> StableDiffusionPipeline:
    """A pipeline of the libraries' own classes with fresh weights, whose tokenizer knows each of ``words`` as one token."""
    tokenizer = build_tokenizer(words, settings.text_length)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.text_width,
            intermediate_size=4 * settings.text_width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=HEADS,
            max_position_embeddings=settings.text_length,
            projection_dim=settings.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    halvings = len(settings.vae_channels) - 1
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * (halvings + 1),
        up_block_types=["UpDecoderBlock2D"] * (halvings + 1),
        block_out_channels=settings.vae_channels,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.vae_groups,
        sample_size=settings.image_size,
        mid_block_add_attention=False,
    )
    unet = UNet2DConditionModel(
        sample_size=settings.image_size >> halvings,
        in_channels=settings.latent_channels,
        out_channels=settings.latent_channels,
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        block_out_channels=settings.unet_channels,
        layers_per_block=1,
        cross_attention_dim=settings.text_width,
        attention_head_dim=HEADS,
        norm_num_groups=UNET_GROUPS,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=settings.prediction_type,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_tokenizer(words: Sequence[str], length: int, size: int = 0) -> CLIPTokenizer:
    """A CLIP tokenizer for prompts of ``length`` tokens that knows each of ``words`` as one token and all else by letters.

    Symbols that no text has fill its vocabulary up to ``size``.
    """
    letters = [chr(code) for code in range(33, 127)]
    merges = _merges(words)
    symbols = [
        *letters,
        *(letter + WORD_END for letter in letters),
        *(left + right for left, right in merges),
    ]
    known = dict.fromkeys(symbols)
    unused = [f"<unused {number}>" for number in range(size - len(known) - 2)]
    vocabulary = {symbol: number for number, symbol in enumerate([*known, *unused, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make each word one symbol: the commonest pair first, the alphabet decides a draw."""
    spelt = [[*word[:-1], word[-1] + WORD_END] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for symbols in spelt:
            for pair in pairwise(symbols):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelt = [_merged(symbols, best) for symbols in spelt]


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def load_base(folder: Path) -> StableDiffusionPipeline:
    """A pipeline from its folder, in fp32, without a safety checker. It forgets where it came from, so that what is saved
    of it names no path.

    Raises InputError when a part is missing or damaged.
    """
    check_base(folder)
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            **{part: _network(kind, Path(folder) / part) for part, kind in NETWORKS.items()},
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            local_files_only=True,
            dtype=torch.float32,
        )
    except InputError:
        raise
    except Exception as fault:  # whatever three libraries raise of a damaged file
        raise InputError(f"the pipeline {folder} cannot be loaded: {' '.join(str(fault).split())}") from None
    for part in (pipeline, pipeline.unet, pipeline.vae):
        part.register_to_config(_name_or_path="")
    return pipeline


def _network(kind: type, folder: Path) -> torch.nn.Module:
    """One network, every weight of it from the folder: the libraries would draw a missing one at random."""
    network, loaded = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
    )
    for which, sentence in (("missing_keys", "lacks the weight"), ("unexpected_keys", "holds the unknown weight")):
        if keys := sorted(loaded[which]):
            raise InputError(f"{folder} {sentence} {keys[0]} ({len(keys)} such in all)")
    return network


def training_target(scheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the U-Net should predict, by the scheduler's config; all of (B, C, h, w), timesteps (B,).

    Raises InputError for a prediction type other than epsilon and v_prediction.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        signal = scheduler.alphas_cumprod.to(latents)[timesteps].view(-1, 1, 1, 1)
        return signal.sqrt() * noise - (1 - signal).sqrt() * latents
    raise InputError(f"the base's scheduler predicts '{kind}'; only epsilon and v_prediction can be fine-tuned")
