"""The command line: what is done by hand beside the workflow."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from seas.jobs import reporting_faults

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="SeaS by hand. The chain itself runs by `snakemake`.",
)


GIVEN = typer.Option("--config", help="a configuration file, or key=value; again for each that snakemake is given")


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(help="name of a file of config/datasets/, without .yaml")],
    out: Annotated[
        Path | None, typer.Option(help="where the contact sheets go; results/check/<dataset> when absent")
    ] = None,
    config: Annotated[list[str], GIVEN] = [],  # noqa: B006
) -> None:
    """Show what the networks will see of a dataset: counts, faults, shots, contact sheets, defects lost by fitting."""
    with reporting_faults():
        from seas.data.check import check_dataset
        from seas.workflow import load_workflow

        flow = load_workflow(config, datasets=[dataset])
        flow.check_groups()
        file = flow.datasets[dataset]
        settings = flow.settings(dataset, flow.config.experiments[0])
        folder = out or Path("results/check") / dataset
        print(check_dataset(file.root, file.layout, settings.data, folder, flow.products(dataset)))
        print(f"Contact sheets: {folder}")


@app.command()
def windows(
    root: Annotated[Path, typer.Argument(help="folder of a dataset in MVTec-AD layout")],
    out: Annotated[Path, typer.Argument(help="folder to write; it must not exist")],
    side: Annotated[int, typer.Option(min=16, help="side of a window, in the photographs' pixels")],
    groups: Annotated[
        str | None, typer.Option(help="csv in the products' folders, as data.groups names it, to carry over")
    ] = None,
) -> None:
    """Cut photographs into square windows, for defects that vanish when a whole photograph is shrunk."""
    with reporting_faults():
        from seas.data.windows import PHOTOGRAPHS, SMALLEST_PART, write_windows

        counts = write_windows(root, side, out, groups)
        print(
            f"{counts.written} windows of {counts.photographs} photographs in {out}; "
            f"keep those of one photograph together with data.groups: {PHOTOGRAPHS}"
        )
        if counts.left_out:
            print(
                f"{counts.left_out} windows with fewer than {math.ceil(SMALLEST_PART * side**2)} pixels of a defect are left out "
                "(the largest part in each photograph stays)"
            )


@app.command()
def generate(
    generator: Annotated[Path, typer.Argument(help="folder of a finished generator")],
    type: Annotated[str, typer.Option("--type", help="anomaly type; 'good' for normals")],
    number: Annotated[int, typer.Option("-n", min=1, help="number of images")],
    out: Annotated[Path, typer.Option(help="folder to write; it must not exist")],
    first: Annotated[int, typer.Option(min=0, help="index of the first image, to make a set in shards")] = 0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="image i depends on the seed, the type and i alone; the generator's when absent"),
    ] = None,
    rmp: Annotated[
        Path | None, typer.Option(help="folder of the mask branch; the one beside the generator when absent")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="where the networks run")] = "cpu",
) -> None:
    """Make images with masks from a finished generator."""
    with reporting_faults():
        from seas.generation.by_hand import generate_by_hand

        generate_by_hand(
            generator, anomaly_type=type, number=number, output=out, seed=seed, first=first, rmp=rmp, device=device
        )
        print(f"Images and masks: {out}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="folder of a trained segmentation model")],
    images: Annotated[list[Path], typer.Argument(help="photographs, or folders of them")],
    out: Annotated[Path, typer.Option(help="folder to write; it must not exist")],
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="where the networks run")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
    window_side: Annotated[
        int | None,
        typer.Option(min=16, help="of a model trained on `seas windows`: their --side, to cut photographs as it did"),
    ] = None,
) -> None:
    """Score photographs: score maps, overlays, and predictions.csv with a decision for each."""
    with reporting_faults():
        from seas.downstream.predict import predict_images
        from seas.settings import ComputeSettings

        compute = ComputeSettings(device=device, precision="fp32", threads=threads)
        predict_images(model, images, out, compute, window_side=window_side)
        print(f"Decisions: {out / 'predictions.csv'}")


@app.command()
def progress(config: Annotated[list[str], GIVEN] = []) -> None:  # noqa: B006
    """Show which product is at which stage, what is at work, what failed, and where its log is."""
    with reporting_faults():
        from seas.progress import progress_page
        from seas.workflow import load_workflow

        print(progress_page(load_workflow(config)))


@app.command()
def cost(config: Annotated[list[str], GIVEN] = []) -> None:  # noqa: B006
    """Estimate what a run costs: jobs, hours of GPUs and CPUs, disk, and the longest path."""
    with reporting_faults():
        from seas.cost import cost_page
        from seas.workflow import load_workflow

        flow = load_workflow(config)
        flow.check()
        print(cost_page(flow))


@app.command()
def miniature(
    out: Annotated[Path, typer.Argument(help="folder to write")] = Path("data/miniature"),
    seed: Annotated[int, typer.Option(min=0, help="of the pictures")] = 0,
) -> None:
    """Write the miniature dataset of the demo: two products, three anomaly types each."""
    with reporting_faults():
        from seas.data.miniature import write_miniature

        write_miniature(out, seed=seed)
        print(f"Miniature dataset: {out}")


@app.command()
def record() -> None:
    """Record in DVC what is finished in results/, and stage for git what git keeps of it."""
    with reporting_faults():
        from seas.versions import record as record_results

        found = record_results()
        print(f"{len(found)} results are recorded and staged. To keep them: git commit; to share them: dvc push")


@app.command()
def restore(config: Annotated[list[str], GIVEN] = []) -> None:  # noqa: B006
    """After `dvc pull` or `dvc checkout`: check every result against its manifest and the settings.

    What agrees counts as up to date for Snakemake; what does not is named and made anew by the next run.
    """
    with reporting_faults():
        from seas.versions import restore as restore_results
        from seas.workflow import load_workflow

        found = restore_results(load_workflow(config), config)
        for path, reason in found.aside.items():
            print(f"set aside: {path}: {reason}")
        for path, reason in found.unchecked.items():
            print(f"not checked: {path}: {reason}")
        for path in found.missing:
            print(f"missing: {path}")
        print(
            f"{len(found.fresh)} results are up to date; the next run makes {len(found.aside) + len(found.missing)} anew"
        )


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="a git revision with results, or an experiment of DVC")],
    after: Annotated[str | None, typer.Argument(help="another one; the working folder when absent")] = None,
) -> None:
    """Compare the results of two revisions: settings and numbers that changed, and which changes are beyond chance."""
    with reporting_faults():
        from seas.compare import compare as compare_revisions

        print(compare_revisions(before, after))


@app.command()
def settings() -> None:
    """Write config/config.yaml, config/schema.json and config/README.md anew from the settings classes."""
    with reporting_faults():
        from seas.reference import write_reference

        for path in write_reference(Path("config")):
            print(path)


if __name__ == "__main__":
    app()
