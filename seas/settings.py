"""What the settings classes of all stations have in common."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class StationSettings(BaseModel):
    """Settings of one station: unknown keys are refused, values are checked, nothing is changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def setting(default: Any = ..., description: str = "", *, unit: str = "", source: str = "", **limits: Any) -> Any:
    """A field with its description, its unit and where its value comes from.

    ``source`` names the equation or table of the paper, the release ("released code") or "ours";
    ``limits`` are pydantic's (gt, ge, lt, le, min_length, ...).
    """
    extra = {key: value for key, value in (("unit", unit), ("source", source)) if value}
    return Field(default, description=description, json_schema_extra=extra or None, **limits)


class ComputeSettings(StationSettings):
    """How one stage computes. On the CPU the result is a function of these, bit for bit."""

    device: Literal["cpu", "cuda"] = setting("cuda", "where the networks run", source="ours")
    precision: Literal["fp32", "bf16"] = setting(
        "bf16", "precision of the forward and backward passes (bf16: autocast, master weights stay fp32)", source="ours"
    )
    threads: int = setting(8, "CPU threads of one job", unit="threads", source="ours", ge=1)
