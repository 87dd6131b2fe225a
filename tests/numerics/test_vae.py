"""Chunked encoding and blockwise decoding agree with diffusers, and a new VAE is initialised without motion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given
from hypothesis import strategies as st

from causvid.wan.formats.configs import strides
from causvid.wan.vae import vae as module
from causvid.wan.vae.vae import (
    StreamingDecoder,
    build_vae,
    channels_last,
    decode,
    encode,
    load_vae,
    posterior,
    set_latent_statistics,
    to_uint8,
    to_unit,
)

FRAMES, SIDE = 17, 16  # 17 frames are 5 latent frames
PLAIN = {"is_residual": False, "patch_size": None, "in_channels": 3, "out_channels": 3, "scale_factor_spatial": 4}
WHOLE = 2**40  # with this chunk size, a clip has one chunk


@pytest.fixture(scope="module", params=["residual with patches", "plain"])
def vae(request: pytest.FixtureRequest, vae_config: dict[str, Any]) -> AutoencoderKLWan:
    """Return a VAE of each of the two Wan families. All weights are random, including the temporal weights."""
    model = build_vae({**vae_config, **(PLAIN if request.param == "plain" else {})}, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    set_latent_statistics(model, torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([0.5, 1.0, 2.0, 3.0]))
    return channels_last(model).eval()


def clip(batch: int = 2) -> torch.Tensor:
    return 2 * torch.rand(batch, 3, FRAMES, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) - 1


def large_clip(side: int) -> torch.Tensor:
    return 2 * torch.rand(1, 3, FRAMES, side, side, generator=torch.Generator().manual_seed(3)) - 1


def calls_of(layer: torch.nn.Module) -> list[int]:
    """Record the number of frames in every later call of ``layer``."""
    seen: list[int] = []
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2]))
    return seen


@torch.no_grad()
@pytest.mark.parametrize(
    ("chunk_pixels", "calls"), [(WHOLE, [1, 16]), (8 * SIDE * SIDE, [1, 8, 8]), (1, [1, 4, 4, 4, 4])]
)
def test_the_posterior_in_chunks_equals_encode_of_diffusers(
    vae: AutoencoderKLWan, monkeypatch: pytest.MonkeyPatch, chunk_pixels: int, calls: list[int]
) -> None:
    monkeypatch.setattr(module, "CHUNK_PIXELS", chunk_pixels)
    reference = vae.encode(clip()).latent_dist
    seen = calls_of(vae.encoder)
    ours = posterior(vae, clip())
    assert seen == calls
    torch.testing.assert_close(ours.mean, reference.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.log_variance, reference.logvar, rtol=1e-5, atol=1e-5)
    assert ours.mean.abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize(
    ("chunk_pixels", "calls"), [(WHOLE, [1, 4]), (8 * SIDE * SIDE, [1, 2, 2]), (1, [1, 1, 1, 1, 1])]
)
def test_decoding_in_chunks_equals_decode_of_diffusers(
    vae: AutoencoderKLWan, monkeypatch: pytest.MonkeyPatch, chunk_pixels: int, calls: list[int]
) -> None:
    monkeypatch.setattr(module, "CHUNK_PIXELS", chunk_pixels)
    latents = encode(vae, clip())
    mean, deviation = (torch.tensor(vae.config[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std"))
    reference = vae.decode(latents * deviation + mean).sample
    seen = calls_of(vae.decoder)
    ours = decode(vae, latents)
    assert seen == calls
    assert ours.shape == (2, 3, FRAMES, SIDE, SIDE)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [[1, 1, 1, 1, 1], [3, 2], [2, 3], [5]])
def test_decoding_in_blocks_equals_decoding_the_whole_video(vae: AutoencoderKLWan, blocks: list[int]) -> None:
    latents = encode(vae, clip())
    decoder = StreamingDecoder(vae)
    parts = [decoder(block) for block in latents.split(blocks, dim=2)]
    stride = strides(vae.config).temporal
    assert [part.shape[2] for part in parts] == [
        stride * n - (stride - 1 if k == 0 else 0) for k, n in enumerate(blocks)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=2).clamp(-1, 1), decode(vae, latents), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_large_frames_are_processed_in_tiles(vae: AutoencoderKLWan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame has 2 x 2 tiles that overlap by two latent pixels.

    Outside the overlap, the result equals the separate encoding of each tile.
    """
    stride = vae.config.scale_factor_spatial
    whole, alone = encode(vae, large := large_clip(14 * stride)), encode(vae, large[..., : 8 * stride, : 8 * stride])
    monkeypatch.setattr(module, "LONGEST_SIDE", 8 * stride)
    monkeypatch.setattr(module, "OVERLAP", 2 * stride)
    latents = encode(vae, large)
    assert latents.shape == whole.shape
    torch.testing.assert_close(latents[..., :6, :6], alone[..., :6, :6])
    assert not torch.allclose(latents[..., :6, :6], whole[..., :6, :6])
    corner = decode(vae, latents[..., 6:, 6:])
    decoder = StreamingDecoder(vae)
    video = torch.cat([decoder(block) for block in latents.split([3, 2], dim=2)], dim=2).clamp(-1, 1)
    assert video.shape == large.shape
    torch.testing.assert_close(video, decode(vae, latents), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(video[..., 8 * stride :, 8 * stride :], corner[..., 2 * stride :, 2 * stride :])


@torch.no_grad()
def test_two_decoders_are_independent(vae: AutoencoderKLWan) -> None:
    first, second = encode(vae, clip())[:1], encode(vae, clip())[1:]
    one, two = StreamingDecoder(vae), StreamingDecoder(vae)
    mixed = [(one(a), two(b)) for a, b in zip(first.split(1, dim=2), second.split(1, dim=2), strict=True)]
    torch.testing.assert_close(
        torch.cat([a for a, _ in mixed], dim=2).clamp(-1, 1), decode(vae, first), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        torch.cat([b for _, b in mixed], dim=2).clamp(-1, 1), decode(vae, second), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_latents_are_normalised_posterior_means(vae: AutoencoderKLWan) -> None:
    latents, raw = encode(vae, clip()), posterior(vae, clip()).mean
    for channel, (mean, deviation) in enumerate([(0.5, 0.5), (-1.0, 1.0), (0.0, 2.0), (2.0, 3.0)]):
        torch.testing.assert_close(latents[:, channel], (raw[:, channel] - mean) / deviation)


def test_the_posterior_is_differentiable(vae: AutoencoderKLWan) -> None:
    video = clip(1).requires_grad_(True)
    posterior(vae, video).mean[:, :, 0].sum().backward()
    assert video.grad is not None
    assert video.grad[:, :, 0].abs().max() > 0
    assert (
        torch.count_nonzero(video.grad[:, :, 1:]) == 0
    )  # causality: the first latent frame depends on the first frame only


@torch.no_grad()
def test_a_new_vae_is_an_image_autoencoder(vae_config: dict[str, Any]) -> None:
    """Each latent frame of a clip without motion equals the latent frame of the same image."""
    model = build_vae({**vae_config, **PLAIN}, seed=3)
    image = clip(1)[:, :, :1]
    single, still = posterior(model, image).mean, posterior(model, image.expand(-1, -1, FRAMES, -1, -1)).mean
    torch.testing.assert_close(still, single.expand_as(still), rtol=1e-4, atol=1e-4)
    one, many = StreamingDecoder(model)(single), StreamingDecoder(model)(single.expand(-1, -1, 5, -1, -1))
    torch.testing.assert_close(many, one.expand_as(many), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_new_residual_vae_has_no_motion(vae_config: dict[str, Any]) -> None:
    """Without motion, all latent frames after the first are equal. (Shortcuts pad the first frame with zeros.)"""
    still = posterior(build_vae(vae_config, seed=3), clip(1)[:, :, :1].expand(-1, -1, FRAMES, -1, -1)).mean
    torch.testing.assert_close(still[:, :, 1:], still[:, :, 1:2].expand_as(still[:, :, 1:]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_new_vae_depends_on_the_seed_only(vae_config: dict[str, Any]) -> None:
    states = []
    for global_seed, seed in [(1, 5), (2, 5), (2, 6)]:
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        states.append(build_vae(vae_config, seed).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_channels_last_changes_the_memory_layout_only(vae_config: dict[str, Any], tmp_path: Any) -> None:
    model = build_vae(vae_config, seed=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    loaded = load_vae(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    kernels = [m.weight for m in loaded.modules() if isinstance(m, torch.nn.Conv3d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last_3d) for kernel in kernels)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.config.latents_mean == [0.0] * 4


def test_a_folder_without_a_vae_is_named(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"holds no VAE \(no config.json\)"):
        load_vae(tmp_path)


@given(value=st.integers(0, 255))
def test_pixels_are_converted_to_floats_and_back(value: int) -> None:
    frames = torch.full((2, 4, 6, 3), value, dtype=torch.uint8)
    frames[0, 1, 2, 0] = 255 - value
    assert to_unit(frames).shape == (3, 2, 4, 6)
    assert torch.equal(to_uint8(to_unit(frames)), frames)


def test_pixels_are_clamped_and_rounded() -> None:
    video = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(1, 5, 1, 1).expand(3, -1, -1, -1)
    assert to_uint8(video)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_constant_latent_channel_is_named(vae_config: dict[str, Any]) -> None:
    model = build_vae(vae_config, seed=0)
    with pytest.raises(
        ValueError, match=r"latent channels \[2\] are the same for every clip; lower train_vae.kl_weight"
    ):
        set_latent_statistics(model, torch.zeros(4), torch.tensor([0.5, 1.0, 0.0, 3.0]))


def test_latents_that_are_not_finite_are_named(vae_config: dict[str, Any]) -> None:
    vae = build_vae({**vae_config, "z_dim": 2}, seed=0)
    with pytest.raises(ValueError, match="latents are not finite: the VAE's training has diverged"):
        set_latent_statistics(vae, torch.zeros(2), torch.tensor([1.0, float("nan")]))
