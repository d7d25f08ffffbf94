"""Settings of the metrics of generated images."""

from typing import ClassVar, Literal

from seas.settings import StationSettings, setting
from seas.weights import has_paper_weights

STAGE_VERSION = 3


class MetricsSettings(StationSettings):
    """Quality (IS, KID) and diversity (IC-LPIPS) of the generated images (Sec. 4.2)."""

    NOT_OBEYED: ClassVar[frozenset[str]] = frozenset({"weights_folder"})

    extractors: Literal["auto", "paper", "efficientnet_lite0"] = setting(
        "auto",
        "networks of the metrics: the paper's (Inception v3, LPIPS), or the stand-in EfficientNet-Lite0, whose values "
        "do not compare with the paper's; auto: the paper's where weights_folder has their weights, else the stand-in",
        source="Sec. 4.2; ours",
    )
    weights_folder: str | None = setting(
        "models/metrics", "folder of the weights of the paper's networks; null: there is none", source="ours"
    )
    lpips_backbone: Literal["vgg", "alex", "squeeze"] = setting("vgg", "trunk of LPIPS", source="released code")
    image_size: int = setting(
        256, "side of the square images that are compared", unit="px", source="released code", ge=32
    )
    is_splits: int = setting(
        10,
        "splits of the Inception Score; fewer where a split would have less than two images",
        source="torch-fidelity",
        ge=1,
    )
    kid_subset_size: int = setting(
        1000, "images of a subset of KID, at most as many as there are", unit="images", source="torch-fidelity", ge=2
    )
    kid_normals: int = setting(
        1000,
        "training normals that KID compares with, at most, drawn by the seed from those that the generator has not trained on",
        unit="images",
        source="ours; the paper is silent",
        ge=2,
    )
    reference: Literal["train_shots", "all_real"] = setting(
        "train_shots",
        "real images that are the centres of the clusters of IC-LPIPS",
        source="ours; the paper is silent",
    )
    cluster_cap: int | None = setting(
        140,
        "members of a cluster whose distances are measured, drawn at random; null: all",
        unit="images",
        source="released code",
        ge=2,
    )
    batch_size: int = setting(16, "images that pass through a network at once", unit="images", source="ours", ge=1)

    def as_the_paper(self) -> bool:
        """Whether the paper's networks measure: by ``extractors`` and, where it is auto, by the weights that are there."""
        present = has_paper_weights(self.lpips_backbone, self.weights_folder)
        return self.extractors == "paper" or (self.extractors == "auto" and present)
