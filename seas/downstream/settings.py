"""Settings of the downstream models: what is trained, on what, and how long."""

from typing import ClassVar, Literal

from seas.settings import EachOnce, StationSettings, setting

STAGE_VERSION = 4

Model = Literal["bisenet_v2"]
Source = Literal["real", "crop_and_paste", "real+crop_and_paste", "generated", "real+generated"]
TREES: dict[str, tuple[str, ...]] = {
    "real": (),
    "crop_and_paste": ("crop_and_paste",),
    "real+crop_and_paste": ("crop_and_paste",),
    "generated": ("generation",),
    "real+generated": ("generation",),
}
"""The stages whose pairs each source trains on."""
IMAGES_FOR_THRESHOLDS = 100
"""Training images of each kind, abnormal and normal, at most, that a trained model's thresholds are chosen on."""


class DownstreamSettings(StationSettings):
    """Supervised segmentation with generated pairs (Sec. 4.3, Tab. 4), and the arms it is compared with.

    Each arm has the same normals (all of train/good), updates, batches, augmentation and schedule; the last weights
    are kept in each, so that nothing is chosen by looking at the test set.
    """

    NOT_OBEYED: ClassVar[frozenset[str]] = frozenset({"models", "trained_on", "scope", "checkpoint_every"})

    models: EachOnce[tuple[Model, ...]] = setting(("bisenet_v2",), "segmentation models", source="Tab. 4", min_length=1)
    trained_on: EachOnce[tuple[Source, ...]] = setting(
        ("real", "crop_and_paste", "generated"),
        "sources of the abnormal images, one arm each",
        source="Sec. 4.3; ours",
        min_length=1,
    )
    scope: Literal["unified", "per_product"] = setting(
        "unified", "one model for all products, or one each", source="Tab. 4, Tab. 8"
    )
    image_size: int = setting(
        512, "side of the model's input", unit="px", source="ours; the paper is silent", ge=32, multiple_of=32
    )
    updates: int = setting(40000, "optimizer updates", unit="updates", source="ours; the paper is silent", ge=1)
    batch_size: int = setting(
        16,
        "images of a batch, half of them abnormal",
        unit="images",
        source="mmsegmentation's recipe",
        ge=2,
        multiple_of=2,
    )
    learning_rate: float = setting(
        0.05, "SGD's peak rate; a linear rise, then (1 - t)^0.9", source="mmsegmentation's recipe", gt=0
    )
    weight_decay: float = setting(5e-4, "SGD's decay", source="mmsegmentation's recipe", ge=0)
    jitter: float = setting(
        0.1, "largest change of brightness and contrast in training, as a share", source="ours", ge=0, lt=1
    )
    checkpoint_every: int = setting(500, "updates between two checkpoints", unit="updates", source="ours", ge=1)
