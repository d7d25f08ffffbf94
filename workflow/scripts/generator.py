from pathlib import Path

from seas.jobs import job

with job(snakemake.log[0]):
    from seas.config import read_dataset
    from seas.data.settings import DataSettings
    from seas.generator.settings import GeneratorSettings
    from seas.generator.train import train_generator
    from seas.settings import ComputeSettings

    settings = snakemake.params.settings
    train_generator(
        Path(snakemake.params.base_folder),
        Path(snakemake.input.split),
        read_dataset(snakemake.wildcards.dataset).root,
        GeneratorSettings(**settings["generator"], **snakemake.params.not_obeyed),
        DataSettings(**settings["data"]),
        ComputeSettings.of_job(settings["compute"], snakemake.threads),
        int(snakemake.wildcards.seed),
        output=Path(snakemake.output[0]),
        tensorboard=Path(snakemake.log[0]).with_suffix(""),
    )
