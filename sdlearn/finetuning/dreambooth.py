"""DreamBooth: a new subject, learnt by the U-Net, in full or as a LoRA.

Source: Ruiz et al. (2022), "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for
Subject-Driven Generation", section 3; Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large
Language Models", section 4.1. The LoRA is peft's, and is kept in diffusers' own way
(``save_lora_weights``, ``load_lora_weights``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from sdlearn import checks
from sdlearn.editing.sdedit import Picture
from sdlearn.finetuning.fit import AfterStep, check_run, examples, fit, noise_loss
from sdlearn.finetuning.textual_inversion import added_token
from sdlearn.postcards import settings
from sdlearn.sampling import text_to_image

ADAPTER = "subject"
# The layers that get a LoRA: attention, and the convolutions of the residual blocks.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")


def finetune_subject(
    pipe: StableDiffusionPipeline,
    images: Sequence[Picture],
    prompt: str | list[str],
    class_prompt: str | list[str] | None = None,
    method: str = "lora",
    *,
    placeholder: str | None = None,
    initializer: str | None = None,
    rank: int = 8,
    prior_weight: float = 1.0,
    class_images: int = 16,
    steps: int = 400,
    batch_size: int = 4,
    learning_rate: float | None = None,
    folder: str | Path | None = None,
    generator: torch.Generator | None = None,
    after_step: AfterStep | None = None,
) -> list[float]:
    """Teach the U-Net a subject from a few pictures of it.

    Interrupted, it leaves the pipeline as far as it has learnt. With "lora" the U-Net's own weights
    stay as they are: ``pipe.unload_lora_weights()`` gives them back.

    Args:
        pipe: the pipeline.
        images: pictures, their paths, or pixels, all of one size.
        prompt: what they show; one for all, or one for each.
        class_prompt: prompts of what shall stay as it is, such as the subject's class. Pictures for
            them are drawn first, by the model as it is, and learnt along (prior preservation).
        method: "lora", or "full" for all weights of the U-Net.
        placeholder: a new word in the prompts that is learnt along, see ``learn_token``.
        initializer: the word that it begins with.
        rank: of the LoRA.
        prior_weight: of the loss on the class's pictures, against 1 for the subject's.
        class_images: how many of them are drawn for each ``class_prompt``.
        steps: see ``fit``.
        batch_size: examples a step, and as many of the class's.
        learning_rate: see ``fit``; by default 1e-3 for "lora", 1e-5 for "full".
        folder: see ``fit``.
        generator: see ``fit``; draws the class's pictures first.
        after_step: see ``fit``.

    Returns:
        The loss of each step.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type.
    """
    checks.pipeline(pipe)
    if method not in ("lora", "full"):
        raise ValueError(f'method must be "lora" or "full", got {method!r}')
    if (placeholder is None) != (initializer is None):
        raise ValueError("placeholder and initializer belong together; give both, or neither")
    learning_rate = learning_rate or {"lora": 1e-3, "full": 1e-5}[method]
    check_run(steps, learning_rate, batch_size, generator)
    rank = checks.whole("rank", rank, 1, 1024, "8 is usual")
    prior_weight = checks.real("prior_weight", prior_weight, 0, remedy="1 is usual")
    data = None if placeholder else examples(pipe, images, prompt)
    prior = None
    if class_prompt is not None:
        texts = checks.prompts(class_prompt, "class_prompt") * class_images
        pixels = torch.cat([_drawn(pipe, text, generator) for text in texts])
        prior = examples(pipe, pixels.split(1), texts)
    word: Any = nullcontext()
    if placeholder is not None and initializer is not None:
        word = added_token(pipe, placeholder, initializer)
    with word as row:
        data = data or examples(pipe, images, prompt)

        def loss(drawn: torch.Generator) -> Tensor:
            ours = noise_loss(pipe, data, batch_size, drawn)
            if prior is None:
                return ours
            return ours + prior_weight * noise_loss(pipe, prior, batch_size, drawn)

        learning = _thawed(pipe, method, rank)
        try:
            return fit(
                pipe,
                learning if row is None else {**learning, "row": row},
                loss,
                steps=steps,
                learning_rate=learning_rate,
                folder=folder,
                generator=generator,
                after_step=after_step,
            )
        finally:
            pipe.unet.requires_grad_(False)


def save_lora(pipe: StableDiffusionPipeline, folder: str | Path) -> None:
    """Write the LoRA to a safetensors file in a folder; ``pipe.load_lora_weights`` reads it.

    Raises:
        ValueError: there is none.
    """
    from peft import get_peft_model_state_dict

    if ADAPTER not in getattr(pipe.unet, "peft_config", {}):
        raise ValueError('this U-Net has learnt no LoRA; finetune_subject(..., method="lora")')
    layers = get_peft_model_state_dict(pipe.unet, adapter_name=ADAPTER)
    pipe.save_lora_weights(folder, unet_lora_layers=layers)


def _drawn(pipe: StableDiffusionPipeline, text: str, generator: torch.Generator | None) -> Tensor:
    return text_to_image(pipe, text, generator=generator, **settings(pipe)).pixels


def _thawed(pipe: StableDiffusionPipeline, method: str, rank: int) -> dict[str, nn.Parameter]:
    """Return the U-Net's weights that shall learn, by name: its own, or those of a new LoRA."""
    unet = pipe.unet
    if method == "full":
        unet.requires_grad_(True)
        return dict(unet.named_parameters())
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    if ADAPTER not in getattr(unet, "peft_config", {}):  # else it learns on
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)), ADAPTER)
    for name, weight in unet.named_parameters():
        weight.requires_grad_(f".{ADAPTER}." in name)
    cast_training_params(unet)  # float32: half a precision loses small steps
    return {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
