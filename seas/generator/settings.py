"""Settings of the fine-tuning of a base on one product."""

from typing import ClassVar, Literal

from pydantic import model_validator

from seas.settings import TrainerSettings, setting

STAGE_VERSION = 8


class GeneratorSettings(TrainerSettings):
    """Separation and Sharing fine-tuning (Sec. 3.2)."""

    NOT_OBEYED: ClassVar[frozenset[str]] = TrainerSettings.NOT_OBEYED | {"gradient_checkpointing", "offload_optimizer"}

    prompt: Literal["unbalanced", "typical"] = setting(
        "unbalanced",
        "unbalanced: 'a <ob> with <df>, <df>, …', whose tokens are learned; typical: 'a photo of a {product} with {anomaly_word}', "
        "whose words are fixed",
        source="Sec. 3.2, Tab. 5",
    )
    mixed_training: bool = setting(
        True,
        "one model for all types of a product; else one for each type, its mask branch, too",
        source="Sec. 3.2, Tab. 5",
    )
    schedule: Literal["mixed", "abnormal_then_normal", "normal_then_abnormal"] = setting(
        "mixed",
        "images of a batch: both kinds, or one kind in the first half of the updates and the other in the second",
        source="Sec. 3.2, Tab. 12; the halves: ours",
    )
    checkpoint_every: int = setting(
        2000,
        "updates between two checkpoints; one of Stable Diffusion takes 10 GB",
        unit="updates",
        source="ours",
        ge=1,
    )
    updates_per_shot: int | None = setting(
        None,
        "how many updates may draw shots, times the number of shots; the other updates, evenly among them, draw normals alone. A limit "
        "keeps few shots from being copied; null: all updates draw shots",
        unit="updates",
        source="ours",
        ge=1,
    )
    shifts: bool = setting(
        False,
        "move each training image, also of the mask branch, at random by whole latent cells, as far as its defect stays whole; what "
        "becomes empty is filled by mirroring, which can show a defect near the border twice; needs a data.augmentation that mirrors",
        source="ours",
    )
    anomaly_tokens: int = setting(4, "learned anomaly tokens <df> of each type (N)", source="Sec. 3.2, Tab. 9", ge=1)
    normal_tokens: int = setting(1, "learned normal tokens <ob> of the product (N')", source="Sec. 3.2, Tab. 9", ge=1)
    prompt_commas: bool = setting(
        True, "commas between the anomaly tokens of a prompt", source="Sec. 3.2; released code: false"
    )
    normal_word: str = setting(
        "object", "word whose embedding the normal tokens start from", source="Sec. A.2", min_length=1
    )
    anomaly_word: str = setting(
        "defect", "word whose embedding the anomaly tokens start from", source="Sec. A.2", min_length=1
    )
    trained_embeddings: Literal["new_rows", "all"] = setting(
        "new_rows", "rows of the embedding table that train", source="Sec. 3.2; released code: all"
    )
    unet_learning_rate: float = setting(4e-6, "AdamW's rate for the U-Net", source="Sec. A.2", gt=0)
    embedding_learning_rate: float = setting(4e-5, "AdamW's rate for the embeddings", source="Sec. A.2", gt=0)
    learning_rate_decay: Literal["none", "cosine"] = setting(
        "none", "course of both rates: constant, or down to 0 along half a cosine", source="Sec. A.2; cosine: ours"
    )
    weight_decay: float = setting(0.01, "AdamW's decay", source="released code", ge=0)
    largest_gradient_norm: float | None = setting(
        None,
        "norm to which a larger gradient is shortened, since at a high rate one batch can undo the training; null: no limit",
        source="ours",
        gt=0,
    )
    attention_layers: tuple[int, ...] = setting(
        (2, 3),
        "levels of the U-Net encoder whose cross-attention the DA loss reads; 4 is the mid block",
        source="Eq. 3, Tab. 13",
    )
    map_softmax: Literal["tokens", "pixels"] = setting(
        "tokens", "direction of the softmax of the maps in the DA loss", source="Eq. 2; released code: pixels"
    )
    map_normalisation: Literal["none", "min_max", "min_max_batch", "share", "mass"] = setting(
        "share",
        "scaling of each image's map (min_max_batch: of a batch's maps together) before it meets the mask; share (ours) compares shares "
        "of the attention, since a tiny mask is nearly satisfied by one hot cell under min_max; mass (ours) is the cross-entropy of what "
        "the tokens take together",
        source="ours; Eq. 3 to the letter: none; released code: min_max_batch",
    )
    second_term: Literal["masked_mean", "elementwise", "complement", "none"] = setting(
        "masked_mean",
        "second term of the DA loss: its mean over the mask's cells (masked_mean; under share the normal token's share inside the mask) "
        "or over all cells (elementwise), or none; complement: none, but L_ob gets the distance of the normal token's map from the "
        "mask's complement",
        source="Eq. 3; ours; complement: Eq. 9, Tab. 10",
    )
    complement_on: Literal["abnormal", "normal"] = setting(
        "abnormal", "images of the term that second_term: complement adds to L_ob", source="ours; the paper is silent"
    )
    da_weight: float = setting(1.0, "weight of the Decoupled Anomaly Alignment loss", source="Eq. 4", ge=0)
    normal_weight: float = setting(1.0, "weight of the Normal-image Alignment loss", source="Eq. 5", ge=0)
    gradient_checkpointing: bool = setting(
        False,
        "recompute the U-Net's activations in the backward pass, which needs less memory and more time",
        source="ours",
    )
    offload_optimizer: bool = setting(
        False, "keep gradients, moments and master weights in the CPU's memory and update there", source="ours"
    )

    def updates_with_shots(self, types: int, shots: int) -> int:
        """How many of a model's updates draw shots."""
        updates = self.updates_per_type * types
        return min(updates, (self.updates_per_shot or updates) * shots)

    @model_validator(mode="after")
    def _a_limit_needs_mixed_batches(self) -> "GeneratorSettings":
        if self.updates_per_shot and self.schedule != "mixed":
            raise ValueError(
                f"updates_per_shot needs schedule 'mixed'; '{self.schedule}' says itself which updates draw shots"
            )
        return self

    @model_validator(mode="after")
    def _layers_are_levels(self) -> "GeneratorSettings":
        if not self.attention_layers or not set(self.attention_layers) <= {1, 2, 3, 4}:
            raise ValueError(f"attention_layers is {list(self.attention_layers)}; give one or more of 1, 2, 3, 4")
        if len(set(self.attention_layers)) < len(self.attention_layers):
            raise ValueError(f"attention_layers is {list(self.attention_layers)}; name each level once")
        return self

    @model_validator(mode="after")
    def _mass_is_of_tokens(self) -> "GeneratorSettings":
        if self.map_normalisation == "mass" and self.map_softmax != "tokens":
            raise ValueError(
                "map_normalisation 'mass' needs map_softmax 'tokens': over pixels no cell's attention is shared"
            )
        return self

    @model_validator(mode="after")
    def _shares_have_one_second_term(self) -> "GeneratorSettings":
        if self.map_normalisation == "share" and self.second_term == "elementwise":
            raise ValueError(
                "second_term 'elementwise' has no meaning for shares; map_normalisation must not be 'share'"
            )
        return self
