"""The loss of the mask branch (Eq. 7)."""

import torch
from torch import Tensor

from seas.generator.losses import valid_cells
from seas.images import shrink_mask
from seas.rmp.network import MaskLogits


def focal_loss(logits: Tensor, target: Tensor, valid: Tensor, gamma: float = 2.0, smoothing: float = 0.0) -> Tensor:
    """F: the mean over the valid pixels of -(1 - p_t)^gamma log p_t, without class weights.

    logits: (B, 2, H, W) of (background, anomaly). target, valid: (B, 1, H, W) of 0 and 1, valid 0 on padding.
    smoothing: p_t becomes (1 - smoothing) p_t + smoothing (1 - p_t). A batch without a valid pixel gives 0.
    """
    log_probabilities = logits.float().log_softmax(dim=1)
    background, anomaly = log_probabilities[:, :1], log_probabilities[:, 1:]
    is_anomaly = target > 0.5
    right, wrong = torch.where(is_anomaly, anomaly, background), torch.where(is_anomaly, background, anomaly)
    if smoothing:
        share = torch.tensor(smoothing, device=logits.device)
        kept, given = torch.log1p(-share), share.log()
        right, wrong = torch.logaddexp(right + kept, wrong + given), torch.logaddexp(wrong + kept, right + given)
    losses = -(wrong.exp() ** gamma) * right
    return (losses * valid).sum() / valid.sum().clamp(min=1)


def mask_losses(
    abnormal: MaskLogits,
    normal: MaskLogits,
    mask: Tensor,
    valid: Tensor,
    *,
    gamma: float = 2.0,
    smoothing: float = 0.0,
    coarse_supervision: bool = True,
    normal_supervision: bool = True,
) -> dict[str, Tensor]:
    """The four terms of Eq. 7 and their sum, ``loss``.

    mask: (A, 1, S, S), of the abnormal images. valid: (A + N, 1, S, S), the abnormal images first. The target of
    normal images is 0. The coarse target is the mask under max pooling, so that no anomaly vanishes.
    Without coarse or normal supervision those terms are left out.
    """
    terms = {}
    kinds = {"abnormal": (abnormal, mask, valid[: len(mask)])}
    if normal_supervision:
        rest = valid[len(mask) :]
        kinds["normal"] = (normal, torch.zeros_like(rest), rest)
    for kind, (logits, target, counts) in kinds.items():
        if coarse_supervision:
            height, width = logits.coarse.shape[2:]
            size = (height, width)
            terms[f"coarse_{kind}"] = focal_loss(
                logits.coarse, shrink_mask(target, size), valid_cells(counts, size, target), gamma, smoothing
            )
        terms[f"refined_{kind}"] = focal_loss(logits.refined, target, counts, gamma, smoothing)
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}
