"""The drawing primitives: outlines as distances, masks where the picture changes."""

import numpy as np
import pytest

from seas import rendering
from seas.rendering import Plane
from seas.seeding import rng

PLANE = Plane.of(64)
CENTRED = PLANE.turned((0.5, 0.5), 0.0)


class TestOutlines:
    @pytest.mark.parametrize(
        ("distance", "area"),
        [
            (rendering.disc(CENTRED, 0.3), np.pi * 0.09),
            (rendering.ring(CENTRED, 0.3, 0.2), np.pi * 0.05),
            (rendering.box(CENTRED, 0.1, 0.3, 0.0), 0.12),
            (rendering.polygon(CENTRED, 0.3, 4), 0.36),
            (rendering.polygon(CENTRED, 0.3, 6), 2 * np.sqrt(3) * 0.09),
        ],
    )
    def test_areas(self, distance, area):
        assert PLANE.inside(distance).mean() == pytest.approx(area, rel=0.02)

    def test_distance_to_a_line(self):
        distance = rendering.along(PLANE, np.array([[0.5, 0.25], [0.5, 0.75]]))
        row, column = 48, 32
        assert distance[row, column] == pytest.approx((row + 0.5) / 64 - 0.5, abs=1e-6)
        assert distance[31, 0] == pytest.approx(np.hypot(31.5 / 64 - 0.5, 0.25 - 0.5 / 64), abs=1e-6)

    def test_turning_keeps_distances(self):
        turned = PLANE.turned((0.5, 0.5), 1.1)
        assert np.allclose(np.hypot(*turned), np.hypot(*CENTRED), atol=1e-6)

    def test_coverage_is_half_on_the_edge(self):
        assert PLANE.inside(np.zeros(1)) == 0.5


class TestMaterials:
    def test_a_weave_repeats_after_two_threads(self):
        plane = Plane.of(60)
        weave = rendering.woven(plane, 6, (0.0, 0.0))
        assert np.allclose(weave[:, 20:], weave[:, :-20], atol=1e-4)
        assert not np.allclose(weave[:, 10:], weave[:, :-10], atol=0.1)

    def test_noise_has_the_wanted_coarseness(self):
        coarse, fine = (rendering.smooth_noise(rng(0), 64, cells) for cells in (2, 32))
        assert np.abs(np.diff(coarse)).mean() < 0.2 * np.abs(np.diff(fine)).mean()

    @pytest.mark.parametrize("seed", range(3))
    def test_noise_is_a_function_of_its_generator(self, seed):
        assert np.array_equal(rendering.cloud(rng(seed), 32, 4), rendering.cloud(rng(seed), 32, 4))


DEFECTS = {
    "scratch": dict(length=0.3, width=0.03, strength=0.3),
    "stain": dict(radius=0.1, colour=np.array([0.3, 0.2, 0.1]), strength=0.8),
    "dent": dict(radius=0.1, strength=0.3),
    "pit": dict(radius=0.05, strength=0.4),
    "crack": dict(length=0.4, width=0.03, strength=0.3),
    "fibre": dict(length=0.3, width=0.03, colour=np.zeros(3), strength=0.9),
    "pulled_thread": dict(length=0.4, width=0.08, strength=0.6),
    "broken": dict(radius=0.1, strength=0.5),
    "worn": dict(radius=0.15, strength=0.4),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_changes_the_picture_in_its_mask(name):
    grey = np.full((64, 64, 3), 0.5, np.float32)
    for seed in range(4):
        defect = getattr(rendering, name)(rng(seed), PLANE, grey, (0.5, 0.5), **DEFECTS[name])
        change = np.abs(defect.picture - grey).max(2)
        assert 0.001 < defect.mask.mean() < 0.2
        assert change[defect.mask].mean() > 0.05
        assert change[defect.mask].sum() > 0.6 * change.sum()
        y, x = np.argwhere(defect.mask).mean(0) / 64
        assert abs(y - 0.5) < 0.12 and abs(x - 0.5) < 0.12


def test_exposure_is_eight_bit_and_clipped():
    taken = rendering.exposed(rng(0), np.full((8, 8, 3), 2.0), blur=0, noise=0)
    assert taken.dtype == np.uint8 and (taken == 255).all()
