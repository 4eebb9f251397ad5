"""Train CLIP: a text and an image encoder that agree (Radford et al. 2021, Figure 3)."""

from __future__ import annotations

import copy
import random
from functools import partial
from typing import Unpack

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from sdlearn.training.loop import Options, train
from sdlearn.training.pictures import Described

CLOSENESS = 4.0  # The weight of staying near the former states; with 1 the U-Net reads them worse.
WIDTH = 128  # of the text encoder, and of the space in which pictures and captions meet


def make_text_encoder() -> CLIPTextModel:
    """Return an untrained text encoder: 77 tokens of CLIP's vocabulary, four layers."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=49_408, hidden_size=WIDTH, intermediate_size=512,
        num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=77,
        bos_token_id=49_406, eos_token_id=49_407, pad_token_id=49_407,
    ))  # fmt: skip


def make_image_encoder() -> CLIPVisionModelWithProjection:
    """Return an untrained image encoder: 128 × 128 pictures in patches of 16 × 16, four layers."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, projection_dim=WIDTH, num_hidden_layers=4,
        num_attention_heads=6, image_size=128, patch_size=16,
    ))  # fmt: skip


class Contrast(torch.nn.Module):
    """Both encoders as one: (pictures, token ids) -> how well each picture fits each caption.

    CLIP projects both sides into a common space. Ours projects pictures into the text encoder's
    own, so that both encoders are complete models which diffusers and transformers know.
    """

    def __init__(
        self, text_encoder: CLIPTextModel, image_encoder: CLIPVisionModelWithProjection
    ) -> None:
        super().__init__()
        self.text_encoder, self.image_encoder = text_encoder, image_encoder
        self.log_scale = torch.nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compare pictures (N, 3, 128, 128) and captions (M, L).

        Returns:
            Scaled cosines, (N, M), and the text encoder's states, (M, L, D).
        """
        pictures = F.normalize(self.image_encoder(pixels).image_embeds, dim=-1)
        texts = self.text_encoder(ids)
        cosines = pictures @ F.normalize(texts.pooler_output, dim=-1).T
        return self.log_scale.exp().clamp(max=100) * cosines, texts.last_hidden_state


def clip_loss(
    model: torch.nn.Module,
    batch: dict,
    tokenizer: CLIPTokenizer,
    before: CLIPTextModel | None = None,
) -> torch.Tensor:
    """Cross-entropy of picture against caption and caption against picture, a scalar.

    Each picture must find its caption among all the batch's captions *and* all its near misses, if
    the batch has any.
    ``before``, the text encoder as it was, keeps the new states near the old ones (mean squared
    distance), so that a U-Net which has learnt to read those can go on.
    """
    captions = [*batch["caption"], *batch.get("wrong_caption", [])]  # 2B
    ids = tokenizer(captions, padding=True, return_tensors="pt").input_ids
    ids = ids.to(batch["pixels"].device)
    logits, states = model(batch["pixels"], ids)  # (B, 2B)
    logits = logits.float()
    count = len(logits)
    answers = torch.arange(count, device=logits.device)
    per_text = logits[:, :count].T  # (B, B): the near misses have no picture
    loss = (F.cross_entropy(logits, answers) + F.cross_entropy(per_text, answers)) / 2
    return loss if before is None else loss + CLOSENESS * moved(states, ids, before)


def moved(states: torch.Tensor, ids: torch.Tensor, before: CLIPTextModel) -> torch.Tensor:
    """Mean squared distance of a text encoder's states from those of ``before``, a scalar."""
    with torch.no_grad():
        states_before = before(ids)[0]
    return F.mse_loss(states.float(), states_before.float())


@torch.no_grad()
def tell_apart(model: Contrast, examples: list[dict], tokenizer: CLIPTokenizer) -> float:
    """Return how often a picture fits its caption better than the near miss (0 to 1)."""
    pixels = torch.stack([example["pixels"] for example in examples])
    captions = [example[kind] for kind in ("caption", "wrong_caption") for example in examples]
    ids = tokenizer(captions, padding=True, return_tensors="pt").input_ids
    right, wrong = model(pixels, ids)[0].unflatten(1, (2, -1)).diagonal(dim1=0, dim2=2)
    return (right > wrong).float().mean().item()


@torch.no_grad()
def neutralise_unused_words(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]
) -> int:
    """Give every token that no caption holds the same vector, the mean of those that were used.

    A word never trained then does no harm, and the file compresses well.

    Returns:
        How many tokens were used.
    """
    used = torch.zeros(len(tokenizer), dtype=torch.bool)
    used[torch.tensor(sorted({i for ids in tokenizer(captions).input_ids for i in ids}))] = True
    weight = text_encoder.get_input_embeddings().weight
    weight[~used.to(weight.device)] = weight[used.to(weight.device)].mean(dim=0)
    return int(used.sum())


def train_clip(
    pipe: StableDiffusionPipeline,
    data: Described,
    *,
    held: bool = False,
    train_text: bool = True,
    batch_size: int = 128,
    learning_rate: float = 8e-4,
    **options: Unpack[Options],
) -> None:
    """Train a pipeline's text and image encoders in place, so that they agree.

    Args:
        pipe: the pipeline, in float32.
        data: examples with ``pixels``, ``caption``, and, if there is one, a ``wrong_caption``.
        held: keep the text encoder near what it says now, since a U-Net reads it already. Else it
            is trained from nothing: all words it never saw get one neutral vector in the end.
        train_text: False leaves the text encoder as it is.
        batch_size: how many a step sees: against how many captions a picture must find its own.
        learning_rate: the highest.
        options: ``steps`` or ``minutes``, and more: see ``train``.
    """
    before = copy.deepcopy(pipe.text_encoder) if held and train_text else None
    model = Contrast(pipe.text_encoder, pipe.image_encoder).to(pipe.device).requires_grad_(True)
    model.text_encoder.requires_grad_(train_text)
    train(
        model, data, partial(clip_loss, tokenizer=pipe.tokenizer, before=before),
        batch_size=batch_size, learning_rate=learning_rate, progress_bar=pipe.progress_bar,
        **options,
    )  # fmt: skip
    if train_text and not held:
        some = range(min(len(data), 20_000))
        captions = [data.caption(i, random.Random(i)) for i in some]
        neutralise_unused_words(pipe.text_encoder, pipe.tokenizer, captions)
