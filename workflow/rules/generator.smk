from seas.generator import settings as generator_settings


def base_of(wc):
    """A base that is given is judged by its hash: an update of the project changes the time of the shipped one's folder."""
    base = flow.base(wc.dataset, wc.experiment)
    return ancient(base) if flow.given_base(wc.dataset, wc.experiment) else base


rule generator:
    input:
        base=base_of,
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
        stage_version=generator_settings.STAGE_VERSION,
    script:
        "../scripts/generator.py"
