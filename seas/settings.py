"""What the settings classes of all stations have in common."""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""What may name a product, a type or a result: a folder's name that needs no quotes in a shell."""


class StationSettings(BaseModel):
    """Settings of one station: unknown keys are refused, values are checked, nothing is changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
    NOT_OBEYED: ClassVar[frozenset[str]] = frozenset()
    """Settings of which no result is a function, such as in how many pieces it is computed: another value makes nothing anew."""

    def obeyed(self) -> dict[str, Any]:
        """What a result is a function of, as plain values."""
        return self.model_dump(mode="json", exclude=set(self.NOT_OBEYED))

    def not_obeyed(self) -> dict[str, Any]:
        """The others, which a job is handed beside them."""
        return self.model_dump(mode="json", include=set(self.NOT_OBEYED))


def setting(default: Any = ..., description: str = "", *, unit: str = "", source: str = "", **limits: Any) -> Any:
    """A field with its description, its unit and where its value comes from.

    ``source`` names the equation or table of the paper, the release ("released code") or "ours";
    ``limits`` are pydantic's (gt, ge, lt, le, min_length, ...).
    """
    extra = {key: value for key, value in (("unit", unit), ("source", source)) if value}
    return Field(default, description=description, json_schema_extra=extra or None, **limits)


def _each_once(names: Any) -> Any:
    for name in names or []:
        if names.count(name) > 1:
            raise ValueError(f"'{name}' stands in the list twice")
    return names


_Names = TypeVar("_Names")
EachOnce = Annotated[_Names, AfterValidator(_each_once)]
"""A list, a tuple or None, in which nothing stands twice."""


class ComputeSettings(StationSettings):
    """How one stage computes. On the CPU the result is a function of these, bit for bit."""

    device: Literal["cpu", "cuda"] = setting("cuda", "where the networks run", source="ours")
    precision: Literal["fp32", "bf16"] = setting(
        "bf16", "precision of the forward and backward passes (bf16: autocast, master weights stay fp32)", source="ours"
    )
    threads: int = setting(8, "CPU threads of one job", unit="threads", source="ours", ge=1)

    def obeyed(self) -> dict[str, Any]:
        """What a result is a function of, as plain values: on a GPU not how many threads read for it."""
        return self.model_dump(mode="json", exclude={"threads"} if self.device == "cuda" else None)

    @classmethod
    def of_job(cls, obeyed: dict[str, Any], threads: int) -> "ComputeSettings":
        """How a job computes: by what its result obeys, and with the job's own threads where that leaves them open."""
        return cls(**{"threads": threads} | obeyed)


class TrainerSettings(StationSettings):
    """How long the generator and the mask branch train, and on what batches."""

    NOT_OBEYED: ClassVar[frozenset[str]] = frozenset({"checkpoint_every"})

    updates_per_type: int = setting(
        800, "optimizer updates for each anomaly type of the product", unit="updates", source="Sec. A.2", ge=1
    )
    gradient_accumulation: int = setting(1, "batches of one update", source="ours; released code: 2", ge=1)
    abnormal_per_batch: int = setting(
        2, "abnormal images of a batch, any types mixed", source="Sec. A.2", unit="images", ge=1
    )
    normal_per_batch: int = setting(2, "normal images of a batch", source="Sec. A.2", unit="images", ge=1)
    checkpoint_every: int = setting(400, "updates between two checkpoints", unit="updates", source="ours", ge=1)
