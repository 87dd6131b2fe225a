"""Encode clips and samples as H.264. Equal frames give files with equal bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

# These conversions round in the same way on every CPU, but are slower than the default conversions.
EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT
TEMPORARY = ".{name}.tmp-{process}"  # name of an unfinished file, which players and the glob *.mp4 ignore


def write_video(path: Path, frames: NDArray[np.uint8] | Iterable[NDArray[np.uint8]], *, fps: int, crf: int) -> None:
    """Write RGB frames to ``path`` as an mp4 (H.264, 4:2:0). The file is complete or absent.

    Args:
        path: The file. Its folder must exist.
        frames: uint8 [F, H, W, 3], or an iterable of such chunks. Each chunk is encoded before the next one is
            requested, so that memory use does not depend on the length of the video.
        fps: Frames per second.
        crf: Quality of x264; lower is better.

    Raises:
        ValueError: There are no frames, or they have a wrong type or shape.
    """
    with open_video(path, fps=fps, crf=crf) as video:
        for chunk in [frames] if isinstance(frames, np.ndarray) else frames:
            video.write(chunk)


@contextmanager
def open_video(path: Path, *, fps: int, crf: int) -> Iterator[VideoEncoder]:
    """Open an mp4 for writing chunk by chunk. Several mp4 files can be open at the same time.

    Frames are encoded into a temporary file in the folder of ``path``. At the end of the ``with`` block, the temporary
    file is renamed to ``path``. After an exception in the block, including KeyboardInterrupt, the temporary file is
    deleted, and ``path`` is unchanged.

    Args:
        path: The file. Its folder must exist.
        fps: Frames per second.
        crf: Quality of x264; lower is better.

    Yields:
        The encoder, whose method ``write`` encodes the next frames.

    Raises:
        ValueError: No frames were written.
    """
    temporary = path.with_name(TEMPORARY.format(name=path.name, process=os.getpid()))
    try:
        with temporary.open("wb") as file, closing(VideoEncoder(path, file, fps=fps, crf=crf)) as video:
            yield video
            video.finish()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Delete the temporary files of killed processes in ``folder``. No other process may write into ``folder``."""
    for path in folder.glob(TEMPORARY.format(name="*.mp4", process="*")):
        path.unlink()


class _Sink:
    """A file that PyAV writes. After a failure, or after ``given_up`` is set, this object ignores all calls.

    PyAV seeks and writes when it closes a container. An error in these calls would hide the first error.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.given_up = file, False

    def write(self, data: bytes) -> int:
        return self._unless_given_up(lambda: self.file.write(data), len(data))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._unless_given_up(lambda: self.file.seek(offset, whence), 0)

    def tell(self) -> int:
        return self._unless_given_up(self.file.tell, 0)

    def _unless_given_up(self, call: Callable[[], int], otherwise: int) -> int:
        if self.given_up:
            return otherwise
        try:
            return call()
        except BaseException:
            self.given_up = True
            raise


class VideoEncoder:
    """Encodes frames into a file that is open for writing. The division into chunks does not affect the bytes.

    Attributes:
        frames: Number of frames written so far.
    """

    def __init__(self, path: Path, file: IO[bytes], *, fps: int, crf: int) -> None:
        self.path, self.fps, self.crf, self.frames = path, fps, crf, 0
        self._sink = _Sink(file)
        self._stream: VideoStream | None = None
        self._convert = VideoReformatter()
        # +bitexact omits the version and the time, which would change the bytes of the header.
        self._container = av.open(self._sink, "w", format="mp4", options={"fflags": "+bitexact"})

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Encode frames, uint8 [F, H, W, 3]. Raises ValueError for another type or shape, or if the size changes."""
        self._check(frames)
        if self._stream is None:
            self._stream = self._open_stream(height=frames.shape[1], width=frames.shape[2])
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            halved = self._convert.reformat(
                picture,
                format="yuv420p",
                interpolation=Interpolation.AREA | EXACT,
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            self._container.mux(self._stream.encode(halved))
        self.frames += len(frames)

    def finish(self) -> None:
        """Encode the frames that x264 still holds and write the index. Raises ValueError if there are no frames."""
        if self._stream is None:
            raise ValueError(f"{self.path}: there are no frames; a video needs at least one")
        self._container.mux(self._stream.encode())
        self._container.close()

    def close(self) -> None:
        """Close the container. The index of an unfinished container is not written."""
        self._sink.given_up = True
        with suppress(av.FFmpegError):  # an earlier call has raised the same error
            self._container.close()

    def _check(self, frames: NDArray[np.uint8]) -> None:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
            given = f"{frames.dtype} {frames.shape}"
            raise ValueError(f"{self.path}: frames are {given}; they must be uint8 [F, H, W, 3] with F at least 1")
        height, width = frames.shape[1:3]
        if height % 2 or width % 2:
            raise ValueError(f"{self.path}: frames are {height}x{width}; 4:2:0 colour needs an even height and width")
        stream = self._stream
        if stream is not None and (height, width) != (stream.height, stream.width):
            raise ValueError(
                f"{self.path}: frames are {height}x{width} after frames of {stream.height}x{stream.width}; "
                "all frames of a video must have one size"
            )

    def _open_stream(self, *, height: int, width: int) -> VideoStream:
        # With several encoder threads, the bytes would differ from run to run. With x264's macroblock tree, the bytes
        # would differ too, because its vector code reads memory that was never written: in six encodings, 8 of 24 clips
        # of 32x32 pixels differed. With the values of crf in this project, the PSNR of the preset veryfast is half a
        # decibel lower than that of x264's default preset, and the encoding takes a third of the time.
        options = {"crf": str(self.crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        stream = self._container.add_stream("libx264", rate=self.fps, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.flags |= Flags.bitexact
        # Without these tags, players guess the colours from the size.
        context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.SMPTE170M, ColorTrc.SMPTE170M
        return stream
