"""How unlike each other the generated images are: IC-LPIPS, the distance inside clusters (Ojha et al. 2021)."""

from collections.abc import Callable, Iterator
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


BLOCK_BYTES = 2 * 2**30
"""Embeddings that are held at once, twice. One of VGG at 256 px takes 32 MB."""


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Perceptual distances (M, N) of embeddings (M, D) and (N, D)."""
    lengths = [torch.linalg.vector_norm(part, dim=1).square() for part in (first, second)]
    return torch.addmm(lengths[0][:, None] + lengths[1], first, second.T, alpha=-2).clamp(min=0)


def _blocks(images: np.ndarray, embed: Embed, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    """The embeddings (n, D) of consecutive images, as many as ``BLOCK_BYTES`` hold, with the number of the first of them."""
    start = 0
    while start < len(images):
        head = embed(images[start : start + batch_size])
        fitting = BLOCK_BYTES // (head.shape[1] * head.element_size())
        block = head.new_empty(min(len(images) - start, max(len(head), fitting)), head.shape[1])
        block[: len(head)] = head
        del head
        for done in range(min(batch_size, len(block)), len(block), batch_size):
            end = min(done + batch_size, len(block))
            block[done:end] = embed(images[start + done : start + end])
        yield start, block
        start += len(block)


def nearest_references(images: np.ndarray, references: np.ndarray, embed: Embed, batch_size: int) -> np.ndarray:
    """The number of the reference that each image is nearest to, int (N,); of equally near ones the first."""
    nearest, least = np.zeros(len(images), int), np.full(len(images), np.inf)
    for first, centres in _blocks(references, embed, batch_size):
        for start in range(0, len(images), batch_size):
            found = distances(embed(images[start : start + batch_size]), centres).min(dim=1)
            values, numbers = found.values.double().cpu().numpy(), found.indices.cpu().numpy() + first
            batch = slice(start, start + len(values))
            nearest[batch] = np.where(values < least[batch], numbers, nearest[batch])
            least[batch] = np.minimum(values, least[batch])
    return nearest


def mean_pairwise_distance(images: np.ndarray, embed: Embed, batch_size: int) -> float:
    """The mean distance of the unordered pairs of at least two images."""
    total = 0.0
    for start, block in _blocks(images, embed, batch_size):
        total += float(distances(block, block).double().triu(diagonal=1).sum())
        for _, other in _blocks(images[start + len(block) :], embed, batch_size):
            total += float(distances(block, other).double().sum())
    return total / (len(images) * (len(images) - 1) / 2)


def ic_lpips(
    images: np.ndarray, references: np.ndarray, embed: Embed, *, cap: int | None, batch_size: int, seed: int
) -> ClusterDiversity:
    """IC-LPIPS of generated images: each joins its nearest reference; mean pairwise distance in clusters.

    ``images`` uint8 (N, S, S, 3), N >= 1, and ``references`` uint8 (R, S, S, 3), R >= 1. Of a cluster of more than
    ``cap`` members, ``cap`` are drawn. Each image is embedded once to find its cluster and once with its cluster; more
    often where the references or the members of a cluster are more than ``BLOCK_BYTES`` hold.
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
