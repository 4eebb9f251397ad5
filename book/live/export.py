"""Write postcards as ONNX files, which a browser can run: text encoder, U-Net, VAE.

The weights are kept in half precision, as the model ships them, each with a Cast to float32 behind
it: half the bytes to send, and the same numbers. The runtime takes the Casts away when it loads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import onnxscript
import torch
import transformers
from diffusers import StableDiffusionPipeline
from filelock import FileLock
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import sdlearn
from sdlearn.postcards.model import POSTCARDS

OPSET = 20
PARTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
SMALL = 64  # Values: what has fewer is not worth a Cast.


class MappedAttention:
    """An attention processor of diffusers' kind that keeps what it computes, and can be weighted.

    Attributes:
        maps: the prompt's attention, (h*w, 77), mean over heads, before the weights; one for each
            cross-attention layer, in the order in which they ran.
        weights: (B, 77), a factor for each token's attention, after the softmax: the same as
            ``editing``'s ``Edit.weight``.
    """

    def __init__(self) -> None:
        self.maps: list[Tensor] = []
        self.weights = torch.empty(0)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return what the layer says about ``hidden_states``, (B, h*w, D), in that shape."""
        is_cross = encoder_hidden_states is not None
        read = encoder_hidden_states if is_cross else hidden_states
        query, key, value = (
            states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, h*w or 77, d)
            for states in (attn.to_q(hidden_states), attn.to_k(read), attn.to_v(read))
        )
        probabilities = (query * attn.scale @ key.transpose(-1, -2)).softmax(-1)
        if is_cross:
            self.maps.append(probabilities[-1].mean(0))  # the last row of the batch is the prompt's
            probabilities = probabilities * self.weights[:, None, None]
        mixed = (probabilities @ value).transpose(1, 2).flatten(2)  # (B, h*w, D)
        return attn.to_out[1](attn.to_out[0](mixed))


class UNet(nn.Module):
    """The U-Net, which also returns the maps of its cross-attention."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        super().__init__()
        self.unet, self.attention = pipe.unet, MappedAttention()
        self.unet.set_attn_processor(self.attention)

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the predicted noise, (B, 4, h, w), and for each layer the maps, (h*w, 77).

        Args:
            sample: x_t, (B, 4, h, w).
            timestep: (1,), a float, one for all.
            encoder_hidden_states: (B, 77, D); the last row is the prompt's.
            weights: (B, 77), see ``MappedAttention``.
        """
        self.attention.maps, self.attention.weights = [], weights
        noise = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return noise, *self.attention.maps


class Rows(nn.Module):
    """A token table in which equal rows are kept once: unlearnt words all share one."""

    rows: Tensor  # (some 160, D)
    row_of: Tensor  # (49408,), bytes

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        rows, row_of = torch.unique(table, dim=0, return_inverse=True)
        if len(rows) > 256:
            raise ValueError(f"got {len(rows)} different rows; the table of bytes counts to 256")
        self.register_buffer("rows", rows)
        self.register_buffer("row_of", row_of.to(torch.uint8))

    def forward(self, ids: Tensor) -> Tensor:
        """Return a vector for each id, (B, 77, D)."""
        return self.rows[self.row_of[ids].long()]


class TextEncoder(nn.Module):
    """The text encoder, as ``encode_prompt`` asks it."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        super().__init__()
        self.encoder = pipe.text_encoder
        self.encoder.set_input_embeddings(Rows(self.encoder.get_input_embeddings().weight))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return what the U-Net reads, (B, 77, D), for token ids, (B, 77)."""
        return self.encoder(input_ids)[0]


class Decoder(nn.Module):
    """The VAE's way back."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        super().__init__()
        self.vae = pipe.vae

    def forward(self, latents: Tensor) -> Tensor:
        """Return pixels, (B, 3, H, W), about -1 to 1, for scaled latents, (B, 4, h, w)."""
        return self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]


class Encoder(nn.Module):
    """The VAE's way there; the draw from what it returns is left to the caller."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        super().__init__()
        self.vae = pipe.vae

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, (B, 4, h, w) each, for pixels in [-1, 1]."""
        posterior = self.vae.encode(pixels).latent_dist
        return posterior.mean, posterior.std


def layers(pipe: StableDiffusionPipeline) -> list[dict[str, Any]]:
    """Return name, height and width of each layer of cross-attention, in the order of a run."""
    with sdlearn.capture_attention(pipe) as maps:
        sdlearn.text_to_image(pipe, "", num_inference_steps=1, generator=torch.Generator())
    sizes = {name: maps.probabilities(name).shape[-2:] for name in maps.layers}  # (h, w) each
    return [{"name": name, "height": h, "width": w} for name, (h, w) in sizes.items()]


@torch.no_grad()
def export(folder: Path) -> None:
    """Write into a folder the four parts, as ``<part>.onnx``, and ``layers.json``: ``layers``."""
    with quiet():
        pipe = sdlearn.load("postcards", device="cpu", dtype=torch.float32)
        side, width = pipe.unet.config.sample_size, pipe.unet.config.cross_attention_dim
        found = layers(pipe)
        (folder / "layers.json").write_text(json.dumps(found), encoding="utf-8")
        names = [f"map:{layer['name']}" for layer in found]
        batch = torch.export.Dim("batch", min=1, max=8)
        latents, text = torch.randn(2, 4, side, side), torch.randn(2, 77, width)
        asked = (latents, torch.tensor([500.0]), text, torch.ones(2, 77))
        ids = torch.randint(0, 49_408, (2, 77))
        pixels = torch.rand(2, 3, 8 * side, 8 * side)
        only, four = ({0: batch},), ({0: batch}, None, {0: batch}, {0: batch})
        write(folder, "text_encoder", TextEncoder(pipe), (ids,), only, ["embeds"])
        write(folder, "unet", UNet(pipe), asked, four, ["noise_pred", *names])
        write(folder, "vae_decoder", Decoder(pipe), (latents,), only, ["pixels"])
        write(folder, "vae_encoder", Encoder(pipe), (pixels,), only, ["mean", "std"])


def write(
    folder: Path,
    part: str,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    dynamic: tuple,
    outputs: list[str],
) -> None:
    """Export one part with a batch of any size, its weights in half precision."""
    program = torch.onnx.export(
        module.eval(),
        inputs,
        dynamo=True,
        opset_version=OPSET,
        output_names=outputs,
        dynamic_shapes=dynamic,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    halve(model)
    onnx.checker.check_model(model)
    (folder / f"{part}.onnx").write_bytes(model.SerializeToString(deterministic=True))


def halve(model: onnx.ModelProto) -> None:
    """Keep each weight that loses nothing by it in half precision; drop what only tools read."""
    graph, casts = model.graph, []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < SMALL:
            continue
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and stays as it was
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    rest = [*graph.node]
    del graph.node[:], graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    graph.node.extend(casts + rest)
    for node in graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what the exporter has to say to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def fingerprint() -> str:
    """Return a hash of all that an export depends on: this file, the weights, the libraries."""
    digest = hashlib.sha256()
    for library in (torch, diffusers, transformers, onnx, onnxscript):
        digest.update(f"{library.__name__} {library.__version__}\n".encode())
    for path in [Path(__file__), *sorted(POSTCARDS.rglob("*"))]:
        if path.suffix in (".py", ".json", ".safetensors"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def exported(cache: Path) -> Path:
    """Return a folder with the four parts, from an earlier export if nothing has changed since."""
    folder = cache / fingerprint()
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "lock"):  # two test runs may ask at once
        if not folder.is_dir():
            fresh = cache / "unfinished"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            export(fresh)
            fresh.rename(folder)  # whole or not at all
    return folder
