from seas.resources import memory_mb, minutes


def asked(stage):
    """Memory and wall time of a job, by its work and its attempt; ``stage`` is a name, or gives one for the wildcards."""

    def work(wc):
        return flow.work(stage(wc) if callable(stage) else stage, dict(wc))

    return {
        "mem_mb": lambda wc, attempt: memory_mb(work(wc), attempt),
        "runtime": lambda wc, attempt: minutes(work(wc), attempt),
    }
