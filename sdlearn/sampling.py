"""The loop that turns noise into latents, and the whole way from a prompt to a picture.

Source: diffusers' ``StableDiffusionPipeline.__call__``, step by step; on the same device and dtype
the results are the same bit for bit.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from sdlearn import checks
from sdlearn.images import to_pil
from sdlearn.noise import split_prediction
from sdlearn.pipeline import execution_device
from sdlearn.text import encode_prompt
from sdlearn.unet import assigned, current_loop, latent_size, predict_noise

Generators = torch.Generator | list[torch.Generator] | None
AfterStep = Callable[[Any, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """One call of the U-Net and what the scheduler made of it. Tensors are (B, 4, h, w).

    Attributes:
        i: index into the scheduler's timesteps.
        t: the timestep there.
        latents: before the step, as the scheduler keeps them.
        model_input: the same as the U-Net sees them, x_t.
        noise_pred_uncond: the prediction without the prompt; None with guidance off.
        noise_pred_text: the prediction with the prompt.
        noise_pred: the guided prediction, which the scheduler is given.
        prev_sample: the latents after the step, and after ``after_step`` if there is one.
        alpha_bar: the share of x_t's variance that is picture.
        prediction_type: "epsilon" or "v_prediction".
    """

    i: int
    t: Tensor
    latents: Tensor
    model_input: Tensor
    noise_pred_uncond: Tensor | None
    noise_pred_text: Tensor
    noise_pred: Tensor
    prev_sample: Tensor
    alpha_bar: float
    prediction_type: str

    @property
    def pred_original_sample(self) -> Tensor:
        """The clean latents that ``noise_pred`` implies, (B, 4, h, w)."""
        a, kind = self.alpha_bar, self.prediction_type
        return split_prediction(self.model_input, self.noise_pred, a, kind)[0]


@dataclass(frozen=True, eq=False)
class Trace:
    """Everything between B prompts and their pictures.

    Attributes:
        prompts: the B prompts.
        prompt_embeds: (2B, 77, D), the unconditional half first.
        steps: every step; some schedulers take more than ``num_inference_steps``.
        latents: the final ones, (B, 4, H/8, W/8), scaled.
        pixels: (B, 3, H, W) in [0, 1].
        images: the B pictures.
    """

    prompts: list[str]
    prompt_embeds: Tensor
    steps: tuple[Step, ...]
    latents: Tensor
    pixels: Tensor
    images: list[Image.Image]

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.images[0]


def fresh_scheduler(
    pipe: StableDiffusionPipeline, num_inference_steps: int, t_start: int = 0
) -> Any:
    """Return a copy of the scheduler, set to ``num_inference_steps``; the pipeline's stays as is.

    It will begin after ``t_start`` steps, at ``timesteps[t_start * order]``.

    Raises:
        ValueError, TypeError: a number of steps that the training schedule cannot be cut into, or
            that many left out.
    """
    trained = pipe.scheduler.config.num_train_timesteps
    count = checks.whole("num_inference_steps", num_inference_steps, 1, trained, "20 is usual")
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(count, device=execution_device(pipe))
    if scheduler.timesteps.max() >= trained:  # steps_offset=1 pushes 1,000 steps up by one
        raise ValueError(
            f"num_inference_steps={count} asks {type(scheduler).__name__} for "
            f"timestep {trained}, which was never trained; use {trained - 1} or fewer"
        )
    left_out = checks.whole("t_start", t_start, 0, count - 1, "0 leaves out no step")
    if left_out and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(left_out * scheduler.order)
    return scheduler


def initial_latents(
    pipe: StableDiffusionPipeline,
    num_inference_steps: int = 50,
    *,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 1,
    generator: Generators = None,
) -> Tensor:
    """Draw the noise that the loop starts from, as diffusers draws it.

    Args:
        pipe: the pipeline.
        num_inference_steps: steps of the whole schedule; Euler's first sigma depends on it.
        height: in pixels, a multiple of 8; what the model was trained on by default.
        width: likewise.
        batch_size: B.
        generator: one, or a list of B. A CPU generator gives the same noise on every device.

    Returns:
        (B, 4, H/8, W/8), of standard deviation ``init_noise_sigma`` (1 for DDIM).

    Raises:
        ValueError, TypeError: an impossible size or number of steps.
    """
    batch_size = checks.whole("batch_size", batch_size, 1, 4096, "it counts the pictures")
    checks.generators(generator, batch_size)
    factor = pipe.vae_scale_factor
    tall, wide = (side * factor for side in latent_size(pipe.unet))
    height, width = (tall if height is None else height), (wide if width is None else width)
    height, width = checks.size(pipe, height, width)
    sigma = fresh_scheduler(pipe, num_inference_steps).init_noise_sigma
    shape = (batch_size, pipe.vae.config.latent_channels, height // factor, width // factor)
    where = execution_device(pipe)
    return randn_tensor(shape, generator, device=where, dtype=pipe.unet.dtype) * sigma


def denoise(
    pipe: StableDiffusionPipeline,
    latents: Tensor,
    prompt_embeds: Tensor,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    generator: Generators = None,
    t_start: int = 0,
    joined: Tensor | None = None,
    after_step: AfterStep | None = None,
) -> Iterator[Step]:
    """Take the noise out of ``latents``, one ``Step`` at a time.

    Args:
        pipe: the pipeline. Its scheduler is copied, not used.
        latents: (B, 4, h, w) from ``initial_latents``, or for a later start from the scheduler's
            own ``add_noise``.
        prompt_embeds: (2B, 77, D) from ``encode_prompt``.
        num_inference_steps: steps of the whole schedule. PNDM and Heun call the U-Net more often.
        guidance_scale: see ``predict_noise``.
        guidance_rescale: see ``predict_noise``.
        eta: how much fresh noise DDIM adds; other schedulers ignore it.
        generator: for schedulers that draw noise.
        t_start: how many steps to leave out at the noisy end.
        joined: see ``predict_noise``.
        after_step: called after each step with the scheduler, the latents, and the timestep that
            they have come to (None after the last step); what it returns goes on.

    Returns:
        An iterator. Arguments are checked at once; a step is computed when it is asked for.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong shape.
    """
    checks.pipeline(pipe)
    scale, rescale, eta = checks.guidance(guidance_scale, guidance_rescale, eta)
    checks.latents(pipe, latents)
    checks.joined(pipe, latents, joined)
    checks.embeds(pipe, prompt_embeds, len(latents), guided=checks.guided(pipe, scale))
    checks.generators(generator, len(latents))
    scheduler = fresh_scheduler(pipe, num_inference_steps, t_start)
    first = int(t_start) * scheduler.order
    accepted = inspect.signature(scheduler.step).parameters
    extra = {"eta": eta, "generator": generator}
    extra = {name: value for name, value in extra.items() if name in accepted}

    @torch.no_grad()  # on a generator it holds inside only, not in the caller's loop
    def loop(x: Tensor) -> Iterator[Step]:
        timesteps = scheduler.timesteps
        for i, t in enumerate(pipe.progress_bar(timesteps[first:]), first):
            x_t = scheduler.scale_model_input(x, t)
            a = alpha_bar_at(scheduler, i, t)
            with assigned(current_loop, scheduler):  # each loop has its own copy
                noise = predict_noise(
                    pipe, x_t, t, prompt_embeds, scale, guidance_rescale=rescale, joined=joined
                )
            following = scheduler.step(noise.guided, t, x, **extra, return_dict=False)[0]
            if after_step:
                reached = timesteps[i + 1] if i + 1 < len(timesteps) else None
                following = after_step(scheduler, following, reached)
            yield Step(
                i=i,
                t=t,
                latents=x,
                model_input=x_t,
                noise_pred_uncond=noise.unconditional,
                noise_pred_text=noise.text,
                noise_pred=noise.guided,
                prev_sample=following,
                alpha_bar=a,
                prediction_type=scheduler.config.prediction_type,
            )
            x = following

    return loop(latents)


def alpha_bar_at(scheduler: Any, i: int, t: Tensor) -> float:
    """Return alpha_bar of what the U-Net is asked about at ``timesteps[i]``, which is t.

    Some schedulers keep x_t divided by the root of alpha_bar, and ``scale_model_input`` multiplies
    it back: given a 1 it returns the root, also where a scheduler of second order asks between two
    of its sigmas. Others have sigmas and do not scale: sigma squared is noise over signal, also
    between two training steps. The rest go by t.
    """
    root = float(scheduler.scale_model_input(torch.ones(1, device=t.device), t))
    if root < 1:
        return root**2
    if hasattr(scheduler, "sigmas"):
        return 1 / (float(scheduler.sigmas[i]) ** 2 + 1)
    return float(scheduler.alphas_cumprod[int(t)])


@torch.no_grad()
def text_to_image(
    pipe: StableDiffusionPipeline,
    prompt: str | list[str],
    *,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    negative_prompt: str | list[str] = "",
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    generator: Generators = None,
) -> Trace:
    """Draw pictures for prompts: what ``pipe(prompt, ...)`` does, with every stage kept.

    Args:
        pipe: the pipeline.
        prompt: one prompt, or a list of B.
        height: in pixels, a multiple of 8; what the model was trained on by default (``pipe(...)``
            takes its default for both unless both are given).
        width: likewise.
        num_inference_steps: 1 to the number of training steps.
        guidance_scale: see ``predict_noise``.
        negative_prompt: what to steer away from; one for all, or a list of B.
        guidance_rescale: see ``predict_noise``.
        eta: see ``denoise``.
        generator: makes the picture repeatable; one, or a list of B.

    Returns:
        A ``Trace``; its ``image`` equals ``pipe(...).images[0]``. It holds no decoded steps and so
        stays small: about 17 MB for 50 steps at 512 x 512 in float32.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type.
    """
    checks.pipeline(pipe)
    checks.latents_alone(pipe)
    prompts = checks.prompts(prompt)
    negatives = checks.negative_prompts(negative_prompt, len(prompts))
    checks.guidance(guidance_scale, guidance_rescale, eta)
    noise = initial_latents(
        pipe,
        num_inference_steps,
        height=height,
        width=width,
        batch_size=len(prompts),
        generator=generator,
    )  # (B, 4, H/8, W/8)
    embeds = encode_prompt(pipe, prompts, negatives)  # (2B, 77, D)
    steps = denoise(
        pipe,
        noise,
        embeds,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        eta=eta,
        generator=generator,
    )
    return develop(pipe, prompts, embeds, steps)


@torch.no_grad()
def develop(
    pipe: StableDiffusionPipeline,
    prompts: list[str],
    prompt_embeds: Tensor,
    steps: Iterable[Step],
) -> Trace:
    """Go through all steps, decode the last latents, and keep everything in a ``Trace``.

    Args:
        pipe: the pipeline; its safety checker, if it has one, sees the pictures.
        prompts: the B prompts.
        prompt_embeds: (2B, 77, D), the unconditional half first.
        steps: from ``denoise``.
    """
    kept = tuple(steps)
    latents = kept[-1].prev_sample  # (B, 4, H/8, W/8)
    image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    image, unsafe = pipe.run_safety_checker(
        image, latents.device, prompt_embeds.dtype
    )  # (B, 3, H, W)
    # What the safety checker blacks out is 0, and denormalised it would be grey.
    shown = [not black for black in unsafe or [False] * len(prompts)]
    pixels = pipe.image_processor.postprocess(image, output_type="pt", do_denormalize=shown)
    pipe.maybe_free_model_hooks()  # with load(..., low_memory=True): off the GPU, until the next
    return Trace(prompts, prompt_embeds, kept, latents, pixels, to_pil(pipe, pixels))
