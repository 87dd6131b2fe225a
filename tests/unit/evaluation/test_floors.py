from __future__ import annotations

import numpy as np

from causvid.data.sources import toy_world
from causvid.evaluation.corruptions import FLOORS
from causvid.evaluation.floors import floors
from causvid.evaluation.frechet import Ruler
from causvid.runtime.shapes import VideoShape

VIDEO = VideoShape(height=32, width=32, frames=9, fps=8)
CAPTIONS = toy_world.captions()[::12]


def test_every_floor_scores_below_the_clips() -> None:
    clips = [toy_world.clip_frames(caption, k, video=VIDEO, seed=0) for k, caption in enumerate(CAPTIONS)]
    ruler = Ruler(
        net=lambda videos: np.array([[video.mean(), video.std()] for video in videos], dtype=np.float64),
        reference=np.random.default_rng(0).normal(size=(len(clips), 2)),
        count=len(clips),
    )
    found = floors(clips, CAPTIONS, [range(9)], ruler)
    assert set(found) == {"shuffled_captions", *FLOORS}
    assert found == floors(clips, CAPTIONS, [range(9)], ruler)
    hurt = {
        "shuffled_captions": "colour",
        "frozen": "motion",
        "blurred": "shape",
        "noise": "velocity",
        "vanished": "seen",
    }
    for name, measure in hurt.items():
        assert found[name]["judge"][measure] < 0.9, name
        assert len(found[name]["judge"]["blocks"]) == 1
        assert (found[name]["frechet_distance"] is None) == (name == "shuffled_captions")
    assert found["shuffled_captions"]["judge"]["seen"] == 1
    assert found["shuffled_captions"]["table4"]["text"] < 60
    assert found["frozen"]["table4"]["temporal"] < 60
    assert found["vanished"]["table4"]["frame"] < 30
