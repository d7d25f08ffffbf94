"""Detection scores on hand-made maps, by hand and against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from seas.scores import Curve, best_iou, detection_scores, image_maxima

MAPS = np.array([[[0.9, 0.8], [0.1, 0.7]], [[0.2, 0.1], [0.4, 0.3]], [[0.6, 0.5], [0.0, 0.0]]])
MASKS = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[0, 1], [0, 0]]], bool)
VALID = np.ones_like(MASKS)


class TestByHand:
    found = detection_scores(MAPS, MASKS, VALID)

    def test_image_level(self):
        # image scores .9, .4, .6 with labels 1, 0, 1: perfectly ordered
        assert [self.found.scores["image", name] for name in ("auroc", "ap", "f1_max")] == pytest.approx(
            [100, 100, 100]
        )

    def test_pixel_level(self):
        # ranking: .9+ .8+ .7- .6- .5+ .4- .3- .2- .1- .1- 0- 0-
        # AP = (1/1 + 2/2 + 3/5) / 3; F1 at .5: 2·3/(5+3) = .75, at .8: 2·2/(2+3) = .8
        assert self.found.scores["pixel", "ap"] == pytest.approx(100 * (1 + 1 + 0.6) / 3)
        assert self.found.scores["pixel", "f1_max"] == pytest.approx(80)
        assert self.found.curves["pixel"].best_threshold() == 0.8
        # AUROC: of 3·9 pairs the positive at .5 loses to .7 and .6
        assert self.found.scores["pixel", "auroc"] == pytest.approx(100 * 25 / 27)

    def test_iou_at_one_threshold_and_by_oracle(self):
        # at .8 the first image is exact, the third has nothing: (1 + 0) / 2; best of the third: .6 and .5 → 1/2
        assert self.found.scores["pixel", "iou"] == pytest.approx(50)
        assert self.found.scores["pixel", "iou_oracle"] == pytest.approx(75)

    def test_what_is_found_beside_the_mask_lowers_the_iou(self):
        # .9+ .8- .7+ .1-: F1 is 2/3 at .9 and 4/5 at .7, where three pixels are found for a mask of two
        maps, masks = np.array([[[0.9, 0.8], [0.7, 0.1]]]), np.array([[[1, 0], [1, 0]]], bool)
        found = detection_scores(maps, masks, np.ones_like(masks))
        assert found.curves["pixel"].best_threshold() == 0.7
        assert found.scores["pixel", "iou"] == pytest.approx(100 * 2 / 3)

    def test_padding_counts_nowhere(self):
        valid = VALID.copy()
        valid[:, 1] = False
        maps = MAPS.copy()
        maps[:, 1] = 99
        scores = detection_scores(maps, MASKS, valid).scores
        # .9+ .8+ .6- .5+ .2- .1-
        assert scores["pixel", "ap"] == pytest.approx(100 * (1 + 1 + 3 / 4) / 3)
        assert scores["image", "auroc"] == 100

    def test_one_class_alone_is_no_number(self):
        scores = detection_scores(MAPS[1:2], MASKS[1:2], VALID[1:2]).scores
        assert all(np.isnan(value) for value in scores.values())
        assert Curve.of(np.zeros(3, bool), np.arange(3)).best_threshold() == np.inf


def brute_force_iou(mask, scores):
    found = []
    for threshold in scores:
        predicted = scores >= threshold
        found.append((predicted & mask).sum() / (predicted | mask).sum())
    return max(found)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30).filter(
        lambda rows: any(r[0] for r in rows)
    )
)
@settings(max_examples=200, deadline=None)
def test_best_iou_is_that_of_every_threshold_tried(rows):
    mask, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], float)
    assert best_iou(mask, scores) == pytest.approx(brute_force_iou(mask, scores))


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30).filter(
        lambda rows: any(r[0] for r in rows)
    )
)
@settings(max_examples=200, deadline=None)
def test_best_threshold_has_the_highest_f1(rows):
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], float)

    def f1(threshold):
        predicted = scores >= threshold
        return 2 * (predicted & labels).sum() / (predicted.sum() + labels.sum())

    assert f1(Curve.of(labels, scores).best_threshold()) == pytest.approx(max(f1(t) for t in scores))


def test_of_equal_thresholds_the_lowest_is_taken():
    # .9+ .8- .7- .6+: F1 is 2/3 at .9 and at .6
    curve = Curve.of(np.array([True, False, False, True]), np.array([0.9, 0.8, 0.7, 0.6]))
    assert curve.f1.tolist() == pytest.approx([2 / 3, 1 / 2, 2 / 5, 2 / 3])
    assert curve.best_threshold() == 0.6


def test_maxima_are_over_valid_pixels():
    assert image_maxima(MAPS, MASKS | (MAPS == 0.4)).tolist() == [0.9, 0.4, 0.5]


def test_a_thinned_curve_keeps_its_ends_and_lies_on_the_whole_one():
    draws = np.random.default_rng(0)
    labels = draws.random(5000) > 0.8
    scores = draws.random(5000) + 0.3 * labels
    precision, recall = Curve.of(labels, scores).precision_recall(50)
    whole = {tuple(point) for point in zip(*Curve.of(labels, scores).precision_recall(10**6), strict=True)}
    assert len(precision) <= 50 and {recall.min(), recall.max()} == {0.0, 1.0}
    assert {tuple(point) for point in zip(precision, recall, strict=True)} <= whole
    assert np.diff(np.sort(recall)).max() < 0.05


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30).filter(
        lambda rows: len({label for label, _ in rows}) == 2
    )
)
@settings(max_examples=200, deadline=None)
def test_auroc_and_ap_with_ties_are_sklearns(rows):
    labels, scores = np.array([label for label, _ in rows]), np.array([float(score) for _, score in rows])
    found = Curve.of(labels, scores).scores()
    assert found["auroc"] == pytest.approx(100 * roc_auc_score(labels, scores))
    assert found["ap"] == pytest.approx(100 * average_precision_score(labels, scores))
