"""Pixels ↔ latents ↔ tokens ↔ blocks: the integer arithmetic of a causal video VAE and a patch transformer.

Sources: CausVid sec. 4.1 (blocks of latent frames), the Wan VAE's 1 + 4n frames → 1 + n latent frames.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VideoShape:
    """The one size every clip of a run has (params section ``video``).

    Attributes: height and width in pixels; frames in frames; fps in frames per second.
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
    """A clip in latent space: channels, then frames, height and width in latent units."""

    channels: int
    frames: int
    height: int
    width: int

    @classmethod
    def of(cls, video: VideoShape, *, channels: int, temporal_stride: int, spatial_stride: int) -> LatentShape:
        """Latent size of ``video`` under a causal VAE that keeps the first frame and strides the rest.

        Raises ValueError when the VAE would silently drop frames or pixels.
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
        """(C, F, H, W), the order of every tensor in memory after its batch axis."""
        return self.channels, self.frames, self.height, self.width


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """How latent frames fall into causal blocks (CausVid sec. 4.1: chunks)."""

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
        """Number of blocks in a clip."""
        return self.frames // self.frames_per_block

    def starts(self) -> range:
        """First latent frame of every block."""
        return range(0, self.frames, self.frames_per_block)

    def frame_ranges(self, temporal_stride: int) -> list[range]:
        """Frames of the video that each block shows, the VAE keeping the first one and striding the rest."""
        ends = [(start + self.frames_per_block - 1) * temporal_stride + 1 for start in self.starts()]
        return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def block_frames(video: VideoShape, *, temporal_stride: int, frames_per_block: int | None) -> list[range]:
    """The frames of ``video`` that each block of latent frames shows; a ``frames_per_block`` of None is one block.

    Raises ValueError for frames that the VAE would drop or that do not divide into blocks.
    """
    latent = LatentShape.of(video, channels=1, temporal_stride=temporal_stride, spatial_stride=1).frames
    return BlockLayout(frames=latent, frames_per_block=frames_per_block or latent).frame_ranges(temporal_stride)
