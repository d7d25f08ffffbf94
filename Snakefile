"""The front door: configuration, rules, and what a run should leave behind."""

from snakemake.exceptions import WorkflowError

from seas.config import Workflow
from seas.errors import InputError


configfile: "config/config.yaml"


try:
    flow = Workflow(config)
except InputError as fault:
    raise WorkflowError(fault)


wildcard_constraints:
    dataset="|".join(flow.datasets),
    experiment=r"[A-Za-z0-9_.-]+",
    seed=r"\d+",
    product=r"[A-Za-z0-9_.-]+",
    model=r"[a-z0-9_]+",
    trained_on=r"[a-z_+]+",
    scope=r"[A-Za-z0-9_.-]+",


rule all:
    input:
        flow.results(),


include: "workflow/rules/base.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/generator.smk"
include: "workflow/rules/rmp.smk"
include: "workflow/rules/generation.smk"
include: "workflow/rules/metrics.smk"
include: "workflow/rules/downstream.smk"
include: "workflow/rules/report.smk"
