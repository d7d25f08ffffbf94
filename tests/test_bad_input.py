"""Every kind of bad input ends in one clear sentence that names the file or key, with exit code 1 and nothing half-written."""

import errno
import json
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seas.artifacts import Provenance, writing_folder
from seas.data.index import index_product, split_product
from seas.data.settings import DataSettings
from seas.downstream.predict import predict_images
from seas.errors import InputError
from seas.generation.by_hand import generate_by_hand
from seas.generator.settings import GeneratorSettings
from seas.generator.train import train_generator
from seas.images import write_image, write_mask
from seas.jobs import job, reporting_faults
from seas.rmp.settings import RmpSettings
from seas.rmp.train import train_rmp
from seas.settings import ComputeSettings
from seas.workflow import load_workflow

REPOSITORY = Path(__file__).parent.parent
CPU = ComputeSettings(device="cpu", precision="fp32", threads=1)


@pytest.fixture
def house(tmp_path, monkeypatch, miniature_root):
    """A working folder with the project's configuration and one small dataset called "mine"."""
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    shutil.copytree(miniature_root / "washer", tmp_path / "data/mine/washer")
    (tmp_path / "config/datasets/mine.yaml").write_text("root: data/mine\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def demo(**changes):
    return load_workflow([Path("config/demo.yaml")], **{"datasets": ["mine"], **changes})


def config_file(text):
    Path("own.yaml").write_text(text)
    return load_workflow([Path("config/demo.yaml"), Path("own.yaml")], datasets=["mine"])


def dataset_file(text):
    Path("config/datasets/mine.yaml").write_text(text)
    return demo()


def experiment_file(text):
    Path("config/experiments/new.yaml").write_text(text)
    return demo(experiments=["new"])


def base_lacking(part):
    folder = Path("base")
    for name in (
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ):
        if name != part:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
    (folder / part).parent.mkdir(parents=True, exist_ok=True)
    return demo(base={"pretrained": "base"}).check()


CONFIGURATION = {
    "unknown key": (
        lambda: config_file("generator: {anomaly_token: 3}"),
        r"'generator\.anomaly_token' is no setting; did you mean 'anomaly_tokens'",
    ),
    "unknown section": (lambda: config_file("genrator: {}"), r"'genrator' is no setting; did you mean 'generator'"),
    "wrong type": (lambda: config_file("rmp: {learning_rate: fast}"), r"'rmp\.learning_rate' is 'fast'"),
    "out of range": (
        lambda: config_file("generation: {threshold: 1.5}"),
        r"'generation\.threshold' is 1\.5: .*less than 1",
    ),
    "not a choice": (lambda: config_file("data: {fit: squeeze}"), r"'data\.fit' is 'squeeze'"),
    "image size no multiple": (
        lambda: config_file("data: {image_size: 100}"),
        r"'data\.image_size' is 100: .*multiple of 16",
    ),
    "impossible attention layer": (
        lambda: config_file("generator: {attention_layers: [7]}"),
        r"attention_layers is \[7\]",
    ),
    "threads of an unknown stage": (lambda: config_file("compute: {threads: {rpm: 2}}"), r"rpm is no stage"),
    "key twice": (
        lambda: config_file("data: {normals: 6}\ndata: {normals: 7}"),
        r"own\.yaml is no YAML: 'data' stands twice",
    ),
    "no yaml": (lambda: config_file("data: [1, 2"), r"own\.yaml is no YAML"),
    "a list instead of keys": (lambda: dataset_file("- root"), r"mine\.yaml: expected keys and values"),
    "missing config file": (lambda: load_workflow([Path("none.yaml")]), r"none\.yaml cannot be read: No such file"),
    "negative seed": (lambda: demo(seeds=[-1]), r"seeds is \[-1\]"),
    "no dataset": (lambda: demo(datasets=[]), r"'datasets' is \[\]"),
    "dataset twice": (lambda: demo(datasets=["mine", "mine"]), r"'mine' stands in the list twice"),
    "unknown dataset": (
        lambda: demo(datasets=["mvtek"]),
        r"there is no dataset 'mvtek': config/datasets/mvtek\.yaml does not exist",
    ),
    "dataset without root": (lambda: dataset_file("description: x"), r"mine\.yaml: 'root' is missing"),
    "root is no folder": (
        lambda: dataset_file("root: nowhere"),
        r"mine\.yaml: 'root' is 'nowhere', which is no folder",
    ),
    "root in an unknown home": (
        lambda: dataset_file("root: ~nobody-at-all/data"),
        r"mine\.yaml: 'root' is '~nobody-at-all/data', but there is no such home folder",
    ),
    "unknown layout": (lambda: dataset_file("{root: data/mine, layout: coco}"), r"mine\.yaml: 'layout' is 'coco'"),
    "unknown station in a dataset": (
        lambda: dataset_file("{root: data/mine, settings: {date: {}}}"),
        r"'settings\.date' is no station",
    ),
    "dataset without products": (
        lambda: dataset_file("root: config").products("mine"),
        r"the folder config holds no product",
    ),
    "unknown product": (
        lambda: demo(products=["washr"]).products("mine"),
        r"products: 'washr' is in none of the datasets; known are washer",
    ),
    "unknown experiment": (lambda: demo(experiments=["sea"]), r"there is no experiment 'sea'"),
    "unknown parent": (lambda: experiment_file("extends: lost"), r"there is no experiment 'lost'"),
    "experiment is its own ancestor": (
        lambda: experiment_file("extends: new"),
        r"new\.yaml: 'extends' leads back to 'new'",
    ),
    "unknown key in an experiment": (
        lambda: experiment_file("settings: {rmp: {skipp: true}}"),
        r"'rmp\.skipp' is no setting; did you mean 'skip'",
    ),
    "no base folder": (
        lambda: demo(base={"pretrained": "nowhere"}).check(),
        r"base\.pretrained is 'nowhere', which is no folder; .*owner/name@revision",
    ),
    "base without weights": (
        lambda: base_lacking("vae/diffusion_pytorch_model.safetensors"),
        r"lacks vae/diffusion_pytorch_model\.safetensors",
    ),
    "a list as config file": (lambda: config_file("- data"), r"own\.yaml: expected keys and values, found \['data'\]"),
    "a folder as config file": (lambda: load_workflow([Path("config")]), r"config cannot be read: Is a directory"),
    "reserved name of a dataset": (lambda: demo(datasets=["report"]), r"'report' cannot name the dataset"),
    "reserved name of an experiment": (lambda: demo(experiments=["data"]), r"'data' cannot name the experiment"),
    "path as name of an experiment": (
        lambda: demo(experiments=["../experiments/seas"]),
        r"'\.\./experiments/seas' cannot name the experiment",
    ),
    "no shots": (lambda: config_file("data: {shots: 0}"), r"'data\.shots' is 0: "),
    "masks from more steps than there are": (
        lambda: config_file("generation: {steps: 2}"),
        r"'generation': mask_steps is 3, but there are only 2 steps",
    ),
    "paper's extractors without their weights": (
        lambda: demo(base={"pretrained": None}, metrics={"extractors": "paper", "weights_folder": "none"}).check(),
        r"metrics\.extractors is 'paper' in seas on mine, but metrics\.weights_folder \(none\) lacks the weights",
    ),
    "up block that no base has": (
        lambda: demo(base={"pretrained": None}, rmp={"unet_blocks": [9]}).check(),
        r"rmp\.unet_blocks is \[9\] in seas on mine, but the base's U-Net has 4 up blocks",
    ),
    "blocks of the U-Net that are all too coarse": (
        lambda: demo(base={"pretrained": None}, rmp={"unet_blocks": [1, 2]}).check(),
        r"rmp\.unet_blocks is \[1, 2\] in seas on mine, .* the last of them must be 3 or 4",
    ),
    "base without tokenizer": (lambda: base_lacking("tokenizer/vocab.json"), r"lacks tokenizer/vocab\.json"),
    "base with half a tokenizer": (lambda: base_lacking("tokenizer/merges.txt"), r"lacks tokenizer/merges\.txt"),
}


def spoilt(change):
    change(Path("data/mine/washer"))
    index_product(Path("data/mine"), "mvtec_ad", "washer", output=Path("results/index.parquet"))


def save(image, path):
    Image.fromarray(image).save(path)


def odd_product(product):
    product.rename(product.with_name("my washer"))
    demo().products("mine")


def split_with(change, **options):
    change(Path("data/mine/washer"))
    index_product(Path("data/mine"), "mvtec_ad", "washer", output=Path("index.parquet"))
    data = DataSettings(**{"image_size": 32, **options})
    split_product(Path("index.parquet"), data, 0, root=Path("data/mine"), output=Path("results/split.parquet"))


def only(count):
    def change(product):
        for folder, suffix in (("test", ".png"), ("ground_truth", "_mask.png")):
            for number in range(count, 6):
                (product / folder / "rust" / f"{number:03d}{suffix}").unlink()

    return change


def corner_defect(product):
    mask = np.zeros((48, 96), bool)
    mask[0, 0] = True
    write_mask(mask, product / "ground_truth/rust/000_mask.png")
    write_image(np.zeros((48, 96, 3), np.uint8), product / "test/rust/000.png")


DATASET = {
    "mask of another size": (
        lambda p: write_mask(np.ones((5, 7), bool), p / "ground_truth/rust/001_mask.png"),
        r"001_mask\.png is 7×5 pixels, its image 48×48",
    ),
    "missing mask": (
        lambda p: (p / "ground_truth/rust/002_mask.png").unlink(),
        r"test/rust/002\.png: its mask 002_mask\.png \(or 002\.png\) is missing",
    ),
    "mask without image": (
        lambda p: (p / "test/rust/002.png").unlink(),
        r"002_mask\.png: the mask belongs to no image",
    ),
    "empty mask": (
        lambda p: write_mask(np.zeros((48, 48), bool), p / "ground_truth/rust/001_mask.png"),
        r"001_mask\.png is empty",
    ),
    "grey mask": (
        lambda p: save(np.arange(2304, dtype=np.uint8).reshape(48, 48), p / "ground_truth/rust/001_mask.png"),
        r"001_mask\.png has 256 values",
    ),
    "broken image": (
        lambda p: (p / "test/rust/003.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken"),
        r"test/rust/003\.png cannot be read",
    ),
    "truncated image": (
        lambda p: (p / "train/good/001.png").write_bytes((p / "train/good/001.png").read_bytes()[:-900]),
        r"train/good/001\.png cannot be read",
    ),
    "empty file": (lambda p: (p / "train/good/001.png").write_bytes(b""), r"train/good/001\.png cannot be read"),
    "empty type": (
        lambda p: [f.unlink() for f in [*(p / "test/rust").iterdir(), *(p / "ground_truth/rust").iterdir()]],
        r"test/rust holds no image",
    ),
    "no normals": (lambda p: [f.unlink() for f in (p / "train/good").iterdir()], r"train/good holds no image"),
    "no anomaly type": (lambda p: shutil.rmtree(p / "test"), r"test holds no anomaly type"),
    "odd name of a type": (lambda p: (p / "test/rust").rename(p / "test/röst, heavy"), r"rename the type"),
    "too long and narrow": (
        lambda p: save(np.zeros((2, 400, 3), np.uint8), p / "train/good/001.png"),
        r"train/good/001\.png is 400×2 pixels; one side may be 20 times the other",
    ),
    "floating-point image": (
        lambda p: Image.fromarray(np.ones((48, 48), np.float32)).save(p / "train/good/001.tif"),
        r"train/good/001\.tif holds floating-point values",
    ),
    "transparent mask": (
        lambda p: Image.new("RGBA", (48, 48), (255, 255, 255, 0)).save(p / "ground_truth/rust/001_mask.png"),
        r"001_mask\.png is partly transparent",
    ),
    "two masks of one image": (
        lambda p: shutil.copy(p / "ground_truth/rust/000_mask.png", p / "ground_truth/rust/000.png"),
        r"several masks belong to the image '000'",
    ),
    "masks of a type without images": (
        lambda p: shutil.copytree(p / "ground_truth/rust", p / "ground_truth/crack"),
        r"ground_truth/crack: there are masks, but no folder .*test/crack",
    ),
    "abnormal images among the training images": (
        lambda p: shutil.copytree(p / "test/rust", p / "train/rust"),
        r"train/rust: only train/good trains",
    ),
    "folder within a type": (
        lambda p: shutil.copytree(p / "test/rust", p / "test/rust/more"),
        r"test/rust/more: folders within a type are not read",
    ),
    "picture of another kind": (
        lambda p: (p / "test/rust/009.webp").write_bytes(b"x"),
        r"009\.webp: this kind of picture is not read",
    ),
    "name that cannot be printed": (
        lambda p: shutil.copy(p / "train/good/000.png", p / "train/good/a\nb.png"),
        r"rename the file 'a\\nb\.png'",
    ),
    "two images of one name": (
        lambda p: shutil.copy(p / "test/rust/000.png", p / "test/rust/000.jpg"),
        r"several images are called '000'",
    ),
}
SPLIT = {
    "type too small": (lambda: split_with(only(2)), r"the type 'rust' has 2 images; 3 are needed"),
    "more shots than a third": (
        lambda: split_with(only(4), shots=4),
        r"data\.shots is 4, but a third of the type 'dent' has 2 images",
    ),
    "defect cut away": (
        lambda: split_with(corner_defect, fit="crop"),
        r"test/rust/000\.png: data\.fit 'crop' cuts its whole defect away",
    ),
    "damaged table": (
        lambda: (
            Path("index.parquet").write_bytes(b"x"),
            split_product(Path("index.parquet"), DataSettings(), 0, root=Path(), output=Path("results/split.parquet")),
        ),
        r"index\.parquet cannot be read",
    ),
}


def sentences(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line]


def snapshot(folder):
    return sorted(str(path) for path in folder.rglob("*")) if folder.exists() else []


def ends_in_one_sentence(action, pattern, capsys, output):
    before = snapshot(output)
    with pytest.raises(SystemExit) as end, reporting_faults():
        action()
    assert end.value.code == 1
    lines = sentences(capsys)
    assert lines[0].startswith("seas: ")
    assert not any("Traceback" in line for line in lines)
    text = "\n".join(lines)
    assert re.search(pattern, text), text
    assert snapshot(output) == before


@pytest.mark.parametrize("kind", CONFIGURATION)
def test_configuration(kind, house, capsys):
    action, pattern = CONFIGURATION[kind]
    ends_in_one_sentence(action, pattern, capsys, house / "results")


@pytest.mark.parametrize("kind", DATASET)
def test_dataset(kind, house, capsys):
    change, pattern = DATASET[kind]
    ends_in_one_sentence(lambda: spoilt(change), pattern, capsys, house / "results")


@pytest.mark.parametrize("kind", SPLIT)
def test_split(kind, house, capsys):
    action, pattern = SPLIT[kind]
    ends_in_one_sentence(action, pattern, capsys, house / "results")


def test_odd_product_name(house, capsys):
    action = lambda: odd_product(Path("data/mine/washer"))  # noqa: E731
    ends_in_one_sentence(action, r"'my washer' cannot be the name of a product; rename", capsys, house / "results")


def test_a_product_without_normals(house, capsys):
    (house / "data/mine/bolt/test/rust").mkdir(parents=True)
    pattern = r"data/mine/bolt has no folder train/good"
    ends_in_one_sentence(lambda: demo().products("mine"), pattern, capsys, house / "results")


class TestWeights:
    def spoil(self, folder, house, file, content):
        copy = house / "spoilt"
        shutil.copytree(folder, copy)
        (copy / file).unlink() if content is None else (copy / file).write_bytes(content)
        return copy

    @pytest.mark.parametrize(
        ("file", "content", "pattern"),
        [
            ("unet/diffusion_pytorch_model.safetensors", b"damaged", r"spoilt cannot be loaded"),
            ("unet/diffusion_pytorch_model.safetensors", None, r"spoilt' lacks unet/diffusion"),
            ("prompts.json", b"{", r"prompts\.json is missing or damaged"),
            ("encoded_images.safetensors", b"", r"encoded_images\.safetensors cannot be read"),
            ("manifest.json", b"{", r"manifest\.json is damaged"),
            ("manifest.json", None, r"is not a finished artifact: it has no manifest\.json"),
        ],
    )
    def test_generator(self, generator, rmp, house, capsys, file, content, pattern):
        copy = self.spoil(generator, house, file, content)
        arguments = {"anomaly_type": "rust", "number": 1, "seed": 0, "rmp": rmp, "device": "cpu"}
        action = lambda: generate_by_hand(copy, output=house / "results/out", **arguments)  # noqa: E731
        with pytest.raises(SystemExit) as end, reporting_faults():
            action()
        assert end.value.code == 1
        text = "\n".join(sentences(capsys))
        assert re.search(pattern, text), text
        assert "Traceback" not in text
        assert not (house / "results/out").exists()

    @pytest.mark.parametrize(
        ("file", "content"), [("rmp.safetensors", b"damaged"), ("rmp.safetensors", None), ("config.json", b"{")]
    )
    def test_mask_branch(self, generator, rmp, house, capsys, file, content):
        copy = self.spoil(rmp, house, file, content)
        arguments = {"anomaly_type": "rust", "number": 1, "seed": 0, "rmp": copy, "device": "cpu"}
        with pytest.raises(SystemExit), reporting_faults():
            generate_by_hand(generator, output=house / "results/out", **arguments)
        text = "\n".join(sentences(capsys))
        assert "spoilt" in text and "Traceback" not in text

    def test_no_segmentation_model(self, house, capsys):
        photograph = house / "data/mine/washer/test/rust/000.png"
        action = lambda: predict_images(house / "config", [photograph], house / "results/out", CPU)  # noqa: E731
        ends_in_one_sentence(action, r"config", capsys, house / "results")


class TestSettingsAgainstWeights:
    def test_more_tokens_than_positions(self, tiny_base, miniature, house, capsys):
        settings = GeneratorSettings(anomaly_tokens=40, attention_layers=(1, 2))
        action = lambda: train_generator(  # noqa: E731
            tiny_base, miniature.split, miniature.root, settings, miniature.data, CPU, 0, output=house / "washer"
        )
        ends_in_one_sentence(action, r"lower generator\.anomaly_tokens", capsys, house / "washer")

    def test_unknown_start_word(self, tiny_base, miniature, house, capsys):
        settings = GeneratorSettings(anomaly_word="zyx", attention_layers=(1, 2))
        action = lambda: train_generator(  # noqa: E731
            tiny_base, miniature.split, miniature.root, settings, miniature.data, CPU, 0, output=house / "washer"
        )
        ends_in_one_sentence(action, r"generator\.anomaly_word: .*does not know 'zyx'", capsys, house / "washer")

    def test_a_block_that_the_unet_lacks(self, generator, miniature, house, capsys):
        settings = RmpSettings(unet_blocks=(2, 9))
        action = lambda: train_rmp(generator, settings, CPU, 0, output=house / "washer")  # noqa: E731
        ends_in_one_sentence(action, r"rmp\.unet_blocks is \[2, 9\]", capsys, house / "washer")

    def test_cuda_without_a_gpu(self, tiny_base, miniature, house, capsys):
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        action = lambda: train_generator(  # noqa: E731
            tiny_base,
            miniature.split,
            miniature.root,
            GeneratorSettings(),
            miniature.data,
            ComputeSettings(),
            0,
            output=house / "washer",
        )
        ends_in_one_sentence(
            action, r"compute\.device is 'cuda', but this machine has no usable GPU", capsys, house / "washer"
        )


class TestDisk:
    @pytest.mark.parametrize(
        ("fault", "pattern"),
        [
            (
                OSError(errno.ENOSPC, "No space left on device", "results/x.png"),
                r"no space is left on the disk at results/x\.png",
            ),
            (RuntimeError("I/O error: No space left on device (os error 28)"), r"no space is left on the disk"),
            (
                torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"),
                r"the GPU's memory is too small \(CUDA out of memory\); .*config/card_12gb\.yaml",
            ),
            (
                PermissionError(errno.EACCES, "Permission denied", "results/x.png"),
                r"no permission to write or read at results/x\.png",
            ),
        ],
    )
    def test_a_stage_that_cannot_write(self, house, capsys, fault, pattern):
        output = house / "results/generation/washer"

        def stage():
            with writing_folder(output, Provenance("generation", 1, {}, 0, {})) as folder:
                (folder / "half.png").write_bytes(b"half")
                raise fault

        (house / "results/generation").mkdir(parents=True)
        ends_in_one_sentence(stage, pattern, capsys, house / "results")

    def test_a_job_tells_the_screen_one_sentence_and_the_log_the_rest(self, tmp_path, capsys):
        log = tmp_path / "logs/stage.log"
        with pytest.raises(SystemExit) as end, job(str(log)):
            raise ZeroDivisionError("a fault of the program")
        assert end.value.code == 1
        lines = sentences(capsys)
        assert len(lines) == 1 and "ZeroDivisionError" in lines[0] and str(log.with_suffix(".traceback")) in lines[0]
        assert "Traceback" in log.with_suffix(".traceback").read_text()
        assert "Traceback" not in log.read_text()

    def test_a_job_tells_a_fault_of_the_input_without_traceback(self, tmp_path, capsys):
        log = tmp_path / "stage.log"
        with pytest.raises(SystemExit), job(str(log)):
            raise InputError("the mask x.png is empty")
        assert sentences(capsys) == ["seas: the mask x.png is empty"]
        assert log.read_text() == "seas: the mask x.png is empty\n"


def test_there_are_enough_kinds():
    assert len(CONFIGURATION) + len(DATASET) + len(SPLIT) >= 25


def test_the_untouched_dataset_has_no_fault(house):
    split_with(lambda product: None)
    assert demo().products("mine") == ["washer"]


def test_a_full_disk_costs_lines_of_the_log_and_not_the_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit), job("/dev/full"):
        print("x" * 100_000)
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "seas: no space is left on the disk" in capsys.readouterr().err


def test_levels_of_attention_that_a_brought_base_lacks(generator, house):
    shutil.copytree(generator, "brought")
    config = json.loads(Path("brought/unet/config.json").read_text())
    config["down_block_types"] = ["CrossAttnDownBlock2D"] + ["DownBlock2D"] * 3
    Path("brought/unet/config.json").write_text(json.dumps(config))
    given = {"base": {"name": "brought", "pretrained": "brought"}}
    demo(generator={"attention_layers": [1, 2]}, **given).check()
    with pytest.raises(InputError, match=r"attention_layers is \[2, 3\] in seas on mine, but .* 2 levels"):
        demo(generator={"attention_layers": [2, 3]}, **given).check()


def test_a_screen_on_a_full_disk_costs_lines_and_not_the_job(tmp_path, monkeypatch):
    """A cluster job's screen is a file on the disk of its results."""
    done, screen = [], open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", screen)
    with job(str(tmp_path / "stage.log")):
        print("a line", flush=True)
        done.append("made")
    monkeypatch.undo()
    with suppress(OSError):
        screen.close()
    assert done == ["made"] and (tmp_path / "stage.log").read_text() == "a line\n"
