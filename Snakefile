"""The front door: configuration, rules, and what a run should leave behind."""

import re
from typing import get_args

from snakemake.exceptions import WorkflowError

from seas.config import of_command_line, overlaid
from seas.downstream.settings import TREES, Model
from seas.errors import InputError
from seas.workflow import Workflow


configfile: "config/config.yaml"


def one_of(names):
    """A pattern of these names alone, so that a typo in a target matches no rule."""
    return "|".join(map(re.escape, names)) or "(?!)"


try:
    flow = Workflow(overlaid(config, of_command_line(workflow.config_settings.config)), workflow.configfiles)
    flow.check()
except InputError as fault:
    raise WorkflowError(fault)


wildcard_constraints:
    dataset=one_of(flow.datasets),
    experiment=one_of(flow.experiments()),
    seed=r"\d+",
    product=one_of(flow.every_product()),
    base=one_of(flow.built_bases()),
    model=one_of(get_args(Model)),
    trained_on=one_of(TREES),
    shard=r"\d+",
    scope=one_of(["all", *flow.every_product()]),


rule all:
    input:
        flow.results(),


include: "workflow/rules/common.smk"
include: "workflow/rules/base.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/generator.smk"
include: "workflow/rules/rmp.smk"
include: "workflow/rules/generation.smk"
include: "workflow/rules/metrics.smk"
include: "workflow/rules/downstream.smk"
include: "workflow/rules/report.smk"
