from pathlib import Path

from seas.jobs import job

with job(snakemake.log[0]):
    from seas.rmp.settings import RmpSettings
    from seas.rmp.train import train_rmp
    from seas.settings import ComputeSettings

    settings = snakemake.params.settings
    train_rmp(
        Path(snakemake.input.generator),
        RmpSettings(**settings["rmp"], **snakemake.params.not_obeyed),
        ComputeSettings.of_job(settings["compute"], snakemake.threads),
        int(snakemake.wildcards.seed),
        output=Path(snakemake.output[0]),
        tensorboard=Path(snakemake.log[0]).with_suffix(""),
    )
