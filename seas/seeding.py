"""Random numbers that depend on names, not on history.

Every draw of the pipeline comes from a generator made for it: ``rng(seed, "batch", step)``.
So a resumed run, another batch size or another shard draws the same numbers, and no
generator state needs to be saved.
"""

import hashlib
import json

import numpy as np
import torch


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from the parts, the same on every machine and in every Python."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def rng(*parts: int | str) -> np.random.Generator:
    """NumPy's generator for the named draw."""
    return np.random.default_rng(seed_of(*parts))


def torch_rng(*parts: int | str) -> torch.Generator:
    """torch's generator for the named draw.

    It lies on the CPU whatever the device, so that a GPU draws the same noise as a CPU.
    """
    return torch.Generator("cpu").manual_seed(seed_of(*parts))
