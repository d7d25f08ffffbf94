"""A trained segmentation model: its folder, and the anomaly maps that it gives."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from seas.artifacts import write_json
from seas.downstream.bisenet_v2 import BiSeNetV2
from seas.errors import InputError
from seas.images import to_tensor

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
MODELS = {"bisenet_v2": BiSeNetV2}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
SCORED_AT_ONCE = 8


class Description(NamedTuple):
    """What a model's folder says of it.

    image_threshold and pixel_threshold are those of the highest F1 on the training images.
    """

    model: str
    trained_on: str
    products: list[str]
    image_size: int
    fit: str
    image_threshold: float
    pixel_threshold: float


def normalised(images: np.ndarray) -> Tensor:
    """uint8 (B, S, S, 3) → float (B, 3, S, S) with ImageNet's mean and deviation."""
    shares = (to_tensor(images) + 1) / 2
    return (shares - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_DEVIATION)[:, None, None]


@torch.no_grad()
def anomaly_maps(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """Probabilities of the anomaly in [0, 1], float32 (B, S, S), for images uint8 (B, S, S, 3).

    Always in fp32: bf16 leaves so few values that ties move thresholds and scores.
    """
    device = next(network.parameters()).device
    maps = []
    for start in range(0, len(images), SCORED_AT_ONCE):
        logits = network(normalised(images[start : start + SCORED_AT_ONCE]).to(device))
        maps.append(logits.float().softmax(1)[:, 1].cpu().numpy())
    return np.concatenate(maps)


def save_description(description: Description, folder: Path) -> None:
    """Write model.json."""
    write_json(description._asdict(), folder / DESCRIPTION)


def load_model(folder: Path, device: torch.device) -> tuple[nn.Module, Description]:
    """A trained model in evaluation mode.

    Raises InputError when the folder is none, or damaged.
    """
    folder = Path(folder)
    try:
        description = Description(**json.loads((folder / DESCRIPTION).read_text()))
        network = MODELS[description.model]()
        network.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError as fault:
        raise InputError(
            f"{folder} is no trained segmentation model: {Path(fault.filename or WEIGHTS).name} is missing"
        ) from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as fault:
        raise InputError(f"{folder} is a damaged segmentation model: {' '.join(str(fault).split())}") from None
    return network.to(device).eval().requires_grad_(False), description
