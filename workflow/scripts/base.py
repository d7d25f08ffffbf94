from pathlib import Path

from seas.jobs import job

with job(snakemake.log[0]):
    from seas.base.settings import BaseSettings
    from seas.base.train import train_base
    from seas.settings import ComputeSettings

    settings = snakemake.params.settings
    train_base(
        BaseSettings(**settings["base"]),
        ComputeSettings.of_job(settings["compute"], snakemake.threads),
        output=Path(snakemake.output[0]),
        tensorboard=Path(snakemake.log[0]).with_suffix(""),
    )
