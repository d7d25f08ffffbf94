"""The report's stage: everything that ran, as one table, one file of metrics, figures and one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from seas.artifacts import Provenance, write_table, writing_file, writing_folder
from seas.report.cost import cost
from seas.report.page import Part, render
from seas.report.parts import comparable_with_paper, grouped, limits, overview, paper_table, part_of
from seas.report.published import PLOTS, published_files
from seas.report.runs import ReportedRun, inputs_of, said_of
from seas.report.settings import STAGE_VERSION, ReportSettings
from seas.report.shots import shots_parts
from seas.report.tables import collect, markdown


def write_report(runs: Sequence[ReportedRun], settings: ReportSettings, *, output: Path) -> None:
    """Write the report's folder and, beside it, what git keeps of the results (``published_files``).

    The folder holds index.html (nothing outside it is needed), tables/results.parquet (one row a number),
    the page's tables in Markdown, tables/beside_paper.parquet and figures/.

    Raises InputError when a result is missing or damaged.
    """
    obeyed = {"report": settings.model_dump(mode="json"), "runs": said_of(runs)}
    provenance = Provenance.of("report", STAGE_VERSION, obeyed, None, inputs_of(runs))
    results = collect(runs)
    with writing_folder(output, provenance) as folder:
        drawn: dict[Path, str] = {}
        parts = list(shots_parts(runs, results, folder / "figures"))
        parts += [
            part_of(seeds, results, settings, drawn, folder / "figures" / seeds[0].dataset / seeds[0].experiment)
            for seeds in grouped(runs)
        ]
        parts.append(Part("Cost", "cost", [cost(runs)]))
        write_table(results, folder / "tables" / "results.parquet")
        compared = comparable_with_paper(results)
        write_table(compared, folder / "tables" / "beside_paper.parquet")
        _write_text(markdown(paper_table(compared)), folder / "tables" / "beside_paper.md")
        for part in parts:
            _write_text(_part_in_markdown(part), folder / "tables" / f"{part.anchor}.md")
        _write_text(render(overview(runs), parts, limits(runs, results)), folder / "index.html")
    texts = published_files(runs)
    with writing_folder(output.with_name(PLOTS), None) as folder:
        for name in [name for name in texts if name.startswith(f"{PLOTS}/")]:
            _write_text(texts.pop(name), folder / name.removeprefix(f"{PLOTS}/"))
    for name, text in texts.items():
        _write_text(text, output.with_name(name))


def _part_in_markdown(part: Part) -> str:
    blocks = [f"## {block.heading}\n\n{markdown(block.table)}" for block in part.blocks if block.table]
    return f"# {part.title}\n\n" + "\n".join(blocks)


def _write_text(text: str, path: Path) -> None:
    with writing_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
