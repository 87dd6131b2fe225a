"""Params of the stage ``resample``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ResampleConfig:
    """Params section ``resample``.

    Attributes:
        aspect: ``crop`` scales the video and crops it around the centre; ``squeeze`` only scales the video, and rejects
            a video whose aspect ratio would change by more than 10 %.
        crf: Quality of x264 for the clips; lower is better.
        hdr: ``tone_map`` converts HLG and PQ video to BT.709 SDR; ``reject`` rejects it.
        interlaced: ``deinterlace`` converts each interlaced frame to a progressive one; ``reject`` rejects the video.
    """

    aspect: Literal["crop", "squeeze"]
    crf: int
    hdr: Literal["tone_map", "reject"]
    interlaced: Literal["deinterlace", "reject"]
