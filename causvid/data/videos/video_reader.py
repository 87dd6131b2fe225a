"""Decode clips and samples that this project wrote. The package data.resampling decodes all other videos."""

from __future__ import annotations

from pathlib import Path

import av
import decord
import numpy as np
from decord import DECORDError
from numpy.typing import NDArray

decord.logging.set_level(decord.logging.QUIET)  # what goes wrong is raised


def read_frames(path: Path) -> NDArray[np.uint8]:
    """All frames of a video as uint8 [F, H, W, 3] RGB. Raises ValueError with the reason when it cannot be decoded.

    Not for videos of unknown origin: decord can hang on a broken end and shows a neighbour for a damaged frame.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; make it again with the stage that writes it")
    try:
        video = decord.VideoReader(str(path), num_threads=1)
        frames: NDArray[np.uint8] = video.get_batch(range(len(video))).asnumpy()
    except (RuntimeError, DECORDError) as error:
        reason = str(error).splitlines()[0]
        # decord 0.6 trips over the padding of its own rows at some widths (16, 24, 48, 72); PyAV gives equal numbers.
        if "ArrayCopyFromTo" in reason:
            return _read_with_pyav(path)
        raise ValueError(f"{path} cannot be decoded ({reason}); make it again") from error
    return frames


def _read_with_pyav(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]).astype(np.uint8)
