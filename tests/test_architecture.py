"""The rules of the house: who may import whom, what is generated, what the demo may change."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "seas"
LEFT_OF = {
    "base": set(),
    "data": set(),
    "generator": {"base", "data"},
    "rmp": {"base", "data", "generator"},
    "generation": {"base", "data", "generator", "rmp"},
    "metrics": {"base", "data", "generator", "rmp", "generation"},
    "downstream": {"base", "data", "generator", "rmp", "generation"},
    "report": {"base", "data", "generator", "rmp", "generation", "metrics", "downstream"},
}
COMPOSERS = {"config", "workflow", "cli", "reference", "versions", "compare", "plan"}
DEMO_CHANGES = {
    "datasets",
    "compute.device",
    "compute.precision",
    "compute.threads",
    "base.name",
    "base.pretrained",
    "data.image_size",
    "generator.updates_per_type",
    "generator.unet_learning_rate",
    "generator.embedding_learning_rate",
    "generator.attention_layers",
    "generator.checkpoint_every",
    "rmp.channels",
    "rmp.updates_per_type",
    "rmp.timesteps",
    "rmp.checkpoint_every",
    "generation.pairs_per_type",
    "generation.normals",
    "generation.guidance",
    "generation.initial_signal",
    "metrics.image_size",
    "downstream.image_size",
    "downstream.updates",
    "downstream.batch_size",
    "downstream.learning_rate",
    "downstream.checkpoint_every",
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_code_is_imported_leftwards_only(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    for name in imports_of(path):
        assert name.split(".")[0] != "snakemake", f"{path} imports snakemake"
        if not name.startswith("seas."):
            continue
        target = name.split(".")[1]
        if len(parts) > 1:
            assert target not in COMPOSERS, f"{path} imports {name}: settings are handed over"
            if target in LEFT_OF:
                assert target in LEFT_OF[parts[0]] | {parts[0]}, f"{path} imports {name}"
        elif parts[0] not in COMPOSERS:
            assert target not in LEFT_OF, f"{path} lies below the stations, but imports {name}"


def test_every_station_is_in_the_map():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(LEFT_OF)
    for station in LEFT_OF:
        assert (REPOSITORY / "workflow/rules" / f"{station}.smk").exists()
        assert (REPOSITORY / "tests" / f"test_{station}.py").exists()


def test_the_front_door_is_small_and_silent():
    lines = (REPOSITORY / "Snakefile").read_text().splitlines()
    assert len(lines) < 60
    for path in [REPOSITORY / "Snakefile", *(REPOSITORY / "workflow/rules").glob("*.smk")]:
        assert not re.search(r"\bprint\(", path.read_text()), path


def test_planning_loads_no_network_library():
    code = "import sys, seas.workflow; sys.exit(' '.join(m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["config.yaml", "schema.json", "README.md"])
def test_generated_files_are_up_to_date(name, tmp_path):
    from seas.reference import write_reference

    write_reference(tmp_path)
    assert (tmp_path / name).read_text() == (REPOSITORY / "config" / name).read_text(), "run `seas settings`"


def leaves(content, path=""):
    for key, value in content.items():
        if isinstance(value, dict) and f"{path}{key}" != "compute.threads":
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def test_the_demo_changes_what_its_first_line_lists_only():
    assert set(leaves(yaml.safe_load((REPOSITORY / "config/demo.yaml").read_text()))) <= DEMO_CHANGES


@pytest.mark.parametrize("card", ["card_12gb", "card_24gb"])
def test_a_recipe_for_a_small_card_changes_no_result(card):
    """Its options change where and when numbers are computed; tests/test_generator.py holds that no bit changes."""
    from seas.config import Config, overlaid, validated

    recipe = yaml.safe_load((REPOSITORY / f"config/{card}.yaml").read_text())
    assert set(leaves(recipe)) <= {"generator.gradient_checkpointing", "generator.offload_optimizer"}
    assert validated(Config, overlaid({"datasets": ["mvtec_ad"]}, recipe), card).generator.gradient_checkpointing


def test_every_setting_has_a_meaning_and_the_papers_run_names_each():
    from seas.config import Config
    from seas.settings import StationSettings

    def walk(model, path=""):
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, StationSettings):
                yield from walk(field.annotation, f"{path}{name}.")
            else:
                assert field.description, f"{path}{name} has no description"
                yield path + name

    assert set(walk(Config)) == set(leaves(yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())))
