"""Detection scores of anomaly maps (Sec. 4.1): AUROC, AP, F1-max and IoU, in per cent."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

RESULT_COLUMNS = ["dataset", "product", "method", "model", "variant", "level", "metric", "value"]
RESULT_COLUMNS += ["experiment", "trained_on", "seed", "protocol", "extractor"]
"""The columns of every table of results, in their order; the first seven are those of the paper's numbers."""


class Detection(NamedTuple):
    """scores: (level, metric) → per cent, NaN where only one class is present. threshold: that of the pixels' F1-max."""

    scores: dict[tuple[str, str], float]
    threshold: float


def detection_scores(maps: np.ndarray, masks: np.ndarray, valid: np.ndarray) -> Detection:
    """Score anomaly maps, float (n, H, W), against masks, bool (n, H, W), over the pixels that are valid, bool (n, H, W).

    An image is abnormal when its mask is not empty; its score is the maximum of its map. Pixels are pooled over the
    images. ``iou`` is the mean over abnormal images at the pooled F1-max threshold, ``iou_oracle`` the mean of each
    abnormal image's best IoU over all thresholds, as the released code has it.
    """
    image_labels = (masks & valid).any((1, 2))
    image_scores = image_maxima(maps, valid)
    pixel_labels, pixel_scores = masks[valid], maps[valid]
    pixel_best = best_threshold(pixel_labels, pixel_scores)
    scores = {("image", name): value for name, value in _curve_scores(image_labels, image_scores).items()}
    scores |= {("pixel", name): value for name, value in _curve_scores(pixel_labels, pixel_scores).items()}
    abnormal = np.flatnonzero(image_labels)
    at_threshold = [_iou(maps[k][valid[k]] >= pixel_best, masks[k][valid[k]]) for k in abnormal]
    oracle = [best_iou(masks[k][valid[k]], maps[k][valid[k]]) for k in abnormal]
    scores["pixel", "iou"] = 100 * float(np.mean(at_threshold)) if len(abnormal) else float("nan")
    scores["pixel", "iou_oracle"] = 100 * float(np.mean(oracle)) if len(abnormal) else float("nan")
    return Detection(scores, pixel_best)


def image_maxima(maps: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The scores (n,) of images: the maximum of each map (n, H, W) over its valid pixels."""
    return np.where(valid, maps, -np.inf).max((1, 2))


def _curve_scores(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    if labels.all() or not labels.any():
        return dict.fromkeys(("auroc", "ap", "f1_max"), float("nan"))
    precision, recall, _ = precision_recall_curve(labels, scores)
    return {
        "auroc": 100 * float(roc_auc_score(labels, scores)),
        "ap": 100 * float(average_precision_score(labels, scores)),
        "f1_max": 100 * float(_f1(precision, recall).max()),
    }


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)


def best_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold of the highest F1: what scores at least as high is anomalous. Infinite where nothing is labelled."""
    if not labels.any():
        return float("inf")
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    return float(thresholds[_f1(precision, recall)[:-1].argmax()])


def best_iou(mask: np.ndarray, scores: np.ndarray) -> float:
    """The highest IoU that any threshold gives: mask bool (p,), scores (p,)."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    hits = np.cumsum(mask[order])
    union = np.arange(1, len(ranked) + 1) + mask.sum() - hits
    is_threshold = np.append(ranked[1:] != ranked[:-1], True)
    return float((hits / union)[is_threshold].max())


def _iou(predicted: np.ndarray, mask: np.ndarray) -> float:
    return float((predicted & mask).sum() / (predicted | mask).sum())


def precision_recall_points(labels: np.ndarray, scores: np.ndarray, points: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall in [0, 1], thinned to at most ``points`` of even spacing along the curve; empty for one class."""
    if labels.all() or not labels.any():
        return np.empty(0), np.empty(0)
    precision, recall, _ = precision_recall_curve(labels, scores)
    wanted = np.linspace(1, 0, points)
    kept = np.unique(np.searchsorted(-recall, -wanted).clip(max=len(recall) - 1))
    return precision[kept], recall[kept]
