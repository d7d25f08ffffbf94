from pathlib import Path

from seas.jobs import job

with job(snakemake.log[0]):
    from seas.config import read_dataset
    from seas.data.settings import DataSettings
    from seas.downstream.settings import DownstreamSettings
    from seas.downstream.train import train_segmenter
    from seas.settings import ComputeSettings

    settings, products = snakemake.params.settings, snakemake.params.products
    trees = {
        product: [Path(tree) for tree in snakemake.input.trees if Path(tree).name == product] for product in products
    }
    train_segmenter(
        snakemake.wildcards.model,
        snakemake.wildcards.trained_on,
        dict(zip(products, map(Path, snakemake.input.splits), strict=True)),
        trees,
        read_dataset(snakemake.wildcards.dataset).root,
        DownstreamSettings(**settings["downstream"], **snakemake.params.not_obeyed),
        DataSettings(**settings["data"]),
        ComputeSettings.of_job(settings["compute"], snakemake.threads),
        int(snakemake.wildcards.seed),
        dataset=snakemake.wildcards.dataset,
        experiment=snakemake.wildcards.experiment,
        output=Path(snakemake.output[0]),
        tensorboard=Path(snakemake.log[0]).with_suffix(""),
    )
