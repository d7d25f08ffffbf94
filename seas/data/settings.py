"""Settings of the data station: which photographs train, and how they are fitted to the networks."""

from typing import Annotated, Literal

from pydantic import Field

from seas.settings import StationSettings, setting

INDEX_STAGE_VERSION = 3
SPLIT_STAGE_VERSION = 3


class DataSettings(StationSettings):
    """The split and the fitting of the photographs (Sec. 4.1)."""

    image_size: int = setting(
        512, "side of the square images of generator and RMP", unit="px", source="Sec. 4.1", ge=16, multiple_of=16
    )
    fit: Literal["auto", "crop", "pad", "stretch"] = setting(
        "auto",
        "how a photograph becomes square; auto crops when its sides differ by less than 2 %, else pads "
        "and leaves the padding out of the losses of noise and mask and of the scores (to the DA loss it is outside the mask)",
        source="ours; released code: crop",
    )
    shots: Literal["third", "all"] | Annotated[int, Field(ge=1, strict=True)] = setting(
        "third",
        "abnormal training shots of each type: a third of them, or a number drawn from the third, with the same test images; all: "
        "every photograph trains, and no defect is left to test",
        source="Sec. 4.1, Tab. 11",
    )
    normals: int = setting(60, "normal images that generator and RMP train on", unit="images", source="Sec. 4.1", ge=1)
    augmentation: Literal["turns_and_flips", "flips", "half_turn", "none"] = setting(
        "turns_and_flips",
        "how training images are turned, one draw shared by an image, its mask and its normal: by 90° and mirrored, "
        "mirrored alone (vertical grain stays vertical; padded photographs never more than that), by 180° alone (a thread keeps its "
        "hand), or not at all",
        source="released code; ours",
    )
    groups: str | None = setting(
        None,
        "csv in the products' folders, with a heading line, whose images (first column, by their path in the product's folder) "
        "stay on one side of the split by group (second column); a product without it is not grouped",
        source="ours",
    )
    train_only_small_types: bool = setting(
        False, "a type with fewer than three images trains and is not tested, instead of being an error", source="ours"
    )
