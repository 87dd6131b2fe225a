"""Write toy files in Wan2.1's own layout, with the key names of wan/modules/vae.py and t5.py."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from causvid.interop import original_wan
from causvid.wan.text_encoder import build_tokenizer

State = dict[str, torch.Tensor]
VAE: dict[str, Any] = {
    "base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
    "temperal_downsample": [False, True, True], "dropout": 0.0, "is_residual": False, "patch_size": None,
    "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.5, 1.0],
}  # fmt: skip
TEXT: dict[str, Any] = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 3}
PROMPTS = ["a red ball moves left", "a blue cube"]


def conv(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def residual(name: str, fan_in: int, fan_out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.residual.0.gamma", (fan_in, 1, 1, 1)
    yield from conv(f"{name}.residual.2", fan_out, fan_in, 3, 3, 3)
    yield f"{name}.residual.3.gamma", (fan_out, 1, 1, 1)
    yield from conv(f"{name}.residual.6", fan_out, fan_out, 3, 3, 3)
    if fan_in != fan_out:
        yield from conv(f"{name}.shortcut", fan_out, fan_in, 1, 1, 1)


def middle(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from residual(f"{name}.middle.0", width, width)
    yield f"{name}.middle.1.norm.gamma", (width, 1, 1)
    yield from conv(f"{name}.middle.1.to_qkv", 3 * width, width, 1, 1)
    yield from conv(f"{name}.middle.1.proj", width, width, 1, 1)
    yield from residual(f"{name}.middle.2", width, width)


def head(name: str, width: int, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.head.0.gamma", (width, 1, 1, 1)
    yield from conv(f"{name}.head.2", channels, width, 3, 3, 3)


def vae_encoder(widths: list[int], temporal: list[bool], channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the weights of the encoder of the VAE.

    The encoder has stages of two residual blocks and, except in the last stage, one downsampling layer. Layers are
    numbered consecutively over all stages.
    """
    yield from conv("encoder.conv1", widths[0], 3, 3, 3, 3)
    index = 0
    for stage, (fan_in, width) in enumerate(pairwise(widths)):
        for wide in (fan_in, width):
            yield from residual(f"encoder.downsamples.{index}", wide, width)
            index += 1
        if stage < len(temporal):
            yield from conv(f"encoder.downsamples.{index}.resample.1", width, width, 3, 3)
            if temporal[stage]:
                yield from conv(f"encoder.downsamples.{index}.time_conv", width, width, 3, 1, 1)
            index += 1
    yield from middle("encoder", widths[-1])
    yield from head("encoder", widths[-1], channels)


def vae_decoder(widths: list[int], temporal: list[bool], channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the weights of the decoder of the VAE.

    The decoder has stages of three residual blocks and, except in the last stage, one upsampling layer, which halves
    the number of channels.
    """
    yield from conv("decoder.conv1", widths[0], channels, 3, 3, 3)
    yield from middle("decoder", widths[0])
    index, fan_in = 0, widths[0]
    for stage, width in enumerate(widths[1:]):
        for wide in (fan_in, width, width):
            yield from residual(f"decoder.upsamples.{index}", wide, width)
            index += 1
        if stage < len(temporal):
            yield from conv(f"decoder.upsamples.{index}.resample.1", width // 2, width, 3, 3)
            if temporal[stage]:
                yield from conv(f"decoder.upsamples.{index}.time_conv", 2 * width, width, 3, 1, 1)
            index, fan_in = index + 1, width // 2
    yield from head("decoder", widths[-1], 3)


def vae_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    base, z, temporal = config["base_dim"], config["z_dim"], config["temperal_downsample"]
    widths = [base * factor for factor in config["dim_mult"]]
    return {
        **dict(vae_encoder([base, *widths], temporal, 2 * z)),
        **dict(conv("conv1", 2 * z, 2 * z, 1, 1, 1)),
        **dict(conv("conv2", z, z, 1, 1, 1)),
        **dict(vae_decoder([widths[-1], *widths[::-1]], temporal[::-1], z)),
    }


def text_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, wide = config["d_model"], config["d_kv"] * config["num_heads"], config["d_ff"]
    block = {
        "norm1": (width,), "attn.q": (inner, width), "attn.k": (inner, width), "attn.v": (inner, width),
        "attn.o": (width, inner), "norm2": (width,), "ffn.gate.0": (wide, width), "ffn.fc1": (wide, width),
        "ffn.fc2": (width, wide), "pos_embedding.embedding": (32, config["num_heads"]),
    }  # fmt: skip
    blocks = {f"blocks.{i}.{key}.weight": shape for i in range(config["num_layers"]) for key, shape in block.items()}
    return {"token_embedding.weight": (config["vocab_size"], width), **blocks, "norm.weight": (width,)}


def random(shapes: dict[str, tuple[int, ...]], scale: float, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(0)
    return {key: (scale * torch.randn(shape, generator=generator)).to(dtype) for key, shape in shapes.items()}


def write_wan_folder(folder: Path) -> None:
    """Write the VAE, the text encoder and the tokenizer.

    A user of the original CausVid code has these files beside model.pt.
    """
    tokenizer = build_tokenizer(PROMPTS)
    tokenizer.save_pretrained(folder / "google" / "umt5-xxl")
    torch.save(random(vae_shapes(VAE), 0.2), folder / original_wan.VAE_FILE)
    shapes = text_shapes({**TEXT, "vocab_size": len(tokenizer)})
    torch.save(random(shapes, 0.5, torch.bfloat16), folder / original_wan.TEXT_ENCODER_FILE)
