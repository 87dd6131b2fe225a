"""Videos to score: read from their folder when asked for, or rendered anew as the set that real ones are drawn from."""

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
KEPT_BYTES = 2**28


class Clips(Sequence[Frames]):
    """The videos that manifest ``rows`` list in ``folder``, uint8 [F, H, W, 3] each.

    Decoded anew at every look, where all of them would take more than ``KEPT_BYTES``; else once, and read-only.
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
    """What a perfect model would make of ``captions``: each rendered at a start and radius of its own, through H.264.

    uint8 [F, H, W, 3] each. The draws are the same for every run and are none that a training clip was made from.
    Raises ValueError for a caption that is not of the toy world.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for number, caption in enumerate(captions):
            # No seed of the run: every run is held against the same renderings.
            draw = np.random.Generator(np.random.PCG64(derive_seed("reference", number)))
            start_xy = (draw.uniform(0, video.width), draw.uniform(0, video.height))
            radius = draw.uniform(*toy_world.radius_range(video))
            frames = toy_world.render(toy_world.parse(caption), video=video, start_xy=start_xy, radius=radius)
            write_video(path, frames, fps=video.fps, crf=crf)
            yield read_frames(path)
