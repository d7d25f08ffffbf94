from seas.generation import settings as generation_settings


rule generation:
    input:
        generator=lambda wc: flow.folder(wc.dataset, wc.experiment, wc.seed, "generator") + f"/{wc.product}",
        rmp=lambda wc: flow.folder(wc.dataset, wc.experiment, wc.seed, "rmp") + f"/{wc.product}",
    output:
        directory("results/{dataset}/{experiment}/seed{seed}/generation/{product}"),
    log:
        "results/logs/{dataset}/{experiment}/seed{seed}/generation/{product}.log",
    threads: lambda wc: flow.threads(wc.dataset, wc.experiment, "generation")
    resources:
        gpu=lambda wc: flow.gpus(wc.dataset, wc.experiment),
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
    params:
        settings=lambda wc: flow.parameters(flow.settings(wc.dataset, wc.experiment), "data"),
        pairs_per_type=lambda wc: flow.settings(wc.dataset, wc.experiment).generation.pairs_per_type,
        root=lambda wc: str(flow.datasets[wc.dataset].root),
        stage_version=generation_settings.CROP_AND_PASTE_STAGE_VERSION,
    script:
        "../scripts/crop_and_paste.py"
