"""The losses of the fine-tuning (Eq. 3 to 6)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from seas.generator.attention import token_maps
from seas.images import shrink_mask

SMALLEST_RANGE = 1e-6


def valid_cells(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells of a coarser grid that count: (B, 1, S, S) of 0/1 → (B, 1, *size), 1 where at least half is no padding."""
    return (torch.nn.functional.adaptive_avg_pool2d(valid, size) >= 0.5).to(valid.dtype)


def masked_mse(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over the valid cells: (B, C, h, w) twice, (B, 1, h, w) of 0/1 → scalar."""
    squared = (prediction.float() - target.float()) ** 2
    return (squared * valid).sum() / (valid.expand_as(squared).sum().clamp(min=1))


def min_max(maps: Tensor, valid: Tensor) -> Tensor:
    """Each map (B, h, w) scaled to [0, 1] over its valid cells; a map without contrast becomes 0."""
    inside = valid.bool()
    low = maps.masked_fill(~inside, torch.inf).amin(dim=(1, 2), keepdim=True)
    high = maps.masked_fill(~inside, -torch.inf).amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=SMALLEST_RANGE)


class DecoupledAnomalyAlignmentLoss:
    """L_DA of Eq. 3: the anomaly tokens attend to the mask, the normal token stays out of it.

    First term: ‖(1/N) Σ_n A_df^{n,l} − M^l‖². Second: ‖A_ob^l ⊙ M^l‖². Both are means over cells,
    summed over the layers l. M^l is the mask under max pooling, so that no anomaly vanishes.
    The second term with ``masked_mean`` averages over the mask's cells (0 for an empty mask), with
    ``elementwise`` over all cells; ``none`` leaves it out.
    """

    def __init__(
        self,
        normalisation: Literal["none", "min_max"] = "min_max",
        second_term: Literal["masked_mean", "elementwise", "none"] = "masked_mean",
    ) -> None:
        self.normalisation = normalisation
        self.second_term = second_term

    def __call__(
        self,
        maps: Mapping[int, Tensor],
        anomaly_positions: Tensor,
        normal_positions: Tensor,
        mask: Tensor,
        valid: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The two terms.

        maps: layer → (B, h, w, T) attention of B abnormal images. anomaly_positions (B, N) and
        normal_positions (B, N'): where the learned tokens stand. mask and valid: (B, 1, S, S) in
        [0, 1], valid 0 on padding.
        """
        first = second = mask.new_zeros(())
        for layer_maps in maps.values():
            size = layer_maps.shape[1:3]
            counts = valid_cells(valid, size)[:, 0]
            target = shrink_mask(mask, size)[:, 0]
            anomaly = self._normalised(token_maps(layer_maps, anomaly_positions).mean(dim=1), counts)
            first = first + (((anomaly - target) ** 2) * counts).sum() / counts.sum().clamp(min=1)
            if self.second_term != "none":
                normal = self._normalised(token_maps(layer_maps, normal_positions).mean(dim=1), counts)
                inside = target * counts
                if self.second_term == "masked_mean":
                    second = second + (normal**2 * inside).sum() / inside.sum().clamp(min=SMALLEST_RANGE)
                else:
                    second = second + ((normal * inside) ** 2).sum() / counts.sum().clamp(min=1)
        return first, second

    def _normalised(self, maps: Tensor, counts: Tensor) -> Tensor:
        return min_max(maps, counts) if self.normalisation == "min_max" else maps
