"""How much of a photograph does the base's VAE keep? PSNR whole and inside defect masks, and the contrast of the defects.

Every photograph of the given products' test folders, good ones too, is fitted to the base's side, encoded
(posterior mean), decoded and compared over the pixels that are no padding. A defect's contrast is the difference of mean
colour between its mask and the ring around it; what is kept of it is the projection of the decoded contrast on the true one.
A defect keeps half of its contrast when that share is at least 0.5; defects
fainter than two grey levels, or without a ring around them in the picture, are not judged, and counted.
Beside the VAE stand bicubic down- and upsampling and the linear code of the corpus's patches with as many latent
channels. Run it from the repository's root::

    .venv/bin/python benchmarks/base_vae.py seas/base/small --data ../shared/data --products magnetic_tile ballscrew
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import binary_dilation
from torch import Tensor
from torch.nn.functional import conv_transpose2d, pixel_shuffle

from seas.base.corpus import corpus_image
from seas.base.model import load_base
from seas.base.vae import LinearCode
from seas.data.mvtec_ad import list_samples
from seas.images import Fitted, load_fitted, to_tensor, to_uint8

CORPUS_IMAGES = 512
FAINTEST = 2.0
"""Grey levels: a defect of less contrast is not judged."""
RING = (1, 4)
"""Pixels from the mask at which the ring around a defect begins and ends."""


def photographs(root: Path, product: str, size: int) -> tuple[list[Fitted], list[str]]:
    """The photographs of a product's test folder, with their types."""
    samples = [sample for sample in list_samples(root, product) if sample.folder == "test"]
    return [load_fitted(root, sample, size, "auto") for sample in samples], [sample.type for sample in samples]


def through_vae(vae) -> Callable[[Tensor], Tensor]:
    """Images (B, 3, S, S) in [-1, 1] → what the VAE makes of them."""

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        return torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in images.split(32)])

    return run


def through_bicubic(factor: int) -> Callable[[Tensor], Tensor]:
    """Images made smaller by ``factor`` and large again."""

    def run(images: Tensor) -> Tensor:
        found = []
        for image in to_uint8(images):
            small = Image.fromarray(image).resize((len(image) // factor,) * 2, Image.Resampling.BICUBIC)
            found.append(np.asarray(small.resize((len(image),) * 2, Image.Resampling.BICUBIC)))
        return to_tensor(np.stack(found))

    return run


def through_linear_code(code: LinearCode) -> Callable[[Tensor], Tensor]:
    """Images as their patches' leading principal components tell them."""
    inverse = torch.linalg.pinv(code.rows.double()).float()

    def run(images: Tensor) -> Tensor:
        patches = conv_transpose2d(code(images), inverse.T[:, :, None, None]) + code.mean[None, :, None, None]
        return pixel_shuffle(patches, code.side)

    return run


def psnr(true: np.ndarray, found: np.ndarray, counts: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images (H, W, 3) over the pixels of ``counts``, bool (H, W)."""
    squared = (true[counts].astype(float) - found[counts].astype(float)) ** 2
    return float(10 * np.log10(255**2 / max(squared.mean(), 1e-2)))


def contrast(image: np.ndarray, mask: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Mean colour (3,) of the mask minus that of the ring around it, in grey levels; zero where there is no ring."""
    near, far = (binary_dilation(mask, iterations=pixels) for pixels in RING)
    ring = far & ~near & valid
    if not ring.any():
        return np.zeros(3)
    return image[mask].mean(0) - image[ring].mean(0)


def measured(run: Callable[[Tensor], Tensor], fitted: list[Fitted], types: list[str]) -> pd.DataFrame:
    """One row a photograph: type, whole and inside (dB), kept (share of the contrast; NaN where it is not judged)."""
    decoded = to_uint8(run(to_tensor(np.stack([item.image for item in fitted]))))
    rows = []
    for item, found, name in zip(fitted, decoded, types, strict=True):
        inside, kept = np.nan, np.nan
        if item.mask.any():
            inside = psnr(item.image, found, item.mask)
            before = contrast(item.image, item.mask, item.valid)
            if np.linalg.norm(before) >= FAINTEST:
                kept = float(contrast(found, item.mask, item.valid) @ before / (before @ before))
        rows.append({"type": name, "whole": psnr(item.image, found, item.valid), "inside": inside, "kept": kept})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--products", nargs="+", required=True)
    arguments = parser.parse_args()

    torch.set_num_threads(2)
    vae = load_base(arguments.base).vae.eval().requires_grad_(False)
    size, side = vae.config.sample_size, 2 ** (len(vae.config.block_out_channels) - 1)
    corpus = to_tensor(np.stack([corpus_image(0, index, size)[0] for index in range(CORPUS_IMAGES)]))
    code = LinearCode(corpus, side, vae.config.latent_channels)
    ways = {
        f"bicubic ×{side}": through_bicubic(side),
        f"bicubic ×{side // 2}": through_bicubic(side // 2),
        "linear patch code": through_linear_code(code),
        "VAE": through_vae(vae),
    }
    summary, kept = [], []
    for product in arguments.products:
        fitted, types = photographs(arguments.data, product, size)
        for way, run in ways.items():
            table = measured(run, fitted, types)
            summary.append({"way": way, "product": product, "whole": table.whole.mean(), "inside": table.inside.mean()})
            for name, rows in table[table.type != "good"].groupby("type"):
                judged = rows.kept.dropna()
                share = 100 * float((judged >= 0.5).mean())
                counts = {"defects": len(judged), "not judged": len(rows) - len(judged)}
                kept.append({"way": way, "product": product, "type": name, "keep half (%)": share, **counts})
    means = pd.DataFrame(summary)
    overall = means.groupby("way", sort=False)[["whole", "inside"]].mean().reset_index().assign(product="mean")
    print(pd.concat([means, overall]).round(2).to_string(index=False))
    shares = pd.DataFrame(kept).set_index(["product", "type", "defects", "not judged", "way"]).unstack("way")
    print(shares["keep half (%)"][list(ways)].round(0).to_string())


if __name__ == "__main__":
    main()
