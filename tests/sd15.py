"""Write Stable Diffusion 1.5 as it lies on the hub: its published configuration, random weights.

    python tests/sd15.py FOLDER                  at reduced width, 8 MB: what the tests use
    python tests/sd15.py FOLDER --full           at full size: 859,520,964 + 83,653,863 +
                                                 123,060,480 parameters, 8.2 GB of disk
    --shards 5        cut each part's weights into about so many files
    --parts unet vae  leave the other parts' weights out
    --checkpoint      the original CompVis layout in one file, too (4.3 GB at full size)
    --draw 2          then load it, and draw a picture in so many steps

Names of files and of tensors are those of the hub, which are older than the libraries that read
them: "text_model." before the text encoder's, "query" and "key" in the VAE's attention.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel

import sdlearn

POSTCARDS = Path(sdlearn.__file__).parent / "models" / "postcards"
SIZES = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}  # parameters
SEEDS = {"unet": 1, "vae": 2, "text_encoder": 3, "safety_checker": 4}

# The published files, but for what says nothing: "_name_or_path", and every default of CLIPConfig.
CLIP = {
    "attention_dropout": 0.0,
    "hidden_act": "quick_gelu",
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
}
TEXT = {
    **CLIP,
    "bos_token_id": 0,  # not the tokenizer's, and so published; the loop does not read them
    "eos_token_id": 2,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "vocab_size": 49408,
}
TOKEN = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
START = {**TOKEN, "__type": "AddedToken", "content": "<|startoftext|>"}
END = {**TOKEN, "__type": "AddedToken", "content": "<|endoftext|>"}
CONFIGS: dict[str, dict[str, Any]] = {
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder/config.json": {
        **TEXT,
        "architectures": ["CLIPTextModel"],
        "dropout": 0.0,
        "projection_dim": 768,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
    },
    "scheduler/scheduler_config.json": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "safety_checker/config.json": {
        "architectures": ["StableDiffusionSafetyChecker"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": TEXT,
        "vision_config": {
            **CLIP,
            "hidden_size": 1024,
            "image_size": 224,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_channels": 3,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
    },
    "feature_extractor/preprocessor_config.json": {
        "crop_size": 224,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    },
    "tokenizer/tokenizer_config.json": {
        "add_prefix_space": False,
        "bos_token": START,
        "do_lower_case": True,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": END,
    },
    "tokenizer/special_tokens_map.json": {
        "bos_token": {**TOKEN, "content": "<|startoftext|>"},
        "eos_token": {**TOKEN, "content": "<|endoftext|>"},
        "pad_token": "<|endoftext|>",
        "unk_token": {**TOKEN, "content": "<|endoftext|>"},
    },
}
# What makes it small, and leaves every layer where it is.
NARROW = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 4}
REDUCED: dict[str, dict[str, Any]] = {
    "unet/config.json": {
        "block_out_channels": [16, 16, 32, 32],
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
    },
    "vae/config.json": {
        "block_out_channels": [8, 8, 8, 8],
        "norm_num_groups": 4,
    },
    "text_encoder/config.json": {**NARROW, "num_hidden_layers": 2},
    "safety_checker/config.json": {
        "projection_dim": 16,
        "text_config": {**TEXT, **NARROW, "num_hidden_layers": 2},
        "vision_config": {
            **CONFIGS["safety_checker/config.json"]["vision_config"],
            **{**NARROW, "num_hidden_layers": 2, "patch_size": 32},
        },
    },
}
WEIGHTS = {  # part -> its class, and the name of its file
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "safety_checker": "model",
}
# What lies on the hub, too, and is not to be fetched.
LEFT_ALONE = (
    "v1-5-pruned-emaonly.safetensors",
    "v1-5-pruned.ckpt",
    "v1-inference.yaml",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/diffusion_pytorch_model.bin",
    "text_encoder/pytorch_model.fp16.bin",
    "safety_checker/pytorch_model.bin",
)


def configs(full: bool) -> dict[str, dict[str, Any]]:
    """Return every configuration file by its path."""
    return {
        path: config if full else {**config, **REDUCED.get(path, {})}
        for path, config in CONFIGS.items()
    }


def build(part: str, config: dict[str, Any]) -> torch.nn.Module:
    """Return a part with random weights, the same each time."""
    torch.manual_seed(SEEDS[part])
    if part == "unet":
        return UNet2DConditionModel.from_config(config)
    if part == "vae":
        return AutoencoderKL.from_config(config)
    if part == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(**config))
    return StableDiffusionSafetyChecker(CLIPConfig(**config))


def on_the_hub(part: str, model: torch.nn.Module, shards: int) -> dict[str, Tensor]:
    """Return a part's tensors under the names that the hub's files give them."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    if part == "vae" and shards < 2:  # of 2022, when nothing was sharded
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        pattern = re.compile(r"(mid_block\.attentions\.0\.)(to_q|to_k|to_v|to_out\.0)\.")
        return {
            pattern.sub(lambda found: f"{found[1]}{old[found[2]]}.", name): value
            for name, value in state.items()
        }
    if part == "text_encoder":
        state = {"text_model." + name.removeprefix("text_model."): v for name, v in state.items()}
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if part == "safety_checker":
        pattern = re.compile(r"^vision_model\.(vision_model\.)?")
        state = {pattern.sub("vision_model." * 2, name): v for name, v in state.items()}
        positions = len(state["vision_model.vision_model.embeddings.position_embedding.weight"])
        name = "vision_model.vision_model.embeddings.position_ids"
        state[name] = torch.arange(positions)[None]
    return state


def save(folder: Path, stem: str, state: dict[str, Tensor], shards: int, variant: str = "") -> None:
    """Write one part's weights, in one file or in several with their index."""
    size = sum(value.nbytes for value in state.values())
    save_torch_state_dict(
        {name: value.contiguous() for name, value in state.items()},
        folder,
        filename_pattern=f"{stem}{variant}{{suffix}}.safetensors",
        max_shard_size=size if shards < 2 else math.ceil(size / shards),
    )
    index = folder / f"{stem}{variant}.safetensors.index.json"
    if variant and index.exists():  # diffusers' name for it, and transformers'
        index.rename(folder / f"{stem}.safetensors.index{variant}.json")


def compvis_names(part: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """Pair each of diffusers' names with the one in a checkpoint of the original layout."""
    prefix = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}.get(part)
    for name in names:
        if prefix is None:
            yield name, f"cond_stage_model.transformer.{name}"
            continue
        renamed = name
        for pattern, replacement in UNET_NAMES if part == "unet" else VAE_NAMES:
            renamed = re.sub(pattern, replacement, renamed)
        yield name, prefix + renamed


def _block(side: str, per_level: int, inner: int) -> Any:
    """Return what replaces e.g. down_blocks.1.resnets.0. : blocks are counted through there."""

    def replace(found: re.Match[str]) -> str:
        level, layer = int(found[1]), int(found[2])
        return f"{side}.{per_level * level + layer + (side == 'input_blocks')}.{inner}."

    return replace


def _upsampler(found: re.Match[str]) -> str:
    level = int(found[1])  # the first level up has no attention between
    return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.conv."


RESNET_NAMES: list[tuple[str, Any]] = [
    (r"\bnorm1\.(?=[wb]\w+$)", "in_layers.0."),
    (r"\bconv1\.", "in_layers.2."),
    (r"\bnorm2\.(?=[wb]\w+$)", "out_layers.0."),
    (r"\bconv2\.", "out_layers.3."),
    (r"\btime_emb_proj\.", "emb_layers.1."),
    (r"\bconv_shortcut\.", "skip_connection."),
]
UNET_NAMES: list[tuple[str, Any]] = [
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    *((rf"^(.*resnets\..*){pattern}", rf"\g<1>{new}") for pattern, new in RESNET_NAMES),
    (r"^down_blocks\.(\d)\.resnets\.(\d)\.", _block("input_blocks", 3, 0)),
    (r"^down_blocks\.(\d)\.attentions\.(\d)\.", _block("input_blocks", 3, 1)),
    (
        r"^down_blocks\.(\d)\.downsamplers\.0\.conv\.",
        lambda found: f"input_blocks.{3 * int(found[1]) + 3}.0.op.",
    ),
    (r"^up_blocks\.(\d)\.resnets\.(\d)\.", _block("output_blocks", 3, 0)),
    (r"^up_blocks\.(\d)\.attentions\.(\d)\.", _block("output_blocks", 3, 1)),
    (r"^up_blocks\.(\d)\.upsamplers\.0\.conv\.", _upsampler),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
]
VAE_NAMES: list[tuple[str, Any]] = [
    (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d)\.resnets\.", lambda found: f"up.{3 - int(found[1])}.block."),
    (r"up_blocks\.(\d)\.upsamplers\.0\.", lambda found: f"up.{3 - int(found[1])}.upsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\bgroup_norm\.", "norm."),
    (r"\bquery\.", "q."),
    (r"\bkey\.", "k."),
    (r"\bvalue\.", "v."),
    (r"\bproj_attn\.", "proj_out."),
    (r"\bconv_norm_out\.", "norm_out."),
    (r"\bconv_shortcut\.", "nin_shortcut."),
]


def compvis(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder under the names of the original layout, in one dict."""
    state = {
        "alphas_cumprod": torch.rand(1000),  # in the real file too, and read by nobody
        "model_ema.decay": torch.tensor(0.9999),
    }
    for part in SIZES:
        weights = load_file(folder / part / f"{WEIGHTS[part]}.safetensors")
        for name, new in compvis_names(part, [*weights]):
            value = weights[name]
            # The VAE's attention is written as 1 × 1 convolutions there.
            is_convolution = ".mid.attn_1." in new and value.ndim == 2
            state[new] = value[:, :, None, None] if is_convolution else value
    return state


def write(
    folder: Path, *, full: bool = False, shards: int = 1, parts: tuple[str, ...] = tuple(WEIGHTS)
) -> dict[str, int]:
    """Write the folder; return how many parameters each part has."""
    for path, config in configs(full).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    for name in ("vocab.json", "merges.txt"):  # CLIP's own, as on the hub
        shutil.copyfile(POSTCARDS / "tokenizer" / name, folder / "tokenizer" / name)
    counts = {}
    for part in parts:
        model = build(part, configs(full)[f"{part}/config.json"])
        counts[part] = sum(weight.numel() for weight in model.parameters())
        assert not full or counts[part] == SIZES.get(part, counts[part]), (part, counts[part])
        state = on_the_hub(part, model, shards)
        save(folder / part, WEIGHTS[part], state, shards)
        half = {name: v.half() if v.is_floating_point() else v for name, v in state.items()}
        save(folder / part, WEIGHTS[part], half, shards, ".fp16")
        del model, state, half
        gc.collect()
    return counts


def main() -> None:
    """Run the command."""
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("folder", type=Path)
    command.add_argument("--full", action="store_true")
    command.add_argument("--shards", type=int, default=1)
    command.add_argument("--parts", nargs="*", default=[*WEIGHTS], choices=[*WEIGHTS])
    command.add_argument("--checkpoint", action="store_true")
    command.add_argument("--draw", type=int, metavar="STEPS")
    args = command.parse_args()
    began = time.perf_counter()
    counts = write(args.folder, full=args.full, shards=args.shards, parts=tuple(args.parts))
    for part, count in counts.items():
        print(f"{part:<15}{count:>12,} parameters")
    if args.checkpoint:
        save_file(compvis(args.folder), args.folder / "v1-5-pruned-emaonly.safetensors")
    size = sum(path.stat().st_size for path in args.folder.rglob("*") if path.is_file())
    report(f"{size / 1e9:.2f} GB written", began)
    if args.draw:
        began = time.perf_counter()
        pipe = sdlearn.load(args.folder)
        report("loaded", began)
        began = time.perf_counter()
        trace = sdlearn.text_to_image(
            pipe, "a cat", num_inference_steps=args.draw, generator=torch.Generator().manual_seed(0)
        )
        assert trace.pixels.isfinite().all()
        report(f"{trace.image.size} drawn in {args.draw} steps", began)


def report(what: str, began: float) -> None:
    """Print how long something took, and the most memory that the process has had so far."""
    memory = ""
    if sys.platform == "linux":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        memory = f", at most {peak:.1f} GB of memory so far"
    print(f"{what}: {time.perf_counter() - began:.0f} s{memory}", flush=True)


if __name__ == "__main__":
    main()
