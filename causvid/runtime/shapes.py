"""Compute the sizes of videos, of latents of a causal VAE, and of blocks of a block-causal transformer.

CausVid sec. 4.1 defines blocks of latent frames. The Wan VAE encodes 1 + 4n frames to 1 + n latent frames.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VideoShape:
    """The size of every clip of a run (params section ``video``).

    Attributes:
        height: Height in pixels; an even number.
        width: Width in pixels; an even number.
        frames: Number of frames.
        fps: Frames per second.
    """

    height: int
    width: int
    frames: int
    fps: int

    def __post_init__(self) -> None:
        for name in ("height", "width", "frames", "fps"):
            if getattr(self, name) < 1:
                raise ValueError(f"video.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("height", "width"):
            if getattr(self, name) % 2:
                raise ValueError(f"video.{name} is {getattr(self, name)}; H.264 with 4:2:0 colour needs an even number")


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """The size of a clip in latent space: channels, latent frames, and height and width in latent pixels."""

    channels: int
    frames: int
    height: int
    width: int

    @classmethod
    def of(cls, video: VideoShape, *, channels: int, temporal_stride: int, spatial_stride: int) -> LatentShape:
        """Return the latent size of a clip of size ``video``. The first latent frame of a causal VAE encodes one frame.

        Args:
            video: Size of the video.
            channels: Number of latent channels.
            temporal_stride: Number of frames that each later latent frame encodes.
            spatial_stride: Number of pixels along one side of a latent pixel.

        Raises:
            ValueError: The VAE would silently drop frames or pixels.
        """
        if (video.frames - 1) % temporal_stride:
            low = (video.frames - 1) // temporal_stride * temporal_stride + 1
            raise ValueError(
                f"video.frames is {video.frames}; the VAE needs {temporal_stride}n+1 frames and would drop the rest: "
                f"use {low} or {low + temporal_stride}"
            )
        for name in ("height", "width"):
            if getattr(video, name) % spatial_stride:
                raise ValueError(
                    f"video.{name} is {getattr(video, name)}; the VAE needs a multiple of {spatial_stride}"
                )
        return cls(
            channels=channels,
            frames=(video.frames - 1) // temporal_stride + 1,
            height=video.height // spatial_stride,
            width=video.width // spatial_stride,
        )

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Return (C, F, H, W), the sizes of the axes after the batch axis."""
        return self.channels, self.frames, self.height, self.width


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """The division of latent frames into causal blocks. CausVid sec. 4.1 calls a block a chunk.

    Attributes:
        frames: Number of latent frames in the clip.
        frames_per_block: Number of latent frames in a block; it must divide ``frames``.
    """

    frames: int
    frames_per_block: int

    def __post_init__(self) -> None:
        if self.frames_per_block < 1 or self.frames % self.frames_per_block:
            fitting = [k for k in range(1, self.frames + 1) if self.frames % k == 0]
            raise ValueError(
                f"model.frames_per_block is {self.frames_per_block}; {self.frames} latent frames divide into blocks of "
                f"{', '.join(map(str, fitting))} frames"
            )

    @property
    def blocks(self) -> int:
        """Return the number of blocks in a clip."""
        return self.frames // self.frames_per_block

    def starts(self) -> range:
        """Return the index of the first latent frame of every block."""
        return range(0, self.frames, self.frames_per_block)

    def frame_ranges(self, temporal_stride: int) -> list[range]:
        """Return the range of video frames that each block encodes.

        The first latent frame encodes one frame. Every later latent frame encodes ``temporal_stride`` frames.
        """
        ends = [(start + self.frames_per_block - 1) * temporal_stride + 1 for start in self.starts()]
        return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def block_frames(video: VideoShape, *, temporal_stride: int, frames_per_block: int | None) -> list[range]:
    """Return the range of video frames that each block of latent frames encodes.

    Args:
        video: Size of the video.
        temporal_stride: Number of frames that each latent frame after the first encodes.
        frames_per_block: Number of latent frames in a block; None = one block for the whole video.

    Raises:
        ValueError: The VAE would drop frames, or the latent frames cannot be divided into blocks.
    """
    latent = LatentShape.of(video, channels=1, temporal_stride=temporal_stride, spatial_stride=1).frames
    return BlockLayout(frames=latent, frames_per_block=frames_per_block or latent).frame_ranges(temporal_stride)
