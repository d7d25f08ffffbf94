from seas.report import settings as report_settings


def reported_runs(wc):
    """Every run as the report reads it: its settings and the folders of its stages."""
    return [flow.reported_run(*run) for run in flow.runs()]


def reported_results(wc):
    """The files and folders that the report is made of."""
    results = []
    for run in reported_runs(wc):
        results += [path for stages in run["products"].values() for path in stages.values()]
        results += [model["folder"] for model in run["downstream"]]
    return sorted(set(results))


rule report:
    input:
        reported_results,
    output:
        report=directory("results/report"),
        metrics="results/metrics.json",
        settings="results/settings.json",
        plots=directory("results/plots"),
    log:
        "results/logs/report.log",
    resources:
        **asked("report"),
    params:
        settings=flow.parameters(flow.config, "report"),
        runs=reported_runs,
        stage_version=report_settings.STAGE_VERSION,
    script:
        "../scripts/report.py"
