from pathlib import Path

from seas.jobs import job

with job(snakemake.log[0]):
    from seas.report.runs import ReportedRun
    from seas.report.settings import ReportSettings
    from seas.report.write import write_report

    write_report(
        [ReportedRun.from_plain(run) for run in snakemake.params.runs],
        ReportSettings(**snakemake.params.settings["report"]),
        output=Path(snakemake.output.report),
    )
