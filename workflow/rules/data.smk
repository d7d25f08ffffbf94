from seas.data import settings as data_settings


rule index:
    output:
        "results/{dataset}/data/{product}.parquet",
    log:
        "results/logs/{dataset}/index/{product}.log",
    resources:
        **asked("index"),
    params:
        layout=lambda wc: flow.datasets[wc.dataset].layout,
        fingerprint=lambda wc: flow.fingerprint(wc.dataset, wc.product),
        stage_version=data_settings.INDEX_STAGE_VERSION,
    script:
        "../scripts/index.py"


rule split:
    input:
        "results/{dataset}/data/{product}.parquet",
    output:
        "results/{dataset}/{experiment}/seed{seed}/split/{product}.parquet",
    log:
        "results/logs/{dataset}/{experiment}/seed{seed}/split/{product}.log",
    resources:
        **asked("split"),
    params:
        settings=lambda wc: flow.parameters(flow.settings(wc.dataset, wc.experiment), "data"),
        groups=lambda wc: flow.groups(wc.dataset, wc.experiment, wc.product),
        stage_version=data_settings.SPLIT_STAGE_VERSION,
    script:
        "../scripts/split.py"
