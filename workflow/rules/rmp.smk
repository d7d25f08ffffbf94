from seas.rmp import settings as rmp_settings


rule rmp:
    input:
        generator=lambda wc: flow.folder(wc.dataset, wc.experiment, wc.seed, "generator") + f"/{wc.product}",
    output:
        directory("results/{dataset}/{experiment}/seed{seed}/rmp/{product}"),
    log:
        "results/logs/{dataset}/{experiment}/seed{seed}/rmp/{product}.log",
    threads: lambda wc: flow.threads(wc.dataset, wc.experiment, "rmp")
    resources:
        **asked("rmp"),
        gpu=lambda wc: flow.gpus(wc.dataset, wc.experiment),
    params:
        settings=lambda wc: flow.parameters(flow.settings(wc.dataset, wc.experiment), "rmp", stage="rmp"),
        # Snakemake compares no parameter that is a function of the input with an earlier run's.
        not_obeyed=lambda wc, input: flow.settings(wc.dataset, wc.experiment).rmp.not_obeyed(),
        stage_version=rmp_settings.STAGE_VERSION,
    script:
        "../scripts/rmp.py"
