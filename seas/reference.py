"""The configuration file of the paper, its JSON schema and the reference page, generated from the settings classes."""

import json
import textwrap
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from seas.artifacts import writing_file
from seas.config import EXPERIMENTS, Config, Settings, experiment_settings, lineage, read_experiment
from seas.report.tables import paper_variants
from seas.settings import StationSettings

PAPER = {"datasets": ["mvtec_ad"]}
"""What the paper's run adds to the defaults of the classes."""
COMPARED = ("seas", "released_code")
"""The experiments whose values the reference page sets side by side."""


def write_reference(folder: Path) -> list[Path]:
    """Write config.yaml, schema.json and README.md into ``folder``; gives their paths."""
    texts = {"config.yaml": paper_config(), "schema.json": json_schema(), "README.md": reference_page()}
    for name, text in texts.items():
        with writing_file(folder / name) as partial:
            partial.write_text(text)
    return [folder / name for name in texts]


def json_schema() -> str:
    """The JSON schema of a configuration file, for editors."""
    return json.dumps(Config.model_json_schema(), indent=1, sort_keys=True) + "\n"


def paper_config() -> str:
    """config/config.yaml: every setting with its default, its meaning, unit and source."""
    config = Config(**PAPER)
    lines = [
        "# The paper's run. Written by `seas settings` from the settings classes; change it there or lay a file over it."
    ]
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if isinstance(value, StationSettings):
            lines += ["", f"# {_first_line(type(value))}", f"{name}:", *_section(value, "  ")]
        else:
            lines += _entry(name, value, field, "")
    return "\n".join(lines) + "\n"


def _section(settings: StationSettings, indent: str) -> Iterator[str]:
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, StationSettings):
            yield f"{indent}# {_first_line(type(value))}"
            yield f"{indent}{name}:"
            yield from _section(value, indent + "  ")
        else:
            yield from _entry(name, value, field, indent)


def _entry(name: str, value: Any, field: FieldInfo, indent: str) -> list[str]:
    plain = value.model_dump(mode="json") if isinstance(value, StationSettings) else _plain(value)
    comment = textwrap.wrap(_meaning(field), 110 - len(indent))
    return [*(f"{indent}# {line}" for line in comment), f"{indent}{name}: {_inline(plain)}"]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...").strip()


def _meaning(field: FieldInfo) -> str:
    extra = field.json_schema_extra or {}
    details = [f"in {extra['unit']}"] if "unit" in extra else []
    details += [extra["source"]] if "source" in extra else []
    return (field.description or "") + (f" ({'; '.join(details)})" if details else "")


def _first_line(model: type[StationSettings]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def reference_page() -> str:
    """config/README.md: a table of the settings of each station."""
    lines = [
        "# Settings",
        "",
        "Written by `seas settings` from the settings classes. `config.yaml` is the paper's run; `demo.yaml` is laid over it",
        "for the small run on a CPU, `windows.yaml` over `demo.yaml` for windows of photographs; `card_24gb.yaml` and",
        "`card_12gb.yaml` make the paper's run fit smaller GPUs, and `base.yaml` makes the shipped base.",
        "A file of `datasets/` holds `root` and, as needed, a `description` for the report, the `layout`",
        "(`mvtec_ad`, the only one so far) and `settings` that differ for this dataset. A file of `experiments/` holds its parent",
        "(`extends`), the `settings` that differ from the parent's, a `description`, and a `variant` if it is a row of the paper's tables.",
        "The more particular wins: config < dataset < experiment. `report` may be set in the configuration file only.",
        "`generation.shards` is taken from the experiment that owns the generated set; it changes no image.",
        "",
        "To change a setting, write a file of your own and name it last: `--configfile config/demo.yaml my.yaml`. A name such as",
        "`generation.shards` is the key `shards` below `generation`: `generation: {shards: 10}`; for one run,",
        "`--config 'generation={shards: 10}'`. Neither wins over a dataset's or an experiment's file that sets the same key: change it",
        "there.",
        "",
        "`seas` is the method as this project reads the paper; `released_code` sets every option as the authors' code does. That code's",
        "mistakes are no options: type numbers that are mixed up on VisA; only the first eight token positions; normals of which only",
        "some are used, each paired with one image; generation from the first ten normals only; batch statistics at inference; masks cut",
        "to whole numbers; another value range for the centres of IC-LPIPS. Nor is its 8-bit optimizer.",
        "",
        "## What runs",
        "",
        *_table(Config, {"config.yaml": Config(**PAPER)}, ("datasets", "products", "experiments", "seeds")),
    ]
    compared = {name: experiment_settings(name) for name in COMPARED if (EXPERIMENTS / f"{name}.yaml").is_file()}
    for name, model in _stations():
        columns = {experiment: getattr(settings, name) for experiment, settings in compared.items()}
        lines += ["", f"## {name}", "", _first_line(model), "", *_table(model, columns)]
    lines += ["", "## Experiments", "", *_experiments()]
    return "\n".join(lines) + "\n"


def _stations() -> Iterator[tuple[str, type[StationSettings]]]:
    for name, field in Settings.model_fields.items():
        yield name, field.annotation


def _experiments() -> Iterator[str]:
    """The files of config/experiments/, with the rows of the paper's ablations that they reproduce."""
    printed = paper_variants()
    yield "A variant is a row of the paper's tables; the report sets the experiment beside it. An experiment without changes is the"
    yield "configuration as it is: over `config.yaml` it is what its name says, over a file that changes the setting it is not."
    yield ""
    yield "| experiment | extends | changes | variant (tables) | description |"
    yield "|---|---|---|---|---|"
    for path in sorted(EXPERIMENTS.glob("*.yaml")):
        file = read_experiment(path.stem)
        changes = ", ".join(f"`{name}: {_inline(value)}`" for name, value in _leaves(file.settings))
        tables = ", ".join(map(str, printed.get(file.variant, ())))
        variant = f"`{file.variant}` ({tables})" if file.variant else ""
        yield f"| `{path.stem}` | {' < '.join(lineage(path.stem)[1:])} | {changes} | {variant} | {file.description} |"


def _leaves(content: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield path + name, value


def _table(
    model: type[StationSettings], columns: Mapping[str, StationSettings], names: Container[str] | None = None
) -> list[str]:
    """One row for each setting, or for those of ``names``, with its value in each of ``columns``: bold where it is not the first's."""
    headings = ["setting", *columns, "allowed", "meaning", "source"]
    rows = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for name, field in model.model_fields.items():
        if names is not None and name not in names:
            continue
        extra = field.json_schema_extra or {}
        values = [_inline(_plain(getattr(settings, name))) for settings in columns.values()]
        unit = f" [{extra['unit']}]" if "unit" in extra else ""
        cells = (
            f"`{name}`",
            *(f"`{value}`" if value == values[0] else f"**`{value}`**" for value in values),
            _allowed(model, name),
            f"{field.description}{unit}".replace("<", "&lt;"),  # Markdown would take a token's name for HTML
            extra.get("source", ""),
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _allowed(model: type[StationSettings], name: str) -> str:
    schema = model.model_json_schema()["properties"][name]
    options = schema.get("anyOf", [schema])
    return " or ".join(filter(None, (_allowed_values(option) for option in options)))


def _allowed_values(schema: dict[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if {"enum", "const"} & set(items := schema.get("items", {})):
        return f"list of {_allowed_values(items)}"
    signs = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
        "multipleOf": "a multiple of",
    }
    limits = " and ".join(f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)
    kind = {"integer": "whole number", "array": "list", "object": "mapping"}.get(
        schema.get("type", ""), schema.get("type", "")
    )
    return f"{kind} {limits}".strip()
