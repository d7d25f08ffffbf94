from seas.generator import settings as generator_settings


rule generator:
    input:
        base=lambda wc: flow.base(wc.dataset, wc.experiment),
        split=lambda wc: flow.split(**wc),
    output:
        directory("results/{dataset}/{experiment}/seed{seed}/generator/{product}"),
    log:
        "results/logs/{dataset}/{experiment}/seed{seed}/generator/{product}.log",
    threads: lambda wc: flow.threads(wc.dataset, wc.experiment, "generator")
    resources:
        **asked("generator"),
        gpu=lambda wc: flow.gpus(wc.dataset, wc.experiment),
    params:
        settings=lambda wc: flow.parameters(
            flow.settings(wc.dataset, wc.experiment), "generator", "data", stage="generator"
        ),
        root=lambda wc: str(flow.datasets[wc.dataset].root),
        stage_version=generator_settings.STAGE_VERSION,
    script:
        "../scripts/generator.py"
