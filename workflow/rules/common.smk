import sys

from snakemake.logging import logger

from seas.errors import InputError
from seas.resources import memory_mb, minutes
from seas.runs import forgetful_cluster, take_lock


onstart:
    # Not in a dry run, nor in the jobs.
    try:
        take_lock(on_cluster=not workflow.local_exec)
    except (InputError, OSError) as fault:
        sys.exit(f"seas: {fault}")
    if not workflow.local_exec and (warning := forgetful_cluster()):
        logger.warning(f"seas: {warning}")


def asked(stage):
    """Memory and wall time of a job, by its work and its attempt; ``stage`` is a name, or gives one for the wildcards."""

    def work(wc):
        return flow.work(stage(wc) if callable(stage) else stage, dict(wc))

    return {
        "mem_mb": lambda wc, attempt: memory_mb(work(wc), attempt),
        "runtime": lambda wc, attempt: minutes(work(wc), attempt),
    }
