"""The command line: each command on real input, and its faults."""

import re

import pandas as pd
import pytest
from typer.testing import CliRunner

from seas.cli import app

RUN = CliRunner()


def test_help_names_every_command():
    text = RUN.invoke(app, ["--help"]).output
    commands = ("check", "windows", "generate", "predict", "miniature", "record", "restore", "compare", "settings")
    assert all(command in text for command in commands)


def test_miniature_and_check(tmp_path, monkeypatch):
    from seas.data import miniature

    monkeypatch.chdir(tmp_path)
    (tmp_path / "config/datasets").mkdir(parents=True)
    (tmp_path / "config/experiments").mkdir()
    monkeypatch.setattr(miniature, "write_miniature", _small(miniature.write_miniature))
    assert RUN.invoke(app, ["miniature", "data/mine"]).exit_code == 0
    for experiment in ("seas", "released_code"):
        (tmp_path / f"config/experiments/{experiment}.yaml").write_text("description: x\n")
    assert RUN.invoke(app, ["settings"]).exit_code == 0
    (tmp_path / "config/datasets/mine.yaml").write_text("root: data/mine\n")
    (tmp_path / "small.yaml").write_text("base: {pretrained: null}\ndata: {image_size: 32}\n")
    result = RUN.invoke(app, ["check", "mine", "--config", "small.yaml", "--out", "sheets"])
    assert result.exit_code == 0, result.output
    assert "washer: 32 images" in result.output and "Contact sheets: sheets" in result.output
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {"fabric.png", "washer.png"}


def _small(write):
    return lambda root, seed: write(root, seed=seed, size=48, normals=10, test_normals=4, abnormal=6)


def test_generate(generator, rmp, tmp_path):
    arguments = ["--type", "good", "-n", "1", "--out", str(tmp_path / "out")]
    result = RUN.invoke(app, ["generate", str(generator), *arguments])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out/train/good/0000.png").exists()
    assert len(pd.read_parquet(tmp_path / "out/images.parquet")) == 1
    again = RUN.invoke(app, ["generate", str(generator), *arguments])
    assert again.exit_code == 1 and "exists already" in again.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "nothing"],
        ["check", "nothing", "--config", "folder"],
        ["predict", "nowhere", "x.png", "--out", "out"],
        ["record"],
        ["restore", "--config", "file", "--config", "datasets=[x]"],
        ["compare", "nowhere"],
        ["miniature", "file"],
        ["miniature", "file/below"],
        ["miniature", "/proc/nothing"],
        ["generate", "file", "--type", "rust", "-n", "1", "--out", "out"],
    ],
)
def test_faults_end_with_one_sentence(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    result = RUN.invoke(app, arguments)
    assert result.exit_code == 1
    assert result.output.startswith("seas: ") and "Traceback" not in result.output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--device", "tpu"], ["-n", "0"]])
def test_arguments_out_of_range_are_refused(generator, tmp_path, arguments):
    options = {"--type": "good", "-n": "1", "--out": str(tmp_path / "out")} | dict([arguments])
    result = RUN.invoke(app, ["generate", str(generator), *(part for pair in options.items() for part in pair)])
    assert result.exit_code == 2 and "Invalid value" in result.output and not (tmp_path / "out").exists()


def test_windows_say_how_to_keep_a_photographs_together(miniature, tmp_path):
    result = RUN.invoke(app, ["windows", str(miniature.root), str(tmp_path / "cut"), "--side", "32"])
    assert result.exit_code == 0, result.output
    assert re.search(r"\d+ windows of \d+ photographs in", result.output)
    assert re.search(r"\d+ windows with fewer than 3 pixels of a defect are left out", result.output)
    assert "data.groups: photographs.csv" in result.output
    assert (tmp_path / "cut/washer/photographs.csv").is_file()
