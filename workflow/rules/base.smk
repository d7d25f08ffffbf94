from seas.base import settings as base_settings


rule base_model:
    output:
        directory("results/base/{base}"),
    log:
        "results/logs/base/{base}.log",
    threads: lambda wc: flow.base_named(wc.base).compute.threads["base"]
    resources:
        **asked("base"),
        gpu=lambda wc: int(flow.base_named(wc.base).compute.device == "cuda"),
    params:
        settings=lambda wc: flow.parameters(flow.base_named(wc.base), "base", stage="base"),
        stage_version=base_settings.STAGE_VERSION,
    script:
        "../scripts/base.py"


rule base:
    input:
        [flow.base(dataset, experiment) for dataset, experiment, _ in flow.runs()],
