"""Windows of photographs: what covers what, whose they are, and that nothing of a defect is lost."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seas.data.mvtec_ad import list_samples
from seas.data.split import read_groups
from seas.data.windows import window_starts, write_windows
from seas.errors import InputError
from seas.images import read_image, read_mask, write_image, write_mask


@pytest.mark.parametrize(("length", "starts"), [(64, [0]), (65, [0, 1]), (160, [0, 48, 96]), (50, [0]), (128, [0, 64])])
def test_where_windows_of_64_begin(length, starts):
    assert window_starts(length, 64) == starts


@given(st.integers(1, 500), st.integers(16, 100))
def test_windows_cover_every_pixel(length, side):
    starts = window_starts(length, side)
    covered = np.zeros(length, bool)
    for start in starts:
        covered[start : start + side] = True
    assert covered.all() and starts[-1] + side <= max(length, side)


@pytest.fixture
def photographs(tmp_path):
    """One good photograph and one of 64 × 96 px with a scratch in its left part and one pixel of it in the right one."""
    root = tmp_path / "photographs"
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    write_image(image, root / "part/train/good/000.png")
    write_image(image, root / "part/test/scratch/000.png")
    mask = np.zeros((64, 96), bool)
    mask[10:12, 5:12] = mask[40, 70] = True
    write_mask(mask, root / "part/ground_truth/scratch/000_mask.png")
    (root / "part/twins.csv").write_text("image,twin\ntest/scratch/000.png,a\n")
    return root


def test_windows_are_a_dataset_and_cut_from_the_photographs(photographs, tmp_path):
    out = tmp_path / "windows"
    # 1 × 2 windows of 64 px each; the right part of the scratch, 1 of 4096 pixels, is too small to be a window of its own
    assert write_windows(photographs, 64, out, "twins.csv") == (3, 2, 1)
    samples = {sample.image: sample for sample in list_samples(out, "part")}
    assert set(samples) == {
        "part/train/good/000_00000_00000.png",
        "part/train/good/000_00000_00032.png",
        "part/test/scratch/000_00000_00000.png",
    }
    window = samples["part/test/scratch/000_00000_00000.png"]
    whole = read_image(photographs / "part/test/scratch/000.png")
    assert (read_image(out / window.image) == whole[:, :64]).all()
    assert read_mask(out / window.mask).sum() == 14
    right = read_image(out / "part/train/good/000_00000_00032.png")
    assert (right == whole[:, 32:]).all()
    assert read_groups(out, "part", "twins.csv")["part/test/scratch/000_00000_00000.png"] == "a"
    photograph = read_groups(out, "part", "photographs.csv")
    assert photograph["part/train/good/000_00000_00032.png"] == "train/good/000.png"


def test_a_product_without_groups_is_grouped_by_photograph(photographs, tmp_path):
    """Or windows of one photograph would train and test."""
    shutil.copytree(photographs / "part", photographs / "plain")
    (photographs / "plain/twins.csv").unlink()
    write_windows(photographs, 64, tmp_path / "windows", "twins.csv")
    groups = read_groups(tmp_path / "windows", "plain", "twins.csv")
    assert groups == read_groups(tmp_path / "windows", "plain", "photographs.csv") and len(groups) == 3


def test_a_window_beside_the_defect_is_good_and_in_the_photographs_group(photographs, tmp_path):
    out = tmp_path / "windows"
    write_windows(photographs, 32, out)
    good = [sample.image for sample in list_samples(out, "part") if sample.folder == "test" and sample.type == "good"]
    # of the six windows one holds the scratch, one the lone pixel
    assert len(good) == 4 and all(name.startswith("part/test/good/scratch_000_") for name in good)
    groups = read_groups(out, "part", "photographs.csv")
    assert {groups[name] for name in good} == {"test/scratch/000.png"}
    assert not (out / "part/twins.csv").exists()


def test_the_largest_part_of_a_tiny_defect_stays(photographs, tmp_path):
    mask = np.zeros((64, 96), bool)
    mask[40, 70] = True
    write_mask(mask, photographs / "part/ground_truth/scratch/000_mask.png")
    write_windows(photographs, 64, tmp_path / "windows")
    assert [s.mask for s in list_samples(tmp_path / "windows", "part") if s.mask] == [
        "part/ground_truth/scratch/000_00000_00032_mask.png"
    ]


def test_faults(photographs, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there exists already"):
        write_windows(photographs, 64, tmp_path / "there")
    with pytest.raises(InputError, match="the folder .*/part holds no product"):
        write_windows(photographs / "part", 64, tmp_path / "new")
    write_image(np.zeros((64, 64, 3), np.uint8), photographs / "part/train/good/000.bmp")
    with pytest.raises(InputError, match=r"another photograph has the name of train/good/000\.png; rename one"):
        write_windows(photographs, 64, tmp_path / "new")
    (photographs / "part/train/good/000.bmp").unlink()
    with pytest.raises(InputError, match=r"no product of .* has the file of groups 'twin\.csv'"):
        write_windows(photographs, 64, tmp_path / "new", "twin.csv")
    write_mask(np.zeros((64, 96), bool), photographs / "part/ground_truth/scratch/000_mask.png")
    with pytest.raises(InputError, match=r"the mask .*000_mask\.png is empty: it marks no pixel"):
        write_windows(photographs, 64, tmp_path / "new")
    write_mask(np.ones((8, 8), bool), photographs / "part/ground_truth/scratch/000_mask.png")
    with pytest.raises(InputError, match=r"000_mask\.png is 8×8 pixels, its image 96×64"):
        write_windows(photographs, 64, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"photographs", "there"}


@pytest.mark.parametrize("absolute", [True, False])
def test_a_file_of_groups_is_not_written_over_the_users_own(photographs, tmp_path, absolute):
    groups = photographs / "part/groups.csv"
    groups.write_text("image,group\ntest/scratch/000.png,x\n")
    named = str(groups) if absolute else "../part/groups.csv"
    with pytest.raises(
        InputError, match=r"groups\.csv' leads out of the products' folders; name the file of groups as it lies"
    ):
        write_windows(photographs, 64, tmp_path / "windows", named)
    assert "scratch/000.png,x" in groups.read_text() and not (tmp_path / "windows").exists()
