"""The losses of the fine-tuning (Eq. 3 to 6)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from seas.generator.attention import token_maps
from seas.images import shrink_mask

SMALLEST_RANGE = 1e-6
SMALLEST_SHARE = 1e-8


def valid_cells(valid: Tensor, size: tuple[int, int], mask: Tensor | None = None) -> Tensor:
    """Cells of a coarser grid that count, (B, 1, *size) of 0/1: at least half is no padding, or the mask reaches into them.

    valid, mask: (B, 1, S, S) of 0/1. With ``mask`` no anomaly vanishes at the border of the padding.
    """
    cells = torch.nn.functional.adaptive_avg_pool2d(valid, size) >= 0.5
    if mask is not None:
        cells = cells | (shrink_mask(mask, size) > 0)
    return cells.to(valid.dtype)


def masked_mse(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over the valid cells: (B, C, h, w) twice, (B, 1, h, w) of 0/1 → scalar."""
    squared = (prediction.float() - target.float()) ** 2
    return (squared * valid).sum() / (valid.expand_as(squared).sum().clamp(min=1))


def min_max(maps: Tensor, *, jointly: bool = False) -> Tensor:
    """Each map (B, h, w), or all of them ``jointly``, scaled to [0, 1]; without contrast they become 0."""
    dim = (0, 1, 2) if jointly else (1, 2)
    low, high = maps.amin(dim=dim, keepdim=True), maps.amax(dim=dim, keepdim=True)
    return (maps - low) / (high - low).clamp(min=SMALLEST_RANGE)


def _shares(maps: Tensor) -> Tensor:
    """Each map (B, h, w) divided by its sum."""
    return maps / maps.sum((1, 2), keepdim=True).clamp(min=SMALLEST_SHARE)


class DecoupledAnomalyAlignmentLoss:
    """L_DA of Eq. 3: the anomaly tokens attend to the mask, the normal token stays out of it.

    First term: ‖(1/N) Σ_n A_df^{n,l} − M^l‖². Second: ‖A_ob^l ⊙ M^l‖². Both are means over cells,
    summed over the layers l. M^l is the mask under max pooling, so that no anomaly vanishes.
    The second term with ``masked_mean`` averages over the mask's cells (0 for an empty mask), with
    ``elementwise`` over all cells; ``none`` leaves it out, and so does ``complement``, whose own term (Eq. 9) is
    ``complement``. The normalisation ``min_max_batch`` stretches the maps of all images together, as the released code
    does; ``share`` (ours) replaces the distances by ones between shares of the attention, see ``_of_shares``, ``mass``
    (ours) the first by the cross-entropy of what the tokens take of each cell's attention, see ``_of_mass``.
    """

    def __init__(
        self,
        normalisation: Literal["none", "min_max", "min_max_batch", "share", "mass"] = "share",
        second_term: Literal["masked_mean", "elementwise", "complement", "none"] = "masked_mean",
    ) -> None:
        self.normalisation = normalisation
        self.second_term = second_term

    def __call__(
        self,
        maps: Mapping[int, Tensor],
        anomaly_positions: Tensor,
        normal_positions: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The two terms.

        maps: layer → (B, h, w, T) attention of B abnormal images. anomaly_positions (B, N) and
        normal_positions (B, N'): where the learned tokens stand. mask: (B, 1, S, S) in [0, 1]. Padding counts as
        outside the mask: left out, it would be a place where anomaly tokens may look at no cost.
        """
        first = second = mask.new_zeros(())
        for layer_maps in maps.values():
            target = shrink_mask(mask, layer_maps.shape[1:3])[:, 0]
            anomaly = self._combined(layer_maps, anomaly_positions)
            normal = self._combined(layer_maps, normal_positions)
            layer_first, layer_second = self._terms(anomaly, normal, target)
            first, second = first + layer_first, second + layer_second
        return first, second if self.second_term in ("masked_mean", "elementwise") else torch.zeros_like(second)

    def complement(self, maps: Mapping[int, Tensor], normal_positions: Tensor, mask: Tensor) -> Tensor:
        """Σ_l ‖A_ob^l − (1 − M^l)‖² (Eq. 9), of abnormal or of normal images: the normal token attends to all the rest.

        With the normalisations ``share`` and ``mass``: Σ_l of their first term for the normal tokens and 1 − M^l.
        """
        rest = {layer: shrink_mask(mask, layer_maps.shape[1:3])[:, 0] for layer, layer_maps in maps.items()}
        normal = {layer: self._combined(layer_maps, normal_positions) for layer, layer_maps in maps.items()}
        return torch.stack([self._terms(normal[layer], normal[layer], 1 - rest[layer])[0] for layer in maps]).sum()

    def _combined(self, layer_maps: Tensor, positions: Tensor) -> Tensor:
        """The maps of several tokens as one, (B, h, w): their mean (Eq. 3), or what they take together."""
        maps = token_maps(layer_maps, positions)
        return maps.sum(dim=1) if self.normalisation == "mass" else maps.mean(dim=1)

    def _terms(self, anomaly: Tensor, normal: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        kinds = {"share": self._of_shares, "mass": self._of_mass}
        return kinds.get(self.normalisation, self._of_values)(anomaly, normal, target)

    def _of_values(self, anomaly: Tensor, normal: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 3 on the maps as they are, or scaled to [0, 1]; all of (B, h, w)."""
        if self.normalisation != "none":
            jointly = self.normalisation == "min_max_batch"
            anomaly, normal = min_max(anomaly, jointly=jointly), min_max(normal, jointly=jointly)
        return ((anomaly - target) ** 2).mean(), self._inside(normal, target)

    def _inside(self, normal: Tensor, target: Tensor) -> Tensor:
        """‖A_ob ⊙ M‖² over all cells, or over those of the mask."""
        if self.second_term == "elementwise":
            return ((normal * target) ** 2).mean()
        return (normal**2 * target).sum() / target.sum().clamp(min=SMALLEST_RANGE)

    def _of_mass(self, anomaly: Tensor, normal: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """What the tokens take of each cell's attention, in [0, 1], should be the mask; all of (B, h, w).

        First term: −log a in the mean over the mask, and −log(1 − a) in the mean over the rest, so that a tiny mask
        weighs as much as all around it, and both are in reach of a softmax over the tokens. Second: that of Eq. 3.
        """
        taken = anomaly.clamp(SMALLEST_RANGE, 1 - SMALLEST_RANGE)
        inside, outside = (
            (weights * surprise).sum((1, 2)) / weights.sum((1, 2)).clamp(min=SMALLEST_RANGE)
            for weights, surprise in ((target, -taken.log()), (1 - target, -(1 - taken).log()))
        )
        return (inside + outside).mean(), self._inside(normal, target)

    def _of_shares(self, anomaly: Tensor, normal: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Attention as shares q of a map's sum, the mask as shares p of its own; all of (B, h, w).

        First term: Σ p log(p / q), so that neither a small mask nor one hot cell makes it small. Second: the
        share of the normal token inside the mask. Both are means over the images that have a mask.
        """
        area = target.sum((1, 2))
        images = (area > 0).sum().clamp(min=1)
        wanted = target / area.clamp(min=SMALLEST_RANGE)[:, None, None]
        share, normal_share = _shares(anomaly), _shares(normal)
        divergence = torch.xlogy(wanted, wanted) - wanted * share.clamp(min=SMALLEST_SHARE).log()
        return divergence.sum() / images, (normal_share * target).sum() / images
