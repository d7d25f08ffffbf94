from pathlib import Path

from seas.jobs import job

with job(snakemake.log[0]):
    from seas.config import read_dataset
    from seas.data.index import index_product

    index_product(
        read_dataset(snakemake.wildcards.dataset).root,
        snakemake.params.layout,
        snakemake.wildcards.product,
        output=Path(snakemake.output[0]),
    )
