"""Detection scores of anomaly maps (Sec. 4.1): AUROC, AP, F1-max and IoU, in per cent."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix_at_thresholds

RESULT_COLUMNS = ["dataset", "product", "method", "model", "variant", "level", "metric", "value"]
RESULT_COLUMNS += ["experiment", "trained_on", "seed", "protocol", "extractor"]
"""The columns of every table of results, in their order; the first seven are those of the paper's numbers."""


@dataclass(frozen=True)
class Curve:
    """What each threshold finds, from the highest score down; ranked once, as millions of pixels take seconds to sort.

    thresholds: the distinct scores, float (t,); what scores at least as high is found. hits and false_alarms: how many
    of the labelled and of the others are found, float (t,).
    """

    thresholds: np.ndarray
    hits: np.ndarray
    false_alarms: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, scores: np.ndarray) -> "Curve":
        """The curve of scores, float (n,), against labels, bool (n,)."""
        _, false_alarms, _, hits, thresholds = confusion_matrix_at_thresholds(labels, scores, pos_label=True)
        return cls(thresholds, hits, false_alarms)

    @property
    def of_one_class(self) -> bool:
        """Whether all are labelled or none is, so that there is nothing to tell apart."""
        return not (self.hits[-1] and self.false_alarms[-1])

    @property
    def precision(self) -> np.ndarray:
        """The share of what is found that is labelled, float (t,)."""
        return self.hits / (self.hits + self.false_alarms)

    @property
    def recall(self) -> np.ndarray:
        """The share of the labelled that is found, float (t,)."""
        return self.hits / self.hits[-1]

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, float (t,)."""
        return 2 * self.hits / (self.hits + self.false_alarms + self.hits[-1])

    def scores(self) -> dict[str, float]:
        """auroc, ap and f1_max, per cent; NaN for one class alone."""
        if self.of_one_class:
            return dict.fromkeys(("auroc", "ap", "f1_max"), float("nan"))
        true, false = np.append(0, self.recall), np.append(0, self.false_alarms / self.false_alarms[-1])
        return {
            "auroc": 100 * float(np.trapezoid(true, false)),
            "ap": 100 * float(np.sum(np.diff(true) * self.precision)),
            "f1_max": 100 * float(self.f1.max()),
        }

    def best_threshold(self) -> float:
        """The threshold of the highest F1, the lowest of equals. Infinite where nothing is labelled."""
        if not self.hits[-1]:
            return float("inf")
        return float(self.thresholds[::-1][self.f1[::-1].argmax()])

    def precision_recall(self, points: int = 500) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall in [0, 1] from the lowest threshold up, thinned to at most ``points`` of even spacing.

        Both are empty for one class alone.
        """
        if self.of_one_class:
            return np.empty(0), np.empty(0)
        precision, recall = np.append(self.precision[::-1], 1), np.append(self.recall[::-1], 0)
        wanted = np.linspace(1, 0, points)
        kept = np.unique(np.searchsorted(-recall, -wanted).clip(max=len(recall) - 1))
        return precision[kept], recall[kept]


class Detection(NamedTuple):
    """scores: (level, metric) → per cent, NaN where only one class is present. curves: level → what they were read off."""

    scores: dict[tuple[str, str], float]
    curves: dict[str, Curve]


def detection_scores(maps: np.ndarray, masks: np.ndarray, valid: np.ndarray) -> Detection:
    """Score anomaly maps, float (n, H, W), against masks, bool (n, H, W), over the pixels that are valid, bool (n, H, W).

    An image is abnormal when its mask is not empty; its score is the maximum of its map. Pixels are pooled over the
    images. ``iou`` is the mean over abnormal images at the pooled F1-max threshold, ``iou_oracle`` the mean of each
    abnormal image's best IoU over all thresholds, as the released code has it.
    """
    image_labels = (masks & valid).any((1, 2))
    curves = {
        "image": Curve.of(image_labels, image_maxima(maps, valid)),
        "pixel": Curve.of(masks[valid], maps[valid]),
    }
    scores = {(level, name): value for level, curve in curves.items() for name, value in curve.scores().items()}
    threshold, abnormal = curves["pixel"].best_threshold(), np.flatnonzero(image_labels)
    at_threshold = [_iou(maps[k][valid[k]] >= threshold, masks[k][valid[k]]) for k in abnormal]
    oracle = [best_iou(masks[k][valid[k]], maps[k][valid[k]]) for k in abnormal]
    scores["pixel", "iou"] = 100 * float(np.mean(at_threshold)) if len(abnormal) else float("nan")
    scores["pixel", "iou_oracle"] = 100 * float(np.mean(oracle)) if len(abnormal) else float("nan")
    return Detection(scores, curves)


def image_maxima(maps: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The scores (n,) of images: the maximum of each map (n, H, W) over its valid pixels."""
    return np.where(valid, maps, -np.inf).max((1, 2))


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
