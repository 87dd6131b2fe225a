"""Read the videos to score from a folder, and render reference videos of the toy world for given captions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from causvid.data.sources import toy_world
from causvid.data.videos.video_reader import read_frames
from causvid.data.videos.video_writer import write_video
from causvid.runtime.seeding import derive_seed
from causvid.runtime.shapes import VideoShape

Frames = NDArray[np.uint8]
KEPT_BYTES = 2**28  # largest size in bytes of the videos of a folder that are kept in memory


class Clips(Sequence[Frames]):
    """The videos of the given manifest rows, each uint8 [F, H, W, 3].

    If all videos together have at most ``KEPT_BYTES`` bytes, each video is decoded once, and its array is read-only.
    Otherwise, a video is decoded again at every access.

    Args:
        folder: Folder of the videos.
        rows: Rows of the manifest in ``folder``.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        self.paths = [folder / row["path"] for row in rows]
        self.kept: dict[Path, Frames] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Frames: ...

    @overload
    def __getitem__(self, index: slice) -> list[Frames]: ...

    def __getitem__(self, index: int | slice) -> Frames | list[Frames]:
        if isinstance(index, slice):
            return [self._read(path) for path in self.paths[index]]
        return self._read(self.paths[index])

    def _read(self, path: Path) -> Frames:
        if path in self.kept:
            return self.kept[path]
        frames = read_frames(path)
        if frames.nbytes * len(self) <= KEPT_BYTES:
            frames.flags.writeable = False
            self.kept[path] = frames
        return frames


def renderings(captions: Sequence[str], video: VideoShape, *, crf: int) -> Iterator[Frames]:
    """Render the videos of a perfect model, each with a random start and radius, and encode them with H.264.

    The random numbers do not depend on the seed of a run, and no training clip uses them.

    Args:
        captions: Captions of the toy world.
        video: Size of the videos.
        crf: Quality of x264.

    Returns:
        An iterator over one decoded video, uint8 [F, H, W, 3], for each caption.

    Raises:
        ValueError: A caption does not describe a scene of the toy world.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for number, caption in enumerate(captions):
            # The draw does not depend on the seed of the run, so that all runs are compared with the same renderings.
            draw = np.random.Generator(np.random.PCG64(derive_seed("reference", number)))
            start_xy = (draw.uniform(0, video.width), draw.uniform(0, video.height))
            radius = draw.uniform(*toy_world.radius_range(video))
            frames = toy_world.render(toy_world.parse(caption), video=video, start_xy=start_xy, radius=radius)
            write_video(path, frames, fps=video.fps, crf=crf)
            yield read_frames(path)
