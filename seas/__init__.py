"""SeaS: few-shot industrial anomaly image generation as a reproducible pipeline."""
