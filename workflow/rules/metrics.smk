from seas.metrics import settings as metrics_settings


rule metrics:
    input:
        generation=lambda wc: flow.folder(wc.dataset, wc.experiment, wc.seed, "generation") + f"/{wc.product}",
        split=lambda wc: flow.split(**wc),
    output:
        "results/{dataset}/{experiment}/seed{seed}/metrics/{product}.parquet",
    log:
        "results/logs/{dataset}/{experiment}/seed{seed}/metrics/{product}.log",
    threads: lambda wc: flow.threads(wc.dataset, wc.experiment, "metrics")
    resources:
        **asked("metrics"),
        gpu=lambda wc: flow.gpus(wc.dataset, wc.experiment),
    params:
        settings=lambda wc: flow.parameters(
            flow.settings(wc.dataset, wc.experiment), "metrics", "data", stage="metrics"
        ),
        # Snakemake compares no parameter that is a function of the input with an earlier run's.
        not_obeyed=lambda wc, input: flow.settings(wc.dataset, wc.experiment).metrics.not_obeyed(),
        paper_weights=lambda wc: flow.measures_as_the_paper(**wc),
        stage_version=metrics_settings.STAGE_VERSION,
    script:
        "../scripts/metrics.py"
