"""The causal student agrees with the model of diffusers, and with itself without a cache, and is causal.

Shapes: B batch, C = 4 channels, F latent frames, H and W latent pixels, L text tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch.utils._python_dispatch import TorchDispatchMode

from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.rope import rotary_embedding
from causvid.wan.transformer.wan import as_causal, build_transformer

TOLERANCE = 2e-6  # tolerance in float32, relative to the largest output


def teacher_of(config: dict[str, Any], **changes: Any) -> WanTransformer3DModel:
    """Return a bidirectional model in which every weight matters. (In diffusers, biases start at 0 and gains at 1.)"""
    model = build_transformer({**config, **changes}, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def inputs(batch: int, frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, 4, frames, height, width, generator=generator)
    return x, torch.randn(batch, 5, 8, generator=generator)


def block_times(batch: int, frames: int, frames_per_block: int) -> torch.Tensor:
    """Return a random timestep for each block of each sample, [B, F]; some timesteps are 0."""
    times = torch.tensor([0.0, 522.0, 757.0, 1000.0, 250.0, 20.0])
    rows = [times.roll(sample)[: frames // frames_per_block] for sample in range(batch)]
    return torch.stack(rows).repeat_interleave(frames_per_block, dim=1)


def forward(
    model: torch.nn.Module, x: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, **more: Any
) -> torch.Tensor:
    out: torch.Tensor = model(x, timestep=timestep, encoder_hidden_states=text, return_dict=False, **more)[0]
    return out


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    scale = theirs.abs().max().clamp(min=1)
    assert ((ours - theirs).abs().max() / scale).item() <= TOLERANCE


# Frames, latent height and latent width. A frame has 64 tokens (two frames have 128 tokens) or 15 tokens.
SIZES = [(6, 16, 16), (6, 6, 10)]


class Shape(NamedTuple):
    """The size of a clip and of its blocks, in latent frames and latent pixels. A patch has 2 x 2 latent pixels."""

    batch: int
    frames: int
    frames_per_block: int
    height: int
    width: int
    head_dim: int


SHAPES = [
    pytest.param(Shape(2, 6, 1, 16, 16, 32), id="blocks of 1 frame, 6 frames of 64 tokens"),
    pytest.param(Shape(3, 6, 3, 6, 10, 64), id="blocks of 3 frames, 6 frames of 15 tokens"),
    pytest.param(Shape(1, 4, 2, 16, 32, 128), id="blocks of 2 frames of 128 tokens, head size 128 of Wan"),
    pytest.param(Shape(2, 5, 5, 10, 14, 96), id="one block of 5 frames of 35 tokens"),
    pytest.param(Shape(4, 9, 3, 2, 6, 48), id="a batch of 4 clips, 3 blocks of 9 tokens"),
]


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_a_forward_pass_with_a_cache_equals_one_without_a_cache(
    transformer_config: dict[str, Any], shape: Shape
) -> None:
    batch, frames, frames_per_block, height, width, head_dim = shape
    student = as_causal(teacher_of(transformer_config, attention_head_dim=head_dim), frames_per_block).eval()
    x, text = inputs(batch, frames, height, width)
    timestep = block_times(batch, frames, frames_per_block)
    whole = forward(student, x, timestep, text)

    noisy = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    for sink in (None, 0):  # keys are rotated before they are written; keys are rotated when they are read
        cache = student.make_kv_cache(batch_size=batch, num_frames=frames, height=height, width=width, sink_frames=sink)
        for start in range(0, frames, frames_per_block):
            block = slice(start, start + frames_per_block)
            # The first call of a block writes noise to the cache, as in sampling. The last call overwrites the noise.
            for video, times in ((noisy, torch.full_like(timestep, 999.0)), (x, timestep)):
                streamed = forward(
                    student, video[:, :, block], times[:, block], text, kv_cache=cache, start_frame=start
                )
            assert_close(streamed, whole[:, :, block])


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_a_later_block_changes_no_bit_of_an_earlier_block(transformer_config: dict[str, Any], shape: Shape) -> None:
    batch, frames, frames_per_block, height, width, head_dim = shape
    student = as_causal(teacher_of(transformer_config, attention_head_dim=head_dim), frames_per_block).eval()
    x, text = inputs(batch, frames, height, width)
    timestep = block_times(batch, frames, frames_per_block)
    before = forward(student, x, timestep, text)
    for start in range(0, frames, frames_per_block):
        later = start + frames_per_block
        changed, other_times = x.clone(), timestep.clone()
        changed[:, :, start:later] += 10
        other_times[:, start:later] = 333.0
        after = forward(student, changed, other_times, text)
        assert torch.equal(after[:, :, :start], before[:, :, :start])
        assert not torch.allclose(after[:, :, start:later], before[:, :, start:later], atol=1e-2)
        if later < frames:  # later blocks depend on the changed block
            assert not torch.equal(after[:, :, later:], before[:, :, later:])


@pytest.mark.parametrize("frames_per_block", [1, 2, 3])
def test_no_gradient_reaches_later_noise(transformer_config: dict[str, Any], frames_per_block: int) -> None:
    student = as_causal(teacher_of(transformer_config), frames_per_block)
    x, text = inputs(1, 6, 4, 4)
    x.requires_grad_(True)
    out = forward(student, x, block_times(1, 6, frames_per_block), text)
    for end in range(frames_per_block, 7, frames_per_block):
        (gradient,) = torch.autograd.grad(out[:, :, :end].square().sum(), x, retain_graph=True)
        assert torch.count_nonzero(gradient[:, :, end:]) == 0
        assert all(gradient[:, :, frame].abs().max() > 1e-6 for frame in range(end))


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_with_a_single_block_the_student_equals_the_bidirectional_model(
    transformer_config: dict[str, Any], shape: Shape
) -> None:
    batch, frames, _, height, width, head_dim = shape
    teacher = teacher_of(transformer_config, attention_head_dim=head_dim)
    student = as_causal(teacher, frames).eval()
    x, text = inputs(batch, frames, height, width)
    timestep = torch.tensor([757.0, 20.0, 1000.0, 0.0])[:batch]
    assert_close(forward(student, x, timestep[:, None].expand(-1, frames), text), forward(teacher, x, timestep, text))


@torch.no_grad()
def test_an_image_is_one_block(transformer_config: dict[str, Any]) -> None:
    """With one latent frame, a student with blocks of three frames equals the bidirectional model."""
    teacher = build_transformer(transformer_config, 0).eval()
    student = as_causal(teacher, 3).eval()
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 1, 4, 6, generator=generator), torch.randn(2, 3, 8, generator=generator)
    times = torch.tensor([250.0, 750.0])
    ours = student(x, timestep=times[:, None], encoder_hidden_states=text, return_dict=False)[0]
    theirs = teacher(x, timestep=times, encoder_hidden_states=text, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="2 latent frames do not divide into blocks of 3"):
        student(x.repeat(1, 1, 2, 1, 1), timestep=times[:, None].repeat(1, 2), encoder_hidden_states=text)


def test_student_and_teacher_load_the_state_dict_of_the_other(transformer_config: dict[str, Any]) -> None:
    teacher, student = build_transformer(transformer_config, 1), CausalWanTransformer3DModel(**transformer_config)
    expected = {name: value.clone() for name, value in teacher.state_dict().items()}
    student.load_state_dict(teacher.state_dict(), strict=True)
    other = build_transformer(transformer_config, 2)
    other.load_state_dict(student.state_dict(), strict=True)
    assert other.state_dict().keys() == expected.keys()
    assert all(torch.equal(other.state_dict()[name], value) for name, value in expected.items())
    # each layer has 27 tensors and the other modules have 15, as in the original CausVid checkpoints
    assert len(expected) == 27 * 2 + 15


class _MaskedAttention(WanAttnProcessor):
    """The attention processor of diffusers, with a dense mask in self-attention."""

    def __init__(self, allowed: torch.Tensor) -> None:
        super().__init__()
        self.allowed = allowed

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        rotary_emb: Any = None,
    ) -> torch.Tensor:
        mask = self.allowed if encoder_hidden_states is None else attention_mask
        out: torch.Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, mask, rotary_emb)
        return out


@torch.no_grad()
@pytest.mark.parametrize("frames_per_block", [1, 2, 3, 6])
@pytest.mark.parametrize("size", SIZES)
def test_block_causal_equals_diffusers_with_a_mask_and_a_timestep_per_token(
    transformer_config: dict[str, Any], frames_per_block: int, size: tuple[int, int, int]
) -> None:
    teacher = teacher_of(transformer_config)
    student = as_causal(teacher, frames_per_block).eval()
    frames, height, width = size
    x, text = inputs(2, frames, height, width)
    timestep = block_times(2, frames, frames_per_block)
    frame_tokens = (height // 2) * (width // 2)
    block_of = torch.arange(frames * frame_tokens) // (frame_tokens * frames_per_block)
    teacher.set_attn_processor(_MaskedAttention(block_of[None, :] <= block_of[:, None]))
    reference = forward(teacher, x, timestep.repeat_interleave(frame_tokens, dim=1), text)
    assert_close(forward(student, x, timestep, text), reference)


def test_gradient_checkpointing_changes_no_gradient(transformer_config: dict[str, Any]) -> None:
    gradients = []
    for checkpointed in (False, True):
        student = as_causal(teacher_of(transformer_config), 2).train()
        if checkpointed:
            student.enable_gradient_checkpointing()
        recomputed = 0

        def count(*_: object) -> None:
            nonlocal recomputed
            recomputed += 1

        student.blocks[0].register_forward_pre_hook(count)
        x, text = inputs(2, 4, 4, 4)
        forward(student, x, block_times(2, 4, 2), text).square().mean().backward()
        assert recomputed == (2 if checkpointed else 1)
        gradients.append({name: parameter.grad for name, parameter in student.named_parameters()})
    plain, recomputed_ = gradients
    for name, gradient in plain.items():
        assert gradient is not None
        assert torch.equal(gradient, recomputed_[name]), name


@pytest.mark.parametrize("head_dim", [16, 32, 128])
def test_the_rotary_table_with_an_offset_is_a_slice_of_the_whole_table(
    transformer_config: dict[str, Any], head_dim: int
) -> None:
    rope = build_transformer({**transformer_config, "attention_head_dim": head_dim, "num_layers": 1}, 0).rope
    frames, height, width = 7, 3, 5
    whole = rope(
        torch.zeros(1, 4, frames, 2 * height, 2 * width)
    )  # diffusers computes this table for a size in latent pixels
    for start, count in [(0, 7), (2, 3), (6, 1)]:
        part = rotary_embedding(rope, frames=(range(start, start + count),), height=height, width=width)
        tokens = slice(start * height * width, (start + count) * height * width)
        for ours, theirs in zip(part, whole, strict=True):
            assert torch.equal(ours, theirs[:, tokens])
    with pytest.raises(ValueError, match=r"frame 66 is beyond the rotary table of 64 latent frames"):
        rotary_embedding(rope, frames=(range(60, 66),), height=height, width=width)


@torch.no_grad()
def test_modulation_has_one_row_per_frame(transformer_config: dict[str, Any]) -> None:
    student = as_causal(teacher_of(transformer_config), 2)
    rows = []
    student.condition_embedder.time_proj.register_forward_hook(lambda _, __, out: rows.append(out.shape))
    x, text = inputs(2, 6, 4, 8)  # each frame has 8 tokens
    forward(student, x, block_times(2, 6, 2), text)
    assert rows == [(2, 6, 6 * 32)]


class _Sizes(TorchDispatchMode):
    """Record the shapes of all tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[torch.Size] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.sizes |= {x.shape for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)}
        return out


@torch.no_grad()
def test_no_tensor_is_as_large_as_a_mask(transformer_config: dict[str, Any]) -> None:
    student = as_causal(teacher_of(transformer_config), 2)
    x, text = inputs(1, 6, 20, 20)
    tokens = 6 * 10 * 10
    with _Sizes() as seen:
        forward(student, x, block_times(1, 6, 2), text)
    assert (1, tokens, 32) in seen.sizes  # the recorder sees the forward pass
    assert max(size.numel() for size in seen.sizes) < tokens * tokens


@torch.no_grad()
def test_wrong_timesteps_and_frames_are_named(transformer_config: dict[str, Any]) -> None:
    student = as_causal(teacher_of(transformer_config), 3)
    x, text = inputs(2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"timestep has shape \(2,\); expected one per frame, \(2, 4\)"):
        forward(student, x, torch.zeros(2), text)
    with pytest.raises(ValueError, match="4 latent frames do not divide into blocks of 3"):
        forward(student, x, torch.zeros(2, 4), text)
    cache = student.make_kv_cache(batch_size=2, num_frames=6, height=4, width=4)
    with pytest.raises(ValueError, match=r"tokens 20…32 of a batch of 2 do not fit a KV cache of 24 tokens"):
        forward(student, x[:, :, :3], torch.zeros(2, 3), text, kv_cache=cache, start_frame=5)
    with pytest.raises(ValueError, match=r"batch of 1 do not fit .* a batch of 2"):
        forward(student, x[:1, :, :3], torch.zeros(1, 3), text[:1], kv_cache=cache)


def test_configs_that_a_student_does_not_support_are_rejected(transformer_config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="patch_size is .*one latent frame per patch in time"):
        CausalWanTransformer3DModel(**{**transformer_config, "patch_size": [2, 2, 2]})
    with pytest.raises(ValueError, match="text-to-video"):
        CausalWanTransformer3DModel(**transformer_config, image_dim=16)
