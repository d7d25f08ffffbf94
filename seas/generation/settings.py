"""Settings of the generation of image–mask pairs and normals."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from seas.settings import StationSettings, setting

STAGE_VERSION = 4
CROP_AND_PASTE_STAGE_VERSION = 3
AUTOMATIC = {"cpu": 8, "cuda": 64}
"""Images made at once, at most, where batch_size is auto; on a GPU the number is halved until they fit into its memory."""
PIXELS_AT_ONCE = 16 * 512**2
"""Most pixels of such a batch: 64 images of 512 px would give the VAE tensors of 4.3e9 elements, which not every kernel counts."""


def limit_of_type(largest_mask: float | None, shares: Sequence[float]) -> float | None:
    """``largest_mask`` for a type whose shots' masks cover these shares of their images; None where each covers more."""
    return None if largest_mask is None or min(shares) > largest_mask else largest_mask


class GenerationSettings(StationSettings):
    """How pairs and normals are made from a finished generator and its mask branch (Sec. 3.3, A.2)."""

    NOT_OBEYED: ClassVar[frozenset[str]] = frozenset({"shards"})

    pairs_per_type: int = setting(1000, "image–mask pairs of each anomaly type", unit="pairs", source="Sec. 4.1", ge=1)
    normals: int = setting(
        1000, "normal images of the product", unit="images", source="ours; the paper is silent", ge=0
    )
    sampler: Literal["dpmsolver++", "ddim"] = setting("dpmsolver++", "how noise is removed", source="released code")
    steps: int = setting(25, "steps of the sampler", unit="steps", source="Sec. A.2", ge=2)
    guidance: float = setting(
        8.0,
        "classifier-free guidance; 1 is none",
        source="released code: 8 on MVTec AD, 2 on VisA, 5 on MVTec 3D AD",
        ge=1,
    )
    initial_signal: float = setting(
        0.098,
        "share √ᾱ of a training normal's latent in the first latent, rounded to a timestep's but for one below the last; 0 starts from "
        "pure noise",
        source="released code",
        ge=0,
        lt=1,
    )
    first_timestep: Literal["of_signal", "last"] = setting(
        "of_signal",
        "where the steps begin: at the timestep whose √ᾱ is initial_signal, or at the last whatever the signal",
        source="ours; released code: last",
    )
    background: Literal["generated", "photographed"] = setting(
        "generated",
        "what surrounds the mask of a pair: what was generated, or the photographed normal that the image starts from. The defect's "
        "colours are then shifted to the photograph's and a seam of a 32nd of the side is blended; a pair without a mask is that normal",
        source="ours",
    )
    threshold: float = setting(0.2, "mask threshold τ on the anomaly's probability", source="Tab. 18", gt=0, lt=1)
    peak_threshold: float | None = setting(
        None,
        "probability that the surest pixel of each connected region of a mask must exceed for the region to stay: what the mask branch "
        "is nowhere sure of is no defect; null: every region stays",
        source="ours",
        gt=0,
        lt=1,
    )
    mask_steps: int = setting(3, "last steps whose predicted masks are averaged", unit="steps", source="Sec. A.2", ge=1)
    empty_mask: Literal["redraw", "keep"] = setting(
        "redraw", "what is done with a pair whose mask is empty", source="ours"
    )
    largest_mask: float | None = setting(
        None,
        "share of the image that a pair's mask may cover: one whose mask covers more is drawn again, and crop-and-paste leaves "
        "such shots out; a type of which each shot covers more has no limit; null: no type has",
        source="ours",
        gt=0,
        lt=1,
    )
    redraws: int = setting(
        4, "further tries for a pair whose mask is empty or too large, before it is kept", source="ours", ge=0
    )
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, strict=True)] = setting(
        "auto",
        "images made at once; auto: 8 on the CPU, on a GPU 64 (of 512 px 16), halved until its memory holds them; of larger images fewer",
        unit="images",
        source="ours",
    )
    shards: int = setting(
        1,
        "jobs that share a product's images; the images are the same for any number",
        unit="jobs",
        source="ours",
        ge=1,
    )

    def draws_again(self, mask: np.ndarray, largest_mask: float | None) -> bool:
        """Whether a pair with this mask, bool (H, W), is worth a further try, by the limit of its type."""
        if not mask.any():
            return self.empty_mask == "redraw"
        return largest_mask is not None and bool(mask.mean() > largest_mask)

    def images_at_once(self, device: str, side: int) -> int:
        """The most images of ``side`` pixels in a batch on a device, "cpu" or "cuda"."""
        if self.batch_size != "auto":
            return self.batch_size
        return max(1, min(AUTOMATIC[device], PIXELS_AT_ONCE // side**2))

    @model_validator(mode="after")
    def _a_peak_is_above_the_threshold(self) -> "GenerationSettings":
        if self.peak_threshold is not None and self.peak_threshold <= self.threshold:
            raise ValueError(
                f"peak_threshold is {self.peak_threshold}; it must be above the threshold, which is {self.threshold}"
            )
        return self

    @model_validator(mode="after")
    def _masks_have_their_steps(self) -> "GenerationSettings":
        if self.mask_steps > self.steps:
            raise ValueError(f"mask_steps is {self.mask_steps}, but there are only {self.steps} steps")
        return self

    @model_validator(mode="after")
    def _a_photographed_background_starts_the_image(self) -> "GenerationSettings":
        if self.background == "photographed" and not self.initial_signal:
            raise ValueError("background 'photographed' needs an initial_signal: with 0 no normal starts the image")
        return self
