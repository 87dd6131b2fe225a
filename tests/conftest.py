"""Toy models for the whole test tree: everything has the real classes and formats, nothing has a useful size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Bit-exact comparisons and a shared machine both want one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def transformer_config() -> dict[str, Any]:
    """A two-layer Wan: 4 latent channels, width 32."""
    return {
        "patch_size": [1, 2, 2],
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 8,
        "freq_dim": 16,
        "ffn_dim": 48,
        "num_layers": 2,
        "rope_max_seq_len": 64,
    }


@pytest.fixture(scope="session")
def vae_config() -> dict[str, Any]:
    """A Wan VAE of 4 latent channels: 4 frames and 8 x 8 pixels to a latent one, the first frame alone."""
    return {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 8,
    }
