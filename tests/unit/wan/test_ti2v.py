"""Toy models with the layout of Wan2.2 TI2V-5B work: 48 latent channels, spatial stride 16, a timestep per token.

Shapes: B batch, C = 48 channels, F latent frames, H and W latent pixels, L text tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from causvid import params
from causvid.consistency import checked
from causvid.interop.original_checkpoint import export_checkpoint, import_checkpoint, load_generator
from causvid.pipeline import CausVidPipeline
from causvid.plan import Plan
from causvid.record import Normalisation
from causvid.runtime.shapes import VideoShape
from causvid.wan.costs import Transformer
from causvid.wan.transformer.wan import as_causal, build_transformer, load_transformer
from causvid.wan.vae.vae import StreamingDecoder, build_vae, decode, encode, load_vae
from tests.conftest import SCHEDULE

TRANSFORMER: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 48,
    "out_channels": 48,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}
VAE: dict[str, Any] = {
    "base_dim": 4,
    "decoder_base_dim": 8,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
# 4 latent frames of 4 x 4 latent pixels, with 4 tokens in each latent frame
VIDEO = VideoShape(height=64, width=64, frames=13, fps=8)
TIMES = torch.tensor([[0.0, 250.0, 500.0, 1000.0], [0.0, 100.0, 900.0, 900.0]])


@pytest.fixture(scope="module")
def teacher() -> WanTransformer3DModel:
    """Return a bidirectional model in which every weight has an effect."""
    model = build_transformer(TRANSFORMER, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    return build_vae(VAE, seed=0).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 48, 4, 4, 4, generator=generator), torch.randn(2, 5, 8, generator=generator)


@torch.no_grad()
def forward(model: torch.nn.Module, x: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, **more: Any) -> Any:
    return model(x, timestep=timestep, encoder_hidden_states=text, return_dict=False, **more)[0]


def test_a_student_with_one_block_equals_the_teacher_with_a_timestep_for_each_token(
    teacher: WanTransformer3DModel,
) -> None:
    x, text = inputs()
    per_token = TIMES.repeat_interleave(4, dim=1)  # convert [B, F] to [B, tokens]
    student = as_causal(teacher, frames_per_block=4)
    torch.testing.assert_close(
        forward(student, x, TIMES, text), forward(teacher, x, per_token, text), rtol=0, atol=2e-6
    )
    constant = torch.full((2,), 500.0)
    theirs = forward(teacher, x, constant[:, None].expand(2, 16), text)
    torch.testing.assert_close(forward(teacher, x, constant, text), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("frames_per_block", [1, 2])
def test_a_student_with_a_cache_equals_a_student_without_a_cache(
    teacher: WanTransformer3DModel, frames_per_block: int
) -> None:
    x, text = inputs()
    student = as_causal(teacher, frames_per_block)
    times = TIMES[:, ::frames_per_block].repeat_interleave(frames_per_block, dim=1)
    cache = student.make_kv_cache(batch_size=2, num_frames=4, height=4, width=4)
    blocks = []
    for start in range(0, 4, frames_per_block):
        end = start + frames_per_block
        more = {"kv_cache": cache, "start_frame": start}
        blocks.append(forward(student, x[:, :, start:end], times[:, start:end], text, **more))
    torch.testing.assert_close(torch.cat(blocks, 2), forward(student, x, times, text), rtol=0, atol=2e-6)
    later = x.clone()
    later[:, :, 2:] += 1.0  # a later block must not change an earlier block
    assert torch.equal(forward(student, later, times, text)[:, :, :2], forward(student, x, times, text)[:, :, :2])


def test_the_vae_has_a_spatial_stride_of_16_and_decodes_as_a_stream(vae: AutoencoderKLWan) -> None:
    generator = torch.Generator().manual_seed(4)
    video = torch.rand(1, 3, 13, 64, 32, generator=generator) * 2 - 1
    latents = encode(vae, video)
    assert latents.shape == (1, 48, 4, 4, 2)
    whole, stream = decode(vae, latents), StreamingDecoder(vae)
    assert whole.shape == video.shape
    parts = [stream(latents[:, :, start : start + 2]) for start in (0, 2)]
    torch.testing.assert_close(torch.cat(parts, 2).clamp(-1, 1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames_per_block", [None, 2])
def test_export_and_import_keep_every_weight(
    teacher: WanTransformer3DModel, tmp_path: Path, frames_per_block: int | None
) -> None:
    model = teacher if frames_per_block is None else as_causal(teacher, frames_per_block)
    model.save_pretrained(tmp_path / "saved")
    export_checkpoint(tmp_path / "saved", tmp_path / "model.pt")
    import_checkpoint(
        tmp_path / "model.pt", tmp_path / "again", num_attention_heads=2, frames_per_block=frames_per_block
    )
    again = load_transformer(tmp_path / "again")
    assert type(again) is type(model)
    assert again.config["in_channels"] == 48
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    x, text = inputs()
    ours = load_generator(
        tmp_path / "model.pt", num_attention_heads=2, frames_per_block=2, causal=bool(frames_per_block)
    )
    times = TIMES[:, :1].expand(2, 4) if frames_per_block else TIMES[:, 0]
    torch.testing.assert_close(forward(ours, x, times, text), forward(model, x, times, text), rtol=0, atol=2e-6)


def test_a_saved_pipeline_generates_the_same_video(
    teacher: WanTransformer3DModel, vae: AutoencoderKLWan, tmp_path: Path
) -> None:
    vae.save_pretrained(tmp_path / "vae")
    assert torch.equal(load_vae(tmp_path / "vae").post_quant_conv.weight, vae.post_quant_conv.weight)
    settings = {"shift": SCHEDULE.shift, "solver_steps": SCHEDULE.solver_steps}
    steps = {"denoising_timesteps": SCHEDULE.denoising_timesteps, "text_tokens": 5}
    pipeline = CausVidPipeline(vae=vae, transformer=as_causal(teacher, 2), **settings, **steps)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = CausVidPipeline.from_pretrained(tmp_path / "pipeline")
    loaded.set_progress_bar_config(disable=True)
    _, text = inputs()
    videos = [it(text[:1], VIDEO, [torch.Generator().manual_seed(0)], few_steps=True) for it in (pipeline, loaded)]
    assert videos[0].shape == (1, 13, 64, 64, 3)
    assert (videos[0] == videos[1]).all()


def test_a_params_file_with_this_layout_is_accepted() -> None:
    values = params.read(params.PROFILES / "smoke.yaml")
    values["video"] = {"height": 64, "width": 64, "frames": 13, "fps": 8}
    values["model"] |= {"vae": VAE, "transformer": TRANSFORMER, "frames_per_block": 2}
    values["model"]["text_encoder"]["d_model"] = TRANSFORMER["text_dim"]
    plan = Plan(checked(values))
    assert plan.latent.sizes == (48, 4, 4, 4)
    assert plan.clip.tokens == 16
    values["model"]["vae"] = {**VAE, "scale_factor_spatial": 8}
    with pytest.raises(ValueError, match="scale_factor_spatial is 8; the stride of this architecture is 16"):
        checked(values)


def test_the_number_of_weights_of_the_published_model() -> None:
    """The model card states 5.0 billion parameters (github.com/Wan-Video/Wan2.2)."""
    config = {**TRANSFORMER, "num_attention_heads": 24, "attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256}
    config |= {"ffn_dim": 14336, "num_layers": 30}
    with torch.device("meta"):
        model = WanTransformer3DModel(**config)
    assert Transformer.of(config).parameters == sum(weight.numel() for weight in model.parameters())
    assert Transformer.of(config).parameters == pytest.approx(5.0e9, rel=0.01)


def test_normalisation_of_48_channels_is_recorded() -> None:
    assert Normalisation.of(VAE) == Normalisation(mean=(0.0,) * 48, std=(1.0,) * 48)
