"""The reader, the index, the split and the check, on hand-made folders, the miniature and the photographs."""

import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seas import artifacts
from seas.data import mvtec_ad
from seas.data.check import check_dataset
from seas.data.index import fitted_anomalies, index_product, index_samples, split_product
from seas.data.miniature import TYPES, miniature_image, write_miniature
from seas.data.settings import DataSettings
from seas.data.split import read_groups, split_samples
from seas.errors import InputError
from seas.images import read_mask, write_image, write_mask


def table_of(counts, good=10, test_good=4, product="p"):
    """A samples table with so many images of each type."""
    rows = [("good", "train", f"{product}/train/good/{k:03d}.png", "") for k in range(good)]
    rows += [("good", "test", f"{product}/test/good/{k:03d}.png", "") for k in range(test_good)]
    for name, count in counts.items():
        rows += [(name, "test", f"{product}/test/{name}/{k:03d}.png", f"m{k}") for k in range(count)]
    return pd.DataFrame(rows, columns=["type", "folder", "image", "mask"]).assign(product=product)


class TestSplit:
    def test_the_first_third_by_name(self):
        split = split_samples(table_of({"a": 7, "b": 3}), DataSettings(normals=6), 0, {})
        assert list(split[(split.type == "a") & (split.role == "shot")].image) == [
            "p/test/a/000.png",
            "p/test/a/001.png",
        ]
        assert split.role.value_counts().to_dict() == {"test": 5 + 2 + 4, "normal": 6, "reserve": 4, "shot": 3}

    def test_types_are_numbered_by_name(self):
        split = split_samples(table_of({"b": 3, "a": 3}), DataSettings(), 0, {})
        assert split.groupby("type").type_index.unique().map(list).to_dict() == {"a": [1], "b": [2], "good": [0]}

    def test_a_number_of_shots_is_drawn_from_the_third(self):
        def roles(shots, seed):
            split = split_samples(table_of({"a": 30, "b": 6}), DataSettings(shots=shots), seed, {})
            return {role: set(split[(split.role == role) & (split.type != "good")].image) for role in set(split.role)}

        third, two, one, other = roles("third", 0), roles(2, 0), roles(1, 0), roles(1, 1)
        assert len(two["shot"]) == 4 and len(one["shot"]) == 2
        assert one["shot"] < two["shot"] <= third["shot"]
        assert two["test"] == one["test"] == third["test"]
        assert two["left_out"] == third["shot"] - two["shot"]
        assert one["shot"] != other["shot"]

    def test_all_of_them_train_when_nothing_need_be_tested(self):
        split = split_samples(table_of({"a": 5, "b": 1}), DataSettings(shots="all"), 0, {})
        assert set(split[split.type != "good"].role) == {"shot"}
        assert set(split[(split.type == "good") & (split.folder == "test")].role) == {"test"}
        with pytest.raises(InputError, match="p: with data.shots 'all' good images alone are left to test"):
            split_samples(table_of({"a": 5}, test_good=0), DataSettings(shots="all"), 0, {})

    def test_normals_by_seed(self):
        table = table_of({"a": 3}, good=40)
        chosen = [
            set(split_samples(table, DataSettings(normals=20), seed, {}).query("role == 'normal'").image)
            for seed in (0, 0, 1)
        ]
        assert chosen[0] == chosen[1] != chosen[2]

    @given(
        st.dictionaries(st.sampled_from("abcd"), st.integers(3, 20), min_size=1),
        st.integers(1, 50),
        st.integers(1, 70),
        st.integers(0, 9),
    )
    @settings(max_examples=60, deadline=None)
    def test_every_image_has_one_role_and_the_test_is_the_complement(self, counts, good, normals, seed):
        split = split_samples(table_of(counts, good), DataSettings(normals=normals), seed, {})
        assert split.image.is_unique and len(split) == good + 4 + sum(counts.values())
        abnormal = split[split.type != "good"]
        for name, count in counts.items():
            assert (abnormal[abnormal.type == name].role == "shot").sum() == count // 3
        assert set(abnormal.role) == {"shot", "test"}
        assert (split.role == "normal").sum() == min(normals, good)
        assert set(split[split.folder == "train"].role) <= {"normal", "reserve"}

    @given(st.lists(st.integers(0, 5), min_size=6, max_size=20), st.integers(0, 3))
    @settings(max_examples=60, deadline=None)
    def test_no_group_on_both_sides(self, numbers, seed):
        table = table_of({"a": len(numbers)})
        images = [*table[table.type == "a"].image]
        groups = dict(zip(images, map(str, numbers), strict=True))
        try:
            split = split_samples(table, DataSettings(), seed, groups)
        except InputError:
            return
        group = split.image.map(groups)
        assert not set(group[split.role == "shot"]) & set(group[(split.role == "test") & group.notna()])
        assert 1 <= (split.role == "shot").sum() <= len(numbers) // 3

    def test_a_group_across_types_and_folders_is_left_out_of_the_test(self):
        table = table_of({"a": 3, "b": 4})
        groups = {
            "p/test/a/000.png": "x",
            "p/test/b/003.png": "x",
            "p/train/good/000.png": "y",
            "p/test/good/001.png": "y",
        }
        split = split_samples(table, DataSettings(), 0, groups).set_index("image").role
        assert split["p/test/b/003.png"] == split["p/test/good/001.png"] == "left_out"

    def test_a_group_with_any_image_of_train_good_is_not_tested(self):
        """Reserve normals train the segmentation models."""
        groups = {
            f"p/{folder}/good/{number:03d}.png": str(number) for folder in ("train", "test") for number in range(10)
        }
        split = split_samples(table_of({"a": 3}, good=10, test_good=12), DataSettings(normals=1), 0, groups)
        assert (split.role == "reserve").sum() == 9
        tested = split[(split.type == "good") & (split.role == "test")]
        assert set(tested.image) == {"p/test/good/010.png", "p/test/good/011.png"}

    @pytest.mark.parametrize(
        ("counts", "options", "message"),
        [
            ({"a": 2}, {}, "the type 'a' has 2 images; 3 are needed"),
            ({"a": 4}, {"shots": 2}, "data.shots is 2, but a third of the type 'a' has 1 images"),
        ],
    )
    def test_too_few(self, counts, options, message):
        with pytest.raises(InputError, match=message):
            split_samples(table_of(counts), DataSettings(**options), 0, {})

    def test_a_type_wholly_grouped_with_what_trains_is_an_error(self):
        groups = {f"p/test/a/{number:03d}.png": "x" for number in (1, 2)} | {"p/train/good/000.png": "x"}
        with pytest.raises(InputError, match="no image of the type 'a' is left to test"):
            split_samples(table_of({"a": 3}), DataSettings(), 0, groups)

    def test_a_small_type_may_train_untested(self):
        split = split_samples(table_of({"a": 2, "b": 6}), DataSettings(train_only_small_types=True), 0, {})
        assert set(split[split.type == "a"].role) == {"shot"}


@pytest.fixture
def dataset(tmp_path):
    """A small product to spoil: 4 normals, 3 abnormal images of the type "cut"."""
    root = tmp_path / "data"
    for k in range(4):
        write_image(np.full((20, 30, 3), 10 * k, np.uint8), root / f"bolt/train/good/{k}.png")
    for k in range(3):
        write_image(np.full((20, 30, 3), 99, np.uint8), root / f"bolt/test/cut/{k}.png")
        mask = np.zeros((20, 30), bool)
        mask[5:9, 3 + k : 9] = True
        write_mask(mask, root / f"bolt/ground_truth/cut/{k}_mask.png")
    return root


class TestIndex:
    def test_the_table(self, dataset):
        table = index_samples(dataset, "mvtec_ad", "bolt")
        assert list(table.columns) == [
            "product",
            "type",
            "folder",
            "image",
            "mask",
            "width",
            "height",
            "anomaly_pixels",
            "bytes",
        ]
        row = table[table.image == "bolt/test/cut/1.png"].iloc[0]
        assert (row["mask"], row.width, row.height, row.anomaly_pixels) == (
            "bolt/ground_truth/cut/1_mask.png",
            30,
            20,
            20,
        )

    def test_all_faults_in_one_message(self, dataset):
        (dataset / "bolt/ground_truth/cut/0_mask.png").unlink()
        (dataset / "bolt/ground_truth/cut/9_mask.png").write_bytes(b"")
        with pytest.raises(InputError, match="2 faults") as fault:
            mvtec_ad.list_samples(dataset, "bolt")
        assert "cut/0.png: its mask 0_mask.png (or 0.png) is missing" in str(fault.value)
        assert "9_mask.png: the mask belongs to no image" in str(fault.value)

    def test_faults_inside_the_files(self, dataset):
        masks = dataset / "bolt/ground_truth/cut"
        write_mask(np.ones((5, 5), bool), masks / "0_mask.png")
        write_mask(np.zeros((20, 30), bool), masks / "1_mask.png")
        (dataset / "bolt/test/cut/2.png").write_bytes(b"no picture")
        with pytest.raises(InputError, match="3 faults") as fault:
            index_samples(dataset, "mvtec_ad", "bolt")
        for part in ("0_mask.png is 5×5 pixels, its image 30×20\n", "1_mask.png is empty", "2.png cannot be read"):
            assert part in str(fault.value)

    def test_a_size_that_exif_makes_wrong_says_so(self, dataset):
        quarter = Image.Exif()
        quarter[0x0112] = 6
        path = dataset / "bolt/test/cut/0.png"
        Image.open(path).save(path, exif=quarter)
        with pytest.raises(InputError, match="is 30×20 pixels, its image 20×30, turned as its EXIF says"):
            index_samples(dataset, "mvtec_ad", "bolt")

    def test_a_changed_file_changes_the_fingerprint(self, dataset):
        before = mvtec_ad.fingerprint(dataset, "bolt")
        assert mvtec_ad.fingerprint(dataset, "bolt") == before
        shutil.copy(dataset / "bolt/train/good/0.png", dataset / "bolt/train/good/new.png")
        assert mvtec_ad.fingerprint(dataset, "bolt") != before

    def test_another_bmp_of_the_same_name_and_size_changes_the_fingerprint(self, dataset):
        path = dataset / "bolt/train/good/0.bmp"
        Image.new("L", (200, 100), 40).save(path)
        before, size = mvtec_ad.fingerprint(dataset, "bolt"), path.stat().st_size
        Image.new("L", (200, 100), 160).save(path)
        assert path.stat().st_size == size and mvtec_ad.fingerprint(dataset, "bolt") != before

    def test_a_mask_drawn_anew_changes_the_fingerprint(self, dataset):
        path = dataset / "bolt/ground_truth/cut/0_mask.png"
        mask = read_mask(path)
        for name, drawn in (("left", mask), ("right", mask[:, ::-1])):
            Image.fromarray(drawn.astype(np.uint8) * 255).save(path.with_name(f"{name}.bmp"))
        left, right = (path.with_name(f"{name}.bmp") for name in ("left", "right"))
        assert left.stat().st_size == right.stat().st_size
        right.rename(path.with_suffix(".bmp"))
        before = mvtec_ad.fingerprint(dataset, "bolt")
        shutil.copy(left, path.with_suffix(".bmp"))
        assert mvtec_ad.fingerprint(dataset, "bolt") != before

    def test_the_fingerprint_follows_links_and_passes_by_what_is_no_picture(self, dataset, tmp_path):
        before = mvtec_ad.fingerprint(dataset, "bolt")
        for name in (".DS_Store", "Thumbs.db", "notes.txt", ".hidden.png"):
            (dataset / "bolt/test/cut" / name).write_text("no picture")
        assert mvtec_ad.fingerprint(dataset, "bolt") == before
        elsewhere = tmp_path / "elsewhere"
        (dataset / "bolt/test/cut").rename(elsewhere)
        (dataset / "bolt/test/cut").symlink_to(elsewhere)
        assert mvtec_ad.fingerprint(dataset, "bolt") == before
        shutil.copy(elsewhere / "0.png", elsewhere / "new.png")
        assert mvtec_ad.fingerprint(dataset, "bolt") != before

    def test_products_are_folders_with_normals(self, dataset):
        (dataset / "notes").mkdir()
        assert mvtec_ad.list_products(dataset) == ["bolt"]

    @pytest.mark.parametrize("name", ["my bolts", "all", "bölt", "-x"])
    def test_odd_names_are_refused(self, dataset, name):
        (dataset / "bolt").rename(dataset / name)
        with pytest.raises(InputError, match="cannot be the name of a product; rename"):
            mvtec_ad.list_products(dataset)

    def test_the_faults_of_all_products_are_named_at_once(self, dataset):
        (dataset / "my nut/train/good").mkdir(parents=True)
        (dataset / "cap/test").mkdir(parents=True)
        with pytest.raises(InputError, match="2 faults") as fault:
            mvtec_ad.list_products(dataset)
        assert "cap has no folder train/good" in str(fault.value) and "'my nut' cannot be the name" in str(fault.value)

    @pytest.mark.parametrize("suffix", ["jfif", "AVIF", "dng"])
    def test_a_kind_of_picture_that_is_not_read_is_named(self, dataset, suffix):
        (dataset / "bolt/train/good/0.png").rename(dataset / f"bolt/train/good/0.{suffix}")
        with pytest.raises(InputError, match=rf"0\.{suffix}: this kind of picture is not read; save it as PNG"):
            mvtec_ad.list_samples(dataset, "bolt")

    def test_groups_of_a_csv(self, dataset, tmp_path):
        index_samples(dataset, "mvtec_ad", "bolt").to_parquet(tmp_path / "index.parquet")
        arguments = {"root": dataset, "output": tmp_path / "split.parquet"}
        data = DataSettings(image_size=16, groups="groups.csv")
        (dataset / "bolt/groups.csv").write_text("image,group\ntest/cut/0.png,x\ntest/cut/1.png,x\ntest/cut/2.png,y\n")
        split_product(tmp_path / "index.parquet", data, 0, **arguments)
        split = pd.read_parquet(tmp_path / "split.parquet").set_index("image").role
        assert split["bolt/test/cut/2.png"] == "shot" and split["bolt/test/cut/0.png"] == "test"
        # a blank is no group, and NA is a group's name like any other
        (dataset / "bolt/groups.csv").write_text("image,group\ntest/cut/0.png,NA\ntest/cut/1.png,NA\ntest/cut/2.png,\n")
        assert read_groups(dataset, "bolt", "groups.csv") == {f"bolt/test/cut/{number}.png": "NA" for number in (0, 1)}
        # the same image, however its path is written
        (dataset / "bolt/groups.csv").write_text("image,group\n./test/cut/0.png,x\ntest//cut/1.png,x\n")
        assert read_groups(dataset, "bolt", "groups.csv") == {f"bolt/test/cut/{number}.png": "x" for number in (0, 1)}
        # blanks are no part of a group's name
        (dataset / "bolt/groups.csv").write_text("image,group\ntest/cut/0.png, x\n test/cut/1.png,x \n")
        assert read_groups(dataset, "bolt", "groups.csv") == {f"bolt/test/cut/{number}.png": "x" for number in (0, 1)}
        (dataset / "bolt/groups.csv").write_text("test/cut/0.png,x\ntest/cut/1.png,x\n")
        with pytest.raises(
            InputError, match=r"lacks a heading line: its first line is that of the image 'test/cut/0\.png'"
        ):
            read_groups(dataset, "bolt", "groups.csv")
        for line, message in (
            ("ground_truth/cut/0_mask.png,x", "names 'ground_truth/cut/0_mask.png'; name images as test/"),
            ("test/cut/0.png,x\ntest/cut/0.png,y", "gives the image 'test/cut/0.png' two groups, 'x' and 'y'"),
        ):
            (dataset / "bolt/groups.csv").write_text(f"image,group\n{line}\n")
            with pytest.raises(InputError, match=message):
                read_groups(dataset, "bolt", "groups.csv")
        (dataset / "bolt/groups.csv").write_text("image,group\ntest/cut/7.png,x\n")
        with pytest.raises(InputError, match=r"groups\.csv names the image 'test/cut/7\.png'"):
            split_product(tmp_path / "index.parquet", data, 0, **arguments)
        # a path that a case-insensitive disk takes for an image's
        with pytest.raises(
            InputError, match=r"names 'bolt/test/Cut/0\.png', which is no image of bolt by this spelling"
        ):
            split_samples(pd.read_parquet(tmp_path / "index.parquet"), data, 0, {"bolt/test/Cut/0.png": "x"})

    def test_equal_photographs_give_equal_bytes(self, dataset, tmp_path, monkeypatch):
        data, files = DataSettings(image_size=16), []
        for name in ("first", "second"):
            index, split = (tmp_path / name / f"{table}.parquet" for table in ("index", "split"))
            monkeypatch.setattr(artifacts, "STARTED", len(files))  # another run
            index_product(dataset, "mvtec_ad", "bolt", output=index)
            split_product(index, data, 0, root=dataset, output=split)
            files.append((index.read_bytes(), split.read_bytes()))
        assert files[0] == files[1]

    def test_a_defect_that_fitting_cuts_away_is_an_error(self, dataset, tmp_path):
        mask = np.zeros((20, 30), bool)
        mask[5, 0] = True
        write_mask(mask, dataset / "bolt/ground_truth/cut/1_mask.png")
        index_samples(dataset, "mvtec_ad", "bolt").to_parquet(tmp_path / "index.parquet")
        arguments = {"root": dataset, "output": tmp_path / "split.parquet"}
        with pytest.raises(InputError, match=r"cut/1\.png: data\.fit 'crop' cuts its whole defect away"):
            split_product(tmp_path / "index.parquet", DataSettings(image_size=16, fit="crop"), 0, **arguments)
        assert not (tmp_path / "split.parquet").exists()
        split_product(tmp_path / "index.parquet", DataSettings(image_size=16), 0, **arguments)

    def test_share_of_a_defect_that_stays(self, dataset):
        mask = np.zeros((20, 30), bool)
        mask[3, 4:6] = True  # the crop to 20×20 begins at column 5
        write_mask(mask, dataset / "bolt/ground_truth/cut/1_mask.png")
        table = index_samples(dataset, "mvtec_ad", "bolt")
        found = fitted_anomalies(table, dataset, DataSettings(image_size=32, fit="crop"))
        assert {anomaly.image: anomaly.inside for anomaly in found}["bolt/test/cut/1.png"] == 0.5

    def test_regions_that_fitting_loses(self, dataset):
        mask = np.zeros((60, 90), bool)
        mask[6:24, 6:24] = True
        mask[45, 12:75] = True  # a line of one pixel beside the block: at 16 px it covers a fifth of a pixel
        write_image(np.full((60, 90, 3), 99, np.uint8), dataset / "bolt/test/cut/1.png")
        write_mask(mask, dataset / "bolt/ground_truth/cut/1_mask.png")
        table = index_samples(dataset, "mvtec_ad", "bolt")

        def found(size):
            anomalies = fitted_anomalies(table, dataset, DataSettings(image_size=size))
            return next(anomaly for anomaly in anomalies if anomaly.image.endswith("cut/1.png"))

        assert (found(16).regions, found(16).lost) == (2, 1)
        assert (found(96).regions, found(96).lost) == (2, 0)


class TestCheck:
    def test_findings_and_a_contact_sheet(self, dataset, tmp_path):
        text = check_dataset(dataset, "mvtec_ad", DataSettings(image_size=32), tmp_path / "sheets", ["bolt"])
        assert "bolt: 7 images of 1 sizes (30×20 to 30×20), fitted to 32×32 by 'auto'" in text
        assert "cut: 1 shots, 2 test" in text
        sheet = np.asarray(Image.open(tmp_path / "sheets/bolt.png"))
        assert (sheet == (255, 40, 40)).all(2).sum() > 20

    def test_copies_on_both_sides_of_the_split_are_named(self, dataset, tmp_path):
        for number in range(3):
            write_image(np.full((20, 30, 3), 50 + number, np.uint8), dataset / f"bolt/test/cut/{number}.png")
        assert "copies" not in check_dataset(dataset, "mvtec_ad", DataSettings(image_size=16), tmp_path, ["bolt"])
        shutil.copy(dataset / "bolt/test/cut/0.png", dataset / "bolt/test/cut/2.png")  # the shot, and a test image
        text = check_dataset(dataset, "mvtec_ad", DataSettings(image_size=16), tmp_path, ["bolt"])
        assert "1 test images are copies of training images" in text and "data.groups): bolt/test/cut/2.png" in text

    def test_doubtful_masks_dark_images_and_a_missing_test_are_said(self, dataset, tmp_path):
        write_mask(np.ones((20, 30), bool), dataset / "bolt/ground_truth/cut/1_mask.png")
        text = check_dataset(dataset, "mvtec_ad", DataSettings(image_size=32), tmp_path / "sheets", ["bolt"])
        assert "1 abnormal images have a mask over most of the image (is it inverted?): bolt/test/cut/1.png" in text
        assert "4 images of 8 bits are dark, 99.9 % of the values not above 32 of 255: bolt/train/good/0.png" in text
        assert "no good image is left to test" in text

    @pytest.mark.parametrize(
        ("shots", "rest", "sentence"),
        [
            (
                [40] * 4,
                [100] * 8,
                "cut: the training images are darker than the test images, in the mean 40 for 100 of 255",
            ),
            ([100] * 4, [40] * 8, "cut: the training images are brighter than the test images, in the mean 100 for 40"),
            ([40, 40, 40, 100], [100, 100, 100, 100, 100, 40, 40, 40], None),
            ([40] * 4, [55] * 8, None),
            ([40] * 3, [100] * 6, None),
        ],
        ids=["darker", "brighter", "mixed", "nearly the same", "too few"],
    )
    def test_shots_in_another_light_than_the_test_images_are_said(self, dataset, tmp_path, shots, rest, sentence):
        for number, level in enumerate(shots + rest):
            write_image(np.full((20, 30, 3), level, np.uint8), dataset / f"bolt/test/cut/{number:02}.png")
            shutil.copy(
                dataset / "bolt/ground_truth/cut/0_mask.png", dataset / f"bolt/ground_truth/cut/{number:02}_mask.png"
            )
        for old in [*dataset.glob("bolt/test/cut/?.png"), *dataset.glob("bolt/ground_truth/cut/?_mask.png")]:
            old.unlink()
        text = check_dataset(dataset, "mvtec_ad", DataSettings(image_size=16), tmp_path / "sheets", ["bolt"])
        assert (sentence in text) if sentence else ("than the test images" not in text)

    def test_fourteen_bits_stored_in_sixteen_are_said(self, dataset, tmp_path):
        for name, highest in (("sensor", 16383), ("scaled", 65535)):
            values = np.linspace(0, highest, 20 * 30).reshape(20, 30).astype(np.uint16)
            Image.fromarray(values).save(dataset / f"bolt/train/good/{name}.png")
        text = check_dataset(dataset, "mvtec_ad", DataSettings(image_size=32), tmp_path / "sheets", ["bolt"])
        assert "1 images of 16 bits are dark" in text and "multiply by 16 or 4" in text
        assert "bolt/train/good/sensor.png" in text and "bolt/train/good/scaled.png" not in text

    def test_photographs_that_are_turned_without_their_masks_are_said(self, dataset, tmp_path):
        half_a_turn = Image.Exif()
        half_a_turn[0x0112] = 3
        upright = Image.Exif()
        upright[0x0112] = 0  # as some cameras write it
        other = dataset / "bolt/test/cut/2.png"
        Image.open(other).save(other, exif=upright)
        turned = [dataset / f"bolt/test/cut/{number}.png" for number in (0, 1)]
        for path in [*turned, dataset / "bolt/ground_truth/cut/1_mask.png", dataset / "bolt/train/good/0.png"]:
            Image.open(path).save(path, exif=half_a_turn)
        text = check_dataset(dataset, "mvtec_ad", DataSettings(image_size=32), tmp_path / "sheets", ["bolt"])
        assert (
            "1 abnormal images are turned as their EXIF says, their masks are not (do the outlines lie on the defects?): "
            "bolt/test/cut/0.png\n"
        ) in text

    def test_faults_of_one_product_do_not_hide_the_others(self, dataset, tmp_path):
        shutil.copytree(dataset / "bolt", dataset / "nut")
        (dataset / "bolt/ground_truth/cut/0_mask.png").unlink()
        with pytest.raises(InputError, match="1 of 2 products cannot be used") as fault:
            check_dataset(dataset, "mvtec_ad", DataSettings(image_size=32), tmp_path / "sheets", ["bolt", "nut"])
        assert "nut: 7 images" in str(fault.value)


class TestMiniature:
    def test_an_image_is_a_function_of_its_names(self):
        first, again = (miniature_image(0, "washer", "test", "rust", 3, 48) for _ in range(2))
        other = miniature_image(1, "washer", "test", "rust", 3, 48)
        assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
        assert not np.array_equal(first[0], other[0])

    @pytest.mark.parametrize(("product", "name"), [(product, name) for product in TYPES for name in TYPES[product]])
    def test_a_defect_lies_inside_its_mask(self, product, name, monkeypatch):
        """The same picture drawn with and without its defect differs inside the mask, and hardly outside."""
        from seas.data import miniature

        whole, masks, plain = [], [], []
        for index in range(6):
            image, mask = miniature_image(0, product, "test", name, index, 48)
            whole.append(image), masks.append(mask)
        with monkeypatch.context() as patched:
            for drawn in TYPES[product]:
                original = TYPES[product][drawn]
                patched.setitem(
                    miniature.TYPES[product],
                    drawn,
                    lambda random, plane, picture, place, original=original: original(
                        random, plane, picture, place
                    )._replace(picture=picture),
                )
            plain = [miniature_image(0, product, "test", name, index, 48)[0] for index in range(6)]
        change = np.abs(np.stack(whole).astype(float) - np.stack(plain)).max(3)
        masks = np.stack(masks)
        assert change[masks].mean() > 5 * change[~masks].mean()
        assert change[masks].mean() > 8

    def test_the_folder_reads_back(self, miniature_root):
        assert mvtec_ad.list_products(miniature_root) == ["fabric", "washer"]
        table = index_samples(miniature_root, "mvtec_ad", "fabric")
        assert table.groupby("type").size().to_dict() == {"fibre": 6, "good": 14, "oil": 6, "pulled_thread": 6}

    def test_nothing_is_overwritten(self, miniature_root):
        with pytest.raises(InputError, match="is not empty"):
            write_miniature(miniature_root, seed=0)

    def test_defects_lie_anywhere(self):
        masks = [miniature_image(0, "fabric", "test", "oil", index, 48)[1] for index in range(40)]
        places = np.array([np.argwhere(mask).mean(0) for mask in masks])
        assert places.std(0).min() > 8


class TestPhotographs:
    @pytest.mark.parametrize(
        ("product", "counts"),
        [
            ("ballscrew", {"pitting": (30, 60)}),
            (
                "magnetic_tile",
                {"blowhole": (38, 77), "break": (28, 57), "crack": (19, 38), "fray": (10, 22), "uneven": (33, 66)},
            ),
        ],
    )
    def test_they_split_as_counted_by_hand(self, photographs, product, counts):
        table = index_samples(photographs, "mvtec_ad", product)
        split = split_samples(table, DataSettings(), 0, {})
        for name, (shots, test) in counts.items():
            roles = split[split.type == name].role.value_counts()
            assert (roles["shot"], roles["test"]) == (shots, test)

    def test_near_duplicates_stay_together(self, photographs, tmp_path):
        index_samples(photographs, "mvtec_ad", "magnetic_tile").to_parquet(tmp_path / "index.parquet")
        data = DataSettings(image_size=64, groups="near_duplicates.csv")
        split_product(tmp_path / "index.parquet", data, 0, root=photographs, output=tmp_path / "split.parquet")
        split = pd.read_parquet(tmp_path / "split.parquet")
        groups = pd.read_csv(photographs / "magnetic_tile/near_duplicates.csv")
        group = split.image.map(dict(zip("magnetic_tile/" + groups.iloc[:, 0], groups.iloc[:, 1], strict=True)))
        assert not set(group[split.role == "shot"].dropna()) & set(group[split.role == "test"].dropna())

    def test_a_mask_reads(self, photographs):
        assert read_mask(photographs / "magnetic_tile/ground_truth/crack/010_mask.png").any()
