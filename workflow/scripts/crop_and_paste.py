from pathlib import Path

from seas.jobs import job

with job(snakemake.log[0]):
    from seas.config import read_dataset
    from seas.data.settings import DataSettings
    from seas.generation.crop_and_paste import crop_and_paste_product

    crop_and_paste_product(
        Path(snakemake.input[0]),
        read_dataset(snakemake.wildcards.dataset).root,
        snakemake.params.pairs_per_type,
        snakemake.params.largest_mask,
        DataSettings(**snakemake.params.settings["data"]),
        int(snakemake.wildcards.seed),
        output=Path(snakemake.output[0]),
    )
