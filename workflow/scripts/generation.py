from pathlib import Path

from seas.jobs import job

with job(snakemake.log[0]):
    from seas.generation.diffusion import generate_product
    from seas.generation.settings import GenerationSettings
    from seas.settings import ComputeSettings

    settings = snakemake.params.settings
    generate_product(
        Path(snakemake.input.generator),
        Path(snakemake.input.rmp),
        GenerationSettings(**settings["generation"]),
        ComputeSettings(**settings["compute"]),
        int(snakemake.wildcards.seed),
        output=Path(snakemake.output[0]),
    )
