"""Decode clips and samples that this project wrote. The package ``data.resampling`` decodes all other videos."""

from __future__ import annotations

from pathlib import Path

import av
import decord
import numpy as np
from decord import DECORDError
from numpy.typing import NDArray

decord.logging.set_level(decord.logging.QUIET)  # errors are raised, so messages on stderr are redundant


def read_frames(path: Path) -> NDArray[np.uint8]:
    """Decode all frames of a video to RGB, uint8 [F, H, W, 3]. Raises ValueError if the video cannot be decoded.

    Do not use this function for videos of unknown origin: decord can hang on a damaged end, and returns a neighbouring
    frame in place of a damaged frame.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; run the stage that writes it again")
    try:
        video = decord.VideoReader(str(path), num_threads=1)
        frames: NDArray[np.uint8] = video.get_batch(range(len(video))).asnumpy()
    except (RuntimeError, DECORDError) as error:
        reason = str(error).splitlines()[0]
        # decord 0.6 fails on the row padding of some widths (16, 24, 48 and 72 pixels). PyAV decodes the same values.
        if "ArrayCopyFromTo" in reason:
            return _read_with_pyav(path)
        raise ValueError(f"{path} cannot be decoded ({reason}); run the stage that writes it again") from error
    return frames


def _read_with_pyav(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]).astype(np.uint8)
