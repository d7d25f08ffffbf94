from seas.generation import settings as generation_settings


def shards(wc):
    return flow.shards(wc.dataset, wc.experiment, wc.seed, wc.product)


rule generation_shard:
    input:
        generator=lambda wc: flow.folder(wc.dataset, wc.experiment, wc.seed, "generator") + f"/{wc.product}",
        rmp=lambda wc: flow.folder(wc.dataset, wc.experiment, wc.seed, "rmp") + f"/{wc.product}",
    output:
        temp(directory("results/{dataset}/{experiment}/seed{seed}/shards/{product}/{shard}")),
    log:
        "results/logs/{dataset}/{experiment}/seed{seed}/shards/{product}/{shard}.log",
    threads: lambda wc: flow.threads(wc.dataset, wc.experiment, "generation")
    resources:
        **asked("generation"),
        gpu=lambda wc: flow.gpus(wc.dataset, wc.experiment),
    params:
        settings=lambda wc: flow.parameters(flow.settings(wc.dataset, wc.experiment), "generation", stage="generation"),
        shards=lambda wc: len(shards(wc)),
        stage_version=generation_settings.STAGE_VERSION,
    script:
        "../scripts/generation.py"


# In one piece, or from its shards.
rule generation:
    input:
        generator=lambda wc: flow.folder(wc.dataset, wc.experiment, wc.seed, "generator") + f"/{wc.product}",
        rmp=lambda wc: flow.folder(wc.dataset, wc.experiment, wc.seed, "rmp") + f"/{wc.product}",
        shards=shards,
    output:
        directory("results/{dataset}/{experiment}/seed{seed}/generation/{product}"),
    log:
        "results/logs/{dataset}/{experiment}/seed{seed}/generation/{product}.log",
    threads: lambda wc: 1 if shards(wc) else flow.threads(wc.dataset, wc.experiment, "generation")
    resources:
        **asked(lambda wc: "merge" if shards(wc) else "generation"),
        gpu=lambda wc: 0 if shards(wc) else flow.gpus(wc.dataset, wc.experiment),
    params:
        settings=lambda wc: flow.parameters(flow.settings(wc.dataset, wc.experiment), "generation", stage="generation"),
        stage_version=generation_settings.STAGE_VERSION,
    script:
        "../scripts/generation.py"


rule crop_and_paste:
    input:
        lambda wc: flow.split(**wc),
    output:
        directory("results/{dataset}/{experiment}/seed{seed}/crop_and_paste/{product}"),
    log:
        "results/logs/{dataset}/{experiment}/seed{seed}/crop_and_paste/{product}.log",
    resources:
        **asked("crop_and_paste"),
    params:
        settings=lambda wc: flow.parameters(flow.settings(wc.dataset, wc.experiment), "data"),
        pairs_per_type=lambda wc: flow.settings(wc.dataset, wc.experiment).generation.pairs_per_type,
        largest_mask=lambda wc: flow.settings(wc.dataset, wc.experiment).generation.largest_mask,
        stage_version=generation_settings.CROP_AND_PASTE_STAGE_VERSION,
    script:
        "../scripts/crop_and_paste.py"
