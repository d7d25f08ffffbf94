"""Settings of the report."""

from seas.settings import StationSettings, setting

STAGE_VERSION = 9


class ReportSettings(StationSettings):
    """What the report shows of each run; no other station reads it."""

    examples_per_type: int = setting(
        4, "rows of a contact sheet for each anomaly type", unit="images", source="ours", ge=1, le=16
    )
    attention_timestep: int = setting(
        300,
        "timestep to which a generated image is noised before its attention maps are read",
        unit="steps of 1000",
        source="ours",
        ge=0,
        le=999,
    )
