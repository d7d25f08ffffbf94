from seas.downstream import settings as downstream_settings


def training_trees(wc):
    """The generated trees that a model is trained on, a folder for each source and product."""
    return [
        flow.folder(wc.dataset, wc.experiment, wc.seed, source) + f"/{product}"
        for source in downstream_settings.TREES[wc.trained_on]
        for product in flow.products_of(wc.dataset, wc.scope)
    ]


rule downstream:
    input:
        splits=lambda wc: [
            flow.split(wc.dataset, wc.experiment, wc.seed, product)
            for product in flow.products_of(wc.dataset, wc.scope)
        ],
        trees=training_trees,
    output:
        directory("results/{dataset}/{experiment}/seed{seed}/downstream/{model}/{trained_on}/{scope}"),
    log:
        "results/logs/{dataset}/{experiment}/seed{seed}/downstream/{model}/{trained_on}/{scope}.log",
    threads: lambda wc: flow.threads(wc.dataset, wc.experiment, "downstream")
    resources:
        **asked("downstream"),
        gpu=lambda wc: flow.gpus(wc.dataset, wc.experiment),
    params:
        settings=lambda wc: flow.parameters(
            flow.settings(wc.dataset, wc.experiment), "downstream", "data", stage="downstream"
        ),
        # Snakemake compares no parameter that is a function of the input with an earlier run's.
        not_obeyed=lambda wc, input: flow.settings(wc.dataset, wc.experiment).downstream.not_obeyed(),
        products=lambda wc: flow.products_of(wc.dataset, wc.scope),
        stage_version=downstream_settings.STAGE_VERSION,
    script:
        "../scripts/downstream.py"
