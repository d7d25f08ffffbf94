"""Cross-attention maps of chosen U-Net levels, recorded by an attention processor.

Only the chosen layers leave the fused kernel; everywhere else attention stays as it was.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from seas.errors import InputError


def cross_attention_of(unet: UNet2DConditionModel, level: int) -> list[Attention]:
    """The cross-attention layers of one level of the encoder: 1 is the finest, the mid block comes after the last.

    Raises InputError when the U-Net has no cross-attention there.
    """
    blocks = [*(block for block in unet.down_blocks if getattr(block, "has_cross_attention", False)), unet.mid_block]
    if not 1 <= level <= len(blocks) or not getattr(blocks[level - 1], "attentions", None):
        raise InputError(
            f"generator.attention_layers names level {level}, but this U-Net has levels 1 to {len(blocks)}"
        )
    transformers = [block for attention in blocks[level - 1].attentions for block in attention.transformer_blocks]
    return [block.attn2 for block in transformers]


class _RecordingProcessor:
    """Plain attention (Eq. 2) that keeps its maps, mean over the heads."""

    def __init__(self, softmax: str) -> None:
        self.softmax = softmax
        self.maps: Tensor | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        scores = attn.scale * (query @ key.transpose(1, 2)).float()
        over_tokens = scores.softmax(dim=-1)
        kept = over_tokens if self.softmax == "tokens" else scores.softmax(dim=-2)
        self.maps = kept.unflatten(0, (-1, attn.heads)).mean(dim=1)
        attended = attn.batch_to_head_dim(over_tokens.to(value.dtype) @ value)
        return attn.to_out[1](attn.to_out[0](attended))


class AttentionMaps:
    """Record the cross-attention maps of the levels ``layers`` of ``unet`` until ``remove`` is called.

    ``softmax`` is the direction of the recorded maps: over the tokens (Eq. 2) or over the pixels
    (what the released code's loss reads). The forward pass itself always uses the softmax over tokens.
    """

    def __init__(
        self, unet: UNet2DConditionModel, layers: Sequence[int], softmax: Literal["tokens", "pixels"] = "tokens"
    ) -> None:
        self._attentions = {layer: cross_attention_of(unet, layer) for layer in layers}
        self._former = {attn: attn.processor for attentions in self._attentions.values() for attn in attentions}
        for attn in self._former:
            attn.set_processor(_RecordingProcessor(softmax))

    def read(self, height: int, width: int) -> dict[int, Tensor]:
        """The maps of the last forward pass: layer → (B, h, w, T), mean over the level's blocks and heads.

        ``height`` and ``width`` are those of the latents that went in.
        """
        maps = {}
        for layer, attentions in self._attentions.items():
            mean = torch.stack([attn.processor.maps for attn in attentions]).mean(dim=0)
            rows, columns = height, width
            while rows * columns > mean.shape[1]:  # each level halves, and rounds up
                rows, columns = -(-rows // 2), -(-columns // 2)
            maps[layer] = mean.unflatten(1, (rows, columns))
        return maps

    def remove(self) -> None:
        """Put the former processors back."""
        for attn, processor in self._former.items():
            attn.set_processor(processor)


def token_maps(maps: Tensor, positions: Tensor) -> Tensor:
    """Maps of single tokens: (B, h, w, T) and positions (B, N) → (B, N, h, w)."""
    index = positions[:, None, None, :].expand(-1, maps.shape[1], maps.shape[2], -1)
    return maps.gather(3, index).permute(0, 3, 1, 2)
