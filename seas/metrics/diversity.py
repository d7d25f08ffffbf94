"""How unlike each other the generated images are: IC-LPIPS, the distance inside clusters (Ojha et al. 2021)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seas.seeding import rng

Embed = Callable[[np.ndarray], Tensor]
"""Images uint8 (B, S, S, 3) → embeddings (B, D) whose squared Euclidean distance is the perceptual distance."""


class ClusterDiversity(NamedTuple):
    """``mean`` counts a cluster of one member or none as 0, ``nonzero_mean`` leaves it out (NaN when none is left)."""

    mean: float
    nonzero_mean: float
    clusters: int
    scored_clusters: int


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Perceptual distances (M, N) of embeddings (M, D) and (N, D)."""
    products = first @ second.T
    return (first.square().sum(1)[:, None] + second.square().sum(1) - 2 * products).clamp(min=0)


def _embedded(images: np.ndarray, embed: Embed, batch_size: int) -> Tensor:
    return torch.cat([embed(images[start : start + batch_size]) for start in range(0, len(images), batch_size)])


def nearest_references(images: np.ndarray, references: np.ndarray, embed: Embed, batch_size: int) -> np.ndarray:
    """The number of the reference that each image is nearest to, int (N,); of equally near ones the first."""
    centres = _embedded(references, embed, batch_size)
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return np.concatenate([distances(embed(batch), centres).argmin(dim=1).cpu().numpy() for batch in batches])


def mean_pairwise_distance(images: np.ndarray, embed: Embed, batch_size: int) -> float:
    """The mean distance of the unordered pairs of at least two images."""
    embedded = _embedded(images, embed, batch_size)
    pairs = torch.triu_indices(len(images), len(images), offset=1)
    return float(distances(embedded, embedded).cpu()[pairs[0], pairs[1]].double().mean())


def ic_lpips(
    images: np.ndarray, references: np.ndarray, embed: Embed, *, cap: int | None, batch_size: int, seed: int
) -> ClusterDiversity:
    """IC-LPIPS of generated images: each joins its nearest reference; mean pairwise distance in clusters.

    ``images`` uint8 (N, S, S, 3), N >= 1, and ``references`` uint8 (R, S, S, 3), R >= 1. Of a cluster of more than
    ``cap`` members, ``cap`` are drawn. Each image is embedded once to find its cluster and once with its cluster,
    so that the embeddings of the references or of one cluster are in memory at a time.
    """
    nearest = nearest_references(images, references, embed, batch_size)
    scores = []
    for cluster in range(len(references)):
        members = np.flatnonzero(nearest == cluster)
        if cap is not None and len(members) > cap:
            members = np.sort(rng(seed, "cluster members", cluster).choice(members, cap, replace=False))
        if len(members) >= 2:
            scores.append(mean_pairwise_distance(images[members], embed, batch_size))
    nonzero_mean = float(np.mean(scores)) if scores else float("nan")
    return ClusterDiversity(sum(scores) / len(references), nonzero_mean, len(references), len(scores))
