"""Train CLIP: a text and an image encoder that agree (Radford et al. 2021, Figure 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig


def make_clip() -> CLIPModel:
    """Return an untrained CLIP: 77 tokens of CLIP's vocabulary, 128 × 128 pictures, both small."""
    text = CLIPTextConfig(
        vocab_size=49_408, hidden_size=128, intermediate_size=512, projection_dim=128,
        num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=77,
        bos_token_id=49_406, eos_token_id=49_407, pad_token_id=49_407,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, projection_dim=128, num_hidden_layers=4,
        num_attention_heads=6, image_size=128, patch_size=16,
    )  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def clip_loss(clip: torch.nn.Module, batch: dict, tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Cross-entropy of picture against caption and caption against picture, a scalar.

    Each picture must find its caption among all the batch's captions *and* all its near misses.
    """
    captions = [*batch["caption"], *batch["wrong_caption"]]  # 2B
    tokens = tokenizer(captions, padding=True, return_tensors="pt").to(batch["pixels"].device)
    out = clip(pixel_values=batch["pixels"], **tokens)
    logits = out.logits_per_image.float()  # (B, 2B)
    count = len(logits)
    answers = torch.arange(count, device=logits.device)
    per_text = logits[:, :count].T  # (B, B): the near misses have no picture
    return (F.cross_entropy(logits, answers) + F.cross_entropy(per_text, answers)) / 2


@torch.no_grad()
def neutralise_unused_words(clip: CLIPModel, tokenizer: CLIPTokenizer, captions: list[str]) -> int:
    """Give every token that no caption holds the same vector, the mean of those that were used.

    A word never trained then does no harm, and the file compresses well.

    Returns:
        How many tokens were used.
    """
    used = torch.zeros(len(tokenizer), dtype=torch.bool)
    used[torch.tensor(sorted({i for ids in tokenizer(captions).input_ids for i in ids}))] = True
    weight = clip.text_model.get_input_embeddings().weight
    weight[~used.to(weight.device)] = weight[used.to(weight.device)].mean(dim=0)
    return int(used.sum())
