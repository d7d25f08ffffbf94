from pathlib import Path

from seas.jobs import job

with job(snakemake.log[0]):
    from seas.config import read_dataset
    from seas.data.index import split_product
    from seas.data.settings import DataSettings

    split_product(
        Path(snakemake.input[0]),
        DataSettings(**snakemake.params.settings["data"]),
        int(snakemake.wildcards.seed),
        root=read_dataset(snakemake.wildcards.dataset).root,
        output=Path(snakemake.output[0]),
    )
