"""How much memory does training at paper scale need? Counted on tensors without data: no GPU, no weights, no wait.

The full-size networks run once forward at 512 px, in the bf16 autocast of a GPU (which computes norms in fp32, as that of
a CPU does not), and every tensor that the backward pass keeps is counted, the half-precision copies of the weights among
them. To that come weights, gradients and AdamW's moments in fp32. Not counted: the working space of single kernels, what the
memory allocator wastes, and with gradient checkpointing the one block that is computed again. From the repository's root::

    .venv/bin/python benchmarks/memory.py
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from seas.base.stable_diffusion import build_networks
from seas.generator.attention import AttentionMaps
from seas.generator.settings import GeneratorSettings
from seas.rmp.network import RefinedMaskPrediction
from seas.rmp.settings import RmpSettings

IMAGES, ABNORMAL, SIDE, LATENT = 4, 2, 512, 64
GB = 1e9
CARDS = {
    "24 GB": ("as it is", {}),
    "24 GB, with room": ("gradient_checkpointing", {"checkpointing": True}),
    "12 GB": ("gradient_checkpointing, offload_optimizer", {"checkpointing": True, "offload": True}),
}


class Kept:
    """Counts the storage of the tensors that the backward pass keeps, each once, parameters left out."""

    def __init__(self, *networks: nn.Module) -> None:
        self._known = {p.untyped_storage()._cdata for network in networks for p in network.parameters()}
        self._alive: list[Tensor] = []
        self.bytes = 0

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._alive.append(tensor)
            self.bytes += storage.nbytes()
        return tensor

    def counting(self):
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)


def flash_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **scale) -> Tensor:
    """The fused attention of a GPU by its name; torch would ask the card which one to take."""
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, **scale)[0]


@contextmanager
def bf16_on_a_gpu() -> Iterator[None]:
    """``torch.autocast("cuda", torch.bfloat16)``, which does nothing where there is no GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        with mock.patch.object(functional, "scaled_dot_product_attention", flash_attention):
            yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def size_of(network: nn.Module) -> int:
    """Bytes of the parameters in fp32."""
    return 4 * sum(parameter.numel() for parameter in network.parameters())


def generator_memory(*, checkpointing: bool = False, offload: bool = False) -> dict[str, float]:
    """GB of an update of the fine-tuning."""
    networks = build_networks()
    unet = networks["unet"].train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    AttentionMaps(unet, GeneratorSettings().attention_layers)
    kept = Kept(unet)
    with kept.counting(), bf16_on_a_gpu():
        unet(torch.empty(IMAGES, 4, LATENT, LATENT), torch.zeros(IMAGES), torch.empty(IMAGES, 77, 768))
    trained, frozen = size_of(unet), size_of(networks["vae"]) + size_of(networks["text_encoder"])
    parts = {"weights": trained + frozen, "gradients and moments": 0 if offload else 3 * trained, "kept": kept.bytes}
    return {name: value / GB for name, value in parts.items()}


def rmp_memory() -> dict[str, float]:
    """GB of an update of the mask branch; the networks that it reads keep nothing."""
    networks = build_networks()
    branch = RefinedMaskPrediction.for_pipeline(networks["unet"], networks["vae"], RmpSettings()).train()
    unet_features = [torch.empty(IMAGES, 1280, 32, 32), torch.empty(IMAGES, 640, 64, 64)]
    sizes = zip(branch.vae_channels, (128, 256, 512), strict=True)
    vae_features = [torch.empty(ABNORMAL, channels, side, side) for channels, side in sizes]
    kept = Kept(branch)
    with kept.counting(), bf16_on_a_gpu():
        feature, logits = branch.coarse(unet_features)
        refined = branch.refine(feature[:ABNORMAL], logits[:ABNORMAL], vae_features)
        enlarged = branch.enlarge(feature[ABNORMAL:], logits[ABNORMAL:])
        assert refined.shape == enlarged.shape == (2, 2, SIDE, SIDE)
    own = size_of(branch)
    parts = {
        "weights": own + sum(map(size_of, networks.values())),
        "gradients and moments": 3 * own,
        "kept": kept.bytes,
    }
    return {name: value / GB for name, value in parts.items()}


def main() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        rows = [(f"generator ({options})", card, generator_memory(**given)) for card, (options, given) in CARDS.items()]
        rows.append(("mask branch", "12 GB", rmp_memory()))
    print("| trainer | for a card of | weights | gradients and moments | kept for the backward pass | sum, GB |")
    print("|---|---|---|---|---|---|")
    for trainer, card, parts in rows:
        cells = [*(f"{value:.1f}" for value in parts.values()), f"{sum(parts.values()):.1f}"]
        print(f"| {trainer} | {card} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
