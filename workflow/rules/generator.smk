from seas.generator import settings as generator_settings


def trained_base(wc):
    """A base that is given is no input but judged by its hash, whatever its folder's time and wherever it lies."""
    return [] if flow.given_base(wc.dataset, wc.experiment) else flow.base(wc.dataset, wc.experiment)


rule generator:
    input:
        base=trained_base,
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
        base=lambda wc: flow.given_base(wc.dataset, wc.experiment),
        # Snakemake compares no parameter that is a function of the input with an earlier run's.
        base_folder=lambda wc, input: flow.base(wc.dataset, wc.experiment),
        not_obeyed=lambda wc, input: flow.settings(wc.dataset, wc.experiment).generator.not_obeyed(),
        stage_version=generator_settings.STAGE_VERSION,
    script:
        "../scripts/generator.py"
