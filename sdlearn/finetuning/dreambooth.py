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
from sdlearn.finetuning.fit import (
    AfterStep,
    check_run,
    examples,
    fit,
    frozen,
    noise_loss,
    pictures_as_numbers,
    random_state_kept,
    seed_from,
)
from sdlearn.finetuning.textual_inversion import added_token, check_word
from sdlearn.postcards import settings
from sdlearn.sampling import text_to_image

ADAPTER = "subject"
LEARNING_RATES = {"lora": 1e-3, "full": 1e-5}
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

    Interrupted, it leaves the pipeline as far as it has learnt; called again, it learns on. With
    "lora" the U-Net's own weights stay as they are: ``pipe.unload_lora_weights()`` gives them back.

    Args:
        pipe: the pipeline.
        images: pictures, their paths, or pixels (1, 3, H, W), all of one size.
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
        generator: makes the run repeatable, and draws the class's pictures.
        after_step: see ``fit``.

    Returns:
        The loss of each step.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type.
    """
    if method not in ("lora", "full"):
        raise ValueError(f'method must be "lora" or "full", got {method!r}')
    learning_rate = LEARNING_RATES[method] if learning_rate is None else learning_rate
    check_run(pipe, steps, learning_rate, batch_size, generator)
    checks.whole("rank", rank, 1, 1024, "8 is usual")
    checks.whole("class_images", class_images, 1, 10_000, "16 is a start")
    checks.real("prior_weight", prior_weight, 0, remedy="1 is usual")
    if method == "full" and pipe.unet.dtype != torch.float32:
        raise ValueError(
            f'method="full" needs float32 weights, got {pipe.unet.dtype}: smaller ones lose small '
            "steps; load(..., dtype=torch.float32), or a LoRA"
        )
    if (placeholder is None) != (initializer is None):
        raise ValueError("placeholder and initializer belong together; give both, or neither")
    word: Any = nullcontext()
    if placeholder is not None and initializer is not None:
        check_word(pipe, placeholder, initializer, prompt)
        word = added_token(pipe, placeholder, initializer)  # once it is entered, below
    lora = _lora(pipe)
    if method == "lora" and lora and lora.r != rank:
        raise ValueError(f"this U-Net has a LoRA of rank {lora.r}, got rank={rank}; unload it")
    data, prior = examples(pipe, images, prompt), None
    seed = seed_from(generator)  # first, so that it is the same with a class and without
    if class_prompt is not None:
        texts = checks.prompts(class_prompt, "class_prompt") * class_images
        prior = examples(pipe, _drawn(pipe, texts, generator), texts)

    with frozen(pipe), word as row:
        learning = _to_learn(pipe, method, rank, seed)
        if row is not None:
            learning["row"] = row
        parts = [(data.latents, data.ids(pipe), 1.0)]
        if prior is not None:
            parts.append((prior.latents, prior.ids(pipe), prior_weight))

        def loss(drawn: torch.Generator) -> Tensor:
            each = [w * noise_loss(pipe, x, ids, batch_size, drawn) for x, ids, w in parts]
            return torch.stack(each).sum()

        return fit(
            pipe,
            learning,
            loss,
            steps=steps,
            learning_rate=learning_rate,
            about={
                "method": method,
                "word": placeholder,
                "prompts": data.prompts,
                "class prompts": prior.prompts if prior else None,
                "pictures": pictures_as_numbers(data),
            },
            folder=folder,
            seed=seed,
            after_step=after_step,
        )


def save_lora(pipe: StableDiffusionPipeline, folder: str | Path) -> None:
    """Write the LoRA to a safetensors file in a folder; ``pipe.load_lora_weights`` reads it.

    Raises:
        ValueError: there is none.
    """
    from peft import get_peft_model_state_dict

    if not _lora(pipe):
        raise ValueError('this U-Net has learnt no LoRA; finetune_subject(..., method="lora")')
    layers = get_peft_model_state_dict(pipe.unet, adapter_name=ADAPTER)
    pipe.save_lora_weights(folder, unet_lora_layers=layers)


def _lora(pipe: StableDiffusionPipeline) -> Any:
    """Return the configuration of the LoRA that is learnt here, or None."""
    return getattr(pipe.unet, "peft_config", {}).get(ADAPTER)


def _drawn(
    pipe: StableDiffusionPipeline, texts: list[str], generator: torch.Generator | None
) -> list[Tensor]:
    """Draw a picture for each text, as the model drew before it learnt the subject."""
    call = {"generator": generator, **settings(pipe)}
    active = pipe.unet.active_adapters() if _lora(pipe) else []
    try:
        if active:
            pipe.unet.disable_adapters()
        return [text_to_image(pipe, text, **call).pixels for text in texts]
    finally:
        if active:
            pipe.unet.enable_adapters()


def _to_learn(
    pipe: StableDiffusionPipeline, method: str, rank: int, seed: int
) -> dict[str, nn.Parameter]:
    """Return what shall learn of the U-Net, by name: all its weights, or those of a LoRA."""
    unet = pipe.unet
    if method == "full":
        return dict(unet.named_parameters())
    from peft import LoraConfig

    if not _lora(pipe):  # else it learns on
        before = list(getattr(unet, "peft_config", {}))
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS))
        with random_state_kept(seed):
            unet.add_adapter(config, ADAPTER)
        unet.set_adapter([*before, ADAPTER])
    learning = {name: weight for name, weight in unet.named_parameters() if f".{ADAPTER}." in name}
    for weight in learning.values():
        weight.data = weight.data.float()  # half a precision loses small steps
    return learning
