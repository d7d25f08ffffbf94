from pathlib import Path

from seas.jobs import job

with job(snakemake.log[0]):
    from seas.generation.diffusion import generate_product, merge_shards
    from seas.generation.settings import GenerationSettings
    from seas.settings import ComputeSettings

    settings = snakemake.params.settings
    made = (
        Path(snakemake.input.generator),
        Path(snakemake.input.rmp),
        GenerationSettings(**settings["generation"], shards=snakemake.params.get("shards", 1)),
        ComputeSettings.of_job(settings["compute"], snakemake.threads),
        int(snakemake.wildcards.seed),
    )
    output, shard = Path(snakemake.output[0]), snakemake.wildcards.get("shard")
    if shard is not None:
        generate_product(*made, shard=int(shard), output=output)
    elif snakemake.input.get("shards"):
        merge_shards([Path(shard) for shard in snakemake.input.shards], *made, output=output)
    else:
        generate_product(*made, output=output)
