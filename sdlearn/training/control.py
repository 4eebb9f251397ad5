r"""ControlNet: a small network that reads an edge picture and steers the U-Net by it.

It is a copy of the U-Net's way down. It sees the edges beside the noisy latents, and what it makes
of them is added to the U-Net's skip connections, through convolutions whose weights begin at zero:
untrained, it changes nothing, and training starts from the model as it was. The U-Net's own
weights do not move.

Source: Zhang et al. (2023), "Adding Conditional Control to Text-to-Image Diffusion Models",
arXiv 2302.05543, section 3.2 (zero convolutions) and equation 5 (the loss). Unlike theirs this copy
has no cross-attention: the words are the U-Net's affair, and the file is half as large.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Unpack

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from sdlearn.finetuning.fit import frozen
from sdlearn.postcards.data import MaskedPostcards, Postcards
from sdlearn.text import tokenize
from sdlearn.training.loop import Examples, Options, train
from sdlearn.training.unet import Latents, encode_pictures, unet_loss

THRESHOLD = 0.5  # Of the slope, from which on it is an edge; a step from black to white has 4.
EMBEDDING = (8, 16, 32, 64)  # Channels of the layers that bring edges to the size of latents.


def edges(pixels: Tensor) -> Tensor:
    """Return the edges of pictures: white lines, (B, 3, H, W), 0 or 1, on black.

    An edge is where a picture changes steeply: where Sobel's slope, the largest of those of red,
    green and blue, exceeds ``THRESHOLD``. It is the same for training and for drawing.

    Args:
        pixels: (B, 3, H, W) in [0, 1], as ``to_tensor(pipe, image) / 2 + 0.5`` gives them.
    """
    across = pixels.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([across, across.T])[:, None]  # (2, 1, 3, 3)
    padded = F.pad(pixels.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    slope = F.conv2d(padded, kernels).norm(dim=1).unflatten(0, pixels.shape[:2])  # (B, 3, H, W)
    return (slope.amax(dim=1, keepdim=True) > THRESHOLD).to(pixels).expand_as(pixels)


class EdgePostcards(Latents):
    """postcards as latents, with their edges; every other time only those of what stands there.

    So the network learns to leave open what has no line, such as the background.

    Args:
        pipe: its VAE encodes, some 20 ms a picture on one CPU core, once.
        length: how many pictures.
        first_seed: picture i is drawn from the seed ``first_seed + i``.
    """

    def __init__(self, pipe: StableDiffusionPipeline, length: int, first_seed: int = 0) -> None:
        self.pictures = MaskedPostcards(length, first_seed=first_seed)
        described = Postcards(length, first_seed=first_seed)
        super().__init__(encode_pictures(pipe, described), described)

    def __getitem__(self, index: int) -> dict:
        picture = self.pictures[index]
        lines = edges(picture["pixels"][None] / 2 + 0.5)[0]  # (3, 128, 128)
        if torch.rand(()) < 0.5:
            lines = lines * picture["subject"]
        return {**super().__getitem__(index), "edges": lines}


def make_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Return a ControlNet that begins as the U-Net's own way down, wherever shapes fit.

    Everything but cross-attention does; diffusers' ``ControlNetModel.from_unet`` would copy that,
    too.
    """
    config = unet.config
    control = ControlNetModel(
        in_channels=config.in_channels,
        down_block_types=("DownBlock2D",) * len(config.block_out_channels),
        mid_block_type="UNetMidBlock2D",
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=config.cross_attention_dim,
        conditioning_embedding_out_channels=EMBEDDING,
    )
    own, theirs = control.state_dict(), unet.state_dict()
    fits = {
        name: theirs[name]
        for name, weight in own.items()
        if name in theirs and theirs[name].shape == weight.shape
    }
    control.load_state_dict({**own, **fits})
    return control


class Controlled(nn.Module):
    """ControlNet and U-Net as one: (noisy latents, timesteps, token ids, edges) -> noise.

    Only the ControlNet is trained, and only it is a part of this module.
    """

    def __init__(self, control: ControlNetModel, pipe: StableDiffusionPipeline) -> None:
        super().__init__()
        self.control = control
        self.frozen = (pipe.text_encoder, pipe.unet)  # in a tuple: not saved, not optimised

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor, lines: Tensor) -> Tensor:
        """Predict the noise, (B, 4, h, w), for captions (B, 77) and edges (B, 3, H, W)."""
        text_encoder, unet = self.frozen
        embeds = text_encoder(ids)[0]  # (B, 77, D)
        call = {"encoder_hidden_states": embeds, "return_dict": False}
        down, middle = self.control(noisy, timesteps, controlnet_cond=lines, **call)
        return unet(
            noisy,
            timesteps,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            **call,
        )[0]


def control_loss(model: nn.Module, pipe: StableDiffusionPipeline, batch: dict) -> Tensor:
    """The U-Net's own loss, now that it is told the edges; a scalar.

    Args:
        model: ``Controlled``, or what wraps it.
        pipe: for its tokenizer and its noise schedule.
        batch: ``latents`` (B, 4, h, w), ``edges`` (B, 3, H, W), and B of ``caption``.
    """
    latents, lines = (batch[key].to(pipe.unet.device) for key in ("latents", "edges"))
    ids = torch.stack([tokenize(pipe, caption).ids for caption in batch["caption"]])

    def told(noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        return model(noisy, timesteps, ids, lines)

    ids = ids.to(latents.device)
    return unet_loss(told, pipe.scheduler, latents, ids)  # type: ignore[arg-type]  # called only


def train_control(
    pipe: StableDiffusionPipeline,
    data: Examples,
    control: ControlNetModel | None = None,
    *,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    **options: Unpack[Options],
) -> ControlNetModel:
    """Train a ControlNet for the pipeline's U-Net, whose own weights stay as they are.

    Draw with ``StableDiffusionControlNetPipeline(**pipe.components, controlnet=control)``.

    Args:
        pipe: the pipeline.
        data: examples with ``latents``, ``edges`` and a ``caption``, as ``EdgePostcards`` has.
        control: one to train on; by default an untrained one.
        batch_size: examples a step.
        learning_rate: the highest.
        options: ``steps`` or ``minutes``, and more: see ``train``.
    """
    control = (control or make_controlnet(pipe.unet).to(pipe.unet.device)).requires_grad_(True)

    def loss(model: nn.Module, batch: dict) -> Tensor:
        return control_loss(model, pipe, batch)

    with frozen(pipe):
        train(
            Controlled(control, pipe), data, loss, batch_size=batch_size,
            learning_rate=learning_rate, progress_bar=pipe.progress_bar, **options,
        )  # fmt: skip
    return control


def save_edges(control: ControlNetModel, folder: str | Path) -> None:
    """Write the ControlNet, in half precision, as ``ControlNetModel.from_pretrained`` reads it."""
    copy.deepcopy(control).half().save_pretrained(folder)
