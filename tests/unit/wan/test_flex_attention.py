"""The backend "flex" gives the result of one attention call per block, and builds its mask from tiles only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from causvid.wan.transformer import causal_attention
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.flex_attention import block_causal_flex, block_mask
from causvid.wan.transformer.wan import as_causal, build_transformer

CPU = torch.device("cpu")
# On a CPU, the slow reference implementation is used on purpose; torch warns about the reference once in a process.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


@pytest.fixture(autouse=True, scope="module")
def _autograd_starts_first() -> None:
    """Start the threads of autograd, which otherwise start in the first backward pass of a process.

    After torch.compile, the first backward pass starts threads that do not survive a fork, and the tests with two ranks
    fork.
    """
    torch.ones(1, requires_grad=True).sum().backward()


def student_of(config: dict[str, Any], frames_per_block: int, head_dim: int = 16) -> CausalWanTransformer3DModel:
    teacher = build_transformer({**config, "attention_head_dim": head_dim}, 1)
    return as_causal(teacher, frames_per_block).eval()


def forward(student: CausalWanTransformer3DModel, height: int, width: int, **more: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    frames = student.config.frames_per_block if more else 6
    x = torch.randn(2, 4, frames, height, width, generator=generator)
    text = torch.randn(2, 5, 8, generator=generator)
    times = torch.full((2, frames), 500.0)
    out: torch.Tensor = student(x, timestep=times, encoder_hidden_states=text, return_dict=False, **more)[0]
    return out


@torch.no_grad()
@pytest.mark.parametrize("frames_per_block", [1, 3, 6])
@pytest.mark.parametrize(("height", "width", "head_dim"), [(16, 16, 16), (16, 16, 128), (6, 10, 32), (14, 10, 64)])
def test_flex_equals_one_call_for_each_block(
    transformer_config: dict[str, Any], frames_per_block: int, height: int, width: int, head_dim: int
) -> None:
    """Clips have 384 tokens (three tiles), 90 tokens (less than a tile) or 210 tokens (a tile and a part of a tile)."""
    student = student_of(transformer_config, frames_per_block, head_dim)
    plain = forward(student, height, width)
    student.set_attention_backend("flex")
    torch.testing.assert_close(forward(student, height, width), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "block_tokens"),
    [(384, 64), (384, 128), (384, 384), (90, 15), (210, 105), (1000, 1), (1000, 200), (512, 512), (130, 65)],
)
def test_the_mask_equals_that_of_create_block_mask(tokens: int, block_tokens: int) -> None:
    def seen(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return key // block_tokens <= query // block_tokens

    ours, expected = block_mask(tokens, block_tokens, CPU), create_block_mask(seen, 1, 1, tokens, tokens, CPU)
    assert ours.seq_lengths == expected.seq_lengths
    assert ours.BLOCK_SIZE == expected.BLOCK_SIZE
    for name in ("kv", "full_kv", "q", "full_q"):
        for part in ("num_blocks", "indices"):
            assert torch.equal(getattr(ours, f"{name}_{part}"), getattr(expected, f"{name}_{part}")), name


def test_a_mask_is_built_once_for_each_size_from_tiles_only() -> None:
    sizes: list[int] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))
            return out

    with Spy():
        mask = block_mask(4567, 100, CPU)
        made = len(sizes)
        assert block_mask(4567, 100, CPU) is mask
    assert made == len(sizes) > 0
    assert max(sizes) <= 40**2  # no tensor is larger than the mask of tiles; a dense mask would have 4567^2 elements
    assert block_mask(4567, 101, CPU) is not mask


@torch.no_grad()
def test_only_block_causal_attention_uses_flex(
    transformer_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention over a cache, cross-attention and other models in the process use the default backend."""
    flexed: list[int] = []
    backends: list[Any] = []

    def flex(*tensors: Any) -> torch.Tensor:
        flexed.append(1)
        return block_causal_flex(*tensors)

    def dispatch(*tensors: Any, backend: Any) -> torch.Tensor:
        backends.append(backend)
        return dispatch_attention_fn(*tensors, backend=backend)

    monkeypatch.setattr(causal_attention, "block_causal_flex", flex)
    monkeypatch.setattr(causal_attention, "dispatch_attention_fn", dispatch)
    student = student_of(transformer_config, 2)
    student.set_attention_backend("flex")
    forward(student, 4, 4)
    # two layers use self-attention with flex; two layers use cross-attention with the default backend
    assert (len(flexed), backends) == (2, [None, None])
    cache = student.make_kv_cache(batch_size=2, num_frames=4, height=4, width=4)
    forward(student, 4, 4, kv_cache=cache)
    assert (len(flexed), backends) == (2, [None] * 6)
    other = student_of(transformer_config, 2)
    forward(other, 4, 4)
    assert len(flexed) == 2


@torch.no_grad()
def test_any_other_backend_is_used_for_all_attention(
    transformer_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = set()

    def dispatch(*tensors: Any, backend: Any) -> torch.Tensor:
        backends.add(backend)
        return dispatch_attention_fn(*tensors, backend=backend)

    student = student_of(transformer_config, 2)
    plain = forward(student, 4, 4)
    monkeypatch.setattr(causal_attention, "dispatch_attention_fn", dispatch)
    student.set_attention_backend("_native_math")
    try:
        torch.testing.assert_close(forward(student, 4, 4), plain, rtol=0, atol=1e-5)
    finally:
        student.set_attention_backend("native")  # diffusers also changes the default backend of the process
    assert backends == {AttentionBackendName._NATIVE_MATH}
    assert torch.equal(forward(student, 4, 4), plain)
    with pytest.raises(ValueError, match="must be one of"):
        student.set_attention_backend("quantum")
