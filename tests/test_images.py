"""Photographs and masks: reading odd files, fitting, augmenting, by value."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seas.errors import InputError
from seas.images import (
    SYMMETRIES,
    augment,
    bounding_box,
    draw_augmentation,
    fit,
    keeping_the_padding,
    mirrored,
    outlined,
    placement,
    read_image,
    read_mask,
    shrink_mask,
    to_tensor,
    to_uint8,
    write_image,
    write_mask,
)

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


class TestReading:
    def saved(self, tmp_path, image):
        image.save(tmp_path / "image.png")
        return read_image(tmp_path / "image.png")

    def test_grey(self, tmp_path):
        assert np.array_equal(self.saved(tmp_path, Image.fromarray(GREY)), np.repeat(GREY[..., None], 3, 2))

    def test_rgba_drops_alpha(self, tmp_path):
        colours = np.dstack([GREY, GREY + 1, GREY + 2, np.full_like(GREY, 7)])
        assert np.array_equal(self.saved(tmp_path, Image.fromarray(colours, "RGBA")), colours[..., :3])

    def test_sixteen_bit_is_scaled_not_cut(self, tmp_path):
        read = self.saved(tmp_path, Image.fromarray(GREY.astype(np.uint16) * 257))
        assert np.array_equal(read[..., 0], GREY)

    def test_sixteen_bit_does_not_depend_on_the_images_own_brightness(self, tmp_path):
        for value, expected in ((200, 1), (300, 1), (4095, 16), (65535, 255)):
            Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / "16.png")
            assert (read_image(tmp_path / "16.png") == expected).all()

    def test_it_is_turned_as_its_exif_says(self, tmp_path):
        picture = np.zeros((8, 16, 3), np.uint8)
        picture[:, :8] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # shown after a quarter turn clockwise: the left half becomes the upper one
        Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
        shown = read_image(tmp_path / "turned.png")
        assert shown.shape == (16, 8, 3) and (shown[:8] == 255).all() and (shown[8:] == 0).all()

    @pytest.mark.parametrize("value", [1, 255, 65535])
    def test_a_mask_of_sixteen_bits_is_not_scaled_away(self, tmp_path, value):
        marked = np.zeros((4, 4), np.uint16)
        marked[1, 2] = value
        Image.fromarray(marked).save(tmp_path / "mask.png")
        assert np.array_equal(read_mask(tmp_path / "mask.png"), marked > 0)

    def test_an_opaque_alpha_channel_of_a_mask_is_no_fault(self, tmp_path):
        Image.new("RGBA", (4, 4), (255, 255, 255, 255)).save(tmp_path / "mask.png")
        assert read_mask(tmp_path / "mask.png").all()

    def test_palette(self, tmp_path):
        colours = np.zeros((4, 4, 3), np.uint8)
        colours[:2] = (255, 0, 0)
        assert np.array_equal(self.saved(tmp_path, Image.fromarray(colours).convert("P")), colours)

    def test_broken_file(self, tmp_path):
        write_image(np.zeros((40, 40, 3), np.uint8), tmp_path / "whole.png")
        (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
        with pytest.raises(InputError, match=r"half\.png cannot be read"):
            read_image(tmp_path / "half.png")

    def test_missing_file(self, tmp_path):
        with pytest.raises(InputError, match=r"none\.png does not exist"):
            read_image(tmp_path / "none.png")

    @pytest.mark.parametrize("high", [1, 255])
    def test_masks_of_one_and_of_255(self, tmp_path, high):
        Image.fromarray(np.array([[0, high]], np.uint8)).save(tmp_path / "mask.png")
        assert read_mask(tmp_path / "mask.png").tolist() == [[False, True]]

    def test_a_grey_mask_is_refused(self, tmp_path):
        Image.fromarray(np.array([[0, 128, 255]], np.uint8)).save(tmp_path / "mask.png")
        with pytest.raises(InputError, match=r"mask\.png has 3 values \(0, 128, 255"):
            read_mask(tmp_path / "mask.png")

    @pytest.mark.parametrize(
        "palette", [[255, 255, 255, 0, 0, 0], [0, 0, 0, 128, 0, 0]], ids=["white first", "black first"]
    )
    def test_of_two_palette_colours_black_is_no_anomaly(self, tmp_path, palette):
        mask = np.eye(4) > 0
        indices = np.uint8(mask == (palette[0] == 0))
        picture = Image.fromarray(indices, "P")
        picture.putpalette(palette)
        picture.save(tmp_path / "mask.png")
        assert Image.open(tmp_path / "mask.png").mode == "P"
        assert np.array_equal(read_mask(tmp_path / "mask.png"), mask)

    def test_palette_colours_of_which_none_is_black_go_by_number(self, tmp_path):
        picture = Image.fromarray(np.uint8(np.eye(4)), "P")
        picture.putpalette([50, 50, 50, 200, 0, 0])
        picture.save(tmp_path / "mask.png")
        assert np.array_equal(read_mask(tmp_path / "mask.png"), np.eye(4) > 0)

    @pytest.mark.parametrize("index", [0, 1], ids=["black first", "white first"])
    def test_a_palette_that_shows_black_alone_marks_nothing(self, tmp_path, index):
        picture = Image.fromarray(np.full((4, 4), index, np.uint8), "P")
        picture.putpalette([0, 0, 0, 255, 255, 255] if index == 0 else [255, 255, 255, 0, 0, 0])
        picture.save(tmp_path / "mask.png")
        assert not read_mask(tmp_path / "mask.png").any()

    @pytest.mark.parametrize("colour", [(1, 0, 0), (0, 0, 4), (255, 0, 0), (9, 9, 9)])
    def test_a_faint_colour_marks_as_a_bright_one_does(self, tmp_path, colour):
        picture = np.zeros((4, 4, 3), np.uint8)
        picture[1, 2] = colour
        write_image(picture, tmp_path / "mask.png")
        assert np.argwhere(read_mask(tmp_path / "mask.png")).tolist() == [[1, 2]]

    def test_a_mask_of_several_colours_is_refused(self, tmp_path):
        write_image(np.eye(3, dtype=np.uint8)[None] * 255, tmp_path / "mask.png")
        with pytest.raises(InputError, match=r"mask\.png has 3 values"):
            read_mask(tmp_path / "mask.png")

    def test_an_exif_that_cannot_be_rewritten_is_a_fault_of_its_file(self, tmp_path, monkeypatch):
        """Turning a picture packs its EXIF anew, in which a number may be too large for its type."""
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (4, 4)).save(tmp_path / "turned.jpg", exif=exif)
        monkeypatch.setattr(Image.Exif, "tobytes", lambda *_: struct.pack("<H", 70000))
        with pytest.raises(InputError, match=r"turned\.jpg cannot be read"):
            read_image(tmp_path / "turned.jpg")

    def test_round_trip(self, tmp_path):
        mask = np.random.default_rng(0).random((5, 7)) > 0.5
        write_mask(mask, tmp_path / "m.png")
        assert np.array_equal(read_mask(tmp_path / "m.png"), mask)
        assert set(np.unique(np.asarray(Image.open(tmp_path / "m.png")))) == {0, 255}


class TestFitting:
    @pytest.mark.parametrize(
        ("height", "width", "mode", "expected"),
        [
            (100, 200, "crop", (64, 128, 0, -32)),
            (100, 200, "pad", (32, 64, 16, 0)),
            (100, 200, "stretch", (64, 64, 0, 0)),
            (100, 101, "auto", (64, 65, 0, -1)),
            (100, 103, "auto", (62, 64, 1, 0)),
            (64, 64, "auto", (64, 64, 0, 0)),
        ],
    )
    def test_placement(self, height, width, mode, expected):
        assert placement(height, width, 64, mode) == expected

    def test_padding_is_invalid_and_continues_the_border(self):
        image = np.zeros((4, 8, 3), np.uint8)
        image[0], image[-1] = 10, 90
        fitted = fit(image, np.ones((4, 8), bool), 8, "pad")
        assert fitted.valid.any(1).tolist() == [False, False, True, True, True, True, False, False]
        assert (fitted.image[:2] == 10).all() and (fitted.image[-2:] == 90).all()
        assert not fitted.mask[~fitted.valid].any()
        assert bounding_box(fitted.valid) == (2, 0, 4, 8)

    def test_nothing_changes_at_its_own_size(self):
        draws = np.random.default_rng(0)
        image, mask = draws.integers(0, 256, (16, 16, 3), np.uint8), draws.random((16, 16)) > 0.5
        fitted = fit(image, mask, 16, "auto")
        assert np.array_equal(fitted.image, image) and np.array_equal(fitted.mask, mask) and fitted.valid.all()

    @given(st.integers(0, 39), st.integers(0, 59), st.sampled_from(["pad", "stretch"]))
    @settings(max_examples=40, deadline=None)
    def test_one_pixel_of_a_defect_survives_where_it_was(self, row, column, mode):
        mask = np.zeros((40, 60), bool)
        mask[row, column] = True
        fitted = fit(np.zeros((40, 60, 3), np.uint8), mask, 8, mode)
        assert 1 <= fitted.mask.sum() <= 4
        place = placement(40, 60, 8, mode)
        y, x = np.argwhere(fitted.mask).mean(0)
        assert abs(y - (place.top + (row + 0.5) * place.height / 40 - 0.5)) <= 1
        assert abs(x - (place.left + (column + 0.5) * place.width / 60 - 0.5)) <= 1

    def test_half_of_the_area_decides(self):
        mask = np.zeros((4, 4), bool)
        mask[0, :2], mask[0, 2], mask[2:, 2:] = True, True, True
        assert fit(np.zeros((4, 4, 3), np.uint8), mask, 2, "stretch").mask.tolist() == [[True, False], [False, True]]


class TestAugmentation:
    def test_the_eight_symmetries_differ_and_keep_every_pixel(self):
        array = np.arange(9).reshape(3, 3)
        seen = {augment(array, index).tobytes() for index in range(8)}
        assert len(seen) == 8
        assert all(sorted(augment(array, index).ravel()) == list(range(9)) for index in range(8))

    def test_turns_are_counterclockwise_and_mirrors_come_first(self):
        array = np.array([[1, 2], [3, 4]])
        assert augment(array, 1).tolist() == [[2, 4], [1, 3]]
        assert augment(array, 4).tolist() == [[2, 1], [4, 3]]
        # A top-bottom flip is a mirror and half a turn.
        assert augment(array, 6).tolist() == array[::-1].tolist()

    def test_one_of_four_turns_and_one_of_three_flips(self):
        draws = np.random.default_rng(0)
        counts = np.bincount([draw_augmentation(draws, "turns_and_flips") for _ in range(12000)], minlength=8) / 12000
        # each plain turn: 1/4 · 1/3; each mirrored one: two of the twelve combinations
        assert counts == pytest.approx([1 / 12] * 4 + [1 / 6] * 4, abs=0.015)

    @pytest.mark.parametrize("index", range(8))
    @pytest.mark.parametrize("axis", [0, 1])
    def test_mirrored_after_a_symmetry(self, index, axis):
        array = np.arange(9).reshape(3, 3)
        assert np.array_equal(augment(array, mirrored(index, axis)), np.flip(augment(array, index), axis))

    @pytest.mark.parametrize(
        "augmentation, views",
        {
            "flips": ["abcd", "badc", "cdab", "dcba"],
            "half_turn": ["abcd", "dcba"],
            "none": ["abcd"],
        }.items(),
    )
    def test_a_product_with_a_direction_keeps_it(self, augmentation, views):
        picture = np.array([["a", "b"], ["c", "d"]])
        draws = np.random.default_rng(0)
        seen = ["".join(augment(picture, draw_augmentation(draws, augmentation)).ravel()) for _ in range(4000)]
        assert sorted(set(seen)) == sorted(views)
        assert all(seen.count(view) / 4000 == pytest.approx(1 / len(views), abs=0.03) for view in views)

    def test_a_padded_photograph_is_not_turned_upright(self):
        lying = np.zeros((8, 8), bool)
        lying[2:6] = True
        assert keeping_the_padding("turns_and_flips", 4, 8) == "flips"
        assert keeping_the_padding("turns_and_flips", 8, 4) == "flips"
        assert keeping_the_padding("turns_and_flips", 8, 8) == "turns_and_flips"
        assert keeping_the_padding("half_turn", 4, 8) == "half_turn"
        assert all(np.array_equal(augment(lying, turn), lying) for turn in SYMMETRIES["flips"])


def test_tensors_and_back():
    image = np.array([[[0, 128, 255]]], np.uint8)
    assert to_tensor(image)[:, 0, 0].tolist() == pytest.approx([-1, 128 / 127.5 - 1, 1], abs=1e-6)
    assert np.array_equal(to_uint8(to_tensor(image)), image)
    assert to_uint8(torch.full((3, 1, 1), 9.0)).max() == 255


def test_a_shrunk_mask_keeps_its_anomaly():
    mask = torch.zeros(1, 1, 7, 7)
    mask[0, 0, 6, 3] = 1
    assert shrink_mask(mask, 2)[0, 0].tolist() == [[0, 0], [1, 1]]


def test_the_outline_runs_around_the_mask_and_leaves_it_free():
    image, mask = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), bool)
    mask[4, 4] = True
    red = (outlined(image, mask, 1) != 0).any(2)
    assert np.argwhere(red).tolist() == [[3, 4], [4, 3], [4, 5], [5, 4]]
