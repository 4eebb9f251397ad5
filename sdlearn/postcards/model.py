"""The shipped model: whether a pipeline is it, and the settings that suit it best."""

from __future__ import annotations

from diffusers import StableDiffusionPipeline

from sdlearn.pipeline import MODELS

# The best of ``python -m sdlearn.postcards.evaluate --grid``; the model card has the table.
STEPS = 10
GUIDANCE = 2.0


def is_postcards(pipe: StableDiffusionPipeline) -> bool:
    """Whether a pipeline was loaded from the shipped folder."""
    return pipe.name_or_path == MODELS["postcards"][0]
