"""The shipped model: whether a pipeline is it, and the settings that suit it best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from sdlearn.pipeline import MODELS

POSTCARDS = Path(MODELS["postcards"][0])  # the shipped weights
# A LoRA that draws in one to four steps. ``pipe.load_lora_weights(FEW_STEPS)``, then
# ``pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)``, and guidance 1: off.
FEW_STEPS = POSTCARDS.parent / "few-steps"
# A ControlNet that follows ``training.control.edges(pixels)``: ``ControlNetModel.from_pretrained``,
# then ``StableDiffusionControlNetPipeline(**pipe.components, controlnet=...)``.
EDGES = POSTCARDS.parent / "edges"

# The best of ``python -m sdlearn.postcards.evaluate --grid``; the model card has the table.
STEPS = 10
GUIDANCE = 2.0


def is_postcards(pipe: StableDiffusionPipeline) -> bool:
    """Whether a pipeline was loaded from the shipped folder."""
    return pipe.name_or_path == MODELS["postcards"][0]


def settings(pipe: StableDiffusionPipeline) -> dict[str, Any]:
    """Return the ``num_inference_steps`` and ``guidance_scale`` with which the chapters draw.

    Those measured for postcards; for any other model 20 and 7.5, which suit Stable Diffusion 1.5.
    """
    if is_postcards(pipe):
        return {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    return {"num_inference_steps": 20, "guidance_scale": 7.5}
