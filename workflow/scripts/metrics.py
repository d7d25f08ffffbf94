from pathlib import Path

from seas.jobs import job

with job(snakemake.log[0]):
    from seas.config import read_dataset
    from seas.data.settings import DataSettings
    from seas.metrics.evaluate import evaluate_product
    from seas.metrics.settings import MetricsSettings
    from seas.settings import ComputeSettings

    settings = snakemake.params.settings
    evaluate_product(
        Path(snakemake.input.generation),
        Path(snakemake.input.split),
        read_dataset(snakemake.wildcards.dataset).root,
        MetricsSettings(**settings["metrics"], **snakemake.params.not_obeyed),
        DataSettings(**settings["data"]),
        ComputeSettings.of_job(settings["compute"], snakemake.threads),
        int(snakemake.wildcards.seed),
        dataset=snakemake.wildcards.dataset,
        experiment=snakemake.wildcards.experiment,
        product=snakemake.wildcards.product,
        output=Path(snakemake.output[0]),
    )
