"""Sizes of clips, latents and blocks are computed correctly, and an error names a size that does not fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causvid.runtime.shapes import BlockLayout, LatentShape, VideoShape, block_frames


def video(*, height: int = 480, width: int = 832, frames: int = 81, fps: int = 16) -> VideoShape:
    return VideoShape(height=height, width=width, frames=frames, fps=fps)


def latent(of: VideoShape) -> LatentShape:
    return LatentShape.of(of, channels=16, temporal_stride=4, spatial_stride=8)


def test_sizes_for_the_published_wan_models() -> None:
    assert latent(video()).sizes == (16, 21, 60, 104)
    layout = BlockLayout(frames=21, frames_per_block=3)
    assert layout.blocks == 7
    assert list(layout.starts()) == [0, 3, 6, 9, 12, 15, 18]


@given(latent_frames=st.integers(1, 50), stride=st.integers(1, 8))
def test_the_first_latent_frame_encodes_one_frame(latent_frames: int, stride: int) -> None:
    clip = video(frames=(latent_frames - 1) * stride + 1)
    assert LatentShape.of(clip, channels=1, temporal_stride=stride, spatial_stride=8).frames == latent_frames


@pytest.mark.parametrize(("frames", "advice"), [(80, "use 77 or 81"), (82, "use 81 or 85"), (2, "use 1 or 5")])
def test_frames_that_the_vae_would_drop_are_rejected(frames: int, advice: str) -> None:
    with pytest.raises(ValueError, match=rf"video.frames is {frames}; the VAE needs 4n\+1 frames .*{advice}"):
        latent(video(frames=frames))


@pytest.mark.parametrize("name", ["height", "width"])
def test_pixels_that_the_vae_would_drop_are_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=f"video.{name} is 484; the VAE needs a multiple of 8"):
        latent(video(**{name: 484}))


@pytest.mark.parametrize("name", ["height", "width", "frames", "fps"])
def test_sizes_are_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"video.{name} is 0; it must be at least 1"):
        video(**{name: 0})


@pytest.mark.parametrize("name", ["height", "width"])
def test_odd_sizes_are_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=f"video.{name} is 33; .*even number"):
        video(**{name: 33})


@pytest.mark.parametrize("size", [0, 2, 4, 22, -3])
def test_the_error_for_wrong_blocks_lists_the_possible_block_sizes(size: int) -> None:
    with pytest.raises(ValueError, match=rf"model.frames_per_block is {size}; 21 latent frames .*1, 3, 7, 21 frames"):
        BlockLayout(frames=21, frames_per_block=size)


def test_frames_of_each_block() -> None:
    assert block_frames(video(frames=33), temporal_stride=4, frames_per_block=3) == [
        range(9), range(9, 21), range(21, 33),
    ]  # fmt: skip
    assert block_frames(video(frames=9), temporal_stride=4, frames_per_block=1) == [range(1), range(1, 5), range(5, 9)]
    assert block_frames(video(frames=33), temporal_stride=4, frames_per_block=None) == [range(33)]


@given(blocks=st.integers(1, 9), size=st.integers(1, 5), stride=st.integers(1, 8))
def test_blocks_cover_every_frame_once(blocks: int, size: int, stride: int) -> None:
    clip = video(frames=(blocks * size - 1) * stride + 1)
    found = block_frames(clip, temporal_stride=stride, frames_per_block=size)
    assert [frame for block in found for frame in block] == list(range(clip.frames))
    assert [len(block) for block in found] == [(size - 1) * stride + 1] + [size * stride] * (blocks - 1)


def test_frames_and_blocks_that_do_not_fit_are_rejected() -> None:
    with pytest.raises(ValueError, match="video.frames is 32"):
        block_frames(video(frames=32), temporal_stride=4, frames_per_block=3)
    with pytest.raises(ValueError, match="model.frames_per_block is 2"):
        block_frames(video(frames=33), temporal_stride=4, frames_per_block=2)
