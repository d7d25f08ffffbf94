"""The layouts of datasets, and the module that reads each."""

from types import ModuleType

from seas.data import mvtec_ad

READERS: dict[str, ModuleType] = {"mvtec_ad": mvtec_ad}
"""Each has ``list_products``, ``list_types``, ``list_samples``, ``count_images``, ``count_tested``, ``require_groups`` and
``fingerprint``."""
